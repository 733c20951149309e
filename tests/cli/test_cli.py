"""The command line: verbs, exit codes, and words in place of tracebacks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import CommandLine
from specs import write_spec

import skerch_ooc as ooc


@pytest.fixture
def ooc_command(inside, tmp_path):
    """The command line, in this process: most of what it says does not depend on that."""

    def run(*arguments):
        done = inside(*arguments)
        assert "Traceback" not in done.stderr
        return done

    run.cwd = tmp_path
    return run


VERBS = ("measure", "merge", "recover", "assess")


@pytest.fixture
def spec(tmp_path):
    return write_spec(tmp_path, "matrix", 40, sketch={"test_measurements": 12, "block": 16})


def test_run_does_all_stages_and_prints_the_error(tmp_path, spec):
    """Of the program as a shell starts it; others below are forked from one that has begun."""
    done = CommandLine(tmp_path)("run", spec, "--run", "run")
    assert done.returncode == 0
    assert "relative error" in done.stdout


def test_run_again_says_the_same_without_a_product(forked_command, spec, call_log):
    first = forked_command("run", spec, "--run", "run", "--json")
    calls = len(call_log())
    second = forked_command("run", spec, "--run", "run", "--json")
    assert second.stdout == first.stdout
    assert len(call_log()) == calls


@pytest.mark.parametrize("closed", [">&-", pytest.param("<&- 2>&-", marks=pytest.mark.thorough)])
def test_command_without_standard_streams_does_its_work(tmp_path, closed):
    command = f'exec "$0" -m skerch_ooc init --operator here {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, check=False)
    assert (done.returncode, len(list(tmp_path.glob("here/*.toml")))) == (0, 1)


@pytest.mark.parametrize("verb", ["status", "submit"])
def test_error_that_a_full_disk_swallows_ends_with_its_code(tmp_path, monkeypatch, verb):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    # Elements of job arrays say at last how they ended.
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    command = f'exec "$0" -m skerch_ooc {verb} nowhere 2>/dev/full'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, check=False)
    assert done.returncode == 2


def test_file_never_takes_the_number_of_a_standard_stream_that_is_closed(tmp_path):
    """Libraries write to standard error whatever it is, so that a shard would get it."""
    opened = (
        "from skerch_ooc.base import posix; posix.fill_closed_streams(); "
        "print(1, flush=True); exit(open('x', 'w').fileno())"
    )
    command = f'exec "$0" -c "{opened}" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, check=False)
    assert done.returncode > 2


def test_reader_that_ends_early_is_no_mistake_of_the_request(tmp_path):
    command = '"$0" -m skerch_ooc --version; echo $? >&2'
    with subprocess.Popen(
        ["sh", "-c", command, sys.executable], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == "141\n"


@pytest.mark.parametrize(("arguments", "code"), [("status nowhere", 2), ("no-verb", 2)])
def test_error_that_nobody_hears_keeps_its_exit_code(tmp_path, arguments, code):
    command = f'"$0" -m skerch_ooc {arguments}; echo $?'
    with subprocess.Popen(
        ["sh", "-c", command, sys.executable], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=tmp_path, text=True,
    ) as process:  # fmt: skip
        process.stderr.close()
        assert process.stdout.read() == f"{code}\n"


def test_end_of_a_slurm_job_that_is_past_is_said(inside, spec, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000")
    done = inside("run", spec, "--run", "run")
    assert "unset SLURM_JOB_END_TIME" in done.stderr


def test_name_that_is_too_long_is_refused(inside, spec):
    done = inside("run", spec, "--run", "x" * 300)
    assert (done.returncode, "give shorter names" in done.stderr) == (2, True)


def test_current_folder_that_was_removed_is_named(inside, tmp_path, spec, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = inside("run", spec, "--run", tmp_path / "run")
    assert (done.returncode, "the current folder, " in done.stderr) == (4, True)


UNCOMPARED = "the operator was not compared with that of the run"


class TestAnotherOperatorInAFinishedRun:
    """The same command is given other weights: the old values must not pass for theirs."""

    FACTORY = "import torch\ndef make():\n    return {} * torch.load('weights.pt')\n"

    @pytest.fixture
    def run(self, inside, tmp_path):
        a = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
        torch.save(a + a.T, tmp_path / "weights.pt")
        (tmp_path / "mine.py").write_text(self.FACTORY.format(1))
        spec = write_spec(tmp_path, "", 20, operator={"factory": "mine.py:make"})
        first = inside("run", spec, "--run", "run")
        assert (first.returncode, UNCOMPARED in first.stderr) == (0, False)
        return lambda *options: inside("run", *options, "--run", "run")

    @pytest.fixture(params=["spec", "no spec"])
    def given(self, request, tmp_path):
        return [tmp_path / "spec.toml"] if request.param == "spec" else []

    @pytest.fixture
    def other_weights(self, run, tmp_path):
        torch.save(2 * torch.load(tmp_path / "weights.pt"), tmp_path / "weights.pt")

    def test_run_says_that_nothing_was_compared_and_how_to(self, run, given):
        done = run(*given)
        assert done.returncode == 0
        assert UNCOMPARED in done.stderr
        assert "give the same command with --compare" in done.stderr

    @pytest.mark.usefixtures("other_weights")
    def test_run_that_compares_refuses_it(self, run, given):
        done = run(*given, "--compare")
        assert (done.returncode, done.stdout) == (5, "")
        assert "not the one that the run started with" in done.stderr

    def test_run_that_compares_says_that_it_is_the_same(self, run, given):
        done = run(*given, "--compare")
        assert done.returncode == 0
        assert "the operator is the one that the run started with" in done.stderr
        assert UNCOMPARED not in done.stderr

    def test_changed_factory_is_compared_without_being_asked(self, run, tmp_path):
        (tmp_path / "mine.py").write_text(self.FACTORY.format(3))
        done = run(tmp_path / "spec.toml")
        assert (done.returncode, done.stdout) == (5, "")
        assert "not the one that the run started with" in done.stderr

    def test_changed_factory_of_the_same_operator_goes_on(self, run, tmp_path):
        (tmp_path / "mine.py").write_text("# A remark.\n" + self.FACTORY.format(1))
        done = run(tmp_path / "spec.toml")
        assert (done.returncode, UNCOMPARED in done.stderr) == (0, False)

    def test_changed_factory_that_cannot_be_called_still_tells_the_result(self, run, tmp_path):
        (tmp_path / "mine.py").write_text("def make():\n    raise OSError('no such disk')\n")
        done = run(tmp_path / "spec.toml")
        assert done.returncode == 0
        assert UNCOMPARED in done.stderr
        assert "no such disk" in done.stderr


class TestOtherFilesOfAFinishedRun:
    """The same command on a matrix whose file was written anew meanwhile."""

    @pytest.fixture
    def run(self, inside, tmp_path):
        np.save(tmp_path / "a.npy", self.matrix(0))
        spec = write_spec(
            tmp_path, "", 20, kind="svd", operator={"factory": "stored", "args": {"path": "a.npy"}}
        )
        assert inside("run", spec, "--run", "run").returncode == 0
        return lambda *options: inside("run", *options, "--run", "run")

    @pytest.fixture(params=["spec", "no spec"])
    def given(self, request, tmp_path):
        return [tmp_path / "spec.toml"] if request.param == "spec" else []

    @staticmethod
    def matrix(seed):
        return np.random.default_rng(seed).standard_normal((60, 40))

    def test_are_refused(self, run, given, tmp_path):
        np.save(tmp_path / "a.npy", self.matrix(1))
        done = run(*given)
        assert (done.returncode, done.stdout) == (5, "")
        assert "files of the matrix of run have changed" in done.stderr

    def test_of_another_shape_are_refused(self, run, given, tmp_path):
        np.save(tmp_path / "a.npy", self.matrix(0)[:59])
        assert run(*given).returncode == 5

    @pytest.mark.parametrize("options", [(), ("--compare",)])
    def test_that_differ_where_nothing_is_looked_at_are_not_called_the_same(
        self, inside, tmp_path, options
    ):
        a = np.random.default_rng(0).standard_normal((200, 40))
        np.save(tmp_path / "a.npy", a)
        spec = write_spec(
            tmp_path, "", 20, kind="svd", operator={"factory": "stored", "args": {"path": "a.npy"}}
        )
        assert inside("run", spec, "--run", "run").returncode == 0
        a[100, 3] += 100
        np.save(tmp_path / "a.npy", a)
        done = inside("run", spec, "--run", "run", *options)
        unseen = "what has changed in others is not seen"
        assert (done.returncode, unseen in done.stderr) == (0, True)
        assert "is the one that the run started with" not in done.stderr

    def test_are_refused_in_python(self, run, tmp_path):
        np.save(tmp_path / "a.npy", self.matrix(1))
        with pytest.raises(ooc.DriftError):
            ooc.run(tmp_path / "spec.toml", tmp_path / "run")

    def test_go_on_where_they_hold_the_same(self, run, tmp_path):
        np.save(tmp_path / "a.npy", self.matrix(0))
        done = run()
        assert (done.returncode, UNCOMPARED in done.stderr) == (0, False)

    def test_that_are_gone_leave_the_result(self, run, tmp_path):
        (tmp_path / "a.npy").unlink()
        done = run()
        assert (done.returncode, UNCOMPARED in done.stderr) == (0, True)


def test_stages_one_by_one_equal_run(ooc_command, spec):
    ooc_command("run", spec, "--run", "a")
    codes = [
        ooc_command("plan", spec, "--run", "b").returncode,
        *(ooc_command(verb, "b").returncode for verb in VERBS),
    ]
    assert codes == [0] * 5
    a = json.loads((ooc_command.cwd / "a/results/default/assessment.json").read_text())
    b = json.loads((ooc_command.cwd / "b/results/default/assessment.json").read_text())
    assert (a["error"], a["relative_error"]) == (b["error"], b["relative_error"])


@pytest.mark.parametrize("verb", ["status", "assess"])
def test_json_is_json(ooc_command, spec, verb):
    ooc_command("run", spec, "--run", "run")
    assert "products" in json.loads(ooc_command(verb, "run", "--json").stdout)


@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_each_verb_says_what_comes_next(inside, tmp_path, kind):
    spec = write_spec(tmp_path, "matrix", 40, kind=kind, sketch={"test_measurements": 12})
    inside("plan", spec, "--run", "run")
    said = [inside(verb, "run").stdout.split("next: ")[1] for verb in VERBS[:-1]]
    assert said == [f"skerch-ooc {verb} run\n" for verb in VERBS[1:]]


def test_measuring_says_what_it_knows_to_be_measured(inside, spec):
    inside("plan", spec, "--run", "run")
    assert inside("measure", "run").stdout.startswith("all columns that are known by now are")


def test_status_names_the_next_command_at_each_step(ooc_command, spec):
    ooc_command("plan", spec, "--run", "run")
    seen = []
    for verb in VERBS:
        seen.append(json.loads(ooc_command("status", "run", "--json").stdout)["next"])
        ooc_command(verb, "run")
    seen.append(json.loads(ooc_command("status", "run", "--json").stdout)["next"])
    assert seen == [f"skerch-ooc {verb} run" for verb in VERBS] + [None]


TABLES = {
    "eigh": {},
    "svd": {"kind": "svd"},
    "inner sketch": {"kind": "svd", "recovery": {"method": "oversampled"}},
    "rounds": {"kind": "svd", "recovery": {"method": "hmt", "power_iterations": 2}},
    "tolerance": {"tolerance": 0.5},
    "no error test": {"sketch": {"test_measurements": 0}},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("commands", [["plan", "status"], ["run", "plan", "status"]], ids=len)
def test_every_table_fits_80_columns(inside, tmp_path, case, commands):
    # Only what a user names may be longer: here all of it is short.
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef make():\n    return torch.diag(0.9 ** torch.arange(600.))\n"
    )
    write_spec(tmp_path, "", 100, **{"operator": {"factory": "mine.py:make"}} | TABLES[case])
    lines = []
    for command in commands:
        where = ["run"] if command == "status" else ["spec.toml", "--run", "run"]
        lines += inside(command, *where).stdout.splitlines()
    assert max(map(len, lines)) <= 80


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


BAD_FOR_SVD = {
    "no_adjoint": ("float32", "has no adjoint"),
    "wrong_adjoint": ("complex64", "the operator's adjoint is not that of its product"),
    "noisy": ("float32", "two calls with the same vector differ"),
    "wrong_shape": ("float32", "returned shape"),
}


@pytest.mark.parametrize("factory", BAD_FOR_SVD)
def test_operator_that_is_unusable_for_svd_is_a_usage_error(inside, tmp_path, factory):
    dtype, message = BAD_FOR_SVD[factory]
    spec = write_spec(tmp_path, factory, 40, kind="svd", dtype=dtype)
    done = inside("run", spec, "--run", "run")
    assert (done.returncode, message in done.stderr) == (2, True)
    assert not list(tmp_path.glob("run/shards/*"))


@pytest.mark.parametrize("factory", ["rectangular", "not_hermitian"])
def test_operator_that_is_not_hermitian_is_decomposed_by_svd(inside, tmp_path, factory):
    spec = write_spec(tmp_path, factory, 40, kind="svd")
    done = inside("run", spec, "--run", "run")
    assert (done.returncode, "singular values" in done.stdout) == (0, True)


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


def test_factory_file_that_does_not_import_is_a_usage_error(forked_command):
    (forked_command.cwd / "bad.py").write_text("import no_such_module\n")
    spec = write_spec(forked_command.cwd, "x", 4, operator={"factory": "bad.py:make"})
    done = forked_command("run", spec, "--run", "run")
    assert (done.returncode, "no_such_module" in done.stderr) == (2, True)


def test_json_stays_json_whatever_the_operator_prints(forked_command):
    spec = write_spec(forked_command.cwd, "talkative", 40, sketch={"test_measurements": 12})
    done = forked_command("run", spec, "--run", "run", "--json")
    assert "relative_error" in json.loads(done.stdout)
    assert "hello from the operator" in done.stderr


@pytest.mark.parametrize("option", ["--max-relative-error", "--max-seconds"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_limit_that_is_not_positive_is_refused_before_any_product(inside, spec, option, value):
    done = inside("run", spec, "--run", "run", option, value)
    assert (done.returncode, f"{option}" in done.stderr) == (2, True)
    assert not spec.with_name("run").exists()


def test_result_with_other_settings_is_replaced_by_the_command_that_is_named(
    inside, measured, tmp_path
):
    shutil.copytree(measured, tmp_path / "r")
    inside("recover", "r", "--name", "again", "--rank", "5")
    done = inside("recover", "r", "--name", "again", "--rank", "3")
    assert done.returncode == 2
    assert "skerch-ooc recover r --name again --rank 3" in done.stderr


def test_spec_of_a_run_that_was_extended_is_told_what_to_set(inside, spec):
    inside("run", spec, "--run", "run")
    inside("extend", "run", "--measurements", 50)
    done = inside("run", spec, "--run", "run")
    assert (done.returncode, "--set measurements=50" in done.stderr) == (2, True)


def test_finished_run_is_assessed_where_nobody_can_write(inside, spec):
    inside("run", spec, "--run", "run")
    path = spec.with_name("run") / "results/default/assessment.json"
    before = path.stat()
    assert inside("assess", "run").returncode == 0
    assert path.stat().st_ino == before.st_ino


MISTAKES = {
    "no spec file": (["run", "nothing.toml", "--run", "r"], "cannot read the spec file"),
    "no run directory": (["status", "nothing"], "is not a run directory"),
    "unknown executor": (["run", "spec.toml", "--run", "r", "--executor", "magic"], "magic"),
    "workers without dask": (["run", "spec.toml", "--run", "r", "--workers", "3"], "executor dask"),
    "bad memory": (["run", "spec.toml", "--run", "r", "--memory", "much"], "amount of memory"),
    "little memory": (["run", "spec.toml", "--run", "r", "--memory", "1MiB"], "too little"),
    "unknown kind": (["run", "spec.toml", "--run", "r", "--set", "kind=qr"], "eigh, svd"),
    "senseless tolerance": (
        [
            "run",
            "spec.toml",
            "--run",
            "r",
            "--set",
            "tolerance=0.1",
            "--set",
            "recovery.method=hmt",
        ],
        "do not nest",
    ),
    "unknown method": (["recover", "r", "--method", "magic"], "must be one of nystrom"),
    "method that needs more": (["recover", "r", "--method", "hmt"], "needs further rounds"),
    "unknown kind of vectors": (["recover", "r", "--vectors", "both"], "stored, implicit"),
    "core beyond the measurements": (["recover", "r", "--core", "41"], "only 40 measurements"),
    "unknown key": (["run", "spec.toml", "--run", "r", "--set", "sketch.blok=1"], "mean block"),
    "negative time": (["run", "spec.toml", "--run", "r", "--max-seconds", "-1"], "positive"),
    "name with a slash": (["recover", "r", "--name", "../x"], "plain folder name"),
    "hidden name": (["recover", "r", "--name", ".x"], "plain folder name"),
    "far too many threads": (["run", "spec.toml", "--run", "r", "--threads", "99999"], "at most"),
    "unknown device": (["run", "spec.toml", "--run", "r", "--device", "abacus"], "abacus"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory, forked_in):
    """A measured run, to be copied by each test."""
    command = forked_in(tmp_path_factory.mktemp("measured"))
    spec = write_spec(command.cwd, "matrix", 40, sketch={"test_measurements": 12, "block": 16})
    command("plan", spec, "--run", "r")
    command("measure", "r")
    return command.cwd / "r"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_exit_code_2(ooc_command, spec, measured, mistake):
    arguments, text = MISTAKES[mistake]
    if arguments[0] == "recover":
        shutil.copytree(measured, ooc_command.cwd / "r")
    done = ooc_command(*arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_another_spec_is_refused_with_the_difference(ooc_command, spec):
    ooc_command("plan", spec, "--run", "run")
    done = ooc_command("run", spec, "--run", "run", "--set", "seed=5")
    assert (done.returncode, "seed: 1 in the run, 5 now" in done.stderr) == (2, True)


def test_missing_measurements_are_incomplete_and_named(ooc_command, spec, no_late_files):
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


@pytest.mark.thorough
def test_time_budget_stops_in_good_order_and_the_same_command_goes_on(ooc_command, call_log):
    spec = write_spec(
        ooc_command.cwd, "matrix", 40, operator={"args": {"delay": 0.2}}, sketch={"block": 4}
    )
    ooc_command("plan", spec, "--run", "run")
    first = ooc_command("run", spec, "--run", "run", "--max-seconds", "3")
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


@pytest.mark.thorough
def test_later_stages_import_nothing_of_the_run(forked_command):
    factory = forked_command.cwd / "mine.py"
    factory.write_text("import torch\n\ndef make():\n    return torch.eye(50)\n")
    spec = write_spec(forked_command.cwd, "", 20, operator={"factory": "mine.py:make"})
    forked_command("plan", spec, "--run", "run")
    forked_command("measure", "run")
    factory.write_text("open('imported', 'w')\n")
    verbs = ("status", "merge", "recover", "assess", "verify")
    codes = [forked_command(verb, "run").returncode for verb in verbs]
    assert codes == [0] * 5
    assert not (forked_command.cwd / "imported").exists()
