"""The better of two methods on the same sketch, by its error on held-out test columns.

Which of ``nystrom`` and ``singlepass`` is better depends on the spectrum of ``A`` and on how many
left columns there are, and costs no product to find out: each chooses its core by the same test
columns, and that with the smaller error is taken. Where there are too few test columns for it, or
the size of the core is given, nothing is chosen: then it is ``nystrom``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from skerch_ooc.algebra.methods import nystrom, singlepass
from skerch_ooc.algebra.methods.choosing import choosing_columns
from skerch_ooc.algebra.methods.problem import Core, Problem

COMPARED: Mapping[str, Callable[[Problem], Core]] = {
    "nystrom": nystrom.solve,
    "singlepass": singlepass.solve,
}
"""The methods that are tried, the one that is taken in doubt first."""


def solve(problem: Problem) -> Core:
    """Recovers a low-rank approximation by each method, and returns the better one.

    Args:
        problem: The small matrices of the sketches, and what is wanted.

    Returns:
        The approximation, with the name of the method that made it.
    """
    names = list(COMPARED)
    if problem.core_size is not None or not choosing_columns(problem):
        names = names[:1]
    cores = [dataclasses.replace(COMPARED[name](problem), method=name) for name in names]
    return min(cores, key=_least_error)


def _least_error(core: Core) -> float:
    """Returns the error of the size that was chosen, on the columns that chose it."""
    return min((error for _, error in core.tested), default=math.inf)
