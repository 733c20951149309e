"""Recovery methods: small matrices in, small matrices out; one module each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from skerch_ooc.recovery import nystrom
from skerch_ooc.recovery.problem import Problem, Solution

METHODS: Mapping[str, Callable[[Problem], Solution]] = {"nystrom": nystrom.solve}
"""Each method by its name in the spec."""

__all__ = ["METHODS", "Problem", "Solution"]
