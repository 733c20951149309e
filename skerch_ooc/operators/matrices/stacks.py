"""Stacks: several files, one below the other, as one matrix."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.alike import (
    remarks_on_rows,
    remarks_on_units,
    require_same_columns,
)
from skerch_ooc.operators.matrices.labels import Labels
from skerch_ooc.operators.matrices.sources import Rows, Source, SparseSource


class StackedRows(Source):
    """Several dense sources on top of each other.

    Args:
        sources: From top to bottom.
        names: What each is called.

    Raises:
        OperatorError: If they are not equally wide.
    """

    def __init__(self, sources: Sequence[Source], names: Sequence[str]) -> None:
        self._sources = sources
        self._places = _Places(self, sources, names)
        self.dtype = self.stored_dtype = np.result_type(*(source.dtype for source in sources))

    def _read_to(self, out: Array, rows: Range) -> None:
        for number, inside, place in self._places.of(rows):
            out[place.slice] = self._sources[number].read(inside)

    def readings(self, slab_rows: int) -> float:
        """See :class:`Rows`: the most of any file."""
        return max(source.readings(slab_rows) for source in self._sources)

    def meaning(self, row: int, column: int) -> str:
        """See :class:`Rows`."""
        ((number, inside, _),) = self._places.of(Range(row, row + 1))
        return self._sources[number].meaning(inside.start, column)

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`: those of the first file."""
        return self._sources[0].coordinates(name)

    def labels(self) -> Labels:
        """See :class:`Rows`: along rows those of all files."""
        return _stacked_labels(self._sources)


class StackedSparseRows(SparseSource):
    """Several sparse sources on top of each other.

    Args:
        sources: From top to bottom.
        names: What each is called.

    Raises:
        OperatorError: If they are not equally wide.
    """

    def __init__(self, sources: Sequence[SparseSource], names: Sequence[str]) -> None:
        self._sources = sources
        self._places = _Places(self, sources, names)
        self.dtype = np.result_type(*(source.dtype for source in sources))
        before = itertools.accumulate((source.entries for source in sources), initial=0)
        pieces = [source.starts[1:] + count for source, count in zip(sources, before, strict=False)]
        self.starts = np.concatenate([np.zeros(1, np.int64), *pieces])

    def read(self, rows: Range) -> Any:
        """See :class:`SparseSource`."""
        import scipy.sparse

        found = [self._sources[number].read(inside) for number, inside, _ in self._places.of(rows)]
        return found[0] if len(found) == 1 else scipy.sparse.vstack(found, "csr", self.dtype)

    def _read_entries(self, first: int, last: int) -> tuple[Array, Array]:
        raise NotImplementedError

    def labels(self) -> Labels:
        """See :class:`Rows`: along rows those of all files."""
        return _stacked_labels(self._sources)


class SideBySide(Source):
    """Several dense sources by columns: what lies below each other is side by side in them.

    Args:
        sources: From top to bottom.
        names: What each is called.

    Raises:
        OperatorError: If they are not equally wide.
    """

    is_transposed = True

    def __init__(self, sources: Sequence[Source], names: Sequence[str]) -> None:
        self._sources = sources
        self._starts = _describe_side_by_side(self, sources, names)
        self.dtype = self.stored_dtype = np.result_type(*(source.dtype for source in sources))

    def _read_to(self, out: Array, rows: Range) -> None:
        for source, start, stop in zip(self._sources, self._starts, self._starts[1:], strict=False):
            out[:, start:stop] = source.read(rows)

    def readings(self, slab_rows: int) -> float:
        """See :class:`Rows`: the most of any file."""
        return max(source.readings(slab_rows) for source in self._sources)

    def meaning(self, row: int, column: int) -> str:
        """See :class:`Rows`."""
        number = bisect.bisect_right(self._starts, column) - 1
        return self._sources[number].meaning(row, column - self._starts[number])

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`: those of the first file."""
        return self._sources[0].coordinates(name)

    def labels(self) -> Labels:
        """See :class:`Rows`: along rows those of all files."""
        return _stacked_labels(self._sources)


class SparseSideBySide(SparseSource):
    """Several sparse sources by columns: what lies below each other is side by side in them.

    Args:
        sources: From top to bottom.
        names: What each is called.

    Raises:
        OperatorError: If they are not equally wide.
    """

    is_transposed = True

    def __init__(self, sources: Sequence[SparseSource], names: Sequence[str]) -> None:
        self._sources = sources
        _describe_side_by_side(self, sources, names)
        self.dtype = np.result_type(*(source.dtype for source in sources))
        self.starts = np.sum([source.starts for source in sources], axis=0)

    def read(self, rows: Range) -> Any:
        """See :class:`SparseSource`."""
        import scipy.sparse

        found = [source.read(rows) for source in self._sources]
        return scipy.sparse.hstack(found, "csr", self.dtype)

    def _read_entries(self, first: int, last: int) -> tuple[Array, Array]:
        raise NotImplementedError

    def labels(self) -> Labels:
        """See :class:`Rows`: along rows those of all files."""
        return _stacked_labels(self._sources)


def _stacked_labels(sources: Sequence[Rows]) -> Labels:
    first, *others = (source.labels() for source in sources)
    return first.stacked_on(others)


def _require_equally_wide(widths: Sequence[int], names: Sequence[str]) -> None:
    for name, width in zip(names, widths, strict=True):
        if width != widths[0]:
            raise OperatorError(
                f"{names[0]} has {widths[0]} columns, {name} has {width}; files that are "
                "stacked must be equally wide"
            )


def _describe_side_by_side(stack: Rows, sources: Sequence[Rows], names: Sequence[str]) -> list[int]:
    """Notes what the stack is; returns where each source begins in its rows."""
    # Their rows are the columns that are meant.
    _require_equally_wide([source.shape[0] for source in sources], names)
    starts = [0, *itertools.accumulate(source.shape[1] for source in sources)]
    stack.shape = (sources[0].shape[0], starts[-1])
    _note(stack, sources, names)
    return starts


def _note(stack: Rows, sources: Sequence[Rows], names: Sequence[str]) -> None:
    stack.name = f"{names[0]} and {len(names) - 1} more files"
    stack.held_bytes = sum(source.held_bytes for source in sources)
    stack.rows_together = max(source.rows_together for source in sources)
    stack.remarks = tuple(dict.fromkeys(one for source in sources for one in source.remarks))


class _Places:
    """Where the rows of each source lie in the stack, which is described by it.

    Args:
        stack: The stack.
        sources: From top to bottom.
        names: What each is called.
    """

    def __init__(self, stack: Rows, sources: Sequence[Rows], names: Sequence[str]) -> None:
        _require_equally_wide([source.shape[1] for source in sources], names)
        self._starts = [0, *itertools.accumulate(source.shape[0] for source in sources)]
        stack.shape = (self._starts[-1], sources[0].shape[1])
        _note(stack, sources, names)

    def of(self, rows: Range) -> Iterator[tuple[int, Range, Range]]:
        """For each source: its number, which of its rows, and their place among those wanted."""
        first = bisect.bisect_right(self._starts, rows.start) - 1
        for number in range(first, len(self._starts) - 1):
            start = self._starts[number]
            inside = Range(start, self._starts[number + 1]).common(rows)
            if not len(inside):
                break
            yield number, inside.shifted(-start), inside.shifted(-rows.start)


def stacked(sources: Sequence[Rows], names: Sequence[str]) -> Rows:
    """Stacks sources, all dense or all sparse; one alone is itself.

    Raises:
        OperatorError: If they are not of one kind, or not equally wide, or their columns are
            others.
    """
    if len(sources) == 1:
        return sources[0]
    turned = [name for name, one in zip(names, sources, strict=True) if one.is_transposed]
    if turned and len(turned) < len(sources):
        others = [name for name in names if name not in turned]
        raise OperatorError(
            f"{turned[0]} is stored by columns and {others[0]} by rows; write one of them as the "
            "other is (as CSR, or as another array)"
        )
    dense = [one for one in sources if isinstance(one, Source)]
    thin = [one for one in sources if isinstance(one, SparseSource)]
    if dense and thin:
        raise OperatorError(
            f"{dense[0].name} is dense and {thin[0].name} sparse; give files of one kind, as a "
            "list of paths"
        )
    made: Rows
    if turned:
        made = SideBySide(dense, names) if dense else SparseSideBySide(thin, names)
    else:
        made = StackedRows(dense, names) if dense else StackedSparseRows(thin, names)
    labels = [one.labels() for one in sources]
    require_same_columns(labels, names)
    units = remarks_on_units([one.attributes for one in labels], names)
    made.remarks += (*units, *remarks_on_rows(labels))
    return made
