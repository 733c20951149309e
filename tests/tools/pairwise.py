"""A few cases of a product of axes, in which all pairs of values meet; the rest is thorough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def cover(
    *axes: Sequence[Any], together: int = 2, allowed: Callable[..., bool] = lambda *_: True
) -> list[tuple]:
    """Chooses cases so that any values of so many axes, if they are allowed to meet, meet in one.

    Greedy: the next case is the one that adds most, of these the one of the values that were
    chosen least, and of these the first. So it is the same cases whenever it is asked.

    Args:
        *axes: The values of each axis.
        together: Of how many axes values meet: 1 for each value once, 2 for all pairs.
        allowed: Whether values go together.

    Returns:
        The cases in the order of the product.
    """
    places = [
        place
        for place in product(*(range(len(axis)) for axis in axes))
        if allowed(*_values(axes, place))
    ]
    missing = {met for place in places for met in _meetings(place, together)}
    used: Counter[tuple[int, int]] = Counter()
    chosen = set()
    while missing:
        best = max(
            places,
            key=lambda place: (
                len(missing & _meetings(place, together)),
                -sum(used[value] for value in enumerate(place)),
            ),
        )
        chosen.add(best)
        missing -= _meetings(best, together)
        used.update(enumerate(best))
    return [_values(axes, place) for place in places if place in chosen]


def covered(
    *axes: Sequence[Any], together: int = 2, allowed: Callable[..., bool] = lambda *_: True
) -> list:
    """All cases of a product as parameters of a test, thorough where ``cover`` does without."""
    chosen = cover(*axes, together=together, allowed=allowed)
    return [
        pytest.param(*case, marks=() if case in chosen else pytest.mark.thorough)
        for case in product(*axes)
        if allowed(*case)
    ]


def _values(axes: Sequence[Sequence[Any]], place: Iterable[int]) -> tuple:
    return tuple(axis[number] for axis, number in zip(axes, place, strict=True))


def _meetings(place: tuple[int, ...], together: int) -> set[tuple]:
    return set(combinations(enumerate(place), together))
