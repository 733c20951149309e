"""The workflows, in a small form: what each finds, and that the page about them knows them all."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import skerch_ooc as ooc
from skerch_ooc.operators.curvature import hessian
from skerch_ooc.planning.spec import Spec

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = ROOT / "workflows"
SPECS = sorted(WORKFLOWS.glob("*.toml"))
PAGE = ROOT / "docs/workflows.md"
SCRIPTS = sorted(
    path.name
    for path in WORKFLOWS.iterdir()
    if path.suffix in {".py", ".sh", ".toml"} and path.name != "shared.py"
)
SMALL = (
    "operator.args.hidden=12", "operator.args.samples=200", "operator.args.batch_size=50",
    "operator.args.epochs=30",
)  # fmt: skip
"""A network of 1066 parameters that tells 200 digits apart."""


def settings(*more):
    """Arguments of a workflow, for the small network on one thread."""
    return ["--threads=1", *(f"--set={text}" for text in (*SMALL, *more))]


@pytest.fixture
def workflow(monkeypatch):
    """Imports a workflow by name, as Python does when it is run as a script."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"workflows.{name}")


@pytest.fixture
def shell(tmp_path):
    """Runs a workflow in bash, with skerch-ooc on the path, in the test's folder."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(name, *arguments, **more):
        return subprocess.run(
            ["bash", WORKFLOWS / name, *map(str, arguments)], cwd=tmp_path, check=False,
            env=environment | more, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_spec_is_allowed_and_its_factory_is_there(path):
    spec = Spec.from_toml(path)
    assert (spec.folder / spec.operator.factory.rpartition(":")[0]).exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_workflow_says_what_it_needs_and_is_on_the_page(name):
    text = (WORKFLOWS / name).read_text()
    assert f"`{name}`" in PAGE.read_text()
    assert name.endswith(".toml") or "Needs " in text


def test_page_names_no_workflow_that_is_not_there():
    named = re.findall(r"(?:`|workflows/)([a-z0-9_]+\.(?:py|sh|toml))\b", PAGE.read_text())
    there = {path.name for path in WORKFLOWS.rglob("*")}
    assert sorted(set(named) - there) == []


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.endswith(".sh")])
def test_script_without_its_arguments_says_how_it_is_used(shell, name):
    done = shell(name)
    assert (done.returncode, "usage: bash" in done.stderr) == (2, True)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "network",
    [
        pytest.param(("measurements=60", *SMALL), id="small"),
        pytest.param(
            ("measurements=160", "operator.args.hidden=24", "operator.args.samples=600"),
            marks=pytest.mark.thorough,
            id="larger",
        ),
    ],
)
def test_digits_hessian_has_about_as_many_outliers_as_classes(forked_command, network):
    done = forked_command(
        "run", WORKFLOWS / "digits_hessian.toml", "--run", "run", "--json",
        *(word for text in network for word in ("--set", text)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = ooc.recover(ooc.open_run(forked_command.cwd / "run")).eigenvalues
    assert 5 <= int((values > 0.1 * values[0]).sum()) <= 30


@pytest.mark.thorough
def test_training_makes_one_outlier_less_than_classes_which_the_gradient_prefers(
    workflow, tmp_path, capsys
):
    arguments = [f"--runs={tmp_path}", *settings("measurements=30", "recovery.rank=25")]
    before, after = workflow("digits_training").main(arguments)
    assert (after.gap[0], before.gap[1] < 1.5 < after.gap[1]) == (9, True)
    # How much of it is a matter of how far training has come; chance would give 9 / parameters.
    assert after.gradient > 10 * 9 / after.parameters
    assert after.residual < 0.05
    printed = capsys.readouterr().out
    # Of runs that are there it prints the same again.
    workflow("digits_training").main(arguments)
    assert capsys.readouterr().out == printed


@pytest.mark.thorough
def test_mlp_hessian_in_small_is_recovered_to_rounding(forked_command):
    done = forked_command(
        "run", WORKFLOWS / "mlp_hessian.toml", "--run", "run", "--json",
        "--set", "measurements=500", "--set", "operator.args.inputs=60",
        "--set", "operator.args.hidden=10", "--set", "operator.args.batch_size=10",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["relative_error"] < 5e-6


@pytest.mark.thorough
def test_traces_of_layers_add_up_to_that_of_the_whole(workflow, tmp_path):
    arguments = [f"--runs={tmp_path}", *settings("measurements=120")]
    whole, layers, parts = workflow("digits_layers").main(arguments)
    assert sum(layer.parameters for layer in layers) == whole.parameters
    errors = sum(block.trace_error**2 for block in (whole, *layers)) ** 0.5
    assert abs(sum(layer.trace for layer in layers) - whole.trace) < 5 * errors + 1e-3
    # Interlacing: no block has a larger eigenvalue than the whole.
    assert max(float(layer.values[0]) for layer in layers) <= float(whole.values[0]) * 1.001
    assert sum(parts) == pytest.approx(1, abs=1e-4)


@pytest.mark.thorough
def test_gauss_newton_matrix_has_the_outliers_of_the_hessian_and_nothing_negative(
    workflow, tmp_path
):
    arguments = [f"--runs={tmp_path}", *settings("measurements=120")]
    found = workflow("digits_ggn").main(arguments)
    assert float((found.ggn[:9] / found.hessian[:9] - 1).abs().max()) < 0.25
    assert found.overlaps[9] > 0.9
    assert float(found.ggn.min()) > -1e-3 * float(found.ggn[0])
    assert float(found.hessian.min()) < -1e-3 * float(found.hessian[0])


@pytest.mark.thorough
def test_leading_eigenspace_settles_while_a_network_is_trained(workflow, tmp_path):
    # The epochs are the workflow's own.
    given = [text for text in settings("round_width=4", "rounds=8") if "epochs" not in text]
    found = workflow("eigenspace_overlap").main([f"--runs={tmp_path}", *given])
    final = [one.final.value for one in found.values()]
    assert final[-1] == pytest.approx(1)
    assert final[-2] > final[0]
    bulk = [one.bulk for one in found.values()]
    assert bulk[-1] > bulk[0]


def test_components_of_a_matrix_on_disk_are_those_of_its_covariance(workflow, tmp_path):
    found = workflow("matrix_pca").main(
        [
            f"--runs={tmp_path}",
            "--rows=6000",
            "--columns=120",
            "--threads=1",
            "--set=measurements=60",
        ]
    )
    assert abs(found.values / found.truth - 1).max() < 0.05
    assert found.common > 0.99


def test_slurm_run_prints_what_it_would_submit_where_there_is_no_slurm(shell, tmp_path):
    spec = WORKFLOWS / "streaming.toml"
    done = shell("slurm_run.sh", spec, "run", "--dry-run", "--time=1:00:00", PATH_TO_SLURM="")
    assert done.returncode == 0, done.stderr
    assert {"sbatch", "measure", "assess"} <= set(re.findall(r"\w+", done.stdout))


@pytest.mark.slurm
def test_slurm_run_waits_for_its_figures(empty_queue, tmp_path):
    run = empty_queue.folder / "workflow"
    done = subprocess.run(
        ["bash", WORKFLOWS / "slurm_run.sh", WORKFLOWS / "streaming.toml", run,
         "--time=0:10:00", "--", "--mem-per-cpu=0"],
        env=empty_queue.environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "relative error" in done.stdout


@pytest.mark.thorough
def test_dask_run_counts_the_products_of_each_worker(shell):
    done = shell(
        "dask_run.sh", WORKFLOWS / "streaming.toml", "run", "--workers=1", "--threads=1",
        "--set", "operator.args.dimension=300",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sum(map(int, re.findall(r"(\d+) products$", done.stdout, re.M))) == 90


@pytest.mark.soak
def test_cluster_in_python_makes_the_bits_of_one_process(workflow, tmp_path):
    arguments = [f"--runs={tmp_path}", "--workers=1", *settings("measurements=40")]
    vectors, expected = workflow("dask_cluster").main(arguments)
    assert torch.equal(vectors, expected)


@pytest.mark.thorough
def test_killed_run_repeats_no_published_product_and_ends_with_the_same_bits(workflow, tmp_path):
    # Of two columns each: many shards to be killed between, and nothing to build.
    spec = f"--spec={WORKFLOWS / 'streaming.toml'}"
    story = workflow("kill_and_resume").main(
        [f"--runs={tmp_path}", spec, "--after=4", "--set=sketch.block=2", "--set=recovery.rank=5"]
    )
    assert (story.same_bits, story.untouched) == (True, True)
    assert 4 <= story.before < story.planned
    assert story.before + story.second == story.planned


@pytest.mark.soak
def test_growth_ends_below_the_tolerance_and_loses_nothing(workflow, tmp_path):
    arguments = [f"--runs={tmp_path}", *settings("tolerance=0.4", "measurements=600")]
    growth = workflow("growing").main(arguments)
    assert growth.errors[1] < growth.errors[0] < 0.4
    met, extended = growth.measurements
    assert growth.products == (met + 30, extended + 30)
    assert growth.difference < 1e-4


@pytest.mark.thorough
def test_stream_that_forgets_follows_the_newest_batch(workflow, tmp_path):
    arguments = [f"--runs={tmp_path / 'runs'}", "--batches=4", "--threads=1"]
    arguments += ["--set=operator.args.dimension=200", "--set=operator.args.samples=100"]
    forgetting, mean = workflow("streaming").main(arguments)
    assert [moment.products for moment in forgetting] == [90, 180, 270, 360]
    assert max(moment.off for moment in (*forgetting, *mean)) < 1e-3
    assert forgetting[-1].newest > mean[-1].newest + 0.03


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
    "layer", [torch.nn.Dropout(), torch.nn.RReLU()], ids=lambda x: type(x).__name__
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


@pytest.mark.thorough
def test_noise_benchmark_prints_a_ratio():
    done = subprocess.run(
        [sys.executable, WORKFLOWS / "benchmarks/noise.py", "--rows", "1000", "--columns", "64"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "ratio" in done.stdout
