"""The function that solves the small problems of each recovery method, by the method's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from skerch_ooc.algebra.methods import auto, hmt, nystrom, oversampled, singlepass
from skerch_ooc.algebra.methods.problem import Core, Problem

SOLVERS: Mapping[str, Callable[[Problem], Core]] = {
    "nystrom": nystrom.solve,
    "singlepass": singlepass.solve,
    "oversampled": oversampled.solve,
    "hmt": hmt.solve,
    "auto": auto.solve,
}
"""The keys are those of :data:`skerch_ooc.planning.methods.METHODS`."""
