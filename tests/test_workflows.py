"""The workflows, in a small form, and the specs that people start from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import skerch_ooc as ooc
from skerch_ooc.operators.curvature import hessian
from skerch_ooc.spec import Spec

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
SPECS = sorted(WORKFLOWS.glob("*.toml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_spec_is_allowed_and_its_factory_is_there(path):
    spec = Spec.from_toml(path)
    assert (spec.folder / spec.operator.factory.rpartition(":")[0]).exists()


def test_digits_hessian_has_about_as_many_outliers_as_classes(ooc_command):
    done = ooc_command(
        "run", WORKFLOWS / "digits_hessian.toml", "--run", "run", "--json",
        "--set", "measurements=160", "--set", "operator.args.hidden=24",
        "--set", "operator.args.samples=600",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = ooc.recover(ooc.open_run(ooc_command.cwd / "run")).eigenvalues
    assert 5 <= int((values > 0.1 * values[0]).sum()) <= 30


def test_mlp_hessian_in_small_is_recovered_to_rounding(ooc_command):
    done = ooc_command(
        "run", WORKFLOWS / "mlp_hessian.toml", "--run", "run", "--json",
        "--set", "measurements=500", "--set", "operator.args.inputs=60",
        "--set", "operator.args.hidden=10", "--set", "operator.args.batch_size=10",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["relative_error"] < 5e-6


def test_hessian_operator_equals_the_dense_hessian():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    operator = hessian(model, torch.nn.MSELoss(), [(x[:15], y[:15]), (x[15:], y[15:])])
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat):
        pieces = flat.split(sizes)
        named = {
            name: piece.view_as(p)
            for (name, p), piece in zip(parameters.items(), pieces, strict=True)
        }
        return torch.nn.functional.mse_loss(torch.func.functional_call(model, named, (x,)), y)

    dense = torch.func.hessian(loss)(torch.cat([p.flatten() for p in parameters.values()]))
    torch.testing.assert_close(operator @ torch.eye(sum(sizes)), dense, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "layer", [torch.nn.Dropout(), torch.nn.BatchNorm1d(4)], ids=lambda x: type(x).__name__
)
def test_model_in_training_mode_is_refused_with_the_layer(layer):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), layer)
    data = [(torch.randn(5, 3), torch.randn(5, 4))]
    with pytest.raises(ooc.OperatorError, match=r"call model.eval\(\) first"):
        hessian(model, torch.nn.MSELoss(), data)


@pytest.mark.soak
def test_benchmark_prints_ratios(tmp_path):
    done = subprocess.run(
        [sys.executable, WORKFLOWS / "benchmarks/mlp_hessian.py", "--repeats", "1",
         "--measurements", "60", "--tests", "8", "--json", tmp_path / "figures.json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "wall" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ratios"].keys() == {"wall", "peak", "products", "relative_error"}


def test_noise_benchmark_prints_a_ratio():
    done = subprocess.run(
        [sys.executable, WORKFLOWS / "benchmarks/noise.py", "--rows", "5000", "--columns", "128"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "ratio" in done.stdout
