"""The Hessian of a small ReLU network on random data: the reference example's problem.

Needs nothing but the package, unless ``reverse`` is false (``pip install '.[curvature]'``).
"""

from __future__ import annotations

from typing import Any

import torch

from skerch_ooc.operators.curvature import hessian


def make(
    inputs: int = 784,
    hidden: int = 50,
    outputs: int = 10,
    batches: int = 2,
    batch_size: int = 50,
    seed: int = 12345780,
    device: str = "cpu",
    reverse: bool | None = None,
) -> Any:
    """Makes the Hessian of the mean squared error of an untrained network.

    Args:
        inputs: Features of a sample.
        hidden: Width of the hidden layer.
        outputs: Targets of a sample.
        batches: Number of batches.
        batch_size: Samples in a batch.
        seed: Of data and weights.
        device: The torch device.
        reverse: How products are differentiated: see ``hessian``.

    Returns:
        The operator ``(p, p)``; with the defaults ``p`` is 39,760.
    """
    generator = torch.Generator().manual_seed(seed)
    data = []
    for _ in range(batches):
        x = torch.randn(batch_size, inputs, generator=generator)
        y = 2.0 * torch.randint(0, 2, (batch_size, outputs), generator=generator) - 1.0
        data.append((x.to(device), y.to(device)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, outputs)
        )
    model = model.to(device).eval()
    return hessian(model, torch.nn.MSELoss(), data, reverse=reverse)
