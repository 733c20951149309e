"""Axes of matplotlib for the ``plot`` methods of results, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError


def axes_of(ax: Any) -> Any:
    """Returns the axes to draw in: those that are given, or those of a new figure.

    Raises:
        UsageError: If matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise UsageError("plot() needs matplotlib; pip install 'skerch_ooc[report]'") from error
    return pyplot.subplots(layout="constrained")[1]


def plot_values(ax: Any, values: Array, noun: str, off: Array | None, off_name: str) -> Any:
    """Draws the magnitudes of values on a logarithmic axis; negative ones are open.

    Args:
        ax: Axes of matplotlib; ``None`` for those of a new figure.
        values: The values, in order.
        noun: What they are called.
        off: How far off each may be, if that is known.
        off_name: What that is called.

    Returns:
        The axes.
    """
    ax = axes_of(ax)
    numbers = np.arange(1, len(values) + 1)
    for sign, face in (("positive", None), ("negative", "none")):
        held = values > 0 if sign == "positive" else values < 0
        if held.any():
            label = f"{sign} {noun}" if (values < 0).any() else noun
            ax.plot(numbers[held], np.abs(values[held]), "o", markersize=4,
                    markerfacecolor=face, label=label)  # fmt: skip
    if off is not None and (off > 0).any():
        ax.plot(numbers[off > 0], off[off > 0], "_", color="grey", label=off_name)
    if values.any():
        ax.set_yscale("log")
    ax.set(xlabel="number", ylabel="magnitude")
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax
