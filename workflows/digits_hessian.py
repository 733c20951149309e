"""The Hessian of a small network trained on scikit-learn's bundled handwritten digits."""

from __future__ import annotations

from typing import Any

import torch

from skerch_ooc.operators.curvature import hessian


def make(
    hidden: int = 96,
    epochs: int = 30,
    samples: int = 1797,
    batch_size: int = 600,
    seed: int = 0,
    device: str = "cpu",
) -> Any:
    """Trains a three-layer perceptron and makes the Hessian of its training loss.

    Args:
        hidden: Width of both hidden layers.
        epochs: Passes of Adam over the data; 0 leaves the network untrained.
        samples: Digits that are used, of 1797.
        batch_size: Digits in a batch of the Hessian (and of the training).
        seed: Of the initial weights.
        device: The torch device.

    Returns:
        The operator ``(p, p)``; with the defaults ``p`` is 16,522.
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
    return hessian(model.eval(), loss, data)


def train(
    model: torch.nn.Module,
    loss: torch.nn.Module,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    epochs: int,
) -> None:
    """Trains by Adam, always in the same order: the same weights in every process."""
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for x, y in data:
            optimiser.zero_grad()
            loss(model(x), y).backward()
            optimiser.step()
