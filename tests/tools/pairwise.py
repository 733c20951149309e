"""Few cases of many, in which all pairs of values meet that meet in any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import combinations


def cover(cases: Sequence[Sequence[Hashable]], together: int = 2) -> list[int]:
    """Chooses cases so that any values that meet in some case meet in one that is chosen.

    Greedy: the next case is the one that adds most, of these the one of the values that were
    chosen least, and of these the first. So it is the same cases whenever it is asked.

    Args:
        cases: Their values, in the same order of parameters.
        together: Of how many parameters values meet: 1 for each value once, 2 for all pairs.

    Returns:
        The numbers of the chosen cases, ascending.
    """
    values = [frozenset(enumerate(case)) for case in cases]
    meetings = [frozenset(combinations(enumerate(case), together)) for case in cases]
    missing = {met for one in meetings for met in one}
    used: Counter[tuple[int, Hashable]] = Counter()

    def loss(number: int) -> tuple[int, int]:
        return -len(missing & meetings[number]), sum(used[value] for value in values[number])

    # What was the best of a case only becomes worse: a case that is still ahead is the best.
    waiting = [(loss(number), number) for number in range(len(cases))]
    heapify(waiting)
    chosen = []
    while missing:
        number = waiting[0][1]
        now = (loss(number), number)
        if now > waiting[0]:
            heapreplace(waiting, now)
            continue
        heappop(waiting)
        chosen.append(number)
        missing -= meetings[number]
        used.update(values[number])
    return sorted(chosen)
