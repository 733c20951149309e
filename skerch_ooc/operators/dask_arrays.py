"""Arrays of Dask as operators: each chunk of rows is sketched where it is, in one computation.

Terms are aligned runs of chunks, so that a part of a plan is made of whole ones: an interrupted run
computes those again that were under way, and no others. Sums are added in the tree over chunks.

The graph goes where Dask's own scheduler takes it, from this process, so that nothing of it is kept
in a run: to go on in another process, the same call must be made with the same array, or a factory
must make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from skerch_ooc.algebra.noise import Entries
from skerch_ooc.base.arrays import Array, converted
from skerch_ooc.base.partition import Range, cut, tree_sum
from skerch_ooc.operators.matrices.slabs import add_adjoint
from skerch_ooc.operators.matrices.sliced import coordinate_beside, numbers_of
from skerch_ooc.operators.matrices.sources import Source
from skerch_ooc.operators.matrix import TERM_BYTES, RowsProduct, StoredMatrix
from skerch_ooc.operators.rows import Backward, Forward, Inner, Request
from skerch_ooc.operators.slab_checks import require_entries, require_finite

_SENT = 1 << 26
"""Bytes of test vectors that are on their way at once, at least those of one chunk."""
_TOGETHER = 64
"""Chunks that are worked on in one computation."""


class DaskSource(Source):
    """Rows of an array of Dask, for those who want to see a few of them.

    Args:
        array: The array, in chunks of whole rows.
        beside: Coordinates of the object that it is of, by name.
    """

    def __init__(self, array: Any, beside: Mapping[str, Any] | None = None) -> None:
        self._array, self._beside = array, beside or {}
        self._describe("the dask array", array.shape, np.dtype(array.dtype).newbyteorder("="))
        self._starts = [0, *accumulate(array.chunks[0])]
        self.rows_together = max(array.chunks[0])
        self.held_bytes = self.rows_together * self.shape[1] * self.stored_dtype.itemsize
        self._kept, self._entries = Range(0, 0), np.empty((0, self.shape[1]), self.stored_dtype)

    def _read_to(self, out: Array, rows: Range) -> None:
        for number in range(len(self._starts) - 1):
            chunk = Range(self._starts[number], self._starts[number + 1])
            inside = chunk.common(rows)
            if not len(inside):
                continue
            if self._kept != chunk:
                found = self._array.blocks[number].compute()
                self._kept, self._entries = chunk, numbers_of(found)
            kept = self._entries[inside.shifted(-chunk.start).slice]
            out[inside.shifted(-rows.start).slice] = kept

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`; ``"latitude"`` also finds what is one by its attributes."""
        return coordinate_beside(self._beside, name)


class DaskMatrix(StoredMatrix):
    """An array of Dask.

    Args:
        array: The array, in chunks of numpy whose sizes are known.

    Attributes:
        array: The same, in chunks of whole rows.
        starts: Where each chunk begins, and behind the last where that ends.
        term_chunks: How many chunks a term has, but for the last.

    Raises:
        OperatorError: If it holds no numbers.
    """

    def __init__(self, array: Any) -> None:
        array = array.rechunk({1: -1}) if len(array.chunks[1]) > 1 else array
        if 0 in array.chunks[0] and array.shape[0]:
            array = array.rechunk({0: tuple(size for size in array.chunks[0] if size)})
        self.array = array
        super().__init__(DaskSource(array))
        self.starts = [0, *accumulate(array.chunks[0])]
        chunks = len(array.chunks[0])
        size = array.shape[0] * self._row_bytes
        self.term_chunks = 1 << max(0, -(-TERM_BYTES * chunks // size) - 1).bit_length()
        self.terms = -(-chunks // self.term_chunks)

    def chunks_of(self, terms: Range) -> Range:
        """The chunks that some terms are made of."""
        last = min(terms.stop * self.term_chunks, len(self.starts) - 1)
        return Range(terms.start * self.term_chunks, last)

    def as_product(self, dtype: str, device: str) -> RowsProduct:
        """What applies the array, and sketches it in one computation."""
        # Refuses what would drop an imaginary part.
        super().as_product(dtype, device)
        return DaskProduct(self, dtype, device)


@dataclass(frozen=True)
class _Left:
    """What stands on the left of some rows, as it travels.

    Attributes:
        vectors: Rows of ``N``; ``None`` where ``A X`` is wanted, which is not summed.
        columns: How many columns ``N`` has.
    """

    vectors: Array | Entries | None = None
    columns: int = 0

    @classmethod
    def of(cls, request: Request, rows: Range) -> _Left:
        """That of a request."""
        if isinstance(request, Forward):
            return cls()
        count = request.rows if isinstance(request, Inner) else request.columns
        return cls(request.vectors(rows), count)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        if isinstance(self.vectors, Entries):
            return 3 * self.vectors.rows.nbytes
        return 0 if self.vectors is None else self.vectors.nbytes


Sketches = dict[int, Array]
"""What was made for each request, by its number."""


class DaskProduct(RowsProduct):
    """Applies some rows of an array of Dask.

    Args:
        matrix: The matrix.
        dtype: Name of the plan's dtype.
        device: The torch device that the plan names.
        chosen: Which terms; all by default.
    """

    _operator: DaskMatrix

    def rows(self, terms: Range) -> Range:
        """See :meth:`skerch_ooc.operators.adapters.Product.rows`."""
        chunks, starts = self._operator.chunks_of(terms), self._operator.starts
        return Range(starts[chunks.start], starts[chunks.stop])

    def part(self, terms: Range) -> DaskProduct:
        """See :meth:`skerch_ooc.operators.adapters.Product.part`."""
        return DaskProduct(self._operator, self.dtype, self.device, terms)

    def sketch(self, requests: Sequence[Request], *, wide: bool = False) -> list[Array]:
        """Takes any number of sketches, in one computation of all chunks.

        Args:
            requests: What is wanted.
            wide: Whether sums over rows are to be left in double precision.

        Returns:
            What was wanted, in this order.

        Raises:
            OperatorError: If a row holds NaN or infinity, or a product overflows; names the row.
        """
        from dask.base import compute
        from dask.delayed import delayed

        xs = [None if isinstance(one, Backward) else _sent(one.columns) for one in requests]
        add, pick = delayed(_add, pure=False), delayed(_pick, pure=False)
        products: list[Sketches] = []
        sums: list[Sketches] = []
        for group in self._groups(requests):
            found = [delayed(_sketched, pure=False)(*one, xs, self.dtype) for one in group]
            # Added where they are: each is as wide as the matrix.
            added = tree_sum([pick(one, 1) for one in found], add)
            total, *rows = compute(added, *(pick(one, 0) for one in found))
            sums.append(total)
            products += rows
        total = tree_sum(sums, _add)
        made = []
        for number, request in enumerate(requests):
            if isinstance(request, Forward):
                made.append(np.concatenate([one[number] for one in products]))
            else:
                found_sum = total[number]
                made.append(found_sum if wide else converted(found_sum, self.dtype))
        return [np.ascontiguousarray(one) for one in made]

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[tuple[Any, int, Any]]]:
        """The chunks of the rows with what stands on their left, a few at a time.

        They are aligned runs of as many as a power of two, whose sums are nodes of the tree.
        """
        starts, chunks = self._operator.starts, self._operator.chunks_of(self._chosen)
        delayed = self._operator.array.to_delayed()[:, 0]
        for run in cut(chunks, self._together(requests)):
            group = []
            for number in range(run.start, run.stop):
                rows = Range(starts[number], starts[number + 1])
                lefts = [_Left.of(one, rows) for one in requests]
                group.append((delayed[number], rows.start, _sent(lefts)))
            yield group

    def _together(self, requests: Sequence[Request]) -> int:
        """How many chunks are worked on in one computation, by the bytes that go to them."""
        row = Range(self._rows.start, self._rows.start + 1)
        rows = self._operator.rows_shape[0] // (len(self._operator.starts) - 1)
        size = rows * sum(_Left.of(one, row).nbytes for one in requests)
        together = _TOGETHER
        while together > 1 and together * size > _SENT:
            together //= 2
        return together


def _sent(value: Any) -> Any:
    """What is large: put on a worker, if a cluster computes, before it is named in a graph."""
    from dask.base import get_scheduler

    client = getattr(get_scheduler(), "__self__", None)
    if not callable(getattr(client, "scatter", None)):
        return value
    return client.scatter([value], hash=False)[0]  # type: ignore[union-attr]


def _sketched(
    chunk: Any, first: int, lefts: list[_Left], xs: list[Any], dtype: str
) -> tuple[Sketches, Sketches]:
    """Sketches a chunk, wherever that is: products of its rows, and sums in double precision."""
    rows, kind = Range(first, first + len(chunk)), getattr(torch, dtype)
    slab = torch.from_numpy(np.ascontiguousarray(converted(numbers_of(chunk), dtype)))
    require_entries(rows, slab)
    products, sums = {}, {}
    for number, (one, x) in enumerate(zip(lefts, xs, strict=True)):
        right = slab if x is None else slab @ torch.from_numpy(np.array(x, dtype))
        if one.vectors is None:
            require_finite(rows, slab, right)
            products[number] = right.numpy()
            continue
        total = torch.zeros((one.columns, right.shape[1]), dtype=kind)
        left: Any = one.vectors
        if not isinstance(left, Entries):
            left = torch.from_numpy(np.array(left, dtype))
        add_adjoint(total, left, right)
        require_finite(rows, slab, total)
        # What was made is N^H A, and A^H N is wanted.
        found = total if x is not None else total.mH.resolve_conj()
        sums[number] = found.to(torch.promote_types(kind, torch.float64)).numpy()
    return products, sums


def _pick(both: tuple[Sketches, Sketches], place: int) -> Sketches:
    return both[place]


def _add(one: Sketches, other: Sketches) -> Sketches:
    return {number: one[number] + other[number] for number in one}
