"""The Hessian of a small network trained on scikit-learn's bundled handwritten digits.

Needs the extra ``workflows`` (``pip install '.[workflows]'``), and nothing that is not in it.
Other workflows here take the same network: single layers of it, its generalised Gauss-Newton
matrix, its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from skerch_ooc.operators import curvature as curvatures

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def make(
    hidden: int = 96,
    epochs: int = 30,
    samples: int = 1797,
    batch_size: int = 600,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    curvature: str = "hessian",
    device: str = "cpu",
) -> Any:
    """Trains a three-layer perceptron and makes the Hessian of its training loss.

    Args:
        hidden: See :func:`problem`; so are the next four.
        epochs: Passes of Adam over the data; 0 leaves the network untrained.
        samples: Digits that are used, of 1797.
        batch_size: Digits in a batch of the Hessian (and of the training).
        seed: Of the initial weights.
        layers: Names of the layers that are meant, ``"0"``, ``"2"`` and ``"4"``; all by default.
        curvature: ``"hessian"``, ``"ggn"`` or ``"fisher"``.
        device: The torch device.

    Returns:
        The operator ``(p, p)``; with the defaults ``p`` is 16,522.
    """
    model, loss, data = problem(hidden, epochs, samples, batch_size, seed, device)
    return getattr(curvatures, curvature)(model, loss, data, layers)


def problem(
    hidden: int = 96,
    epochs: int = 30,
    samples: int = 1797,
    batch_size: int = 600,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[torch.nn.Module, torch.nn.Module, Batches]:
    """The network, its loss and its data.

    Args:
        hidden: Width of both hidden layers.
        epochs: Passes of Adam over the data; 0 leaves the network untrained.
        samples: Digits that are used, of 1797.
        batch_size: Digits in a batch.
        seed: Of the initial weights.
        device: The torch device.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = torch.tensor(digits.data[:samples] / 16.0, dtype=torch.float32, device=device)
    targets = torch.tensor(digits.target[:samples], device=device)
    data = list(zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, 10),
        ).to(device)
    loss = torch.nn.CrossEntropyLoss()
    train(model, loss, data, epochs)
    return model.eval(), loss, data


def train(model: torch.nn.Module, loss: torch.nn.Module, data: Batches, epochs: int) -> None:
    """Trains by Adam, always in the same order: the same weights in every process."""
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for x, y in data:
            optimiser.zero_grad()
            loss(model(x), y).backward()
            optimiser.step()
