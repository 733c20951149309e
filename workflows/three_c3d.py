"""The curvature of a convolutional network with three convolutions and three dense layers (3c3d).

The network is that of DeepOBS for CIFAR-10 (Schneider, Balles, Hennig 2019, arXiv 1903.05499), with
895,210 parameters. The images are random, so nothing is downloaded; with 32 of them the
Gauss-Newton matrix has a rank of at most 288, as a softmax of ten classes has nine directions.
Needs nothing but the package, and 2.5 GB of disk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from skerch_ooc.operators import curvature

CLASSES = 10


def network() -> nn.Sequential:
    """Returns the network for images ``(B, 3, 32, 32)``."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 96, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(), nn.Linear(1152, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
        nn.Linear(256, CLASSES),
    )  # fmt: skip


def make(
    matrix: str = "ggn", batches: int = 2, batch_size: int = 16, seed: int = 0, device: str = "cpu"
) -> Any:
    """Makes the curvature of the cross entropy of an untrained network.

    Args:
        matrix: ``"ggn"`` or ``"hessian"``.
        batches: Number of batches.
        batch_size: Images in a batch.
        seed: Of images, classes and weights.
        device: The torch device.

    Returns:
        The operator ``(895210, 895210)``.
    """
    generator = torch.Generator().manual_seed(seed)
    data = [
        (
            torch.randn(batch_size, 3, 32, 32, generator=generator),
            torch.randint(CLASSES, (batch_size,), generator=generator),
        )
        for _ in range(batches)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().eval()
    of = {"ggn": curvature.ggn, "hessian": curvature.hessian}[matrix]
    return of(model, nn.CrossEntropyLoss(), data, device=device)
