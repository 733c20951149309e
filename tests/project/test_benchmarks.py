"""The benchmarks of storage and recovery, at sizes at which they take seconds and say nothing."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from skerch_ooc.operators.matrix import stored

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "workflows" / "benchmarks"


def run(tmp_path: Path, script: str, *options: str) -> tuple[str, dict]:
    """Runs a benchmark; returns what it prints and what it writes."""
    scratch, figures = tmp_path / "scratch", tmp_path / "figures.json"
    command = [sys.executable, BENCHMARKS / script, "--repeats", "1", "--folder", scratch,
               "--json", figures, *options]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())
    return done.stdout, json.loads(figures.read_text())


@pytest.mark.thorough
def test_recovery_is_compared_with_dask(tmp_path):
    text, figures = run(
        tmp_path, "recovery.py", "--rows", "9000", "--columns", "32", "--chunk-rows", "5000",
        "--threads", "1",
    )  # fmt: skip
    assert figures.keys() == {"settings", "medians", "goals", "runs"}
    assert figures["medians"].keys() == {"merge", "recover", "dask", "ours"}
    assert figures["goals"].keys() == {"wall, ours / dask", "our peak memory, GB"}
    (ours,), (dask,) = figures["runs"]["ours"], figures["runs"]["dask"]
    assert ours["rank"] == 30
    assert ours["relative_error"] < 1e-5
    assert dask["bytes"] == 4 * 9000 * 30
    assert dask["peak"] > ours["peak"] > 10**7
    assert "goal <= 0.2" in text


@pytest.mark.soak
def test_matrix_on_disk_is_compared_with_dask_and_scikit_learn(tmp_path):
    text, figures = run(
        tmp_path, "matrix_svd.py", "--rows", "9000", "--columns", "300", "--chunk-rows", "5000",
        "--threads", "1",
    )  # fmt: skip
    assert figures["medians"].keys() == {
        "ours", "dask", "scikit-learn, n_iter=0", "scikit-learn",
    }  # fmt: skip
    # Once, and a few rows that are looked at when it is planned.
    assert 1 <= figures["read"] / (4 * 9000 * 300) < 1.02
    assert all(0 < found["error"] < 0.2 for found in figures["medians"].values())
    assert "goal <= 0.75" in text


@pytest.mark.soak
def test_small_problems_are_compared_with_everybody(tmp_path):
    text, figures = run(
        tmp_path, "comparison.py", "--rows", "300", "--columns", "200", "--disk-rows", "3000",
        "--disk-columns", "300", "--chunk-rows", "1000", "--size", "3000", "--threads", "1",
        "--markdown",
    )  # fmt: skip
    assert [len(cells) for cells in figures["runs"].values()] == [8, 4, 4]
    runs = [run for cells in figures["runs"].values() for (run,) in cells.values()]
    assert all(run["error"] > 0.999 and run["peak"] > 10**7 for run in runs)
    exact = ("torch.linalg.svd (all values)", "scipy svds", "sklearn randomized_svd")
    assert all(figures["runs"]["dense"][name][0]["error"] < 1.001 for name in exact)
    assert figures["runs"]["free"]["scipy eigsh"][0]["worst"] < 1e-3
    assert text.count("| --- | ---:") == 3


@pytest.fixture(scope="module")
def comparison() -> dict:
    return runpy.run_path(str(BENCHMARKS / "comparison.py"))


def test_best_approximation_of_the_dense_matrix_has_error_one(tmp_path, comparison):
    source, target = str(tmp_path / "a.npy"), str(tmp_path)
    truth = comparison["make_dense"](source, 150, 90)
    u, s, vh = np.linalg.svd(np.load(source), full_matrices=False)
    comparison["save"](target, U=u[:, :50], S=s[:50], Vh=vh[:50])
    (judged,) = comparison["judge_dense"](source, [target], truth["best"]).values()
    assert judged["error"] == pytest.approx(1, abs=1e-4)


def test_best_approximation_of_the_operator_has_error_one(tmp_path, comparison):
    dense = comparison["free_operator"](300) @ torch.eye(300)
    values, vectors = np.linalg.eigh(dense.double().numpy())
    leading = np.argsort(-np.abs(values))[:20]
    comparison["save"](str(tmp_path), values=values[leading], vectors=vectors[:, leading])
    (judged,) = comparison["judge_free"](300, [str(tmp_path)]).values()
    assert judged["error"] == pytest.approx(1, abs=1e-4)
    assert judged["worst"] < 1e-5


def test_figures_that_somebody_has_not_are_a_dash(comparison):
    common = {"wall": 2.0, "peak": 3e9, "inside": 0.5, "error": 1.25}
    cells = {"mine": [common | {"products": 120.0}], "yours": [common | {"products": 90.0}],
             "theirs": [common | {"products": 0}]}  # fmt: skip
    assert comparison["table"](cells, markdown=True) == (
        "| | wall, s | inside, s | peak, GB | products | error / best |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| mine | 2.0 | 0.50 | 3.00 | 120 | 1.250 |\n"
        "| yours | 2.0 | 0.50 | 3.00 | 90 | 1.250 |\n"
        "| theirs | 2.0 | 0.50 | 3.00 | - | 1.250 |"
    )


@pytest.mark.thorough
def test_storage_is_compared_with_the_reference_layer(tmp_path):
    text, figures = run(
        tmp_path, "storage.py", "--rows", "9000", "--columns", "40", "--threads", "1"
    )
    names = {f"{verb}, {who}" for verb in ("write", "rechunk")
             for who in ("shards", "skerch", "skerch uncompressed")}  # fmt: skip
    assert figures["medians"].keys() == names | {"copy", "merge", "bare products"}
    assert all(each["seconds"] > 0 for each in figures["medians"].values())
    assert len(figures["goals"]) == 5
    assert "GB/s" in text


@pytest.mark.soak
def test_scale_is_extrapolated(tmp_path):
    text, figures = run(
        tmp_path, "resnet18_scale.py", "--rows", "9000", "--columns", "40", "--goal", "80",
        "--slabs", "2", "--threads", "1",
    )  # fmt: skip
    assert list(figures["stages"]) == ["plan", "measure", "rechunk", "merge", "recover", "assess"]
    assert figures["result"]["rank"] == figures["result"]["true_rank"] == 36
    assert figures["result"]["relative_error"] < 1e-5
    assert figures["fit_minutes"] == sum(each["minutes"] for each in figures["fit"].values())
    assert figures["slab"]["heights"] == [4500, 1125]
    assert figures["slab"]["minutes"].keys() == {"merge", "recover"}
    assert "647 to 879 minutes" in text


@pytest.mark.soak
def test_dask_is_compared_with_the_serial_executor(tmp_path):
    text, figures = run(
        tmp_path, "dask_overhead.py", "--tasks", "200", "--size", "200", "--rows", "150000",
        "--columns", "8", "--threads", "1",
    )  # fmt: skip
    assert figures["overhead"]["few"].keys() == {"serial", "one worker", "two workers"}
    assert all(seconds > 0 for seconds in figures["scaling"][0]["merge"].values())
    assert len(figures["goals"]) == 6
    assert "goal <= 2" in text


@pytest.mark.thorough
def test_scaling_is_compared_with_its_model(tmp_path):
    # Of three workers, two share a process, and one has its own.
    text, figures = run(
        tmp_path, "dask_scaling.py", "--workers", "1", "3", "--task-seconds", "0.01",
        "--seconds", "0.1", "--tasks", "30", "--hosted", "2",
    )  # fmt: skip
    shapes = [(cell["task_seconds"], cell["workers"], cell["tasks"]) for cell in figures["medians"]]
    assert shapes == [(0.01, 1, 10), (0, 1, 30), (0.01, 3, 30), (0, 3, 30)]
    slept = [cell for cell in figures["medians"] if cell["task_seconds"]]
    assert all(0 < cell["efficiency"] <= 1 for cell in slept)
    assert all(cell["model"] > 0 for cell in slept)
    assert figures["medians"][-1]["scheduler_resident"] > 10**7
    assert len(figures["goals"]) == 5
    assert "a worker process is ready after" in text


def test_too_little_room_is_said_before_anything_is_done(tmp_path):
    command = [sys.executable, BENCHMARKS / "recovery.py", "--rows", "10" + "0" * 12,
               "--folder", tmp_path]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "that is too little: give another --folder" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_status_is_timed_beside_a_listing(tmp_path):
    text, figures = run(tmp_path, "status.py", "--shards", "60")
    assert figures["medians"].keys() == {"complete", "one missing", "a listing"}
    assert all(each["wall"] > 0 for each in figures["medians"].values())
    assert "goal <= 1" in text


@pytest.mark.thorough
def test_products_are_timed_beside_the_references(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, BENCHMARKS / "products.py", "--networks", "mlp", "--columns", "2",
               "--repeats", "1", "--threads", "1", "--json", file]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures.keys() == {"mlp hessian", "mlp ggn"}
    assert figures["mlp hessian"]["best"].keys() == {"in a run", "ours", "curvlinops", "plain"}
    assert figures["mlp hessian"]["bound"] > figures["mlp ggn"]["bound"] > 0
    assert "to curvlinops" in done.stdout


@pytest.fixture(scope="module")
def leading() -> dict:
    return runpy.run_path(str(BENCHMARKS / "leading.py"))


def test_a_ghost_and_a_missing_value_are_errors_of_leading_pairs(leading):
    true = [4.0, -3.0, 2.0]
    assert leading["worst"]([2.002, -3.0, 4.0, 0.1], true) == pytest.approx(1e-3)
    assert leading["worst"]([4.0, 4.0, -3.0], true) == pytest.approx(1)
    assert leading["worst"]([4.0, -3.0], true) == pytest.approx(1)


@pytest.mark.parametrize("problem", ["flat", "inverse", "exponential", "singular"])
def test_truth_of_leading_pairs_is_the_spectrum_of_the_operator(leading, problem):
    where = {"problem": problem, "size": 60, "hidden": 0}
    found = leading["truth"](**where, most=20)["values"]
    dense = (leading["build"](**where) @ torch.eye(60)).double().numpy()
    values = np.linalg.eigvalsh((dense + dense.T) / 2)
    values = abs(values) if problem == "singular" else values
    assert found == pytest.approx(values[np.argsort(-abs(values))[:20]], rel=1e-4)


def test_what_is_not_installed_is_said_in_the_table_of_leading_pairs(leading):
    made = {"products": 53, "rounds": 53, "error": 2e-7, "inside": 2.0}
    ours = {"products": 96, "rounds": 6, "error": 3e-6, "inside": 5.0}
    cells = {"flat": {"scipy eigsh": [made], "PRIMME": [], "krylov": [ours]}}
    cells["singular"] = {"scipy svds": [made], "krylov": [{"refused": "too exact"}]}
    assert leading["table"](cells, markdown=True).splitlines()[2:] == [
        "| scipy eigsh, svds | 53 in 53; 2e-07; 2 s | 53 in 53; 2e-07; 2 s |",
        "| PRIMME | not installed | - |",
        "| krylov | 96 in 6; 3e-06; 5 s (2.5) | refused |",
    ]


@pytest.mark.soak
def test_leading_pairs_are_compared_with_everybody(tmp_path):
    text, figures = run(
        tmp_path, "leading.py", "--size", "500", "--hidden", "8", "--pairs", "5", "--tolerances",
        "1e-4", "--widths", "8", "16", "--workers", "0", "1", "--markdown",
    )  # fmt: skip
    (problems,) = figures["runs"].values()
    assert problems.keys() == {"digits", "flat", "inverse", "exponential", "slow", "singular"}
    for cells in problems.values():
        known = [name for name in cells if name.startswith(("scipy", "krylov"))]
        assert len(known) == 5
        assert all(cells[name][0]["error"] < 1e-4 for name in known)
    assert text.count("| krylov, rounds of 8, 1 worker |") == 1


@pytest.mark.soak
def test_matrices_in_files_are_compared_with_what_people_use(tmp_path):
    text, figures = run(
        tmp_path, "matrices.py", "--rows", "6000", "--columns", "300", "--sparse-rows", "3000",
        "--sparse-columns", "1000", "--entries", "60", "--svd-rows", "6000", "--svd-columns", "300",
        "--chunk-rows", "3000", "--threads", "1", "--markdown",
    )  # fmt: skip
    problems = figures["problems"]
    assert list(problems) == ["sparse", "gzip", "svd", "zarr"]
    for found in problems.values():
        assert all(0 < run["error"] < 1 for runs in found["runs"].values() for run in runs)
        read = [goal for name, goal in found["goals"].items() if name.startswith("readings")]
        # Of so small files, the few rows that are looked at are half.
        assert read
        assert all(0.9 < goal["value"] / goal["limit"] < 1.6 for goal in read)
    assert text.count("| --- | ---:") == 4


@pytest.fixture(scope="module")
def matrices() -> dict:
    return runpy.run_path(str(BENCHMARKS / "matrices.py"))


def test_share_that_is_missed_of_a_centred_matrix_is_that_of_numpy(tmp_path, matrices):
    source = str(tmp_path / "matrix.h5")
    matrices["make_gzip"](source, 700, 90)
    with h5py.File(source, "r") as file:
        a = file["matrix"][:].astype("float64")
    a -= a.mean(axis=0)
    _, s, vh = np.linalg.svd(a, full_matrices=False)
    np.save(tmp_path / "V.npy", vh[:30].T)
    (judged,) = matrices["judge"](source, [str(tmp_path)], centred=True).values()
    assert judged["error"] == pytest.approx((s[30:] @ s[30:] / (s @ s)) ** 0.5, rel=1e-4)


def test_sparse_counts_have_about_as_many_entries_as_asked_for(tmp_path, matrices):
    made = matrices["make_sparse"](str(tmp_path / "counts.npz"), 300, 500, 60)
    assert made["entries"] == pytest.approx(300 * 60, rel=0.15)


def test_bytes_are_counted_where_rows_are_read(tmp_path, matrices):
    source = tmp_path / "matrix.npy"
    np.save(source, np.ones((5000, 200)))
    with matrices["counted_reads"]() as read:
        stored(str(source)) @ torch.ones(200, 1, dtype=torch.float64)
    assert sum(read) / (8 * 5000 * 200) == pytest.approx(1, abs=0.01)


@pytest.mark.thorough
def test_a_billion_rows_are_told_from_a_small_run(tmp_path):
    text, figures = run(tmp_path, "billion_rows.py", "--rows", "9000", "--columns", "32")
    assert figures["settings"]["target"] == [10**9, 1010]
    assert figures["files"] > 1010
    # 1010 columns of a billion numbers of four bytes, once.
    assert figures["stages"]["merge"]["read"] == pytest.approx(4.04, rel=0.01)
    assert all(stage["core_hours"] > 0 for stage in figures["stages"].values())
    assert "1010 tasks" in text


@pytest.mark.thorough
def test_reading_from_an_object_store_is_compared_with_bare_ranges(tmp_path):
    pytest.importorskip("moto", reason="moto, an S3 server for tests, is not installed")
    text, figures = run(
        tmp_path, "object_store.py", "--rows", "9000", "--columns", "40", "--threads", "1"
    )
    assert figures["medians"].keys() == {"row tiles", "bare ranges"}
    assert figures["medians"]["bare ranges"]["bytes"] > 4 * 9000 * 40
    assert "goal >= 0.7" in text
