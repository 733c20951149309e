"""Tasks packed into the elements of a job array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MOST_TRIED = 4096
"""Moduli that are compared: so many that one more would hardly be any better."""


@dataclass(frozen=True)
class Elements:
    """Elements of an array: number ``i`` does the tasks ``t`` with ``t mod of = i``.

    Attributes:
        of: The modulus.
        indices: The elements that have something to do, ascending.
        longest: The most tasks that one of them has.
    """

    of: int
    indices: tuple[int, ...]
    longest: int

    @property
    def ranges(self) -> str:
        """The elements as Slurm writes them: ``"0-3,7"``."""
        runs: list[list[int]] = []
        for index in self.indices:
            if runs and index == runs[-1][1] + 1:
                runs[-1][1] = index
            else:
                runs.append([index, index])
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def pack(tasks: Sequence[int], most: int, limit: int) -> Elements:
    """Packs tasks into elements as evenly as their numbers allow.

    Which task is whose follows from its number alone, as an element that starts later must not
    depend on what others have done meanwhile. So the modulus is chosen that leaves the longest
    element the fewest tasks, and of several the one with the fewest elements.

    Args:
        tasks: Numbers of the tasks that are left, at least one.
        most: The most elements.
        limit: What all indices must be below.
    """
    numbers = np.asarray(tasks)
    best, total = (len(tasks), 1, 1), len(tasks)
    # As when nothing is done yet: of millions of tasks nothing needs to be counted.
    contiguous = int(numbers.max()) - int(numbers.min()) == total - 1
    for of in range(2, min(limit, int(numbers.max()) + 1, _MOST_TRIED) + 1):
        if contiguous:
            longest, elements = -(-total // of), min(of, total)
        else:
            loads = np.bincount(numbers % of)
            longest, elements = int(loads.max()), int(np.count_nonzero(loads))
        if elements <= most:
            best = min(best, (longest, elements, of))
    longest, _, of = best
    return Elements(of, tuple(int(i) for i in np.flatnonzero(np.bincount(numbers % of))), longest)
