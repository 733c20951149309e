"""Chart of the density of all eigenvalues, smoothed, and of the cumulative spectrum below it."""

from __future__ import annotations

import numpy as np

from skerch_ooc.results.density import Density
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import FOCUSED, LEFT, RIGHT, TOP, Axis, logarithmic, thinned
from skerch_ooc.results.report.chart import Chart

_HEIGHT = 440.0
_MIDDLE, _BELOW, _BOTTOM = 216.0, 274.0, _HEIGHT - 46


def density_of_the_whole(found: Density) -> Chart:
    """Draws the smoothed density and the cumulative spectrum, with the nodes between them."""
    curves = found.as_json()
    grid, pdf, cdf = (np.asarray(curves[name]) for name in ("x", "pdf", "cdf"))
    y = logarithmic([found.least, float(pdf.max())], _MIDDLE, TOP)
    assert y is not None  # Its values are positive.
    x, shares = Axis(float(grid[0]), float(grid[-1]), LEFT, RIGHT), Axis(0.0, 1.0, _BOTTOM, _BELOW)
    downwards = found.nodes[::-1]
    marked = [float(downwards[i]) for i in thinned(len(downwards), FOCUSED)]
    drawn = {
        "marked": [(x.at(node), shares.at(float(found.cdf(node))), _above(found, node))
                   for node in marked],
        "found": found, "x": x, "y": y, "shares": shares, "counts": curves["counts"],
        "columns": found.quadrature.weights.shape[1],
        "density": [(x.at(place), y.at(height)) for place, height in zip(grid, pdf, strict=True)],
        "cumulative": [(x.at(at), shares.at(share)) for at, share in zip(grid, cdf, strict=True)],
        "ticks": sorted({round(x.at(float(node))) for node in found.nodes}),
    }  # fmt: skip
    return Chart("density-whole", "density-whole", drawn, _HEIGHT)


def _above(found: Density, node: float) -> str:
    """Says about how many eigenvalues are above a node."""
    count = numbers.whole(max(0, round(found.n * (1 - float(found.cdf(node))))))
    return f"about {count} above {numbers.value(node, 3)}"
