"""Small charts with which results show themselves in a notebook: SVG that needs no style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.html import text
from skerch_ooc.results.report.axes import Axis, linear, logarithmic, path, thinned

_WIDTH, _HEIGHT = 340.0, 160.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, _WIDTH - 8, 8.0, _HEIGHT - 32
_COLOURS = ("#3a7fc1", "#d2691e")
"""They stand out from white and from black."""

_MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """Points that are drawn in one colour.

    Attributes:
        x: Their places, ascending.
        y: Their heights.
        name: What they are called; nothing if there is nothing to tell them from.
        joined: Whether a line joins them; else they are dots.
    """

    x: Array
    y: Array
    name: str = ""
    joined: bool = True


def curve(x: Array, y: Array, name: str = "", *, joined: bool = True) -> Curve:
    """Makes a curve; of many points only some are drawn."""
    places = [*thinned(len(x), _MOST_POINTS)]
    return Curve(x[places], y[places], name, joined)


def small_chart(curves: Sequence[Curve], names: tuple[str, str], low: float = 0.0) -> str:
    """Draws curves above a logarithmic axis; what is not positive is left out.

    Args:
        curves: The curves, two at most.
        names: What is along both axes.
        low: The axis begins there at the lowest.

    Returns:
        An SVG element; nothing where there is nothing to be drawn.
    """
    heights = [float(height) for one in curves for height in one.y if height > low]
    y = logarithmic(heights, _BOTTOM, _TOP)
    if y is None:
        return ""
    ends = [float(one.x[end]) for one in curves if len(one.x) for end in (0, -1)]
    x = linear(min(ends), max(ends), _LEFT, _RIGHT)
    drawn = "".join(
        _drawn(one, x, y, colour) + _label(_RIGHT, _TOP + 9 + 12 * row, one.name, "end", colour)
        for row, (one, colour) in enumerate(zip(curves, _COLOURS, strict=False))
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}" '
        f'role="img" aria-label="{text(names[1])} by {text(names[0])}" '
        f'font-size="10" fill="currentColor">{_axes(x, y, names)}{drawn}</svg>'
    )


def _axes(x: Axis, y: Axis, names: tuple[str, str]) -> str:
    marks = [(f"M{_LEFT:g},{_TOP:g}V{_BOTTOM:g}H{_RIGHT:g}")]
    labels = [_label((_LEFT + _RIGHT) / 2, _HEIGHT - 4, names[0], "middle")]
    for value, said in x.ticks(5):
        marks.append(f"M{x.at(value):.1f},{_BOTTOM:g}v3")
        labels.append(_label(x.at(value), _BOTTOM + 13, said, "middle"))
    for value, said in y.ticks(5):
        marks.append(f"M{_LEFT:g},{y.at(value):.1f}h-3")
        labels.append(_label(_LEFT - 5, y.at(value) + 3, said, "end"))
    turned = f'<text transform="translate(9,{(_TOP + _BOTTOM) / 2:g}) rotate(-90)" '
    labels.append(f'{turned}text-anchor="middle">{text(names[1])}</text>')
    return f'<path d="{"".join(marks)}" stroke="currentColor" fill="none"/>{"".join(labels)}'


def _label(x: float, y: float, said: str, anchor: str, colour: str = "currentColor") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{text(said)}</text>" if said else ""


def _drawn(one: Curve, x: Axis, y: Axis, colour: str) -> str:
    places = [
        (x.at(float(at)), y.at(float(height)))
        for at, height in zip(one.x, one.y, strict=True)
        if height >= y.low
    ]
    if one.joined and len(places) > 1:
        return f'<path d="{path(places)}" stroke="{colour}" stroke-width="1.5" fill="none"/>'
    return "".join(_dot(place, colour) for place in places)


def _dot(place: tuple[float, float], colour: str) -> str:
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="1.8" fill="{colour}"/>'
