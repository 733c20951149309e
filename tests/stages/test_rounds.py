"""Rounds of products: what is interrupted, damaged, moved or measured anew between and within."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache

import numpy as np
import pytest
from contents import run_contents
from killing import killed_while_writing
from operators import FACTORY, exact_values, make, relative_error
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.store.sketch import count_products

pytestmark = pytest.mark.usefixtures("no_late_files")

N = 90
COLUMNS = 24
TESTS = 12
KINDS = ("eigh", "svd")
METHODS = ("nystrom", "singlepass", "oversampled", "hmt")
ROUNDS = [("eigh", 0), ("eigh", 1), ("svd", 0), ("svd", 1)]


def hmt_spec(folder, kind="eigh", powers=0, **more):
    """A run of ``hmt`` of a matrix whose spectrum decays slowly, in blocks of 8 columns."""
    which = {"shape": [N, N], "hermitian": kind == "eigh", "spectrum": "slow"} | more.pop(
        "args", {}
    )
    options = {
        "kind": kind,
        "dtype": "float64",
        "operator": {"factory": FACTORY, "args": which},
        "sketch": {"test_measurements": TESTS, "block": 8},
        "recovery": {"method": "hmt", "power_iterations": powers},
    }
    return write_spec(folder, "", COLUMNS, **options | more)


def rounds_of(kind: str, powers: int) -> int:
    return 2 + powers * (1 if kind == "eigh" else 2)


def width(calls) -> int:
    """Products of some calls."""
    return sum(call["width"] for call in calls)


def basis_of(run):
    (path,) = run.glob("sketch/*/basis.h5")
    return path


def flip(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a finished run of a kind, made once by the Python interface."""

    @cache
    def undisturbed_run(kind, powers=0):
        folder = tmp_path_factory.mktemp(f"{kind}-{powers}")
        spec = ooc.Spec.from_toml(hmt_spec(folder, kind, powers))
        with pytest.MonkeyPatch.context() as patch:
            # These calls are none of those that a test counts.
            patch.delenv("SKERCH_OOC_TEST_LOG", raising=False)
            run = ooc.plan(spec, folder / "run", threads=1)
            for _ in range(rounds_of(kind, powers)):
                ooc.measure(run, threads=1)
                ooc.merge(run, threads=1)
            ooc.recover(run, threads=1)
            ooc.assess(run)
        return folder / "run"

    return undisturbed_run


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of the finished run of two rounds, with its spec."""
    hmt_spec(tmp_path)
    return shutil.copytree(undisturbed("eigh", 0), tmp_path / "run")


# Step by step


def advice(text: str) -> list[str]:
    """The command that an output ends with."""
    found = re.search(r"next[: ]+skerch-ooc (.*)", text)
    assert found, text
    return found[1].split()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("kind", "powers"), ROUNDS)
def test_following_the_advice_of_each_step_leads_to_the_result(
    inside, tmp_path, undisturbed, kind, powers
):
    hmt_spec(tmp_path, kind, powers)
    inside("plan", "spec.toml", "--run", "run", "--threads", 1)
    step, verbs = ["measure", "run"], []
    while step[0] != "assess":
        verbs.append(step[0])
        done = inside(*step, "--threads", 1)
        assert done.returncode == 0, done.stderr
        step = advice(done.stdout)
        assert json.loads(inside("status", "run", "--json").stdout)["next"].split()[1:] == step
    assert inside(*step).returncode == 0
    assert verbs == ["measure", "merge"] * rounds_of(kind, powers) + ["recover"]
    assert "nothing: all stages are done" in inside("status", "run").stdout
    assert run_contents(tmp_path / "run") == run_contents(undisturbed(kind, powers))


def test_status_tells_of_each_round_that_is_known(inside, tmp_path):
    hmt_spec(tmp_path)
    inside("plan", "spec.toml", "--run", "run", "--threads", 1)
    roles = []
    for verb in ("status", "measure", "merge", "measure"):
        inside(verb, "run")
        state = json.loads(inside("status", "run", "--json").stdout)
        roles.append({role: (c["done"], c["planned"]) for role, c in state["columns"].items()})
    first = {"right": (COLUMNS, COLUMNS), "test": (TESTS, TESTS)}
    assert roles == [
        {"right": (0, COLUMNS), "test": (0, TESTS)},
        first,
        first | {"round2": (0, COLUMNS)},
        first | {"round2": (COLUMNS, COLUMNS)},
    ]
    assert state["products"] == {"planned": 60, "done": 60, "probe": 19 + 1}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("verbs", "verb", "reason"),
    [
        ([], "merge", "36 of 36 columns are not measured yet"),
        ([], "recover", "36 of 36 columns are not measured yet"),
        (["measure"], "recover", "round 2 of 2 has no basis yet; make it with: skerch-ooc merge"),
        (["measure", "merge"], "merge", "columns are not measured yet"),
        (["measure", "merge"], "recover", "columns are not measured yet"),
        (["measure", "merge", "measure", "merge"], "assess", "make it with: skerch-ooc recover"),
    ],
)
def test_step_out_of_order_says_what_is_to_be_done_first(inside, tmp_path, verbs, verb, reason):
    hmt_spec(tmp_path)
    inside("plan", "spec.toml", "--run", "run", "--threads", 1)
    for earlier in verbs:
        inside(earlier, "run", "--threads", 1)
    done = inside(verb, "run")
    assert (done.returncode, reason in done.stderr) == (4, True), done.stderr


def test_step_that_is_done_already_takes_no_product(inside, finished, call_log):
    before = run_contents(finished)
    codes = [inside(verb, "run").returncode for verb in ("measure", "merge", "recover", "assess")]
    assert (codes, call_log()) == ([0] * 4, [])
    assert run_contents(finished) == before


@pytest.mark.covered(1)
@pytest.mark.parametrize(("kind", "powers"), ROUNDS)
def test_products_of_all_rounds_are_counted(undisturbed, kind, powers):
    products = count_products(ooc.open_run(undisturbed(kind, powers)))
    planned = rounds_of(kind, powers) * COLUMNS + TESTS
    assert (products["planned"], products["done"]) == (planned, planned)


# Interruptions


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "powers", "target", "count"),
    [
        ("eigh", 0, "basis", 1),
        ("eigh", 0, "round2", 2),
        ("eigh", 0, "eigenvectors", 1),
        ("svd", 1, "round3", 3),
        pytest.param("svd", 1, "basis", 3, marks=pytest.mark.soak),
        pytest.param("svd", 1, "round4", 1, marks=pytest.mark.soak),
        pytest.param("eigh", 1, "basis", 2, marks=pytest.mark.soak),
        pytest.param("eigh", 1, "round3", 1, marks=pytest.mark.soak),
        pytest.param("svd", 0, "V", 1, marks=pytest.mark.soak),
    ],
)
def test_killed_run_goes_on_without_repeating_a_product(
    inside, forked_command, tmp_path, undisturbed, call_log, kind, powers, target, count
):
    hmt_spec(tmp_path, kind, powers)
    arguments = ("run", "spec.toml", "--run", "run", "--threads", 1)
    killed_while_writing(forked_command, target, count, *arguments)
    calls = len(call_log())
    missing = rounds_of(kind, powers) * COLUMNS + TESTS
    missing -= count_products(ooc.open_run(tmp_path / "run"))["done"]
    assert inside(*arguments).returncode == 0
    # One more, to compare the operator with the fingerprint.
    assert width(call_log()[calls:]) == (missing + 1 if missing else 0)
    assert run_contents(tmp_path / "run") == run_contents(undisturbed(kind, powers))


def test_time_budget_stops_within_a_later_round_and_the_same_command_goes_on(
    inside, tmp_path, undisturbed
):
    hmt_spec(tmp_path)
    for verb in ("measure", "merge"):
        inside("plan", "spec.toml", "--run", "run")
        inside(verb, "run")
    stopped = inside("measure", "run", "--max-seconds", 1e-9)
    assert (stopped.returncode, "stopped in good order" in stopped.stderr) == (0, True)
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    assert run_contents(tmp_path / "run") == run_contents(undisturbed("eigh", 0))


# The basis


def test_deleted_basis_is_made_anew_and_no_product_is_repeated(inside, finished, call_log):
    before = run_contents(finished)
    basis_of(finished).unlink()
    state = json.loads(inside("status", "run", "--json").stdout)
    assert state["next"] == "skerch-ooc merge run"
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    assert call_log() == []
    assert run_contents(finished) == before


@pytest.mark.parametrize("verb", ["measure", "merge", "recover", "status", "run"])
def test_damaged_header_of_a_basis_is_named_with_the_command_that_mends_it(inside, finished, verb):
    before = run_contents(finished)
    flip(basis_of(finished), 100)
    arguments = ("spec.toml", "--run", "run") if verb == "run" else ("run",)
    done = inside(verb, *arguments)
    assert (done.returncode, "basis.h5" in done.stderr) == (5, True)
    found = re.search(r"rm (\S+) && skerch-ooc (.*)", done.stderr)
    (finished.parent / found[1]).unlink()
    assert inside(*found[2].split(), "--threads", 1).returncode == 0
    assert run_contents(finished) == before


def test_damaged_column_of_a_basis_is_never_applied(inside, tmp_path, call_log):
    hmt_spec(tmp_path)
    inside("plan", "spec.toml", "--run", "run")
    for verb in ("measure", "merge"):
        inside(verb, "run")
    path = basis_of(tmp_path / "run")
    flip(path, path.stat().st_size // 2)
    calls = len(call_log())
    done = inside("measure", "run")
    assert (done.returncode, f"rm {path.relative_to(tmp_path)}" in done.stderr) == (5, True)
    assert width(call_log()[calls:]) <= 1


def test_verify_reads_every_byte_of_a_basis(inside, finished):
    assert inside("verify", "run").returncode == 0
    path = basis_of(finished)
    flip(path, path.stat().st_size // 2)
    done = inside("verify", "run")
    assert (done.returncode, "basis.h5" in done.stderr) == (5, True)


# Shards of the first round, measured anew


def test_shard_of_the_first_round_that_is_measured_anew_with_equal_bits_changes_nothing(
    inside, finished, call_log
):
    before = run_contents(finished)
    (finished / "shards" / f"right.p0.c8-16.r0-{N}.h5").unlink()
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    assert width(call_log()) == 8 + 1
    assert run_contents(finished) == before


def test_later_round_is_measured_anew_where_the_first_has_other_bits_now(
    inside, finished, call_log, monkeypatch
):
    old = set(finished.glob("shards/round2-*"))
    (finished / "shards" / f"right.p0.c8-16.r0-{N}.h5").unlink()
    monkeypatch.setenv("SKERCH_OOC_TEST_NUDGE", str(2.0**-50))
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    new = set(finished.glob("shards/round2-*")) - old
    assert (len(new), {path.name.split(".")[0] for path in new} & {
        path.name.split(".")[0] for path in old
    }) == (3, set())  # fmt: skip
    assert width(call_log()) == 8 + COLUMNS + 1
    products = json.loads(inside("status", "run", "--json").stdout)["products"]
    assert (products["planned"], products["done"]) == (60, 60)
    assert inside("verify", "run").returncode == 0


def test_result_of_a_sketch_that_was_measured_anew_is_replaced(inside, finished, monkeypatch):
    path = finished / "results/default/eigh.h5"
    before = path.read_bytes()
    (finished / "shards" / f"right.p0.c8-16.r0-{N}.h5").unlink()
    monkeypatch.setenv("SKERCH_OOC_TEST_NUDGE", str(2.0**-50))
    for verb in ("measure", "merge", "measure", "merge"):
        step = advice(inside("status", "run").stdout)
        assert step == [verb, "run"]
        assert inside(*step).returncode == 0
    assert advice(inside("status", "run").stdout) == ["recover", "run"]
    assert inside("recover", "run").returncode == 0
    assert advice(inside("status", "run").stdout) == ["assess", "run"]
    assert path.read_bytes() != before


# Executors, memory and places


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "powers"), [("eigh", 0), pytest.param("svd", 1, marks=pytest.mark.soak)]
)
def test_local_workers_measure_the_same_bits(inside, tmp_path, undisturbed, call_log, kind, powers):
    hmt_spec(tmp_path, kind, powers)
    done = inside(
        "run", "spec.toml", "--run", "run", "--executor", "dask", "--workers", 2, "--threads", 1
    )
    assert done.returncode == 0, done.stderr
    assert run_contents(tmp_path / "run") == run_contents(undisturbed(kind, powers))
    assert width(call_log()) >= rounds_of(kind, powers) * COLUMNS + TESTS


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_change_a_bit(inside, tmp_path, undisturbed, kind):
    hmt_spec(tmp_path, kind)
    done = inside("run", "spec.toml", "--run", "run", "--threads", 1, "--memory", "8GiB")
    assert done.returncode == 0, done.stderr
    assert run_contents(tmp_path / "run") == run_contents(undisturbed(kind, 0))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("steps", range(1, 5))
def test_too_little_memory_is_refused_at_each_step_and_nothing_is_lost(
    inside, tmp_path, undisturbed, steps
):
    hmt_spec(tmp_path)
    inside("plan", "spec.toml", "--run", "run", "--threads", 1)
    for verb in ["measure", "merge", "measure", "merge"][:steps]:
        last = verb
        done = inside(verb, "run", "--memory", "20MiB", "--threads", 1)
        if verb == last:
            assert (done.returncode, "memory = 20.0 MiB is too little" in done.stderr) == (2, True)
        assert inside(verb, "run", "--threads", 1).returncode == 0
    assert inside("run", "spec.toml", "--run", "run", "--threads", 1).returncode == 0
    assert run_contents(tmp_path / "run") == run_contents(undisturbed("eigh", 0))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("steps", range(5))
def test_run_that_was_moved_goes_on_in_its_new_place(inside, tmp_path, undisturbed, steps):
    hmt_spec(tmp_path)
    inside("plan", "spec.toml", "--run", "run", "--threads", 1)
    for verb in ["measure", "merge", "measure", "merge"][:steps]:
        inside(verb, "run", "--threads", 1)
    place = tmp_path / "elsewhere/here"
    place.parent.mkdir()
    (tmp_path / "run").rename(place)
    assert inside("run", "spec.toml", "--run", place, "--threads", 1).returncode == 0
    assert run_contents(place) == run_contents(undisturbed("eigh", 0))


# Other methods


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of a kind and method whose first round is measured, made once."""

    @cache
    def measured_run(kind, method):
        folder = tmp_path_factory.mktemp(f"{kind}-{method}")
        spec = hmt_spec(folder, kind, recovery={"method": method}, args={"spectrum": "decay"})
        with pytest.MonkeyPatch.context() as patch:
            # These calls are none of those that a test counts.
            patch.delenv("SKERCH_OOC_TEST_LOG", raising=False)
            run = ooc.plan(spec, folder / "run", threads=1)
            ooc.measure(run, threads=1)
        return run

    return measured_run


NO_ROUNDS = "needs further rounds of products, which only a run planned for it takes"
NO_INNER = "needs an inner sketch, which only a run planned for it measures"
NO_LEFT = "needs a left sketch, which a run planned for hmt does not measure"
REFUSED = {
    **{(kind, m, "hmt"): NO_ROUNDS for kind in KINDS for m in METHODS if m != "hmt"},
    **{(kind, m, "oversampled"): NO_INNER for kind in KINDS for m in METHODS if m != "oversampled"},
    ("svd", "hmt", "nystrom"): NO_LEFT,
    ("svd", "hmt", "singlepass"): NO_LEFT,
}
ASKED = [(kind, has, asked) for kind in KINDS for has in METHODS for asked in METHODS]
SERVED = [
    (k, has, asked) for k, has, asked in ASKED if asked != has and (k, has, asked) not in REFUSED
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "has", "asked"), SERVED)
def test_first_round_serves_other_methods_at_no_product(measured, call_log, kind, has, asked):
    run = measured(kind, has)
    result = ooc.recover(run, method=asked, threads=1)
    assert result.path.parent.name == f"{asked}-core-auto-rank-all"
    assert call_log() == []
    a = make((N, N), spectrum="decay", hermitian=kind == "eigh").matrix
    best = 10 ** (-0.1 * COLUMNS)
    assert relative_error(result, a) < 20 * best
    assert ooc.assess(run, result.path.parent.name).relative_error < 40 * best


@pytest.mark.parametrize(("kind", "has", "asked"), sorted(REFUSED))
def test_method_that_a_sketch_does_not_serve_is_refused_with_the_reason(measured, kind, has, asked):
    with pytest.raises(ooc.UsageError) as refusal:
        ooc.recover(measured(kind, has), method=asked)
    assert f"recovery.method = '{asked}' is not served by this run's sketch: it " in str(
        refusal.value
    )
    assert REFUSED[kind, has, asked] in str(refusal.value)


@pytest.mark.parametrize("method", ["nystrom", "singlepass"])
def test_other_method_on_a_finished_run_leaves_its_own_result(inside, finished, call_log, method):
    before = run_contents(finished)
    done = inside("recover", "run", "--method", method, "--rank", 5)
    name = f"{method}-core-auto-rank-5"
    assert (done.returncode, f"assess run --name {name}" in done.stdout) == (0, True)
    assert inside(*advice(done.stdout)).returncode == 0
    assert call_log() == []
    after = run_contents(finished)
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {f"results/{name}/eigh.h5"}


def test_result_of_a_run_with_power_iterations_is_named_after_other_settings(undisturbed, tmp_path):
    run = ooc.open_run(shutil.copytree(undisturbed("eigh", 1), tmp_path / "run"))
    cut = ooc.recover(run, rank=5, threads=1)
    assert cut.path.parent.name == "hmt-power-1-core-auto-rank-5"
    whole = ooc.recover(run, threads=1)
    assert whole.path.parent.name == "default"
    np.testing.assert_allclose(cut.eigenvalues, whole.eigenvalues[:5], rtol=1e-13)


def test_result_has_the_name_that_it_was_given(inside, finished):
    done = inside("recover", "run", "--rank", 5, "--name", "five")
    assert (done.returncode, (finished / "results/five/eigh.h5").exists()) == (0, True)
    assert inside("assess", "run", "--name", "five").returncode == 0
    results = json.loads(inside("status", "run", "--json").stdout)["results"]
    assert results.keys() == {"default", "five"}


@pytest.mark.parametrize("name", ["../five", "a/b", ".hidden", "", "x" * 201, "two words"])
def test_name_that_is_no_plain_folder_is_refused(inside, finished, name):
    done = inside("recover", "run", "--name", name)
    assert (done.returncode, "must be a plain folder name" in done.stderr) == (2, True)
    with pytest.raises(ooc.UsageError, match="must be a plain folder name"):
        ooc.recover(ooc.open_run(finished), name=name)


def test_name_that_is_taken_by_other_settings_is_refused(inside, finished):
    inside("recover", "run", "--rank", 5, "--name", "mine")
    done = inside("recover", "run", "--rank", 6, "--name", "mine")
    assert (done.returncode, "give another --name" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "setting", [("--core", 5), ("--rank", 2 * COLUMNS + 1), ("--rank", 0)], ids=str
)
def test_setting_that_makes_no_sense_is_refused(inside, finished, setting):
    done = inside("recover", "run", *setting)
    assert (done.returncode, f"recovery.{setting[0][2:]}" in done.stderr) == (2, True)


# Odd operators


@pytest.mark.parametrize("kind", KINDS)
def test_basis_has_as_many_columns_as_the_sketch_has_independent_ones(tmp_path, kind):
    a = make((N, N), spectrum="rank 1", hermitian=kind == "eigh")
    result = getattr(ooc, kind)(a, measurements=20, run_dir=tmp_path / "run", method="hmt")
    products = count_products(ooc.open_run(tmp_path / "run"))
    assert products["done"] == products["planned"] < 20 + 30 + 10
    assert relative_error(result, a.matrix) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_zero_sketch_is_refused_when_its_basis_is_made(inside, tmp_path, kind):
    hmt_spec(
        tmp_path, kind,
        operator={"factory": FACTORY, "args": {"shape": [N, N], "spectrum": "zero"},
                  "shape": [N, N]},
    )  # fmt: skip
    done = inside("run", "spec.toml", "--run", "run")
    assert (done.returncode, "nothing to decompose" in done.stderr) == (2, True)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_more_rounds_are_nearer_to_the_exact_ones(undisturbed, kind):
    exact = exact_values(make((N, N), spectrum="slow", hermitian=kind == "eigh").matrix, kind)
    errors = []
    for powers in (0, 1):
        result = ooc.recover(ooc.open_run(undisturbed(kind, powers)))
        values = result.eigenvalues if kind == "eigh" else result.S
        errors.append(float((values[:10] - exact[:10]).abs().max()))
    assert errors[1] < errors[0] / 2
