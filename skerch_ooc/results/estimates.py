"""Estimates of trace, diagonal and norms from the stored sketch: no product is needed.

The decomposition ``Ahat`` gives most of each figure. The rest is estimated from the test columns
``T = A G`` that ``Ahat`` is independent of, those that did not choose the core. With ``Ahat`` as
control variate the error is that of ``A - Ahat`` alone, as in Hutch++ (Meyer, Musco, Musco and
Woodruff 2021, arXiv 2010.09649, algorithm 1), where the range comes from other products, too.

* **Trace**: ``tr A = tr Ahat + E g^H (A - Ahat) g``.
* **Frobenius norm**: ``||A||_F^2 = ||Ahat||_F^2 + E (||A g||^2 - ||Ahat g||^2)``.
* **Diagonal**: entry ``k`` of ``(A - Ahat) g`` is ``d_k g_k`` and noise that, given ``g_k``, is
  Gaussian with mean 0 and equal for all ``g``. So ``d_k`` is the slope of a line through the
  origin, by least squares, ``d_k = sum conj(g_k) r_k / sum |g_k|^2`` (Bekas, Kokiopoulou and Saad
  2007, "An estimator for the diagonal of a matrix", their ``D_s``; of ``A - Ahat`` it is Diag++ of
  Baston and Nakatsukasa 2022, arXiv 2201.10684), and its standard error that of a slope.
* **Spectral norm**: that of ``Ahat``, which is wrong by at most ``||A - Ahat||_F`` (Weyl).

The first two are means over columns; their standard errors are those of a mean. They tell how far
off an estimate usually is, not how far at most; with ``n`` columns they are uncertain by a factor
of about ``1 + 1 / sqrt(2 n)`` themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.figures import short
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.partition import Range, levels, tree_sum
from skerch_ooc.base.progress import Progress
from skerch_ooc.base.resources import Resources
from skerch_ooc.base.streams import ordered_map, tiles_in_flight
from skerch_ooc.results.vectors import Tall, open_vectors
from skerch_ooc.stages.recover.recipes import LEFT_VECTORS, RIGHT_VECTORS
from skerch_ooc.store.index import OpenedShards
from skerch_ooc.store.readers import RoleReader
from skerch_ooc.store.result_files import VALUES, opened_result, result_path
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import strip_of, wait_for_columns

if TYPE_CHECKING:
    from torch import Tensor

_Result = TypeVar("_Result")

_FIRST = 5


@dataclass(frozen=True)
class Figure:
    """An estimate of a number.

    Attributes:
        value: The estimate, in the units of the operator; complex only where the number is.
        standard_error: How far off the estimate usually is: the root of its mean square error, as
            estimated from the scatter of the test columns; ``None`` if there is only one column.
    """

    value: float | complex
    standard_error: float | None

    @never_raising
    def _repr_html_(self) -> str:
        return table("Figure", _rows_of(self))

    def as_json(self) -> dict[str, Any]:
        """Returns value and standard error; a complex value as ``[real part, imaginary part]``."""
        value = self.value
        shown = [value.real, value.imag] if isinstance(value, complex) else value
        return {"value": shown, "standard_error": self.standard_error}


@dataclass(frozen=True)
class SpectralNorm:
    """An estimate of the largest singular value.

    Attributes:
        value: The largest singular value of the approximation.
        error: Estimate of ``||A - Ahat||_F``, and so of a bound of how far off ``value`` is. This
            is no standard error: mostly the value is much better, but a single direction that the
            sketch missed could be as large. That the estimate of the bound itself is too low has
            the probabilities of :meth:`Assessment.bounds`. Of ``krylov``, whose rounds have looked
            for larger ones, the bound of the pair.
    """

    value: float
    error: float

    @never_raising
    def _repr_html_(self) -> str:
        return table("SpectralNorm", _rows_of(self))

    def as_json(self) -> dict[str, float]:
        """Returns value and error."""
        return {"value": self.value, "error": self.error}


class Diagonal(NamedTuple):
    """Estimates of the entries of a diagonal.

    Attributes:
        values: ``(n,)``, float64 or complex128.
        standard_errors: The standard error of each value, ``(n,)``, float64; NaN from a single test
            column.
    """

    values: Tensor
    standard_errors: Tensor

    @never_raising
    def _repr_html_(self) -> str:
        typical = float(self.standard_errors.median())
        rows = [
            ("first entries", ", ".join(map(_written, self.values[:_FIRST].tolist()))),
            ("sum", _written(self.values.sum().item())),
            ("typical standard error", None if math.isnan(typical) else short(typical)),
        ]
        return table(f"Diagonal: {len(self.values)} entries", rows)


@dataclass(frozen=True)
class Estimates:
    """Estimates of an operator's trace, diagonal and norms, from its sketch and decomposition.

    Attributes:
        trace: Estimate of the trace; ``None`` if the operator is not square.
        frobenius_norm: Estimate of ``||A||_F``.
        spectral_norm: Estimate of ``||A||_2``.
        test_measurements: Test columns that were used. Without any, all estimates are ``None``.
    """

    trace: Figure | None
    frobenius_norm: Figure | None
    spectral_norm: SpectralNorm | None
    test_measurements: int
    _made_from: _Sketched | None = field(default=None, repr=False, compare=False)

    def diagonal(self) -> Diagonal:
        """Estimates the diagonal, by one stream over the vectors and the test sketch.

        Returns:
            An estimate and a standard error for each entry.

        Raises:
            UsageError: If the operator is not square, there is no test column, or memory is too
                little.
            CorruptError: If a file is damaged.
            IncompleteError: If a file is gone.
        """
        import torch

        if self._made_from is None:
            raise UsageError(
                "there are no test measurements to estimate the diagonal from; plan with "
                "sketch.test_measurements of at least 10"
            )
        values, errors = self._made_from.diagonal()
        return Diagonal(torch.from_numpy(values), torch.from_numpy(errors))

    @never_raising
    def _repr_html_(self) -> str:
        if not self.test_measurements:
            return table("Estimates", [("none", "there are no test vectors to make them from")])
        title = f"Estimates, with {self.test_measurements} test vectors"
        rows = [
            (name.replace("_", " "), *(said for _, said in _rows_of(figure)))
            for name, figure in self._figures.items()
            if figure is not None
        ]
        return table(title, rows, heads=("", "value", "standard error or bound"))

    @property
    def _figures(self) -> dict[str, Figure | SpectralNorm | None]:
        return {
            "trace": self.trace,
            "frobenius_norm": self.frobenius_norm,
            "spectral_norm": self.spectral_norm,
        }

    def as_json(self) -> dict[str, Any]:
        """Returns all figures but the diagonal, as JSON values."""
        shown = {name: figure and figure.as_json() for name, figure in self._figures.items()}
        return shown | {"test_measurements": self.test_measurements}


def _rows_of(found: Figure | SpectralNorm) -> list[tuple[str, str]]:
    """Lists a figure and how sure it is, by name."""
    if isinstance(found, SpectralNorm):
        return [
            ("value", _written(found.value)),
            ("bound", f"off by about {short(found.error)} at most"),
        ]
    error = found.standard_error
    return [("value", _written(found.value)),
            ("standard error", "unknown" if error is None else short(error))]  # fmt: skip


def _written(value: complex) -> str:
    return f"{value:.6g}"


def estimate(run: Run, name: str, resources: Resources, progress: Progress) -> Estimates:
    """Estimates trace and norms from a result and the test sketch, by one stream over both.

    Args:
        run: The run.
        name: Folder of the result.
        resources: Memory and cores.
        progress: Shows how far it is.

    Raises:
        IncompleteError: If there is no such result, or shards are gone.
        CorruptError: If a file is damaged.
        UsageError: If memory is too little.
    """
    file = opened_result(result_path(run, name))
    sketched = _Sketched(run, file, resources, progress)
    n = sketched.columns
    if n == 0:
        return Estimates(None, None, None, 0)
    # The last n columns: those before them chose the core.
    error = math.sqrt(float(np.mean(file.arrays["residual_squares"][-n:])))
    return Estimates(
        trace=sketched.trace() if sketched.square else None,
        frobenius_norm=sketched.frobenius_norm(),
        spectral_norm=_spectral_norm(file, sketched.values, error),
        test_measurements=n,
        _made_from=sketched,
    )


def _spectral_norm(file: SealedFile, values: Array, error: float) -> SpectralNorm:
    """Takes the bound of the pair where rounds have looked for larger ones, and found none."""
    largest = int(np.argmax(np.abs(values)))
    which = file.identity["settings"].get("which", "LM")
    if "bounds" in file.arrays and which == "LM" and file.arrays["confirmed"]:
        error = float(file.arrays["bounds"][largest])
    return SpectralNorm(float(np.abs(values[largest])), error)


class _Sums(NamedTuple):
    """Sums over the rows of a decomposition ``U diag(values) V^H`` and of the test columns.

    Attributes:
        right: ``V^H G``, ``(r, n)``.
        squares: Squared norms of the vectors ``V``, ``(r,)``.
        left: ``U^H G``, ``(r, n)``.
        overlaps: ``v_i^H u_i``, ``(r,)``.
        forms: ``g_j^H T_j``, ``(n,)``.
    """

    right: Array
    squares: Array
    left: Array
    overlaps: Array
    forms: Array

    def add(self, other: _Sums) -> _Sums:
        for mine, more in zip(self, other, strict=True):
            mine += more
        return self


class _Sketched:
    """A result, with the test columns that it is independent of."""

    def __init__(
        self, run: Run, file: SealedFile, resources: Resources, progress: Progress
    ) -> None:
        identity = run.plan.identity
        kind = identity.kind
        height, self._width = identity.shape
        self.square = height == self._width
        self._hermitian = kind == "eigh"
        self._identity, self._resources, self._progress = identity, resources, progress
        self._left, self._right = open_vectors(
            file, LEFT_VECTORS[kind], None if self._hermitian else RIGHT_VECTORS
        )
        self.values: Array = file.arrays[VALUES[kind]]
        planned = run.plan.span("test")
        self._unused = Range(int(file.identity["choosing"]), len(file.arrays["test_squares"]))
        self._test_squares = file.arrays["test_squares"][self._unused.slice]
        self.columns = len(self._unused)
        self._wide = identity.wide_dtype
        if self.columns:
            run.require_shards()
            strips = [strip_of(run.plan, part, "test", planned, height) for part in run.plan.parts]
            listed = wait_for_columns(run, strips)
            self._test = RoleReader(OpenedShards(run, run.shards), listed, strips, height)

    def trace(self) -> Figure:
        sums = self._sums
        found = complex(np.sum(self.values * sums.overlaps))
        approximate = np.sum(sums.left.conj() * self.values[:, None] * sums.right, axis=0)
        figure = _mean(sums.forms - approximate)
        value = found + figure.value
        return Figure(value if self._is_complex else value.real, figure.standard_error)

    def frobenius_norm(self) -> Figure:
        sums, squares = self._sums, self.values**2
        approximate = np.sum(squares[:, None] * np.abs(sums.right) ** 2, axis=0)
        figure = _mean(self._test_squares - approximate)
        square = max(0.0, float(np.sum(squares * sums.squares)) + float(figure.value.real))
        value, error = math.sqrt(square), figure.standard_error
        # The root of a number with a small error e has the error e / (2 root).
        return Figure(value, error / (2 * value) if error is not None and value > 0 else error)

    @property
    def _is_complex(self) -> bool:
        """Whether the diagonal is complex."""
        return self._wide.kind == "c" and not self._hermitian

    @cached_property
    def _sums(self) -> _Sums:
        tiles = self._right.row_tiles
        # Vectors, products with them, and test columns; V and U apart only if there are both.
        sums = (2 * self.columns + 2) * len(self.values) * self._wide.itemsize
        in_flight = tiles_in_flight(
            "estimate", self._resources, (levels(len(tiles)) + 2) * sums, self._tile_bytes + sums
        )
        return tree_sum(self._over("estimate", self._sums_of_tile, tiles, in_flight), _Sums.add)

    def _over(
        self, stage: str, function: Callable[[int], _Result], tiles: Sequence[int], in_flight: int
    ) -> Iterator[_Result]:
        """Applies a function to each tile, shows progress, and yields the results in order."""
        with self._progress.stage(stage, len(tiles), "tiles") as advance:
            for result in ordered_map(function, tiles, in_flight):
                advance(1)
                yield result

    def _sums_of_tile(self, number: int) -> _Sums:
        v, g = self._right.read_wide(number), self._gaussian(self._right.layout.rows(number))
        right, squares = v.conj().T @ g, np.sum(np.abs(v) ** 2, axis=0)
        if not self.square:
            empty = np.zeros(0)
            return _Sums(right, squares, empty, empty, empty)
        t = self._test_rows(number)
        forms = np.sum(g.conj() * t, axis=0)
        if self._hermitian:
            return _Sums(right, squares, right.copy(), squares.copy(), forms)
        u = self._left.read_wide(number)
        return _Sums(right, squares, u.conj().T @ g, np.sum(v.conj() * u, axis=0), forms)

    def diagonal(self) -> tuple[Array, Array]:
        """Estimates the diagonal: values and standard errors."""
        if not self.square:
            raise UsageError(
                f"the operator is {self._left.shape[0]} x {self._width}: it has no diagonal, as "
                "that must be square"
            )
        weights = self.values[:, None] * self._sums.right
        tiles = self._left.row_tiles
        values = np.empty(self._width, self._wide if self._is_complex else np.float64)
        errors = np.empty(self._width)
        fixed = values.nbytes + errors.nbytes + weights.nbytes
        in_flight = tiles_in_flight("estimate", self._resources, fixed, self._tile_bytes)

        def estimate_tile(number: int) -> None:
            rows = self._left.layout.rows(number)
            u, g = self._left.read_wide(number), self._gaussian(rows)
            residual = self._test_rows(number) - u @ weights
            v = u if self._hermitian else self._right.read_wide(number)
            found = np.sum(u * self.values * v.conj(), axis=1)
            squares = np.sum(np.abs(g) ** 2, axis=1)
            # Regression of each row of the residual on the same row of G; see above.
            slope = np.sum(g.conj() * residual, axis=1) / squares
            scatter = np.sum(np.abs(residual - slope[:, None] * g) ** 2, axis=1)
            square = scatter / (self.columns - 1) / squares if self.columns > 1 else math.nan
            if self._wide.kind == "c" and self._hermitian:
                # Only the real part of the slope counts: half of the variance.
                square = square / 2
            values[rows.slice] = found + slope if self._is_complex else (found + slope).real
            errors[rows.slice] = np.sqrt(square)

        for _ in self._over("diagonal", estimate_tile, tiles, in_flight):
            pass
        return values, errors

    @property
    def _tile_bytes(self) -> int:
        vectors: set[Tall] = {self._left, self._right}
        height = min(self._left.layout.tile[0], max(self._width, self._left.shape[0]))
        columns = len(self.values) + 6 * self.columns
        return sum(tall.bytes_per_tile for tall in vectors) + height * columns * self._wide.itemsize

    def _gaussian(self, rows: Range) -> Array:
        """Draws rows of ``G`` as the operator got them, and widens them to double precision."""
        # Drawn in the plan's dtype first: double precision would have entries that differ.
        noise, seed, dtype = self._identity.noise["test"], self._identity.seed, self._identity.dtype
        return draw(noise, seed, "test", rows, self._unused, dtype).astype(self._wide)

    def _test_rows(self, number: int) -> Array:
        """Reads a row tile of ``T``, in double precision."""
        rows = len(self._left.layout.rows(number))
        out = np.empty((rows, self._unused.stop), self._wide)
        return self._test.read_row(number, out)[:, self._unused.slice]


def _mean(columns: Array) -> Figure:
    """Returns the mean over columns, and its standard error."""
    n, mean = len(columns), complex(np.mean(columns))
    if n == 1:
        return Figure(mean, None)
    scatter = float(np.sum(np.abs(columns - mean) ** 2)) / (n - 1)
    return Figure(mean, math.sqrt(scatter / n))
