"""Curvature on a GPU: equal to that on the processor, for layers whose kernels differ there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch_ooc.operators.curvature import fisher, ggn, hessian

WIDTH = 6


class Recurrent(nn.Module):
    """Layers of cuDNN, which has no second derivatives of them."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.LSTM(WIDTH, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layers(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(self.layer(x).mean(dim=1))


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("network", [Recurrent, Attending, Convolved], ids=lambda x: x.__name__)
@pytest.mark.parametrize("matrix", [hessian, ggn, fisher], ids=lambda x: x.__name__)
def test_products_on_a_gpu_are_those_of_the_processor(network, matrix):
    torch.manual_seed(0)
    data = [(torch.randn(n, 4, WIDTH), torch.arange(n) % 2) for n in (5, 3)]
    model = network().eval()
    model(data[0][0])
    options = {"samples": None} if matrix is fisher else {}
    here = matrix(model, nn.CrossEntropyLoss(), data, **options)
    columns = torch.randn(here.shape[0], 5)
    expected = here @ columns
    there = matrix(model, nn.CrossEntropyLoss(), data, device="cuda", **options)
    assert there.device.type == "cuda"
    torch.testing.assert_close((there @ columns.cuda()).cpu(), expected, rtol=1e-3, atol=1e-5)
