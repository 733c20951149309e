"""The command line: verbs, exit codes, and words in place of tracebacks."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import write_spec


@pytest.fixture
def spec(tmp_path):
    return write_spec(tmp_path, "matrix", 40, sketch={"test_measurements": 12, "block": 16})


def test_run_does_all_stages_and_prints_the_error(ooc_command, spec):
    done = ooc_command("run", spec, "--run", "run")
    assert done.returncode == 0
    assert "relative error" in done.stdout


def test_run_again_says_the_same_without_a_product(ooc_command, spec, call_log):
    first = ooc_command("run", spec, "--run", "run", "--json")
    calls = len(call_log())
    second = ooc_command("run", spec, "--run", "run", "--json")
    assert second.stdout == first.stdout
    assert len(call_log()) == calls


def test_stages_one_by_one_equal_run(ooc_command, spec):
    ooc_command("run", spec, "--run", "a")
    codes = [
        ooc_command("plan", spec, "--run", "b").returncode,
        *(ooc_command(verb, "b").returncode for verb in ("measure", "merge", "recover", "assess")),
    ]
    assert codes == [0] * 5
    a = json.loads((ooc_command.cwd / "a/results/default/assessment.json").read_text())
    b = json.loads((ooc_command.cwd / "b/results/default/assessment.json").read_text())
    assert (a["error"], a["relative_error"]) == (b["error"], b["relative_error"])


@pytest.mark.parametrize("verb", ["status", "assess"])
def test_json_is_json(ooc_command, spec, verb):
    ooc_command("run", spec, "--run", "run")
    assert "products" in json.loads(ooc_command(verb, "run", "--json").stdout)


def test_status_names_the_next_command_at_each_step(ooc_command, spec):
    ooc_command("plan", spec, "--run", "run")
    seen = []
    for verb in ("measure", "merge", "recover", "assess"):
        seen.append(json.loads(ooc_command("status", "run", "--json").stdout)["next"])
        ooc_command(verb, "run")
    seen.append(json.loads(ooc_command("status", "run", "--json").stdout)["next"])
    assert seen == [f"skerch-ooc {v} run" for v in ("measure", "merge", "recover", "assess")] + [
        None
    ]


def test_every_table_fits_80_columns(ooc_command):
    # Only what a user names may be longer: here all of it is short.
    (ooc_command.cwd / "mine.py").write_text(
        "import torch\n\ndef make():\n    return torch.eye(50)\n"
    )
    write_spec(ooc_command.cwd, "", 20, operator={"factory": "mine.py:make"})
    out = ooc_command("plan", "spec.toml", "--run", "run").stdout
    out += ooc_command("status", "run").stdout
    out += ooc_command("run", "spec.toml", "--run", "run").stdout
    assert max(map(len, out.splitlines())) <= 80


BAD_OPERATORS = {
    "not_hermitian": "not Hermitian",
    "noisy": "two calls with the same vector differ",
    "wrong_dtype": "returned float64",
    "wrong_shape": "returned shape",
    "rectangular": "square operator",
    "no_shape": "must have .shape",
    "broken": "the weights are not there",
    "missing": "has no function missing",
}


@pytest.mark.parametrize("factory", BAD_OPERATORS)
def test_unusable_operator_is_a_usage_error_and_nothing_is_published(ooc_command, factory):
    spec = write_spec(ooc_command.cwd, factory, 40)
    done = ooc_command("run", spec, "--run", "run")
    assert done.returncode == 2
    assert BAD_OPERATORS[factory] in done.stderr
    assert not list(ooc_command.cwd.glob("run/shards/*"))


@pytest.mark.parametrize(
    ("faults", "text"),
    [({"nan_after": 3}, "NaN"), ({"fail_after": 3}, "no more products today"),
     ({"nan_after": 0}, "NaN")],
    ids=["NaN while measuring", "failure while measuring", "NaN at once"],
)  # fmt: skip
def test_operator_that_goes_bad_publishes_no_bad_shard(ooc_command, faults, text):
    spec = write_spec(
        ooc_command.cwd, "matrix", 40, operator={"args": faults}, sketch={"block": 40}
    )
    done = ooc_command("run", spec, "--run", "run")
    assert (done.returncode, text in done.stderr) == (2, True)
    assert not list(ooc_command.cwd.glob("run/shards/right*"))


def test_factory_file_that_does_not_import_is_a_usage_error(ooc_command):
    (ooc_command.cwd / "bad.py").write_text("import no_such_module\n")
    spec = write_spec(ooc_command.cwd, "x", 4, operator={"factory": "bad.py:make"})
    done = ooc_command("run", spec, "--run", "run")
    assert (done.returncode, "no_such_module" in done.stderr) == (2, True)


MISTAKES = {
    "no spec file": (["run", "nothing.toml", "--run", "r"], "cannot read the spec file"),
    "no run directory": (["status", "nothing"], "is not a run directory"),
    "unknown executor": (["run", "spec.toml", "--run", "r", "--executor", "magic"], "magic"),
    "workers without dask": (["run", "spec.toml", "--run", "r", "--workers", "3"], "executor dask"),
    "bad memory": (["run", "spec.toml", "--run", "r", "--memory", "much"], "amount of memory"),
    "little memory": (["run", "spec.toml", "--run", "r", "--memory", "1MiB"], "too little"),
    "unknown key": (["run", "spec.toml", "--run", "r", "--set", "sketch.blok=1"], "mean block"),
    "negative time": (["run", "spec.toml", "--run", "r", "--max-seconds", "-1"], "positive"),
    "name with a slash": (["recover", "r", "--name", "../x"], "plain folder name"),
    "hidden name": (["recover", "r", "--name", ".x"], "plain folder name"),
    "far too many threads": (["run", "spec.toml", "--run", "r", "--threads", "99999"], "at most"),
    "unknown device": (["run", "spec.toml", "--run", "r", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_exit_code_2(ooc_command, spec, mistake):
    arguments, text = MISTAKES[mistake]
    if arguments[0] == "recover":
        ooc_command("plan", spec, "--run", "r")
    done = ooc_command(*arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_another_spec_is_refused_with_the_difference(ooc_command, spec):
    ooc_command("plan", spec, "--run", "run")
    done = ooc_command("run", spec, "--run", "run", "--set", "seed=5")
    assert (done.returncode, "seed: 1 in the run, 5 now" in done.stderr) == (2, True)


def test_missing_measurements_are_incomplete_and_named(ooc_command, spec):
    ooc_command("plan", spec, "--run", "run")
    done = ooc_command("merge", "run")
    assert done.returncode == 4
    assert "skerch-ooc measure run" in done.stderr


def test_assess_before_recover_is_incomplete(ooc_command, spec):
    ooc_command("plan", spec, "--run", "run")
    done = ooc_command("assess", "run")
    assert (done.returncode, "skerch-ooc recover" in done.stderr) == (4, True)


@pytest.mark.parametrize(("limit", "code"), [("1e-12", 3), ("1.0", 0)])
def test_quality_gate(ooc_command, spec, limit, code):
    done = ooc_command("run", spec, "--run", "run", "--max-relative-error", limit)
    assert done.returncode == code


def test_time_budget_stops_in_good_order_and_the_same_command_goes_on(ooc_command, call_log):
    spec = write_spec(
        ooc_command.cwd, "matrix", 40, operator={"args": {"delay": 0.3}}, sketch={"block": 4}
    )
    first = ooc_command("run", spec, "--run", "run", "--max-seconds", "1")
    assert (first.returncode, "stopped in good order" in first.stderr) == (0, True)
    done = json.loads(ooc_command("status", "run", "--json").stdout)["products"]["done"]
    assert 0 < done < 70
    assert ooc_command("run", spec, "--run", "run").returncode == 0


def test_moved_run_directory_goes_on(ooc_command, spec):
    ooc_command("plan", spec, "--run", "a/run")
    (ooc_command.cwd / "elsewhere/deep").mkdir(parents=True)
    shutil.move(ooc_command.cwd / "a/run", ooc_command.cwd / "elsewhere/deep/run")
    codes = [ooc_command(v, "elsewhere/deep/run").returncode for v in ("measure", "recover")]
    assert codes == [0, 0]


def test_copied_run_directory_goes_on(ooc_command, spec):
    ooc_command("run", spec, "--run", "run", "--max-seconds", "0.001")
    shutil.copytree(ooc_command.cwd / "run", ooc_command.cwd / "copy")
    first = ooc_command("run", spec, "--run", "run", "--json")
    second = ooc_command("run", spec, "--run", "copy", "--json")
    assert json.loads(first.stdout)["error"] == json.loads(second.stdout)["error"]


def test_later_stages_import_nothing_of_the_run(ooc_command):
    factory = ooc_command.cwd / "mine.py"
    factory.write_text("import torch\n\ndef make():\n    return torch.eye(50)\n")
    spec = write_spec(ooc_command.cwd, "", 20, operator={"factory": "mine.py:make"})
    ooc_command("plan", spec, "--run", "run")
    ooc_command("measure", "run")
    factory.write_text("open('imported', 'w')\n")
    verbs = ("status", "merge", "recover", "assess", "verify")
    codes = [ooc_command(verb, "run").returncode for verb in verbs]
    assert codes == [0] * 5
    assert not (ooc_command.cwd / "imported").exists()


@pytest.mark.parametrize(
    "verb", ["plan", "run", "measure", "merge", "recover", "assess", "status", "verify"]
)
def test_each_verb_has_help_that_fits_a_screen(ooc_command, verb):
    done = ooc_command(verb, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 40
