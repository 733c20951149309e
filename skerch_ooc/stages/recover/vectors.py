"""Vectors: the last stream makes tall orthonormal ``U = X T`` from columns on disk, by row tiles.

While a tile of ``U`` is in memory, rounded as it is stored, figures are formed from it: random
probes tell how far ``U^H U`` is from the identity; where the test sketch has the same rows, the
residual ``T - U diag(values) V^H G`` is formed column by column. Figures are summed in one fixed
tree, so any process can do any run of tiles.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from skerch_ooc.base.arrays import Array, empty_aligned
from skerch_ooc.base.partition import Range
from skerch_ooc.base.progress import Advance
from skerch_ooc.base.resources import Resources
from skerch_ooc.base.streams import Pool, sum_of_tiles
from skerch_ooc.planning.disk import VECTOR_TILE_COLUMNS
from skerch_ooc.planning.memory import (
    PROBES,
    Needed,
    TallSizes,
    gram_bytes,
    stored_bytes,
    tile_rows,
    vectors_bytes,
)
from skerch_ooc.planning.plan import Plan
from skerch_ooc.stages.merge.arithmetic import Arithmetic, Host, arithmetic_on
from skerch_ooc.stages.merge.testmatrices import gaussian_probes
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.names import BASIS_MATRIX
from skerch_ooc.store.object_bytes import tiles_beside_windows
from skerch_ooc.store.sealed import BulkWriter
from skerch_ooc.store.tiles import Tiles


@dataclass(frozen=True)
class Vectors:
    """The factors of tall vectors: ``(X transform - F projection) correction``.

    Attributes:
        source: The columns ``X``, ``(n, c)``.
        transform: ``(c, k)``.
        correction: ``(k, r)``; ``None`` if it is the identity.
        projection: ``(f, k)``, of the first ``f`` columns ``F`` of ``X``; ``None`` for nothing.
    """

    source: Tiles
    transform: Array
    correction: Array | None = None
    projection: Array | None = None

    @property
    def rank(self) -> int:
        """The number of vectors."""
        last = self.transform if self.correction is None else self.correction
        return int(last.shape[1])

    def compressed(self, copy: Array) -> Array:
        """Returns the same vectors made of a small matrix instead of ``X``."""
        made = copy @ self.transform
        return made if self.correction is None else made @ self.correction

    def as_arrays(self, prefix: str) -> dict[str, Array]:
        """Returns the factors as files hold them: by name, after a prefix."""
        factors = {
            "transform": self.transform,
            "correction": self.correction,
            "projection": self.projection,
        }
        return {f"{prefix}{name}": array for name, array in factors.items() if array is not None}

    def turned(self, signs: Array) -> Vectors:
        """Returns the vectors, each multiplied by a number of modulus 1."""
        if self.correction is None:
            return Vectors(self.source, self.transform * signs)
        return Vectors(self.source, self.transform, self.correction * signs)


class VectorMaker:
    """Computes row tiles of vectors in double precision.

    Args:
        plan: The plan in force.
        vectors: The factors of the vectors.
        rows: The height of the vectors.
        arithmetic: The arithmetic that forms the products.
    """

    def __init__(self, plan: Plan, vectors: Vectors, rows: int, arithmetic: Arithmetic) -> None:
        # Before a stream limits its threads, which reaches torch only if it is loaded.
        importlib.import_module("torch")
        self._vectors = vectors
        self._on = arithmetic
        self._transform = arithmetic.load(np.ascontiguousarray(vectors.transform))
        if vectors.correction is not None:
            self._correction = arithmetic.load(np.ascontiguousarray(vectors.correction))
        if vectors.projection is not None:
            self._projection = arithmetic.load(np.ascontiguousarray(vectors.projection))
        self.tiles = plan.tiles(rows)
        height, wide = tile_rows(plan, rows), plan.identity.wide_dtype
        self._pool = Pool(
            lambda: [
                empty_aligned((height, columns), wide)
                for columns in (
                    vectors.source.shape[1],
                    vectors.transform.shape[1],
                    0 if vectors.correction is None else vectors.rank,
                    0 if vectors.projection is None else vectors.transform.shape[1],
                )
            ]
        )

    def take(self) -> list[Array]:
        """Takes buffers for a tile."""
        return self._pool.take()

    def give(self, buffers: list[Array]) -> None:
        """Hands buffers back."""
        self._pool.give(buffers)

    def tile(self, number: int, buffers: list[Array]) -> Array:
        """Computes one row tile of the vectors, in one of the buffers."""
        rows = len(self.tiles[number])
        x = self._vectors.source.read_row(number, buffers[0])
        u = buffers[1][:rows]
        loaded = self._on.load(x)
        self._on.times(loaded, self._transform, u)
        if self._vectors.projection is not None:
            # A second product, and not another transform: what it removes is seen only in the
            # rounded u, not in the much larger X.
            inside = buffers[3][:rows]
            self._on.times(loaded[:, : len(self._vectors.projection)], self._projection, inside)
            u -= inside
        if self._vectors.correction is None:
            return u
        # Two products, not one with the product of the factors: the correction was computed for
        # the rounding errors of X T, which must be the same here.
        turned = buffers[2][:rows]
        self._on.times(self._on.load(u), self._correction, turned)
        return turned


@dataclass
class TileFigures:
    """Figures of one tile of the vectors, or of many: to be added up, and evaluated at the end.

    Attributes:
        probed: ``U^H (U P)`` for random ``P``, ``(r, PROBES)``.
        residual: Squared norm of each column of the residual of the test sketch, ``(q,)``.
        test: Squared norm of each column of the test sketch, ``(q,)``.
        test_products: ``U^H T``, ``(r, q)``, where it was asked for; else ``(0, q)``.
        residual_products: ``U^H (T - U diag(values) V^H G)`` where they tell how far the values
            are off: of eigenvectors, and of singular vectors whose both sides have a test sketch,
            ``(r, q)``; else ``(0, q)``.
        metric: ``U^H [X U]`` of a block, ``X`` being its source, ``(r, c + r)``; else ``(0, 0)``.
    """

    probed: Array
    residual: Array
    test: Array
    test_products: Array
    residual_products: Array
    metric: Array

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> TileFigures:
        """Returns the figures that :meth:`as_arrays` gave."""
        # Pieces of the first versions have no residual products.
        none = np.zeros((0, len(arrays["test"])))
        return cls(**{"residual_products": none, "metric": np.zeros((0, 0)), **arrays})

    def add(self, other: TileFigures) -> TileFigures:
        """Adds the figures of further tiles to these."""
        self.probed += other.probed
        self.residual += other.residual
        self.test += other.test
        self.test_products += other.test_products
        self.metric += other.metric
        if len(self.residual_products) == len(other.residual_products):
            self.residual_products += other.residual_products
        else:
            # Pieces of two versions: for some rows they are not known.
            self.residual_products = self.residual_products[:0]
        return self

    def as_arrays(self) -> dict[str, Array]:
        """Returns the figures by their names."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        # Only blocks have a metric.
        return {name: array for name, array in found.items() if array.size or name != "metric"}


def has_residuals(plan: Plan) -> bool:
    """Whether test sketches tell how far each value is off: of both sides, or of the only one."""
    return plan.identity.kind == "eigh" or plan.reach("test-left") > 0


def layout_of(plan: Plan, name: str, rows: int, rank: int) -> Layout:
    """Returns the layout in which vectors, or a basis, are stored."""
    columns = VECTOR_TILE_COLUMNS
    if name == BASIS_MATRIX and plan.krylov is not None:
        columns = plan.krylov.tile or columns
    return Layout(
        name=name,
        shape=(rows, rank),
        dtype=plan.identity.dtype,
        tile=(tile_rows(plan, rows), min(columns, rank)),
    )


@dataclass(frozen=True)
class Recipe:
    """A recipe: how a tall matrix is made, and which figures are formed of it on the way.

    Attributes:
        name: The name of the matrix on disk.
        rows: The height of the matrix.
        vectors: The factors that the matrix is the product of.
        test: The test sketch, if it has the same rows and is to be compared.
        weights: ``diag(values) V^H G``, ``(r, q)``: what the residual of the test sketch is formed
            with; without it ``U^H T`` is.
        family: How many of the source's first columns are blocks, to which this one is to be
            orthogonal.
        is_block: Whether the matrix is a block, whose metric is formed.
    """

    name: str
    rows: int
    vectors: Vectors
    test: Tiles | None = None
    weights: Array | None = None
    family: int = 0
    is_block: bool = False

    def tile_bytes(self, plan: Plan) -> int:
        """Returns the bytes of a row tile as it is stored."""
        return stored_bytes(plan, tile_rows(plan, self.rows), self.vectors.rank)

    @property
    def sizes(self) -> TallSizes:
        """The sizes that its need of memory follows from."""
        vectors = self.vectors
        return TallSizes(
            rows=self.rows,
            columns=vectors.source.shape[1],
            rank=vectors.rank,
            tests=self.tests,
            corrected=vectors.correction is not None,
            family=self.family,
        )

    @property
    def tests(self) -> int:
        """The number of columns of the test sketch."""
        return self.test.shape[1] if self.test is not None else 0


class Making:
    """Makes any run of row tiles of a tall matrix, in one process.

    Args:
        plan: The plan in force.
        recipe: The recipe of the matrix.
        resources: Memory and cores of this process.

    Attributes:
        recipe: The recipe of the matrix.
    """

    def __init__(self, plan: Plan, recipe: Recipe, resources: Resources) -> None:
        self._plan, self.recipe, self._resources = plan, recipe, resources
        self._on = arithmetic_on(resources.device)
        self._maker = VectorMaker(plan, recipe.vectors, recipe.rows, self._on)
        self._wide = plan.identity.wide_dtype
        self._probes = gaussian_probes(plan, recipe.vectors.rank, PROBES)
        # Probes and weights side by side: one product reads the tile once, two would read it twice.
        weights = () if recipe.weights is None else (recipe.weights,)
        self._factors = _aligned(np.concatenate([self._probes, *weights], axis=1))
        height, wide = tile_rows(plan, recipe.rows), plan.identity.wide_dtype
        # Not self._wide: what a pool of self makes must not hold self, or all buffers stay until
        # cycles are collected, which may be many rounds later.
        self._spaces = Pool(lambda: empty_aligned((height, recipe.tests), wide))

    @property
    def tiles(self) -> Range:
        """The numbers of all row tiles."""
        return Range(0, len(self._maker.tiles))

    def write(self, tiles: Range, writer: BulkWriter, advance: Advance) -> TileFigures:
        """Computes the vectors of a run of tiles and writes them.

        Args:
            tiles: Numbers of the row tiles.
            writer: Where they go; its first row tile is the first of ``tiles``.
            advance: Is called after each tile.

        Returns:
            The figures of these tiles.

        Raises:
            UsageError: If memory is too little.
        """

        def write_tile(number: int) -> TileFigures:
            buffers = self._maker.take()
            u = self._maker.tile(number, buffers)
            _write_rounded(writer, number - tiles.start, u)
            figures = self._figures(number, u)
            if self.recipe.is_block:
                x, adjoint = buffers[0][: len(u)], u.conj().T
                figures.metric = np.concatenate([adjoint @ x, adjoint @ u], axis=1)
            self._maker.give(buffers)
            return figures

        return sum_of_tiles(write_tile, tiles, self._in_flight, advance, TileFigures.add)

    @cached_property
    def _in_flight(self) -> int:
        """The number of tiles that may be held at once while vectors are written."""
        needed = vectors_bytes(self._plan, self.recipe.sizes)
        return self._tiles_at_once(needed)

    def _tiles_at_once(self, needed: Needed) -> int:
        tests = self.recipe.test.far_bytes if self.recipe.test is not None else 0
        far = self.recipe.vectors.source.far_bytes + tests
        return tiles_beside_windows("recover", self._resources, needed, far)

    def _figures(self, number: int, u: Array) -> TileFigures:
        recipe, q, residual = self.recipe, self.recipe.tests, self.recipe.weights is not None
        products = _times(u, self._factors)
        probed = products[:, :PROBES]
        figures = TileFigures(
            probed=np.zeros((0, PROBES)),
            residual=np.zeros(q if residual else 0),
            test=np.zeros(q),
            test_products=np.zeros((0 if residual else recipe.vectors.rank, q), self._wide),
            residual_products=np.zeros((0, q), self._wide),
            metric=np.zeros((0, 0)),
        )
        if q and recipe.test is not None:
            space = self._spaces.take()
            t = recipe.test.read_row(number, space)
            figures.test = np.sum(np.abs(t) ** 2, axis=0)
            if not residual:
                probed = np.concatenate([probed, t], axis=1)
            else:
                missed = np.subtract(t, products[:, PROBES:], out=products[:, PROBES:])
                figures.residual = np.sum(np.abs(missed) ** 2, axis=0)
                if has_residuals(self._plan):
                    # The residual has taken the place of the approximation: both go into one
                    # product with U^H.
                    probed = products
            self._spaces.give(space)
        # The adjoint, as rows of the tile are read in the order in which they lie.
        inside = _times(_aligned(probed.conj().T), u).conj().T
        figures.probed = inside[:, :PROBES]
        if inside.shape[1] > PROBES:
            if residual:
                figures.residual_products = inside[:, PROBES:]
            else:
                figures.test_products = inside[:, PROBES:]
        return figures

    def gram(self, tiles: Range, advance: Advance) -> Array:
        """Forms ``U^H U`` of a run of tiles of vectors that are not written, ``(r, r)``.

        Only its upper triangle counts. Of a block it forms ``[F U]^H U``, ``(f + r, r)``.

        Raises:
            UsageError: If memory is too little.
        """
        first = self.recipe.family
        shape = (first + self.recipe.vectors.rank, self.recipe.vectors.rank)
        needed = gram_bytes(self._plan, self.recipe.sizes)
        in_flight = self._tiles_at_once(needed)
        grams = Pool(lambda: np.zeros(shape, self._wide))

        def gram_of_tile(number: int) -> Array:
            buffers = self._maker.take()
            u = self._maker.tile(number, buffers)
            gram, loaded = grams.take(), self._on.load(u)
            self._on.adjoint_times(loaded, loaded, gram[first:])
            if first:
                family = self._on.load(buffers[0][: len(u), :first])
                self._on.adjoint_times(family, loaded, gram[:first])
            self._maker.give(buffers)
            return gram

        def add(total: Array, other: Array) -> Array:
            total += other
            grams.give(other)
            return total

        return sum_of_tiles(gram_of_tile, tiles, in_flight, advance, add)


def _aligned(array: Array) -> Array:
    """Returns a copy whose products have the same bits wherever in memory it lies."""
    copy = empty_aligned(array.shape, array.dtype)
    copy[:] = array
    return copy


def _times(left: Array, right: Array) -> Array:
    product = empty_aligned((len(left), right.shape[1]), right.dtype)
    Host().times(left, right, product)
    return product


def deviation(plan: Plan, figures: TileFigures) -> float:
    """Estimates ``||U^H U - I||_F`` from the probes of all tiles."""
    # E ||M p||^2 = ||M||_F^2 for Gaussian p; here M p = U^H (U p) - p.
    probes = gaussian_probes(plan, len(figures.probed), PROBES)
    return math.sqrt(float((np.abs(figures.probed - probes) ** 2).sum()) / PROBES)


def _write_rounded(writer: BulkWriter, number: int, u: Array) -> None:
    """Writes one row of tiles, and rounds ``u`` in place to what is stored."""
    # So the figures are those of the vectors on disk, not of better ones that nobody can read.
    for column in range(writer.layout.grid[1]):
        part = u[:, writer.layout.columns(column).slice]
        stored = np.ascontiguousarray(part, writer.layout.dtype)
        writer.write_tile(number, column, stored)
        part[:] = stored
