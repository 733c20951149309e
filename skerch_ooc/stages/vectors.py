"""The last stream: tall orthonormal vectors ``U = X T`` from columns on disk, tile by tile.

While a tile of ``U`` is in memory, as it is stored, figures are formed from it: by random probes,
how far ``U^H U`` is from the identity; and where the test sketch has the same rows, the residual
``T - U diag(values) V^H G``, column by column.

``X T`` loses orthogonality where ``X`` is ill-conditioned, by the square of its condition if ``T``
comes from a Gram matrix. Then a stream before this one forms ``(X T)^H (X T)``, and its Cholesky
factor corrects ``U = (X T) C`` (CholeskyQR2: Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa
2020, "Shifted Cholesky QR for computing the QR factorization of ill-conditioned matrices",
arXiv 1809.11085, section 2). The two factors are applied one after the other: as the rounding of
``X T`` is the same in both streams, the correction sees it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.arrays import empty_aligned
from skerch_ooc.linalg import eigh_by_magnitude, gram_root, hermitian_part, mirrored, svd
from skerch_ooc.partition import levels, tree_sum
from skerch_ooc.progress import Advance, Progress
from skerch_ooc.resources import Resources
from skerch_ooc.sealed import BulkWriter, Layout
from skerch_ooc.shards import SketchReader
from skerch_ooc.spec import Plan
from skerch_ooc.stages.accumulate import is_double, wide_dtype
from skerch_ooc.stages.arithmetic import Arithmetic, arithmetic_on
from skerch_ooc.stages.problems import Source
from skerch_ooc.stages.testmatrices import gaussian_probes
from skerch_ooc.streams import Pool, ordered_map, tiles_in_flight

Array = npt.NDArray[Any]

VECTOR_TILE_COLUMNS = 64
"""Tiles of the vectors are narrow, so that a few leading vectors are read without the rest."""

PROBES = 8
"""Random vectors that the orthogonality is estimated from."""

_DOUBLE = 2.0**-52


def orthogonality_bound(plan: Plan) -> float:
    """What ``||U^H U - I||`` may be: 1e-6 in single, 1e-11 in double precision."""
    return 1e-11 if is_double(plan) else 1e-6


def expected_deviation(plan: Plan, condition: float) -> float:
    """About how far ``U^H U`` is from the identity if nothing corrects it.

    Args:
        plan: The plan in force.
        condition: Of the columns that were orthogonalised.
    """
    return _DOUBLE * (condition if is_double(plan) else condition**2)


def needs_correction(plan: Plan, condition: float) -> bool:
    """Whether the vectors may miss their bound, so that a stream that corrects them is worth it."""
    return 8 * expected_deviation(plan, condition) > orthogonality_bound(plan)


@dataclass(frozen=True)
class Vectors:
    """How tall vectors are made: ``(X transform) correction``.

    Attributes:
        source: The columns ``X``, ``(n, c)``.
        transform: ``(c, k)``.
        correction: ``(k, r)``; ``None`` if it is the identity.
    """

    source: Source
    transform: Array
    correction: Array | None = None

    @property
    def rank(self) -> int:
        """How many vectors."""
        last = self.transform if self.correction is None else self.correction
        return int(last.shape[1])

    def compressed(self, copy: Array) -> Array:
        """The same vectors made of a small matrix instead of ``X``."""
        made = copy @ self.transform
        return made if self.correction is None else made @ self.correction

    def turned(self, signs: Array) -> Vectors:
        """With each vector multiplied by a number of modulus 1."""
        if self.correction is None:
            return Vectors(self.source, self.transform * signs)
        return Vectors(self.source, self.transform, self.correction * signs)

    def bytes_per_tile(self, plan: Plan, rows: int) -> int:
        """Memory of a tile in flight."""
        wide = wide_dtype(plan).itemsize
        narrow = np.dtype(plan.identity.dtype).itemsize
        height = min(plan.identity.tile[0], rows)
        corrected = 0 if self.correction is None else self.rank * wide
        columns = self.source.columns * (wide + narrow) + self.transform.shape[1] * wide
        return int(height * (columns + corrected + 2 * self.rank * narrow))


class VectorMaker:
    """Computes row tiles of vectors in double precision.

    Args:
        plan: The plan in force.
        vectors: How they are made.
        rows: Their height.
        arithmetic: Where products are formed.
    """

    def __init__(self, plan: Plan, vectors: Vectors, rows: int, arithmetic: Arithmetic) -> None:
        self._vectors = vectors
        self._on = arithmetic
        self._transform = arithmetic.load(np.ascontiguousarray(vectors.transform))
        if vectors.correction is not None:
            self._correction = arithmetic.load(np.ascontiguousarray(vectors.correction))
        self.tiles = plan.tiles(rows)
        height, wide = min(plan.identity.tile[0], rows), wide_dtype(plan)
        self._pool = Pool(
            lambda: [
                empty_aligned((height, columns), wide)
                for columns in (
                    vectors.source.columns,
                    vectors.transform.shape[1],
                    0 if vectors.correction is None else vectors.rank,
                )
            ]
        )

    def take(self) -> list[Array]:
        """Buffers for a tile."""
        return self._pool.take()

    def give(self, buffers: list[Array]) -> None:
        """Hands them back."""
        self._pool.give(buffers)

    def tile(self, number: int, buffers: list[Array]) -> Array:
        """One row tile of the vectors, in one of the buffers."""
        rows = len(self.tiles[number])
        x = self._vectors.source.read_tile(number, rows, buffers[0])
        u = buffers[1][:rows]
        self._on.times(self._on.load(x), self._transform, u)
        if self._vectors.correction is None:
            return u
        turned = buffers[2][:rows]
        self._on.times(self._on.load(u), self._correction, turned)
        return turned


def gram_of_vectors(
    plan: Plan, vectors: Vectors, rows: int, resources: Resources, progress: Progress
) -> Array:
    """``U^H U`` of vectors that are not written, ``(r, r)``, by one stream over their source."""
    on = arithmetic_on(resources.device)
    maker = VectorMaker(plan, vectors, rows, on)
    shape, wide = (vectors.rank, vectors.rank), wide_dtype(plan)
    sums = vectors.rank**2 * wide.itemsize
    fixed = (levels(len(maker.tiles)) + 2) * sums + vectors.transform.nbytes
    in_flight = tiles_in_flight(
        "recover", resources, fixed, vectors.bytes_per_tile(plan, rows) + sums
    )
    grams = Pool(lambda: np.zeros(shape, wide))

    def gram_of_tile(number: int) -> Array:
        buffers = maker.take()
        u = maker.tile(number, buffers)
        gram, loaded = grams.take(), on.load(u)
        on.adjoint_times(loaded, loaded, gram)
        maker.give(buffers)
        return gram

    def add(total: Array, other: Array) -> Array:
        total += other
        grams.give(other)
        return total

    with progress.stage("orthogonalise", len(maker.tiles), "tiles") as advance:
        numbers = range(len(maker.tiles))
        return mirrored(
            tree_sum(_counted(ordered_map(gram_of_tile, numbers, in_flight), advance), add)
        )


def corrected(
    values: Array, left: Vectors, left_gram: Array | None, right: Vectors | None,
    right_gram: Array | None,
) -> tuple[Array, Vectors, Vectors | None]:  # fmt: skip
    """Makes an orthonormal decomposition of one whose vectors are not quite orthonormal.

    With ``U^H U = L^H L`` and ``V^H V = R^H R`` the product ``U diag(values) V^H`` has the core
    ``L diag(values) R^H`` in the orthonormal ``U L^-1`` and ``V R^-1``.

    Args:
        values: Eigenvalues, or singular values.
        left: The vectors ``U``, not corrected yet.
        left_gram: ``U^H U``; ``None`` if it is known to be good.
        right: The vectors ``V``; ``None`` for eigenvectors.
        right_gram: ``V^H V``; ``None`` if it is known to be good.
    """
    identity = np.eye(len(values))
    left_root = identity if left_gram is None else gram_root(left_gram)
    if right is None:
        middle = hermitian_part((left_root * values) @ left_root.conj().T)
        found, u = eigh_by_magnitude(middle)
        return found, _corrected(left, left_root, u), None
    right_root = identity if right_gram is None else gram_root(right_gram)
    u, found, vh = svd((left_root * values) @ right_root.conj().T)
    v = vh.conj().T
    return found, _corrected(left, left_root, u), _corrected(right, right_root, v)


def _corrected(vectors: Vectors, root: Array, rotation: Array) -> Vectors:
    return Vectors(vectors.source, vectors.transform, np.linalg.solve(root, rotation))


@dataclass
class TileFigures:
    """What one tile of the vectors, or many, contribute to the figures.

    Attributes:
        probed: ``U^H (U P)`` for random ``P``, ``(r, PROBES)``.
        residual: Squared norm of each column of the residual of the test sketch, ``(q,)``.
        test: Squared norm of each column of the test sketch, ``(q,)``.
        test_products: ``U^H T``, ``(r, q)``, where it was asked for.
    """

    probed: Array
    residual: Array
    test: Array
    test_products: Array

    def add(self, other: TileFigures) -> TileFigures:
        """Adds the figures of further tiles to these."""
        self.probed += other.probed
        self.residual += other.residual
        self.test += other.test
        self.test_products += other.test_products
        return self


def layout_of(plan: Plan, name: str, rows: int, rank: int) -> Layout:
    """How vectors are stored."""
    return Layout(
        name=name,
        shape=(rows, rank),
        dtype=plan.identity.dtype,
        tile=(min(plan.identity.tile[0], rows), min(VECTOR_TILE_COLUMNS, rank)),
    )


def vectors_bytes(plan: Plan, vectors: Vectors, rows: int, test: int) -> tuple[int, int]:
    """Memory of the stream: bytes needed once, and bytes for each tile in flight."""
    wide = wide_dtype(plan).itemsize
    figures = vectors.rank * (PROBES + test) * wide
    fixed = vectors.transform.nbytes + (levels(len(plan.tiles(rows))) + 2) * figures
    height = min(plan.identity.tile[0], rows)
    return fixed, vectors.bytes_per_tile(plan, rows) + figures + 2 * height * test * wide


def write_vectors(
    plan: Plan,
    vectors: Vectors,
    writer: BulkWriter,
    resources: Resources,
    progress: Progress,
    *,
    test: SketchReader | None = None,
    weights: Array | None = None,
    stage: str = "vectors",
) -> tuple[TileFigures, float]:
    """Computes vectors and writes them.

    Args:
        plan: The plan in force.
        vectors: How they are made.
        writer: Where they go.
        resources: Memory and cores.
        progress: Shows how far it is.
        test: Reads the test sketch, if it has the same rows.
        weights: ``diag(values) V^H G``, ``(r, q)``: what the residual of the test sketch is formed
            with; without it ``U^H T`` is.
        stage: What the user is told.

    Returns:
        The figures of all tiles, and ``||U^H U - I||_F`` as estimated by the probes.
    """
    rows = writer.layout.shape[0]
    maker = VectorMaker(plan, vectors, rows, arithmetic_on(resources.device))
    wide = wide_dtype(plan)
    q = len(test.side.sketches.get("test", ())) if test is not None else 0
    probes = gaussian_probes(plan, vectors.rank, PROBES)
    in_flight = tiles_in_flight("recover", resources, *vectors_bytes(plan, vectors, rows, q))
    # Probes and weights side by side, as each product reads the tile anew: so do its adjoint's.
    factors = probes if weights is None else np.concatenate([probes, weights], axis=1)
    spaces = Pool(lambda: empty_aligned((min(plan.identity.tile[0], rows), q), wide))

    def write_tile(number: int) -> TileFigures:
        buffers = maker.take()
        u = maker.tile(number, buffers)
        _write_rounded(writer, number, u)
        products = u @ factors
        probed = products[:, :PROBES]
        figures = TileFigures(
            probed=np.zeros((0, PROBES)),
            residual=np.zeros(q if weights is not None else 0),
            test=np.zeros(q),
            test_products=np.zeros((0 if weights is not None else vectors.rank, q), wide),
        )
        if q and test is not None:
            space = spaces.take()
            t = test.read_role(number, "test", space)
            figures.test = np.sum(np.abs(t) ** 2, axis=0)
            if weights is None:
                probed = np.concatenate([probed, t], axis=1)
            else:
                figures.residual = np.sum(np.abs(t - products[:, PROBES:]) ** 2, axis=0)
            spaces.give(space)
        inside = u.conj().T @ probed
        figures.probed = inside[:, :PROBES]
        if weights is None and q:
            figures.test_products = inside[:, PROBES:]
        maker.give(buffers)
        return figures

    with progress.stage(stage, len(maker.tiles), "tiles") as advance:
        numbers = range(len(maker.tiles))
        figures = tree_sum(
            _counted(ordered_map(write_tile, numbers, in_flight), advance), TileFigures.add
        )
    deviation = np.abs(figures.probed - probes) ** 2
    return figures, math.sqrt(float(deviation.sum()) / PROBES)


def _write_rounded(writer: BulkWriter, number: int, u: Array) -> None:
    """Writes one row of tiles, and rounds ``u`` to what is stored, one tile after the other."""
    for column in range(writer.layout.grid[1]):
        part = u[:, writer.layout.columns(column).slice]
        stored = np.ascontiguousarray(part, writer.layout.dtype)
        writer.write_tile(number, column, stored)
        part[:] = stored


def _counted(tiles: Iterator[Any], advance: Advance) -> Iterator[Any]:
    for tile in tiles:
        advance(1)
        yield tile
