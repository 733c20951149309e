"""What a recovery method is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """The small matrices of a sketch ``Y = A Omega`` with a test sketch ``T = A G``.

    Attributes:
        gram: ``Y^H Y``, ``(m, m)``.
        core: ``Omega^H Y``, ``(m, m)``; Hermitian but for rounding.
        gram_test: ``Y^H T``, ``(m, q)``.
        test_gram: ``T^H T``, ``(q, q)``.
        core_test: ``Y^H G``, ``(m, q)``.
        epsilon: Relative precision of the products.
        core_size: How many eigenpairs of the core are to be inverted; ``None``: choose.
        rank: How many values and vectors are wanted; ``None``: all.
    """

    gram: Array
    core: Array
    gram_test: Array
    test_gram: Array
    core_test: Array
    epsilon: float
    core_size: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Solution:
    """A decomposition ``A ~ U diag(values) U^H`` with ``U = Y transform``.

    Attributes:
        values: Eigenvalues in descending magnitude, ``(r,)``.
        transform: ``(m, r)``.
        core_size: Eigenpairs of the core that were inverted.
        tested: ``(eigenpairs, estimated error)`` for each core that was tried.
        choosing: How many of the first test columns chose the core: the error must be estimated
            from the others.
        leave_one_out: Estimate of ``||A - Ahat||_F`` (before truncation to ``rank``) from the
            right sketch alone.
    """

    values: npt.NDArray[np.float64]
    transform: Array
    core_size: int
    tested: tuple[tuple[int, float], ...]
    choosing: int
    leave_one_out: float
