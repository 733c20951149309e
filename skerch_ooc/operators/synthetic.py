"""Operators of known spectrum at no cost to speak of: for tests, benchmarks and first steps."""

from __future__ import annotations

import math

import torch


class ReflectedDiagonal:
    """``A = P D P`` with a diagonal ``D`` and Householder reflections ``P``.

    ``P = P_1 P_2 ... ``, each ``P_i = I - 2 u_i u_i^T``: orthogonal, so the eigenvalues of the
    symmetric ``A = P D P^T`` are the entries of ``D``. A product costs O(n) for each column.

    Args:
        eigenvalues: The entries of ``D``, ``(n,)``; its dtype and device are the operator's.
        reflections: How many ``P_i`` there are.

    Attributes:
        shape: ``(n, n)``.
        eigenvalues: The entries of ``D``.
    """

    def __init__(self, eigenvalues: torch.Tensor, reflections: int = 2) -> None:
        n = len(eigenvalues)
        self.shape = (n, n)
        self.dtype = eigenvalues.dtype
        self.eigenvalues = eigenvalues
        positions = torch.arange(n, dtype=torch.float64)
        self._directions = []
        for k in range(1, reflections + 1):
            u = torch.cos(positions * (math.sqrt(2.0) * k) + k)
            self._directions.append((u / u.norm()).to(eigenvalues))

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the operator to ``x``, ``(n,)`` or ``(n, b)``."""
        y = (x if x.ndim == 2 else x[:, None]).clone()
        for u in reversed(self._directions):
            y.addr_(u, u @ y, alpha=-2)
        y *= self.eigenvalues[:, None]
        for u in self._directions:
            y.addr_(u, u @ y, alpha=-2)
        return y if x.ndim == 2 else y[:, 0]

    def adjoint(self) -> ReflectedDiagonal:
        """The operator itself, as it is symmetric."""
        return self


def decaying(
    n: int, rank: int, rate: float = 0.05, tail: float = 0.0, dtype: str = "float32",
    device: str = "cpu",
) -> ReflectedDiagonal:  # fmt: skip
    """A symmetric operator with eigenvalues ``(-1)^i 10^(-rate i)`` and a flat tail.

    Args:
        n: Height and width.
        rank: Eigenvalues that decay; the rest are ``tail``.
        rate: Decades per eigenvalue.
        tail: The remaining eigenvalues.
        dtype: float32 or float64.
        device: The torch device.
    """
    real = getattr(torch, dtype)
    eigenvalues = torch.full((n,), tail, dtype=torch.float64)
    index = torch.arange(rank, dtype=torch.float64)
    # Spread over the rows, so that every tile has its share.
    places = (torch.arange(rank) * n) // rank
    eigenvalues[places] = (1 - 2 * (index % 2)) * 10.0 ** (-rate * index)
    return ReflectedDiagonal(eigenvalues.to(device=device, dtype=real))
