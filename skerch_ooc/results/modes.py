"""Modes: singular values and vectors, and what rows and columns are called, for export."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import DriftError, UsageError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.adapters import product_of
from skerch_ooc.operators.matrices.labels import Labels
from skerch_ooc.operators.matrices.options import OPTIONS_OF_OBJECTS
from skerch_ooc.operators.matrix import StoredMatrix
from skerch_ooc.operators.prepared import DIGEST, prepared
from skerch_ooc.operators.probe import check_fingerprint
from skerch_ooc.planning.plan import source_of
from skerch_ooc.results.assess import assess_result
from skerch_ooc.stages.measure.operands import STORED, build_for_run
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.tiles import Tiles

Blocks = Iterator[tuple[Range, Array]]
"""Some rows after the other."""

CENTRED = ("column-mean", "both")
"""What ``subtract`` is where columns are centred."""

_ROWS = 4096


@dataclass(frozen=True)
class Modes:
    """Singular values and vectors, with the signs of principal components.

    Attributes:
        run: The run, or the samples, that they are of.
        values: Singular values, ``(k,)``, in double precision.
        left: Makes the left vectors, some rows after the other.
        right: The same of the right vectors.
        dtype: Of the vectors.
        labels: What rows and columns are.
        is_centred: Whether means of columns were subtracted.
        shares: Of the variance (of the squared norm, if columns were not centred) for each value;
            ``None`` if the whole is not known.
        is_estimated: Whether the whole was estimated.
        roots: What rows, and columns, were multiplied by; ``None`` for nothing.
        is_scaled: Whether columns were divided by their deviations.
        may_be_left_out: Columns that can have been missing throughout; ``None`` for any.
        left_out: Columns that were; ``None`` if only zeros in the vectors tell.
        has_weights: Whether columns had weights that are not known any more, so that they are still
            in the patterns.
    """

    run: str
    values: Array
    left: Callable[[], Blocks]
    right: Callable[[], Blocks]
    dtype: np.dtype[Any]
    labels: Labels
    is_centred: bool = False
    shares: Array | None = None
    is_estimated: bool = False
    roots: tuple[Array | None, Array | None] = (None, None)
    is_scaled: bool = False
    may_be_left_out: Array | None = None
    left_out: Array | None = None
    has_weights: bool = False

    @property
    def rank(self) -> int:
        """How many modes there are."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return math.prod(self.labels.rows.sizes), math.prod(self.labels.columns.sizes)

    @property
    def whole(self) -> str:
        """What shares are of."""
        what = "variance of all columns" if self.is_centred else "sum of squares of all entries"
        return f"{what}, which test vectors have estimated" if self.is_estimated else what

    def is_left_out(self, rows: Range, block: Array) -> Array:
        """Which of some rows of the right vectors are of columns that are missing throughout."""
        if self.left_out is not None:
            return self.left_out[rows.slice]
        zero = np.asarray((block == 0).all(axis=1))
        may = self.may_be_left_out
        return zero if may is None else zero & may[rows.slice]

    def patterns(self, rows: Range, block: Array) -> Array:
        """Right vectors times singular values, in the units of the matrix: weights divided out."""
        made = block * self.values
        root = self.roots[1]
        if root is not None:
            part = root[rows.slice, None]
            made = np.where(part == 0, np.nan, made / np.where(part == 0, 1, part))
        return made.astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Prepared:
    """What is known of the matrix of a run.

    Attributes:
        labels: What rows and columns are.
        roots: See :class:`Modes`.
        is_scaled: The same.
        may_be_left_out: The same.
        left_out: The same.
        has_weights: The same.
    """

    labels: Labels
    roots: tuple[Array | None, Array | None] = (None, None)
    is_scaled: bool = False
    may_be_left_out: Array | None = field(default=None)
    left_out: Array | None = field(default=None)
    has_weights: bool = False

    @classmethod
    def of(cls, matrix: StoredMatrix, *, exactly: bool = False) -> Prepared:
        """Asks a matrix.

        Args:
            matrix: The matrix.
            exactly: Whether columns that are missing throughout are to be known, where vectors need
                not be exactly zero there.
        """
        scaled = matrix.steps.rows.scale or matrix.steps.columns.scale
        gone = matrix.left_out() if exactly else None
        return cls(matrix.labels(), matrix.roots, scaled, matrix.may_be_left_out(), gone)

    @classmethod
    def of_object(cls, run: Run, like: Any) -> Prepared:
        """Asks the object that a run has decomposed, of the options that its plan states.

        Raises:
            OperatorError: If the object has not what they name, such as latitudes.
        """
        shape = run.plan.identity.shape
        found = cls.of_shape(shape)
        stated = source_of(run.plan, run.plan.parts[0]).args
        options = {key: stated[key] for key in OPTIONS_OF_OBJECTS if key in stated}
        numbers = [key for key in ("row_weights", "column_weights")
                   if str(options.get(key)).startswith(DIGEST)]  # fmt: skip
        for key in numbers:
            del options[key]
        if getattr(like, "shape", None) == shape and options:
            matrix = prepared(like, options, None, here=True)
            found = cls.of(matrix, exactly=run.plan.krylov is not None)
        labels = Labels.of([("", shape[0])], [("", shape[1])], (), getattr(like, "attrs", None))
        return replace(found, labels=labels, has_weights="column_weights" in numbers)

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Prepared:
        """Of a matrix of which nothing else is known."""
        none = np.zeros(shape[1], bool)
        return cls(Labels.of([("", shape[0])], [("", shape[1])]), may_be_left_out=none)


def prepared_in(run: Run, *, exactly: bool = False) -> Prepared:
    """Reads the names and coordinates of a run's matrix from its files, which must be the same.

    They are not kept in the run, as they may be wrong or missing in a file that can be decomposed.

    Args:
        run: The run.
        exactly: Whether columns that are missing throughout are to be known. Rounds span random
            directions too, so that vectors of ``krylov`` are only nearly zero there.

    Raises:
        DriftError: If the files are others than when the run was planned.
        OperatorError: If they cannot be opened.
    """
    plan = run.plan
    if plan.identity.factory not in STORED or plan.summands > 1:
        return Prepared.of_shape(plan.identity.shape)
    matrix = build_for_run(run)
    if matrix.shape != plan.identity.shape or not _is_same(run, matrix):
        raise DriftError(
            f"the files of the matrix of {run.directory} have changed since the run was planned, "
            "so that their names may be others; restore them, or plan a new run"
        )
    return Prepared.of(matrix, exactly=exactly and plan.krylov is not None)


def _is_same(run: Run, matrix: StoredMatrix) -> bool:
    """Whether a matrix agrees with the fingerprints of its run."""
    identity = run.plan.identity
    product = product_of(matrix, identity.dtype, "cpu")
    for part in run.plan.parts:
        known = run.fingerprint(part.number)
        if known is not None and part.together:
            mine = product if part.terms is None else product.part(part.terms)
            try:
                check_fingerprint(mine.sampled_as(known), identity.seed, known)
            except DriftError:
                return False
    return True


def modes_of(
    run: Run, path: Any, values: Array, vectors: tuple[Tiles, Tiles], prepared: Prepared
) -> Modes:
    """Modes of a result of a run.

    Args:
        run: The run.
        path: The file of the result.
        values: Its singular values.
        vectors: Its left and right vectors.
        prepared: What is known of the matrix.

    Raises:
        UsageError: If the vectors are complex.
    """
    left, right = vectors
    if right.dtype.kind == "c":
        raise UsageError(f"{path} is complex; export is of real numbers: use a real matrix")
    signs = signs_of(_blocks(right, None))
    norm = assess_result(run, path).norm
    return Modes(
        run.plan.run_id, np.asarray(values, np.float64),
        lambda: _blocks(left, signs), lambda: _blocks(right, signs), right.dtype,
        prepared.labels, _is_centred(run), None if not norm else (values / norm) ** 2,
        True, prepared.roots, prepared.is_scaled, prepared.may_be_left_out, prepared.left_out,
        prepared.has_weights,
    )  # fmt: skip


def _is_centred(run: Run) -> bool:
    return source_of(run.plan, run.plan.parts[0]).args.get("subtract") in CENTRED


def _blocks(tall: Tiles, signs: Array | None) -> Blocks:
    everything = Range(0, tall.shape[1])
    for rows in cut(Range(0, tall.shape[0]), _ROWS):
        block = tall.read(rows, everything)
        yield rows, block if signs is None else block * signs.astype(block.dtype)


def signs_of(blocks: Blocks) -> Array:
    """The sign of the entry of largest magnitude of each column, the first of equals."""
    best = signs = np.zeros(0)
    for _, block in blocks:
        columns = np.arange(block.shape[1])
        found = block[np.argmax(np.abs(block), axis=0), columns].astype(np.float64)
        if not len(best):
            best, signs = np.zeros(len(columns)), np.ones(len(columns))
        more = np.abs(found) > best
        signs = np.where(more, np.where(found < 0, -1.0, 1.0), signs)
        best = np.where(more, np.abs(found), best)
    return signs


def rectangles(
    sizes: tuple[int, ...], inside: Range
) -> Iterator[tuple[tuple[slice, ...], Range]]:  # fmt: skip
    """Cuts places that follow each other in a grid into rectangles of it.

    Args:
        sizes: Of the grid, the slowest first.
        inside: Places.

    Returns:
        An index for each dimension, and the places that it stands for, in their order.
    """
    if len(sizes) == 1:
        yield (inside.slice,), inside
        return
    inner, place = math.prod(sizes[1:]), inside.start
    while place < inside.stop:
        first, last = place // inner, inside.stop // inner
        if place % inner == 0 and last > first:
            stop = last * inner
            index = (slice(first, last), *(slice(None) for _ in sizes[1:]))
            yield index, Range(place, stop)
        else:
            stop = min((first + 1) * inner, inside.stop)
            start = first * inner
            for others, part in rectangles(sizes[1:], Range(place - start, stop - start)):
                yield (slice(first, first + 1), *others), part.shifted(start)
        place = stop
