"""Runs that grow: extended by hand, measured in rounds to a tolerance, sized by a storage."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from contents import file_contents, run_contents
from killing import killed_while_writing
from operators import FACTORY, SHAPES, make, relative_error
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.planning.growth import looks
from skerch_ooc.planning.sizes import default_left
from skerch_ooc.results.assess import tolerance_factor, underestimate_probability
from skerch_ooc.store.shards import list_shards
from skerch_ooc.store.sketch import count_products, known_rounds

pytestmark = pytest.mark.usefixtures("one_thread")

N = 120
TESTS = 15
BLOCK = 8
KINDS = ("eigh", "svd")
METHODS = ("nystrom", "singlepass", "oversampled", "hmt")
NESTING = METHODS[:2]
CASES = [(kind, method) for kind in KINDS for method in NESTING]


def growing_spec(folder, measurements=24, *, kind="eigh", method="nystrom", name="spec.toml",
                 dtype="float64", args=None, sketch=None, **more) -> Path:  # fmt: skip
    """A spec whose products do not depend on the blocks that they are computed in."""
    which = {"shape": [N, N], "hermitian": kind == "eigh", "dtype": dtype, "columnwise": True,
             "spectrum": "slow"} | (args or {})  # fmt: skip
    return write_spec(
        folder,
        "",
        measurements,
        name=name,
        kind=kind,
        dtype=dtype,
        operator={"factory": FACTORY, "args": which},
        sketch={"test_measurements": TESTS, "block": BLOCK} | (sketch or {}),
        recovery={"method": method} | more.pop("recovery", {}),
        **more,
    )


def whole_run(spec, run_dir) -> ooc.Run:
    """All stages, by the Python interface."""
    run = ooc.plan(spec, run_dir, threads=1)
    return finished(run)


def finished(run: ooc.Run) -> ooc.Run:
    """All stages after planning."""
    for _ in range(run.plan.rounds):
        ooc.measure(run, threads=1)
        ooc.merge(run, threads=1)
    ooc.recover(run, threads=1)
    ooc.assess(run)
    return run


def result(run_dir) -> dict[str, str]:
    """The bits of the default result."""
    (path,) = run_dir.glob("results/default/*.h5")
    return file_contents(path, identity=False)


def width(calls) -> int:
    """Products of some calls."""
    return sum(call["width"] for call in calls)


def matrix(kind="eigh", **which):
    """The matrix of a spec."""
    return make((N, N), hermitian=kind == "eigh", **which).matrix


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with a finished run ``run`` of 24 measurements and its spec, made once."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        # These calls are none of those that a test counts.
        patch.delenv("SKERCH_OOC_TEST_LOG", raising=False)
        whole_run(growing_spec(folder), folder / "run")
    return folder


@pytest.fixture
def copied(ran, tmp_path):
    """A copy of that run in the test's own folder."""
    return shutil.copytree(ran, tmp_path, dirs_exist_ok=True) / "run"


# Extending


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_only_new_columns_are_measured(inside, tmp_path, call_log, kind, method):
    growing_spec(tmp_path, kind=kind, method=method)
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    calls = len(call_log())
    done = inside("extend", "run", "--measurements", 40, "--threads", 1)
    assert (done.returncode, "relative error" in done.stdout) == (0, True), done.stderr
    new = 16 + default_left(method, kind, 40) - default_left(method, kind, 24)
    # And one that compares the operator with the fingerprint.
    assert width(call_log()[calls:]) == new + 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("before", "spectrum"),
    [(24, "integers"), (21, "integers"), (21, "slow")],
    ids=["whole blocks", "part of a block", "column by column"],
)
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_extended_run_equals_one_that_was_planned_so_from_the_start(
    tmp_path, kind, method, spectrum, before
):
    args = {"spectrum": spectrum, "columnwise": spectrum != "integers"}
    spec = growing_spec(tmp_path, before, kind=kind, method=method, args=args)
    finished(ooc.extend(whole_run(spec, tmp_path / "grown"), 40))
    spec = growing_spec(tmp_path, 40, kind=kind, method=method, args=args)
    whole_run(spec, tmp_path / "whole")
    assert result(tmp_path / "grown") == result(tmp_path / "whole")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("dtype", "noise"),
    [
        ("float32", "gaussian"),
        ("complex64", "ssrft"),
        ("float32", "sparse-sign"),
        ("complex64", "phase"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_columns_can_be_added_in_every_dtype_and_noise(tmp_path, kind, dtype, noise):
    more = {"kind": kind, "dtype": dtype, "sketch": {"noise": noise, "block": 40}}
    run = whole_run(growing_spec(tmp_path, 66, **more), tmp_path / "grown")
    finished(ooc.extend(run, 80))
    whole_run(growing_spec(tmp_path, 80, **more), tmp_path / "whole")
    assert result(tmp_path / "grown") == result(tmp_path / "whole")


def test_left_sketch_of_another_width_grows_in_proportion(tmp_path):
    sketch = {"left_measurements": 30}
    run = whole_run(growing_spec(tmp_path, 20, kind="svd", sketch=sketch), tmp_path / "grown")
    grown = finished(ooc.extend(run, 40))
    assert grown.plan.reach("left") == 60
    spec = growing_spec(tmp_path, 40, kind="svd", sketch={"left_measurements": 60})
    whole_run(spec, tmp_path / "whole")
    assert result(tmp_path / "grown") == result(tmp_path / "whole")


@pytest.mark.thorough
def test_run_can_be_extended_twice(tmp_path, call_log):
    run = whole_run(growing_spec(tmp_path, 16), tmp_path / "grown")
    run = finished(ooc.extend(run, 24))
    calls = len(call_log())
    finished(ooc.extend(run, 40))
    assert width(call_log()[calls:]) == 16 + 1
    whole_run(growing_spec(tmp_path, 40), tmp_path / "whole")
    assert result(tmp_path / "grown") == result(tmp_path / "whole")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_rounds_of_hmt_are_repeated_where_that_was_asked_for(inside, tmp_path, call_log, kind):
    growing_spec(tmp_path, kind=kind, method="hmt")
    inside("run", "spec.toml", "--run", "grown", "--threads", 1)
    calls = len(call_log())
    done = inside("extend", "grown", "--measurements", 40, "--repeat-rounds", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert width(call_log()[calls:]) == 16 + 40 + 1
    products = count_products(ooc.open_run(tmp_path / "grown"))
    assert products["planned"] == products["done"] == 2 * 40 + TESTS
    whole_run(growing_spec(tmp_path, 40, kind=kind, method="hmt"), tmp_path / "whole")
    assert result(tmp_path / "grown") == result(tmp_path / "whole")


def test_extending_a_run_makes_its_error_smaller(tmp_path):
    run = whole_run(growing_spec(tmp_path, 20), tmp_path / "run")
    before = ooc.assess(run).relative_error
    run = finished(ooc.extend(run, 60))
    after = ooc.assess(run).relative_error
    true = relative_error(ooc.recover(run), matrix(spectrum="slow"))
    assert after < 0.6 * before
    assert true / 2 < after < true * 2


@pytest.mark.parametrize(
    ("method", "measurements", "reason"),
    [
        ("nystrom", 23, "the run has 24 already, and none is ever thrown away"),
        ("nystrom", 0, "the run has 24 already"),
        ("singlepass", N + 1, f"the operator is {N} x {N}, so that at most {N} make sense"),
        ("oversampled", 40, "its sizes are fixed by the inner sketch, whose columns do not nest"),
        ("hmt", 40, "1 round(s) of 40 products each would be measured anew, besides the 16 of "),
        ("hmt", 40, "If that is wanted, add --repeat-rounds"),
    ],
)
def test_extension_that_cannot_be_is_refused_with_the_reason(
    inside, tmp_path, call_log, method, measurements, reason
):
    growing_spec(tmp_path, method=method)
    inside("plan", "spec.toml", "--run", "run")
    calls = len(call_log())
    done = inside("extend", "run", "--measurements", measurements)
    assert (done.returncode, reason in done.stderr) == (2, True), done.stderr
    assert len(list((tmp_path / "run/plan.d").iterdir())) == 1
    assert len(call_log()) == calls


def test_extension_beyond_the_columns_of_hmt_is_refused_too(inside, tmp_path):
    growing_spec(tmp_path, method="hmt")
    inside("plan", "spec.toml", "--run", "run")
    done = inside("extend", "run", "--measurements", N + 1, "--repeat-rounds")
    assert (done.returncode, f"at most {N} make sense" in done.stderr) == (2, True)


def test_extension_to_what_there_is_changes_nothing(inside, tmp_path, copied, call_log):
    before, calls = run_contents(tmp_path / "run"), len(call_log())
    assert inside("extend", "run", "--measurements", 24).returncode == 0
    assert (run_contents(tmp_path / "run"), len(call_log())) == (before, calls)


def test_two_processes_cannot_extend_a_run_differently(tmp_path):
    run = ooc.plan(growing_spec(tmp_path), tmp_path / "run", threads=1)
    ooc.extend(run, 40)
    with pytest.raises(ooc.UsageError, match="written by another process"):
        ooc.extend(run, 48)
    assert ooc.open_run(tmp_path / "run").plan.reach("right") == 40


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_after_a_planned_extension_are_told_one_by_one(inside, tmp_path, kind):
    growing_spec(tmp_path, kind=kind)
    inside("run", "spec.toml", "--run", "run", "--threads", 1)
    old = result(tmp_path / "run")
    done = inside("extend", "run", "--measurements", 40, "--plan-only")
    assert "next: skerch-ooc run --run run, or skerch-ooc submit run" in done.stdout
    for verb in ("measure", "merge", "recover", "assess"):
        state = json.loads(inside("status", "run", "--json").stdout)
        assert state["next"] == f"skerch-ooc {verb} run"
        assert inside(verb, "run").returncode == 0
    assert json.loads(inside("status", "run", "--json").stdout)["next"] is None
    assert result(tmp_path / "run") != old


def test_results_of_other_settings_are_replaced_when_they_are_asked_for_again(
    inside, tmp_path, copied
):
    inside("recover", "run", "--rank", 5)
    path = tmp_path / "run/results/nystrom-core-auto-rank-5/eigh.h5"
    before = path.read_bytes()
    inside("extend", "run", "--measurements", 40, "--threads", 1)
    assert path.read_bytes() == before
    assert inside("recover", "run", "--rank", 5).returncode == 0
    assert path.read_bytes() != before


def test_old_spec_is_refused_with_the_difference_and_the_new_one_goes_on(
    inside, tmp_path, copied, call_log
):
    growing_spec(tmp_path, 40, name="new.toml")
    inside("extend", "run", "--measurements", 40, "--threads", 1)
    calls = len(call_log())
    old = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    assert (old.returncode, "measurements: 40 in the run, 24 now" in old.stderr) == (2, True)
    assert inside("run", "new.toml", "--run", "run", "--threads", 1).returncode == 0
    assert len(call_log()) == calls


def test_same_operator_goes_on_with_an_extended_run_from_python(tmp_path):
    a = make((N, N), spectrum="slow")
    options = {"run_dir": tmp_path / "run", "test_measurements": TESTS}
    ooc.eigh(a, measurements=24, **options)
    ooc.extend(ooc.open_run(tmp_path / "run"), 40)
    products = a.products
    eig = ooc.eigh(a, measurements=40, **options)
    assert a.products == products + 16 + 1
    assert relative_error(eig, a.matrix) < 0.3


@pytest.mark.thorough
@pytest.mark.parametrize(
    "command",
    [
        ("extend", "run", "--measurements", 40, "--threads", 1),
        ("run", "new.toml", "--run", "run", "--threads", 1),
    ],
    ids=lambda command: command[0],
)
def test_extension_that_was_killed_before_it_measured_goes_on(
    inside, forked_command, tmp_path, copied, call_log, command
):
    growing_spec(tmp_path, 40, name="new.toml")
    extension = ("extend", "run", "--measurements", 40, "--threads", 1)
    killed_while_writing(forked_command, "right", 1, *extension)
    calls = len(call_log())
    assert inside(*command).returncode == 0
    assert width(call_log()[calls:]) == 16 + 1
    whole_run(tmp_path / "new.toml", tmp_path / "whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_extension_that_was_killed_while_it_measured_repeats_no_product(
    inside, forked_command, tmp_path, call_log
):
    growing_spec(tmp_path, kind="svd")
    growing_spec(tmp_path, 40, kind="svd", name="new.toml")
    inside("run", "spec.toml", "--run", "run", "--threads", 1)
    extension = ("extend", "run", "--measurements", 40, "--threads", 1)
    killed_while_writing(forked_command, "left", 2, *extension)
    products = count_products(ooc.open_run(tmp_path / "run"))
    missing = products["planned"] - products["done"]
    assert 0 < missing < 40
    calls = len(call_log())
    assert inside(*extension).returncode == 0
    assert width(call_log()[calls:]) == missing + 1
    whole_run(tmp_path / "new.toml", tmp_path / "whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.parametrize(
    "wanted", [("--measurements", 40), ("--pairs-tolerance", 1e-2)], ids=lambda wanted: wanted[0]
)
@pytest.mark.parametrize("executor", [(), pytest.param(("--executor", "dask", "--workers", 1),
                                                       marks=pytest.mark.thorough)],
                         ids=["serial", "dask"])  # fmt: skip
def test_operator_that_has_changed_leaves_the_run_and_its_result_as_they_were(
    inside, tmp_path, wanted, executor
):
    torch.save(torch.diag(torch.arange(1.0, 61)), tmp_path / "a.pt")
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef make(folder):\n    return torch.load(f'{folder}/a.pt')\n"
    )
    write_spec(tmp_path, "", 24, operator={"factory": "mine.py:make"})
    inside("run", "spec.toml", "--run", "run", "--threads", 1)
    before = run_contents(tmp_path / "run")
    torch.save(torch.diag(torch.arange(2.0, 62)), tmp_path / "a.pt")
    done = inside("extend", "run", *wanted, "--threads", 1, *executor)
    assert (done.returncode, "is not the one that the run started with" in done.stderr) == (5, True)
    assert run_contents(tmp_path / "run") == before
    assert inside("status", "run").stdout.count("nothing: all stages are done")


def test_result_stays_until_the_shards_of_a_grown_run_are_known_to_fit(inside, tmp_path):
    """A change that the fingerprint does not see, in one row, is found as shards are merged."""
    matrix = np.random.default_rng(0).standard_normal((3000, 40))
    np.save(tmp_path / "a.npy", matrix)
    write_spec(
        tmp_path, "", 20, kind="svd", operator={"factory": "stored", "args": {"path": "a.npy"}}
    )
    inside("run", "spec.toml", "--run", "run", "--threads", 1)
    path = tmp_path / "run/results/default/svd.h5"
    before = path.read_bytes()
    matrix[1234] += 1000
    np.save(tmp_path / "a.npy", matrix)
    done = inside("extend", "run", "--measurements", 30, "--threads", 1)
    assert (done.returncode, "merge" in done.stderr) == (5, True)
    assert path.read_bytes() == before


def test_quality_gate_of_an_extension(inside, copied):
    gate = ("--max-relative-error", 1e-3, "--threads", 1)
    done = inside("extend", "run", "--measurements", 40, *gate)
    assert (done.returncode, "is above --max-relative-error" in done.stderr) == (3, True)


# To a tolerance

TOLERANCE = 1e-2
MOST = 100


def tolerant_spec(folder, spectrum="decay", tolerance=TOLERANCE, most=MOST, **more) -> Path:
    """A run that measures in rounds."""
    args = {"spectrum": spectrum}
    return growing_spec(folder, most, args=args, tolerance=tolerance, **more)


def test_columns_grow_by_half_until_all_are_measured():
    assert looks(MOST) == [32, 48, 72, 100]
    assert looks(10) == [10]
    assert looks(10000)[0] == 625


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_measuring_stops_early_where_the_spectrum_is_steep(
    inside, tmp_path, call_log, kind, method, dtype
):
    tolerant_spec(tmp_path, kind=kind, method=method, dtype=dtype)
    done = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    assert done.returncode == 0, done.stderr
    run = ooc.open_run(tmp_path / "run")
    measured = run.plan.reach("right")
    assert measured in looks(MOST)[:2]
    found = ooc.recover(run, threads=1)
    assert relative_error(found, matrix(kind, spectrum="decay", dtype=dtype)) <= TOLERANCE
    products = measured + default_left(method, kind, measured) + TESTS
    assert width(call_log()) == products + {"eigh": 18, "svd": 34}[kind]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_run_that_stopped_early_equals_one_that_was_planned_so(tmp_path, kind, method, inside):
    tolerant_spec(tmp_path, tolerance=3e-4, kind=kind, method=method)
    inside("run", "spec.toml", "--run", "run", "--threads", 1)
    run = ooc.open_run(tmp_path / "run")
    assert len(run.plan.amendments) > 1
    spec = growing_spec(tmp_path, run.plan.reach("right"), kind=kind, method=method,
                        args={"spectrum": "decay"})  # fmt: skip
    whole_run(spec, tmp_path / "whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_flat_spectrum_ends_with_all_columns_measured_and_says_how_far_it_got(
    inside, tmp_path, kind, method
):
    tolerant_spec(tmp_path, "flat", most=60, kind=kind, method=method)
    done = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    assert done.returncode == 3
    assert "tolerance = 0.01 is not met with all 60 measurements: the relative" in done.stderr
    assert "extend the run to more measurements for a smaller error" in done.stderr
    assert "32 measurements: relative error" in done.stderr
    assert "48 measurements: relative error" in done.stderr
    # The result is there nevertheless, and the same command says the same.
    assert "relative error" in done.stdout
    again = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    assert (again.returncode, again.stdout) == (3, done.stdout)
    assert json.loads(inside("status", "run", "--json").stdout)["next"] is None


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_tolerance_that_is_not_met_is_an_error_in_python(tmp_path, kind):
    a = make((N, N), spectrum="flat", hermitian=kind == "eigh")
    options = {"measurements": 40, "run_dir": tmp_path / "run", "tolerance": 0.1}
    with pytest.raises(ooc.QualityError, match="The result is there"):
        getattr(ooc, kind)(a, **options)
    assert ooc.recover(ooc.open_run(tmp_path / "run")).rank > 0


def test_same_command_does_not_measure_again_what_met_the_tolerance(inside, tmp_path, call_log):
    tolerant_spec(tmp_path)
    first = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    before, calls = run_contents(tmp_path / "run"), len(call_log())
    again = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert (run_contents(tmp_path / "run"), len(call_log())) == (before, calls)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "target", "count"),
    [
        ("eigh", "right", 5),
        pytest.param("eigh", "right", 2, marks=pytest.mark.soak),
        pytest.param("eigh", "right", 8, marks=pytest.mark.soak),
        pytest.param("svd", "left", 8, marks=pytest.mark.soak),
        pytest.param("svd", "right", 5, marks=pytest.mark.soak),
        pytest.param("svd", "V", 1, marks=pytest.mark.soak),
    ],
)
def test_run_with_a_tolerance_that_was_killed_goes_on(
    inside, forked_command, tmp_path, call_log, kind, target, count
):
    spec = tolerant_spec(tmp_path, tolerance=3e-4, kind=kind)
    arguments = ("run", spec, "--threads", 1, "--run")
    assert inside(*arguments, "whole").returncode == 0
    killed_while_writing(forked_command, target, count, *arguments, "run")
    done = count_products(ooc.open_run(tmp_path / "run"))["done"]
    calls = len(call_log())
    assert inside(*arguments, "run").returncode == 0
    missing = count_products(ooc.open_run(tmp_path / "run"))["planned"] - done
    assert width(call_log()[calls:]) == (missing + 1 if missing else 0)
    assert run_contents(tmp_path / "run") == run_contents(tmp_path / "whole")


def test_bounds_hold_for_all_looks_together(inside, tmp_path):
    tolerant_spec(tmp_path, tolerance=3e-4)
    inside("run", "spec.toml", "--run", "run", "--threads", 1)
    run = ooc.open_run(tmp_path / "run")
    err = ooc.assess(run)
    taken = looks(MOST).index(run.plan.reach("right")) + 1
    assert err.looks == taken > 1
    single = underestimate_probability(2.0, err.test_measurements, False)
    assert err.bounds(2.0) == pytest.approx(1 - taken * single, rel=1e-12)
    with pytest.raises(ValueError, match="must be at least 1"):
        err.bounds(float("nan"))
    stored = json.loads((tmp_path / "run/results/default/assessment.json").read_text())
    assert stored["looks"] == taken


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_estimate_is_raised_by_the_factor_that_all_looks_exceed_with_five_percent(tmp_path, dtype):
    run = ooc.plan(tolerant_spec(tmp_path, dtype=dtype), tmp_path / "run", threads=1)
    factor = tolerance_factor(run.plan, 10)
    missed = underestimate_probability(factor, 10, dtype == "complex128")
    assert len(looks(MOST)) * missed == pytest.approx(0.05, rel=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_true_error_is_above_the_tolerance_in_fewer_than_one_in_twenty_runs(tmp_path, kind):
    a = make((N, N), spectrum="decay", hermitian=kind == "eigh")
    missed = 0
    for seed in range(100):
        found = getattr(ooc, kind)(
            a, measurements=MOST, run_dir=tmp_path / str(seed), tolerance=1e-2, seed=seed,
            test_measurements=10, block=100,
        )  # fmt: skip
        missed += relative_error(found, a.matrix) > 1e-2
        shutil.rmtree(tmp_path / str(seed))
    assert missed <= 5


def test_run_that_stopped_early_can_be_extended(inside, tmp_path, call_log):
    tolerant_spec(tmp_path)
    inside("run", "spec.toml", "--run", "run", "--threads", 1)
    measured, calls = ooc.open_run(tmp_path / "run").plan.reach("right"), len(call_log())
    done = inside("extend", "run", "--measurements", 80, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert width(call_log()[calls:]) == 80 - measured + 1
    spec = growing_spec(tmp_path, 80, args={"spectrum": "decay"})
    whole_run(spec, tmp_path / "whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_other_tolerance_is_refused_with_the_difference(inside, tmp_path):
    tolerant_spec(tmp_path)
    tolerant_spec(tmp_path, tolerance=1e-3, name="new.toml")
    inside("plan", "spec.toml", "--run", "run")
    done = inside("run", "new.toml", "--run", "run")
    assert (done.returncode, "tolerance: 0.01 in the run, 0.001 now" in done.stderr) == (2, True)


# By a storage


def stored_spec(folder, storage, *, kind="eigh", method="nystrom", dtype="float64", **more):
    """A run whose sizes follow from the storage."""
    shape = "square" if kind == "eigh" else "tall"
    spec = growing_spec(
        folder, 1, kind=kind, method=method, dtype=dtype, args={"shape": shape}, storage=storage,
        **more,
    )  # fmt: skip
    spec.write_text(spec.read_text().replace("measurements = 1\n", "", 1))
    return spec


def stored_bytes(run: ooc.Run) -> int:
    """Bytes of all sketches that were measured, and of the bases made of them."""
    entries = sum(len(shard.rows) * len(shard.columns) for shard in list_shards(run.shards))
    entries += sum(
        known.basis.matrix.layout.shape[0] * known.basis.columns
        for known in known_rounds(run)
        if known.basis
    )
    return entries * np.dtype(run.plan.identity.dtype).itemsize


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_sketches_fill_the_storage_and_do_not_exceed_it(tmp_path, kind, method, dtype):
    spec = stored_spec(tmp_path, "80 KiB", kind=kind, method=method, dtype=dtype)
    run = whole_run(spec, tmp_path / "run")
    height, width = run.plan.identity.shape
    # One more measurement, with all that it brings along, would not fit.
    entries = {"hmt": 2 * height + width, "oversampled": height + width + 8 * run.plan.inner}
    more = 2 * entries.get(method, height + 1.5 * width) * np.dtype(dtype).itemsize
    assert 80 * 1024 - more < stored_bytes(run) <= 80 * 1024


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_storage_holds_the_sketches_of_power_iterations_too(tmp_path, kind):
    spec = stored_spec(tmp_path, "80 KiB", kind=kind, method="hmt",
                       recovery={"power_iterations": 1})  # fmt: skip
    assert stored_bytes(whole_run(spec, tmp_path / "run")) <= 80 * 1024


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_each_file_of_a_sketch_is_a_little_larger_than_its_data(tmp_path, kind):
    run = whole_run(stored_spec(tmp_path, "80 KiB", kind=kind), tmp_path / "run")
    sizes = [path.stat().st_size for path in run.shards.iterdir()]
    assert 0 < sum(sizes) - stored_bytes(run) < 6 * 1024 * len(sizes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_storage_that_is_too_little_is_refused(inside, tmp_path, kind, method):
    stored_spec(tmp_path, "2 KiB", kind=kind, method=method)
    done = inside("plan", "spec.toml", "--run", "run")
    assert (done.returncode, "storage = '2 KiB' is too little" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_more_storage_than_the_operator_needs_is_not_used(tmp_path):
    run = ooc.plan(stored_spec(tmp_path, "1 GiB"), tmp_path / "run", threads=1)
    assert run.plan.reach("right") == SHAPES["square"][1]


def test_same_storage_goes_on_and_another_is_refused(inside, tmp_path, call_log):
    stored_spec(tmp_path, "80 KiB")
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    calls = len(call_log())
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    assert len(call_log()) == calls
    stored_spec(tmp_path, "90 KiB")
    done = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    assert (done.returncode, "measurements: 53 in the run, 61 now" in done.stderr) == (2, True)


def test_storage_bounds_a_run_with_a_tolerance(inside, tmp_path):
    stored_spec(tmp_path, "100 KiB", tolerance=1e-6)
    done = inside("run", "spec.toml", "--run", "run", "--threads", 1)
    run = ooc.open_run(tmp_path / "run")
    assert (done.returncode, "is not met with all" in done.stderr) == (3, True)
    assert stored_bytes(run) <= 100 * 1024
    assert run.plan.reach("right") == math.floor(100 * 1024 / 8 / 150) - TESTS
