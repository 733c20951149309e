"""Readings: sizes, parts and blocks with which a matrix on disk is read as few times as can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import SPARE_BYTES, Resources, resident_memory
from skerch_ooc.operators.adapters import Product
from skerch_ooc.pipeline.cost import require_fitting
from skerch_ooc.planning.memory import Reading, most_rows_bytes
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.parts import runs_of
from skerch_ooc.planning.sizes import FEWEST_TEST_MEASUREMENTS, Sizes
from skerch_ooc.planning.spec import Spec

MOST_LEFT, LEAST_LEFT = 8, 4
"""Left columns for each right one, where a sparse test matrix makes them cheap."""

_WIDE = 10_000
"""Of wider matrices the left sketch has fewer columns, so that memory holds it in one reading."""

_ROWS_FOR_SPARSE = 4
"""A matrix must have so many times more rows than left columns for these to be sparse."""


def sizes_for_rows(spec: Spec, shape: tuple[int, int], sizes: Sizes) -> tuple[Sizes, str]:
    """Chooses sizes, and the noise of the left sketch, for an operator whose rows are at hand.

    There a sparse test matrix makes many left columns cheap, which all but removes their part of
    the error: ``sqrt(1 + m / (l - m - 1))`` (Nakatsukasa 2020, arXiv 2009.11392, section 2).
    """
    method = METHODS[spec.recovery.method]
    if (
        spec.sketch.left_test_measurements == "auto"
        and spec.kind == "svd"
        and method.is_one_pass
        and sizes.test >= FEWEST_TEST_MEASUREMENTS
    ):
        sizes = replace(sizes, test_left=FEWEST_TEST_MEASUREMENTS)
    wide = max(LEAST_LEFT, min(MOST_LEFT, MOST_LEFT * _WIDE // shape[1])) * sizes.right
    asked = spec.sketch.left_measurements != "auto" or spec.storage is not None
    if not method.fits_left or spec.kind != "svd" or asked:
        return sizes, spec.sketch.noise
    if shape[0] < _ROWS_FOR_SPARSE * wide:
        return sizes, spec.sketch.noise
    # At least four entries in each row, however few columns there are.
    noise = next((f"sparse-sign-{unit}" for unit in (256, 64) if wide >= 4 * unit), "sparse-sign")
    return replace(sizes, left=wide), noise


def parts_that_fit(spec: Spec, product: Product, sizes: Sizes, resources: Resources) -> int:
    """Returns the fewest parts with which rows are read as few times as memory allows.

    Args:
        spec: The spec.
        product: The operator, whose rows are at hand.
        sizes: The columns of each role.
        resources: Memory of a process.
    """
    if product.is_turned:
        # Parts would add up, each as large as the whole.
        return 1
    counts = [1 << j for j in range((product.terms - 1).bit_length() + 1)]

    def blocks(count: int) -> int:
        runs = runs_of(product.terms, count)
        return _Tasks(spec, product, sizes, runs, resources.memory).fewest_blocks()

    # Of equal numbers the first is taken.
    return min(counts, key=blocks)


def widths_that_fit(
    spec: Spec, product: Product, sizes: Sizes, runs: Sequence[Range | None], resources: Resources
) -> dict[str, int]:
    """Chooses the widths of blocks, as wide as memory allows, where a task takes all roles.

    Args:
        spec: The spec.
        product: The operator, whose rows are at hand.
        sizes: The columns of each role.
        runs: The terms of each part; ``None`` for all.
        resources: Memory of a process.

    Raises:
        UsageError: If not even one column fits.
    """
    tasks = _Tasks(spec, product, sizes, runs, resources.memory)
    number = tasks.fewest_blocks()
    if not isinstance(spec.sketch.block, int):
        require_fitting(product.shape, tasks.needed(number), resources)
    return tasks.widths(number)


@dataclass(frozen=True)
class _Tasks:
    """Tasks that take all roles together, with the memory that they need.

    Attributes:
        spec: The spec.
        product: The operator.
        sizes: The columns of each role.
        runs: The terms of each part; ``None`` for all.
        memory: Of a process.
    """

    spec: Spec
    product: Product
    sizes: Sizes
    runs: Sequence[Range | None]
    memory: int

    def fewest_blocks(self) -> int:
        """The least power of two of blocks of columns with which a task fits; else the last."""
        number, most = 1, max(self.sizes.as_dict().values())
        while number < most and self.needed(number) > self.memory:
            number *= 2
        return number

    def widths(self, number: int) -> dict[str, int]:
        """The widths of the blocks of each role, if columns are cut into so many."""
        counts = self.sizes.as_dict()
        if isinstance(self.spec.sketch.block, int):
            return dict.fromkeys(counts, self.spec.sketch.block)
        return {role: max(1, -(-count // number)) for role, count in counts.items()}

    def needed(self, number: int) -> int:
        """The memory of a process, if columns are cut into so many blocks."""
        product, counts, widths = self.product, self.sizes.as_dict(), self.widths(number)
        blocks = max(-(-count // widths[role]) for role, count in counts.items())
        reading = Reading(
            slab_bytes=product.slab_bytes,
            turned=product.is_turned,
            alone=len(self.runs) == blocks == 1,
            terms=max(product.terms if run is None else len(run) for run in self.runs),
        )
        adjoint = self.spec.kind == "svd" and not METHODS[self.spec.recovery.method].is_one_pass
        task = most_rows_bytes(
            (max(map(self._rows, self.runs)), product.shape[1]),
            self.spec.products_dtype,
            {role: widths[role] if count else 0 for role, count in counts.items()},
            reading,
            adjoint=adjoint,
        )
        return resident_memory() + SPARE_BYTES + product.held_bytes + task

    def _rows(self, run: Range | None) -> int:
        rows = None if run is None else self.product.rows(run)
        return self.product.shape[0] if rows is None else len(rows)
