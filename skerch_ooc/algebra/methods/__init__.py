"""Recovery methods: small matrices in, small matrices out; one module each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from skerch_ooc.algebra.methods import hmt, nystrom, oversampled, singlepass
from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.problem import Core, Problem, Solution

METHODS: Mapping[str, Callable[[Problem], Core]] = {
    "nystrom": nystrom.solve,
    "singlepass": singlepass.solve,
    "oversampled": oversampled.solve,
    "hmt": hmt.solve,
}
"""Each method by its name in the spec."""

__all__ = ["METHODS", "Core", "Problem", "Solution", "decompose"]
