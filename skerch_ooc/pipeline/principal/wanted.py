"""What principal components are wanted: how many of them, and how they are to be found."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.algebra.principal import components_for
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError, shown
from skerch_ooc.operators.matrices.options import COLUMN_MEAN

AUTO = "auto"
METHODS = (AUTO, "gram", "qr", "krylov")


@dataclass(frozen=True)
class Wanted:
    """What components are wanted, and how they are found.

    Attributes:
        components: How many: a number, a share of the variance, or ``None`` for all.
        whiten: Whether scores are to have the variance 1.
        method: One of :data:`METHODS`.
        tolerance: Of ``krylov``: relative error of the components.
        seed: Of ``krylov``.
        missing: What is put where entries are missing; ``None`` to refuse them.
    """

    components: int | float | None = None
    whiten: bool = False
    method: str = "auto"
    tolerance: float = 1e-6
    seed: int = 1
    missing: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method = {shown(self.method)}: must be one of {', '.join(METHODS)}")
        if self.missing not in (None, COLUMN_MEAN):
            raise UsageError(
                f'missing = {shown(self.missing)}: must be "{COLUMN_MEAN}", or left out to refuse '
                "what is missing"
            )
        asked = self.components
        if not (asked is None or is_whole(asked) or _is_share(asked)):
            raise UsageError(
                f"n_components = {shown(asked)}: must be a whole number of at least 1, a share of "
                "the variance between 0 and 1, or left out for all"
            )

    def number(self, squares: Array) -> int:
        """How many components are kept, given the squares of all singular values."""
        most = len(squares)
        if self.components is None:
            return most
        if is_whole(self.components):
            return int(self.components)
        total = squares.sum()
        return components_for(float(self.components), squares / total) if total > 0 else most

    def require_few(self, shape: tuple[int, int]) -> None:
        """Refuses more components than there are.

        Raises:
            UsageError: Naming both numbers.
        """
        if is_whole(self.components) and int(self.components or 0) > min(shape):
            raise UsageError(
                f"n_components = {self.components}: must be at most {min(shape)}, as there are "
                f"{shape[0]} samples of {shape[1]} features"
            )


def is_whole(value: Any) -> bool:
    """Whether a value is a number of components."""
    is_number = isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))
    return is_number and int(value) >= 1


def _is_share(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and (
        0 < float(value) < 1
    )  # fmt: skip
