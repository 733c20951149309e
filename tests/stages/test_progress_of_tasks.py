"""What a serial run says of a task while its operator is at work."""

from __future__ import annotations

import io
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import skerch_ooc as ooc
from skerch_ooc.base.progress import Lines, Meter, shares_heard
from skerch_ooc.operators.curvature import hessian

N = 24


class Vectors:
    """An operator that takes one vector at a time."""

    shape, dtype = (N, N), np.dtype("float64")

    def matvec(self, x):
        return x


def terms():
    """A sum of three terms."""
    return ooc.Sum([torch.eye(N, dtype=torch.float64)] * 3)


def network():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 4, dtype=torch.float64)
    data = [(torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 4) for _ in range(2)]
    return hessian(model, torch.nn.CrossEntropyLoss(), data)


CASES = {
    "one by one": (Vectors, [8, 9, 10]),
    "terms": (terms, [8 + 8 / 3, 8 + 16 / 3]),
    "two batches": (network, [4, 8]),
    "rows of an array": (lambda: np.diag(0.5 ** np.arange(float(N))), [8, 16]),
}


@pytest.fixture
def computed(monkeypatch):
    """The columns of which tasks have said that they are computed."""
    heard, original = [], Meter.computed

    def computed(self, units):
        heard.append(units)
        original(self, units)

    monkeypatch.setattr(Meter, "computed", computed)
    return heard


@pytest.mark.parametrize("case", CASES)
def test_columns_are_counted_as_the_operator_does_them(tmp_path, computed, case):
    make, expected = CASES[case]
    ooc.eigh(make(), measurements=16, block=8, run_dir=tmp_path / "run", test_measurements=0,
             progress=Lines(io.StringIO(), every=math.inf))  # fmt: skip
    assert computed == sorted(computed)
    assert computed[-1] == 16
    for units in expected:
        assert any(units == pytest.approx(one) for one in computed), computed


def test_displays_of_other_kinds_are_told_of_reports_alone(tmp_path):
    told = []

    class Mine(ooc.Progress):
        @contextmanager
        def entered(self, stage):
            yield lambda count: told.append((stage.name, count))

    ooc.eigh(np.eye(N), measurements=16, block=8, run_dir=tmp_path / "run", progress=Mine())
    assert [count for name, count in told if name == "measure"][:2] == [8, 8]


def test_columns_of_a_network_are_counted_by_inner_calls():
    heard, operator = [], network().narrowed(4)
    with shares_heard(heard.append):
        operator @ torch.ones(operator.shape[0], 8, dtype=torch.float64)
    assert sorted(set(heard)) == [0.25, 0.5, 0.75, 1.0]
