"""Density of the whole spectrum, and traces of functions, from the rounds of a run, at no product.

The rounds of ``krylov`` started from random columns ``Omega``. Their Ritz values ``theta_i`` are
the nodes of a Gauss quadrature, with the weights ``W_ij = |s_i^H F_j|^2`` for each column ``j``:
``omega_j^H f(A) omega_j`` is about ``sum_i W_ij f(theta_i)``, and the mean over the columns
estimates ``tr f(A)`` (Golub and Meurant 1994, "Matrices, moments and quadrature"; Ubaru, Chen and
Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", section 3; for the
density Chen, Trogdon and Ubaru 2021, arXiv 2105.06595). All columns share one space here, which
makes the quadrature of each of them more exact than that of a space of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.base.errors import UsageError, quoted
from skerch_ooc.base.figures import short
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.results.curves import curve, small_chart
from skerch_ooc.results.plots import axes_of
from skerch_ooc.stages.recover.krylov import Quadrature, search_of
from skerch_ooc.store.rundir import Run, open_run

_GRID = 400
_NEAR = 1e-3
_WIDTHS = 100.0
"""The least width of the smoothing is this part of the range of the nodes."""

_OF_ONE_VALUE = 0.2
"""A chart begins at this part of the peak of a single eigenvalue, so that each can be seen."""

Reals = npt.NDArray[np.float64]
Function = Callable[[Reals], Any]


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace, with both of its errors.

    Attributes:
        value: The estimate.
        standard_error: Of the mean over the random columns; ``None`` if there is only one.
        bias: About what the quadrature itself is off by: how much the last round has changed the
            value; of counts what nodes may tell of eigenvalues beyond the ends, if that is more.
            ``None``, but of counts, after a single round of the random columns.
    """

    value: float
    standard_error: float | None
    bias: float | None

    def as_json(self) -> dict[str, float | None]:
        """Returns the figures as JSON values."""
        return {"value": self.value, "standard_error": self.standard_error, "bias": self.bias}

    @never_raising
    def _repr_html_(self) -> str:
        bias = None if self.bias is None else short(self.bias)
        rows = [("estimate", _said(self)), ("quadrature off by about", bias)]
        return table("TraceEstimate", rows)


@dataclass(frozen=True)
class Density:
    """The density of all eigenvalues of a Hermitian operator, as nodes with weights.

    Attributes:
        n: How many eigenvalues there are.
        quadrature: Nodes, and weights for each random column.
        before: The same one round earlier; ``None`` after a single round.
    """

    n: int
    quadrature: Quadrature
    before: Quadrature | None

    @property
    def nodes(self) -> Reals:
        """The Ritz values, ascending, ``(k,)``."""
        return self.quadrature.nodes

    @cached_property
    def weights(self) -> Reals:
        """The share of the eigenvalues that each node stands for, ``(k,)``; the sum is 1."""
        weights = self.quadrature.weights.mean(axis=1)
        return np.asarray(weights / weights.sum())

    def pdf(self, x: Any, width: float | None = None) -> Reals:
        """Returns the density, smoothed by a Gaussian; it integrates to 1.

        Args:
            x: Where, any shape; in the units of the operator.
            width: Standard deviation of the Gaussian, in the same units; by default of each node
                how far it may be from an eigenvalue, and a hundredth of the range of all at least.

        Raises:
            UsageError: If the width is not positive.
        """
        if width is not None and not width > 0:
            raise UsageError(f"width = {width}: must be positive")
        widths = self._widths if width is None else width
        at = np.asarray(x, np.float64)
        scaled = (at[..., None] - self.nodes) / widths
        bumps = np.exp(-0.5 * scaled**2) / (widths * math.sqrt(2 * math.pi))
        return np.asarray(bumps @ self.weights)

    def cdf(self, x: Any) -> Reals:
        """Returns the share of the eigenvalues that are at most ``x``, any shape."""
        running = np.concatenate([[0.0], np.cumsum(self.weights)])
        return np.asarray(running[np.searchsorted(self.nodes, np.asarray(x), side="right")])

    @property
    def width(self) -> float:
        """The least width by which :meth:`pdf` smooths if no other is given."""
        span = float(self.nodes[-1] - self.nodes[0])
        return span / _WIDTHS or max(abs(float(self.nodes[0])) / _WIDTHS, 1e-300)

    @property
    def _widths(self) -> Reals:
        """Of each node: narrower, the curve would show gaps among nodes that the spectrum lacks."""
        return np.maximum(self.quadrature.residuals, self.width)

    def count(self, low: float, high: float) -> TraceEstimate:
        """Estimates how many eigenvalues lie from ``low`` to ``high``.

        An end that lies among nodes cuts the share of a node in no way, though eigenvalues that a
        node stands for may lie beyond the end: ``bias`` says how many these may be.

        Raises:
            UsageError: If ``low`` is above ``high``.
        """
        if not low <= high:
            raise UsageError(f"low = {low} is above high = {high}; give them in ascending order")
        found = self.trace(lambda x: (low <= x) & (x <= high))
        return replace(found, bias=max(found.bias or 0.0, self._astray(low, high)))

    def _astray(self, low: float, high: float) -> float:
        """Estimates how many eigenvalues lie on the other side of an end than their node does.

        Of a Ritz vector of residual ``r`` at most ``r^2 / (r^2 + d^2)`` lies beyond an end in the
        distance ``d`` (Cantelli). The cubes of that are taken: a node stands for less of what is
        far from it, the farther the more so.
        """
        shares = [self._share_beyond(end) for end in (low, high)]
        inside = (low <= self.nodes) & (self.nodes <= high)
        counted = self.n * self.weights * np.minimum(shares[0] + shares[1], 1)
        return float(max(counted[inside].sum(), counted[~inside].sum()))

    def _share_beyond(self, end: float) -> Reals:
        """Estimates the share of each node that lies on the other side of an end."""
        squares, distances = self.quadrature.residuals**2, (self.nodes - end) ** 2
        every = squares + distances
        parts = np.divide(squares, every, out=np.zeros_like(every), where=every > 0)
        return np.asarray(parts**3)

    @property
    def is_guessed(self) -> bool:
        """Whether nothing tells how good it is: one round of random columns does not."""
        return self.before is None and len(self.nodes) < self.n

    def counts(self) -> dict[str, TraceEstimate]:
        """Estimates how many eigenvalues are ``negative``, ``positive``, and ``near zero``.

        What is nearer to zero than a thousandth of the largest node is said to be near it: the
        sign of so small a node tells little.
        """
        ends = {
            "negative": (-math.inf, -self.near_zero),
            "near zero": (-self.near_zero, self.near_zero),
            "positive": (self.near_zero, math.inf),
        }
        return {name: self.count(*pair) for name, pair in ends.items()}

    def trace(self, function: Function) -> TraceEstimate:
        """Estimates ``tr f(A)``, the sum of ``f`` over all eigenvalues.

        Args:
            function: ``f``, from an array of real numbers to an array of as many.

        Raises:
            UsageError: If ``f`` gives anything else, or is not finite at a node.
        """
        values = _columns(self.quadrature, function)
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        value, bias = float(values.mean()), None
        if self.before is not None:
            bias = abs(value - float(_columns(self.before, function).mean()))
        return TraceEstimate(
            value, None if spread is None else spread / math.sqrt(len(values)), bias
        )

    def __repr__(self) -> str:
        ends = f"from {self.nodes[0]:.4g} to {self.nodes[-1]:.4g}"
        return f"Density(n={self.n}, {len(self.nodes)} nodes {ends})"

    @never_raising
    def _repr_html_(self) -> str:
        rows = [
            ("between", f"{self.nodes[0]:.4g} and {self.nodes[-1]:.4g}"),
            *((name, _said(count)) for name, count in self.counts().items()),
            ("trace", _said(self.trace(lambda x: x))),
            ("nodes", len(self.nodes)),
        ]
        chart = small_chart(
            [curve(self._grid, self.pdf(self._grid))], ("eigenvalue", "density"), low=self.least
        )
        return table(f"Density of {self.n} eigenvalues", rows, chart)

    def plot(self, ax: Any = None) -> Any:
        """Draws the smoothed density on a logarithmic axis; ticks below it mark the nodes.

        matplotlib draws, of the extra ``report``.

        Args:
            ax: Axes of matplotlib; by default those of a new figure.

        Returns:
            The axes, to go on with.

        Raises:
            UsageError: If matplotlib is not installed.
        """
        ax = axes_of(ax)
        ax.plot(self._grid, self.pdf(self._grid))
        ax.plot(self.nodes, np.zeros(len(self.nodes)), "|", color="grey",
                transform=ax.get_xaxis_transform())  # fmt: skip
        ax.set(xlabel="eigenvalue", ylabel="density", yscale="log")
        ax.set_ylim(bottom=self.least)
        return ax

    @property
    def _grid(self) -> Reals:
        """Where :meth:`as_json` and :meth:`plot` evaluate the curves."""
        margins = 4 * self._widths
        return np.linspace((self.nodes - margins).min(), (self.nodes + margins).max(), _GRID)

    @property
    def least(self) -> float:
        """The density at which charts begin, a fifth of the peak of a single eigenvalue."""
        return _OF_ONE_VALUE / (self.n * self.width * math.sqrt(2 * math.pi))

    def as_json(self) -> dict[str, Any]:
        """Returns nodes and weights, and both curves on a grid, as JSON values."""
        grid = self._grid
        return {
            "n": self.n,
            "nodes": self.nodes.tolist(),
            "weights": self.weights.tolist(),
            "width": self.width,
            "x": grid.tolist(),
            "pdf": self.pdf(grid).tolist(),
            "cdf": self.cdf(grid).tolist(),
            "counts": {name: count.as_json() for name, count in self.counts().items()},
            "trace": self.trace(lambda x: x).as_json(),
        }

    @property
    def near_zero(self) -> float:
        """What is nearer to 0 than this is said to be near it."""
        return _NEAR * float(np.abs(self.nodes).max())


def _said(estimate: TraceEstimate) -> str:
    if estimate.standard_error is None:
        return f"about {estimate.value:.4g}"
    return f"about {estimate.value:.4g}, standard error {short(estimate.standard_error)}"


def _columns(quadrature: Quadrature, function: Function) -> Reals:
    """Returns the quadrature of a function for each random column."""
    nodes = quadrature.nodes
    with np.errstate(all="ignore"):
        values = np.asarray(function(nodes.copy()))
    if values.shape != nodes.shape or values.dtype.kind not in "biuf":
        raise UsageError(
            f"the function returns an array of shape {values.shape} and type {values.dtype} for "
            f"real numbers of shape {nodes.shape}; it must return a real number for each"
        )
    wrong = np.flatnonzero(~np.isfinite(values.astype(np.float64)))
    if len(wrong):
        node = float(nodes[wrong[0]])
        raise UsageError(
            f"the function is {values[wrong[0]]} at the node {node:.6g}, which is one of "
            f"{len(nodes)} that stand for the spectrum (from {nodes[0]:.3g} to {nodes[-1]:.3g}); "
            "give a function that is finite there, such as that of a shifted operator"
        )
    return np.asarray(values.astype(np.float64) @ quadrature.weights)


@tells_keywords
def density(run: Run | str | Path) -> Density:
    """Estimates the density of all eigenvalues from the rounds of a run, at no product.

    Args:
        run: A run of ``krylov`` with ``kind = "eigh"``, or its directory.

    Returns:
        The density: nodes, weights, smoothed density, cumulative spectrum, counts, and traces of
        functions.

    Raises:
        UsageError: If the run is one of another method or kind.
        IncompleteError: If no round is measured and merged, or the shards were removed.
        CorruptError: If a file is damaged.
    """
    run = run if isinstance(run, Run) else open_run(run)
    plan = run.plan
    if plan.krylov is None or plan.identity.kind != "eigh":
        grows = plan.identity.kind == "eigh" and plan.method.nests and plan.summands == 1
        raise UsageError(
            f'the density is made of the rounds of krylov for kind = "eigh"; {run.directory} is a '
            f'run of {plan.recovery.method} for kind = "{plan.identity.kind}". '
            + (
                f"Rounds can follow it: skerch-ooc extend {quoted(run.directory)} --rounds 8"
                if grows
                else 'Plan a new run of a Hermitian operator with method = "krylov"'
            )
        )
    quadrature, before = search_of(run).quadratures()
    return Density(plan.identity.shape[0], quadrature, before)


@tells_keywords
def trace(run: Run | str | Path, function: Function) -> TraceEstimate:
    """Estimates ``tr f(A)`` from the rounds of a run, at no product.

    Examples are ``lambda x: np.log(x + c)`` for the logarithm of ``det(A + c I)``, ``np.exp``, and
    ``lambda x: x**2`` for the squared Frobenius norm.

    Args:
        run: As in :func:`density`.
        function: ``f``, from an array of real numbers to an array of as many.

    Returns:
        The estimate, its standard error, and the bias of the quadrature.

    Raises:
        UsageError: As :func:`density`; or if ``f`` is not finite at a node.
        IncompleteError: As :func:`density`.
        CorruptError: As :func:`density`.
    """
    return density(run).trace(function)
