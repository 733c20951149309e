"""Tasks packed into the elements of a job array."""

from __future__ import annotations

import itertools
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
        # Of indices that follow each other, the difference to their positions is the same.
        groups = itertools.groupby(enumerate(self.indices), lambda pair: pair[1] - pair[0])
        runs = [[index for _, index in group] for _, group in groups]
        return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


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
    numbers, total = np.asarray(tasks), len(tasks)
    # As when nothing is done yet: of millions of tasks nothing needs to be counted.
    contiguous = int(numbers.max()) - int(numbers.min()) == total - 1

    def packed(of: int) -> tuple[int, int, int]:
        """The tasks of the longest element, the elements that have any, and the modulus."""
        if contiguous:
            return -(-total // of), min(of, total), of
        loads = np.bincount(numbers % of)
        return int(loads.max()), int(np.count_nonzero(loads)), of

    moduli = range(1, min(limit, int(numbers.max()) + 1, _MOST_TRIED) + 1)
    longest, _, of = min(found for found in map(packed, moduli) if found[1] <= most)
    return Elements(of, tuple(np.flatnonzero(np.bincount(numbers % of)).tolist()), longest)
