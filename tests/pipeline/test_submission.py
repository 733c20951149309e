"""Submitting to a Slurm that refuses, stammers or is silent; and what needs none at all."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.files import append_line
from skerch_ooc.base.progress import STOPPED_IN_GOOD_ORDER
from skerch_ooc.base.resources import Resources
from skerch_ooc.base.time_budget import walltime_left
from skerch_ooc.executors.slurm.elements import Elements, pack
from skerch_ooc.executors.slurm.logs import BEGINNING, ending, read_log
from skerch_ooc.executors.slurm.options import JobOptions, options_of_stages, walltime_seconds
from skerch_ooc.executors.slurm.records import submissions
from skerch_ooc.pipeline import submission
from skerch_ooc.pipeline.state import State
from skerch_ooc.pipeline.submission import submit

pytestmark = pytest.mark.usefixtures("no_late_files")

GOOD = {
    "sbatch": 'echo "$@" >>"$FAKE/calls"; echo $((100 + $(wc -l <"$FAKE/calls")))',
    "squeue": "true",
    "scontrol": 'echo "MaxArraySize            = 1001"',
    "scancel": 'echo "cancel $*" >>"$FAKE/cancelled"',
}
"""Commands that take everything, as shell."""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Replaces the commands of Slurm by shell; by default they take everything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in os.environ:
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)

    def replace(**commands):
        for name, text in (GOOD | commands).items():
            path = folder / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)

    replace()
    return replace


@pytest.fixture
def run(tmp_path):
    """A planned run of 23 small tasks."""
    spec = write_spec(
        tmp_path, "matrix", 34, sketch={"test_measurements": 12, "block": 2},
        operator={"shape": [200, 200]},
    )  # fmt: skip
    return ooc.plan(spec, tmp_path / "run", threads=1)


def calls(tmp_path):
    path = tmp_path / "bin/calls"
    return path.read_text().splitlines() if path.exists() else []


class TestPacking:
    @given(
        tasks=st.lists(st.integers(0, 5000), min_size=1, max_size=60, unique=True),
        most=st.integers(1, 100),
    )
    def test_every_task_has_one_element_and_every_element_a_task(self, tasks, most):
        elements = pack(tasks, most, 2 * most)
        assert set(elements.indices) == {task % elements.of for task in tasks}
        assert (len(elements.indices) <= most, max(elements.indices) < 2 * most) == (True, True)

    @given(count=st.integers(1, 400), most=st.integers(1, 100))
    def test_tasks_that_follow_each_other_are_packed_as_evenly_as_can_be(self, count, most):
        elements = pack(range(count), most, most)
        assert elements.longest == -(-count // min(count, most))

    def test_tasks_of_one_element_that_failed_are_spread_over_several(self):
        assert pack([3, 8, 13, 18], 4, 5).longest == 1

    def test_few_tasks_that_are_left_of_many_have_an_element_each(self):
        assert pack([0, 12], 2, 1001).longest == 1

    @pytest.mark.parametrize(
        ("indices", "ranges"), [((0,), "0"), ((0, 1, 2, 4), "0-2,4"), ((1, 3), "1,3")]
    )
    def test_elements_are_written_as_slurm_reads_them(self, indices, ranges):
        assert Elements(9, indices, 1).ranges == ranges


class TestOptions:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("1-0:30", 88200),
         ("2-00:00:01", 172801), ("UNLIMITED", None), ("0", None)],
    )  # fmt: skip
    def test_walltime_is_read_as_slurm_does(self, text, seconds):
        assert walltime_seconds(text) == seconds

    @pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-1"])
    def test_walltime_that_is_none_is_refused(self, text):
        with pytest.raises(UsageError, match="--time"):
            walltime_seconds(text)

    @pytest.mark.parametrize(
        "word", ["--array=0-3", "--arr=1", "-a", "--dependency=singleton", "-d", "--output=x",
                 "-ox", "--wrap=x", "--comment=x", "-Mx"],
    )  # fmt: skip
    def test_option_that_is_the_command_s_own_is_refused(self, word):
        with pytest.raises(UsageError, match="is given to sbatch by this command"):
            JobOptions(further=(word,))

    @pytest.mark.parametrize("word", ["--qos=long", "--constraint=a100", "-N1", "--account=x"])
    def test_other_options_are_passed_on(self, word):
        assert JobOptions(further=(word,)).sbatch("measure") == [word]

    def test_options_of_a_stage_come_last(self):
        options = JobOptions(
            mem="2G", further=("--qos=a",), of_stage=options_of_stages(["merge=--mem=9G -N 1"])
        )
        assert options.sbatch("merge") == ["--mem=2G", "--qos=a", "--mem=9G", "-N", "1"]
        assert options.sbatch("solve") == ["--mem=2G", "--qos=a"]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [({"mem": "10G"}, 9 << 30), ({"mem": "1000"}, 900 << 20), ({"memory": "2 GiB"}, 2 << 30),
         ({"mem": "0"}, None), ({}, None), ({"mem": "10G", "executor": "dask"}, None),
         ({"mem": "10G", "further": ("--mem-per-cpu=1G",)}, None),
         ({"mem": "1G", "of_stage": {"merge": ("--mem=20G",)}}, 18 << 30)],
        ids=str,
    )  # fmt: skip
    def test_memory_of_a_process_is_what_slurm_will_give_it(self, values, expected):
        assert JobOptions(**values).memory_of("merge") == expected

    @pytest.mark.parametrize(
        ("values", "text"),
        [({"elements": 0}, "--elements 0"), ({"cpus_per_task": -1}, "--cpus-per-task -1"),
         ({"tries": -1}, "--tries -1"), ({"workers": 3}, "needs --executor dask"),
         ({"of_stage": {"plan": ("--x",)}}, "must be one of measure"),
         ({"further": ("script.sh",)}, "is no option of sbatch"),
         ({"further": ("--qos=x", "script.sh")}, "is no option of sbatch"),
         ({"memory": "12lol"}, "is not an amount of memory"),
         ({"time": "soon"}, "--time soon"), ({"further": ("-t", "soon")}, "--time soon"),
         ({"executor": "dask", "throttle": 2}, "--throttle is for job arrays")],
    )  # fmt: skip
    def test_value_without_sense_is_refused(self, values, text):
        with pytest.raises(UsageError, match=text):
            JobOptions(**values)

    @pytest.mark.parametrize(
        ("values", "seconds"),
        [({"time": "10"}, 600), ({"time": "10", "further": ("-t5",)}, 300),
         ({"further": ("--time", "7")}, 420), ({}, None),
         ({"time": "10", "further": ("-tUNLIMITED",)}, None),
         ({"time": "1", "of_stage": {"measure": ("--time=2:00:00",)}}, 7200)],
    )  # fmt: skip
    def test_walltime_of_a_stage_is_the_last_that_is_given(self, values, seconds):
        assert JobOptions(**values).seconds("measure") == seconds

    def test_each_worker_of_one_job_has_its_gpus(self):
        assert JobOptions(gpus="2", executor="dask").sbatch("dask") == ["--gpus-per-task=2"]

    @pytest.mark.parametrize("text", ["measure", "measure=", "measure='--x", "measure --x=1"])
    def test_stage_without_options_is_refused(self, text):
        with pytest.raises(UsageError, match="--for"):
            options_of_stages([text])

    def test_options_survive_their_record(self):
        options = JobOptions(
            time="1:00", gpus="2", further=("--qos=é",), of_stage={"merge": ("--mem=1G",)},
            setup="module load x\n", throttle=3,
        )  # fmt: skip
        assert JobOptions.from_json(json.loads(json.dumps(options.as_json()))) == options


class TestSubmit:
    def test_submits_each_stage_after_the_one_before_and_notes_it(self, inside, fake, run):
        done = inside("submit", "run", "--partition", "p", "--gpus", "1", "--", "--qos=x")
        first, second, third = calls(run.directory.parent)
        assert "--array=0-22" in inside("submit", "run", "--dry-run", "--elements", 99).stdout
        assert "--partition=p --gpus=1 --qos=x" in first
        assert "--dependency=afterany:101" in second
        (known,) = submissions(run.logs)
        assert "--dependency=afterany:102" in third
        assert [(job.stage, job.job) for job in known.jobs()] == [
            ("measure", "101"), ("assess", "102"), ("check", "103"),
        ]  # fmt: skip
        assert "scancel 103 102 101" in done.stdout

    @pytest.mark.parametrize(
        ("given", "with_device"),
        [
            ([], ["assess", "measure"]),
            (["--gpus", "1"], ["assess", "measure"]),
            (["--for", "measure=--gpus=1"], ["measure"]),
            (["--for", "measure=-G 1"], ["measure"]),
            (["--for", "measure=--gres=gpu:1", "--", "--gpus=1"], ["assess", "measure"]),
            (["--for", "measure=--gpus=1", "--account", "gpuproject"], ["measure"]),
            (["--for", "assess=--gpus=0", "--gpus", "1"], ["measure"]),
            (["--for", "assess=--gres=lustre:1"], ["assess", "measure"]),
        ],
        ids=str,
    )
    def test_device_is_for_the_stages_that_are_given_gpus(
        self, inside, fake, run, given, with_device
    ):
        inside("submit", "run", "--device", "cuda", *given)
        scripts = sorted(run.logs.glob("slurm/*/*.sh"))
        found = [path.stem for path in scripts if "--device cuda" in path.read_text()]
        assert found == with_device

    def test_scripts_are_shell(self, inside, fake, run, tmp_path):
        (tmp_path / "setup.sh").write_text("module load 'a b'\nif true; then echo hello; fi\n")
        inside("submit", "run", "--setup", "setup.sh", "--time", "10", "--device", "cuda:0")
        inside("submit", "run", "--again", "--executor", "dask", "--memory", "2 GiB")
        scripts = sorted(run.logs.glob("slurm/*/*.sh"))
        assert [path.name for path in scripts] == [
            "assess.sh", "check.sh", "measure.sh", "check.sh", "dask.sh",
        ]  # fmt: skip
        for path in scripts:
            subprocess.run(["bash", "-n", path], check=True)

    def test_script_runs_its_element(self, inside, fake, run, monkeypatch):
        inside("submit", "run", "--elements", 4, "--setup", os.devnull)
        (script,) = run.logs.glob("slurm/0001/measure.sh")
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "1"}
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(list(run.shards.glob("*.h5"))) == 5

    @pytest.mark.parametrize(("code", "told"), [(7, 7), (0, 2)])
    def test_setup_that_ends_the_script_leaves_word(self, inside, fake, run, tmp_path, code, told):
        (tmp_path / "setup.sh").write_text(f"exit {code}\n")
        inside("submit", "run", "--setup", "setup.sh")
        done = subprocess.run(["bash", run.logs / "slurm/0001/measure.sh"], capture_output=True)
        assert done.returncode == told
        assert f"the lines of --setup ended it with exit code {code}, ".encode() in done.stderr
        assert done.stdout.decode().splitlines()[1:] == [ending(told)]

    def test_script_that_is_cancelled_in_its_setup_leaves_no_word(
        self, inside, fake, run, tmp_path
    ):
        (tmp_path / "setup.sh").write_text("kill -TERM $$\n")
        inside("submit", "run", "--setup", "setup.sh")
        done = subprocess.run(["bash", run.logs / "slurm/0001/measure.sh"], capture_output=True)
        assert done.returncode == -signal.SIGTERM
        assert done.stdout.decode().splitlines()[1:] == []

    def test_trap_of_the_setup_does_not_silence_the_last_word(self, inside, fake, run, tmp_path):
        (tmp_path / "setup.sh").write_text("trap true EXIT\ncommand=(/nowhere/python)\n")
        inside("submit", "run", "--setup", "setup.sh")
        done = subprocess.run(["bash", run.logs / "slurm/0001/measure.sh"], capture_output=True)
        assert done.stdout.decode().splitlines()[1:] == [ending(127)]

    def test_interpreter_that_is_not_on_the_node_is_said(self, inside, fake, run, tmp_path):
        (tmp_path / "setup.sh").write_text("command=(/nowhere/python)\n")
        inside("submit", "run", "--setup", "setup.sh")
        done = subprocess.run(["bash", run.logs / "slurm/0001/measure.sh"], capture_output=True)
        assert b"there is no /nowhere/python on" in done.stderr
        assert done.stdout.decode().splitlines()[1:] == [ending(127)]

    def test_setup_does_not_lead_jobs_elsewhere(self, inside, fake, run, tmp_path):
        (tmp_path / "setup.sh").write_text("run=/nowhere\ncommand=(echo)\n")
        inside("submit", "run", "--setup", "setup.sh")
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": "0"}
        script = run.logs / "slurm/0001/measure.sh"
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
        assert f"task {run.directory.absolute()} measure" in done.stdout

    def test_setup_that_is_no_shell_is_refused(self, inside, fake, run, tmp_path):
        (tmp_path / "setup.sh").write_text("if true; then\n")
        done = inside("submit", "run", "--setup", "setup.sh")
        assert (done.returncode, "bash cannot read these lines" in done.stderr) == (2, True)

    def test_time_that_a_task_does_not_fit_into_is_warned_of(self, inside, fake, run):
        costs = {"estimate": {"seconds": 2300.0, "tasks": 23}}
        (run.logs / "plan.jsonl").write_text(json.dumps(costs) + "\n")
        done = inside("submit", "run", "--time", "1")
        assert "a task takes about 100 s by the probe, and --time is 60 s" in done.stderr

    @pytest.mark.parametrize(("time", "elements"), [("20", 4), ("4", 12), ("9:00:00", 4)])
    def test_elements_have_ten_minutes_or_half_their_time_to_do(
        self, inside, fake, run, tmp_path, time, elements
    ):
        costs = {"estimate": {"seconds": 2300.0, "tasks": 23}}
        (run.logs / "plan.jsonl").write_text(json.dumps(costs) + "\n")
        inside("submit", "run", "--time", time)
        assert f"in {elements} elements" in (run.logs / "slurm/0001/measure.sh").read_text()

    def test_folder_that_slurm_cannot_write_logs_into_is_refused(self, inside, fake, run):
        run.directory.rename(run.directory.with_name("back\\slash"))
        done = inside("submit", "back\\slash")
        assert (done.returncode, "with a backslash" in done.stderr) == (2, True)

    def test_options_of_the_last_time_are_used_if_there_are_none(self, inside, fake, run):
        inside("submit", "run", "--time", "7", "--elements", 2)
        done = inside("submit", "run")
        assert submissions(run.logs)[1].options == submissions(run.logs)[0].options
        assert "those of submission 0001" in done.stdout

    def test_elements_are_as_many_as_the_cluster_allows(self, inside, fake, run, tmp_path):
        fake(scontrol='echo "MaxArraySize = 9"; echo "SchedulerParameters = max_array_tasks=4,x"')
        inside("submit", "run", "--elements", "23")
        assert "--array=0-3 " in calls(tmp_path)[0]

    def test_dry_run_with_a_slurm_that_does_not_answer_guesses(self, inside, fake, run):
        fake(scontrol="echo down >&2; exit 1")
        done = inside("submit", "run", "--dry-run")
        assert (done.returncode, "taken to be 1001" in done.stderr) == (0, True)

    def test_dry_run_needs_no_slurm(self, inside, run, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        done = inside("submit", "run", "--dry-run")
        assert (done.returncode, "sbatch --parsable" in done.stdout) == (0, True)
        assert not (run.logs / "slurm").exists()

    @pytest.mark.parametrize(
        ("commands", "text"),
        [
            ({"sbatch": "echo Invalid account >&2; exit 1"}, "refused (1): Invalid account"),
            ({"sbatch": "echo quota exceeded; exit 1"}, "refused (1): quota exceeded"),
            ({"sbatch": "echo Welcome to the cluster"}, "'Welcome to the cluster', which is no"),
            ({"sbatch": "true"}, "sbatch answered '', which is no job number"),
            ({"scontrol": "echo down >&2; exit 1"}, "scontrol refused (1): down"),
            ({"scontrol": "echo MaxArraySize = 0"}, "give --max-array-size"),
        ],
    )
    def test_answer_that_is_no_use_is_an_error_with_its_text(
        self, inside, fake, run, commands, text
    ):
        fake(**commands)
        done = inside("submit", "run")
        assert (done.returncode, text in done.stderr) == (2, True), done.stderr

    def test_banner_before_the_number_is_passed_over(self, inside, fake, run):
        fake(sbatch='echo "Welcome!"; echo "17;cluster"')
        assert "job 17" in inside("submit", "run").stdout

    def test_without_slurm_it_is_said_what_is_missing(self, inside, run, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        done = inside("submit", "run")
        assert (done.returncode, "there is no command scontrol here" in done.stderr) == (2, True)

    def test_job_that_is_refused_takes_those_before_it_along(self, inside, fake, run, tmp_path):
        fake(sbatch='case "$*" in *assess*) echo "too many" >&2; exit 1;; esac; echo 5')
        done = inside("submit", "run")
        assert "assess was not submitted: sbatch refused (1): too many" in done.stderr
        assert (tmp_path / "bin/cancelled").read_text() == "cancel --quiet 5\n"
        assert submissions(run.logs) == []

    def test_job_that_sbatch_had_no_time_to_name_is_cancelled_too(
        self, inside, fake, run, tmp_path
    ):
        # As the queue shows it: marked with the script, which is the last word of sbatch.
        fake(
            sbatch='for word in "$@"; do last=$word; done; echo "$last" >"$FAKE/last"; exit 1',
            squeue='echo "77|PENDING|None||$(cat "$FAKE/last")"',
        )
        inside("submit", "run")
        assert (tmp_path / "bin/cancelled").read_text() == "cancel --quiet 77\n"

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signal_during_sbatch_leaves_nothing_in_the_queue(
        self, inside, fake, run, tmp_path, number
    ):
        fake(sbatch=f"kill -{int(number)} $PPID; sleep 0.3; echo 78")
        done = inside("submit", "run")
        assert done.returncode == 130
        assert (tmp_path / "bin/cancelled").read_text() == "cancel --quiet 78\n"
        assert submissions(run.logs) == []

    def test_jobs_of_who_was_killed_while_submitting_are_found_by_their_scripts(
        self, inside, fake, run
    ):
        inside("submit", "run")
        (run.logs / "slurm/0001/jobs.jsonl").unlink()
        script = run.logs.absolute() / "slurm/0001/measure.sh"
        fake(squeue=f"echo '101_0|RUNNING|None||{script}'")
        done = inside("submit", "run")
        assert (done.returncode, "still in the queue" in done.stderr) == (2, True)
        assert "wait: 1 element in the queue" in inside("status", "run").stdout

    def test_jobs_of_the_run_that_a_run_is_a_copy_of_are_none_of_its_own(
        self, inside, fake, run, tmp_path
    ):
        """To cancel them, as was said, would end the work of the other."""
        inside("submit", "run")
        shutil.copytree(run.directory, tmp_path / "copy")
        mark = submissions(run.logs)[0].token
        fake(squeue=f"echo '101_0|RUNNING|None|{mark}|{run.logs}/slurm/0001/measure.sh'")
        assert inside("status", "copy").stdout.endswith("skerch-ooc run --run copy\n")
        assert inside("submit", "copy").returncode == 0
        assert "still in the queue" in inside("submit", "run").stderr

    def test_jobs_of_a_run_that_was_moved_are_said_to_fail(self, inside, fake, run, tmp_path):
        inside("submit", "run")
        mark = submissions(run.logs)[0].token
        run.directory.rename(tmp_path / "moved")
        fake(squeue=f"echo '101_0|PENDING|Priority|{mark}|x'")
        assert "if the run was moved, they fail" in inside("submit", "moved").stderr
        assert "which is not there" in inside("status", "moved").stdout

    def test_second_submit_at_the_same_time_is_refused(self, inside, fake, run, tmp_path):
        inside("submit", "run")
        with open(run.logs / "slurm/lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            done = inside("submit", "run")
        assert (done.returncode, "another process is submitting" in done.stderr) == (2, True)

    def test_what_people_set_for_their_own_eyes_hides_no_job(
        self, inside, fake, run, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
        inside("submit", "run")
        fake(squeue=f"env >{shlex.quote(str(tmp_path))}/env")
        inside("submit", "run")
        assert "SQUEUE_STATES" not in (tmp_path / "env").read_text()

    def test_jobs_that_are_ending_are_no_reason_to_cancel_them(self, inside, fake, run):
        inside("submit", "run")
        fake(squeue=f"echo '101_0|COMPLETING|None|{submissions(run.logs)[0].token}|x'")
        assert "try again in a moment" in inside("submit", "run").stderr

    def test_queue_that_does_not_answer_is_no_reason_to_submit_twice(self, inside, fake, run):
        inside("submit", "run")
        fake(squeue="echo slurmctld is down >&2; exit 1")
        done = inside("submit", "run")
        assert (done.returncode, "--again submits nevertheless" in done.stderr) == (2, True)
        assert inside("submit", "run", "--again").returncode == 0

    def test_job_of_somebody_else_with_the_same_number_is_none_of_ours(self, inside, fake, run):
        inside("submit", "run")
        fake(squeue="echo '101_0|RUNNING|None|somebody|/else/measure.sh'")
        assert inside("submit", "run").returncode == 0

    def test_job_that_slurm_has_forgotten_is_over(self, inside, fake, run):
        inside("submit", "run")
        fake(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
        assert inside("submit", "run").returncode == 0

    @pytest.mark.parametrize("damage", ["", "{}", '{"options": {"bogus": 1}, "token": "x"}'])
    def test_record_that_cannot_be_read_is_left_out(self, inside, fake, run, damage):
        inside("submit", "run")
        (run.logs / "slurm/0001/submission.json").write_text(damage)
        (run.logs / "slurm/0001/jobs.jsonl").write_text("not json\n")
        assert submissions(run.logs) == []
        assert inside("submit", "run").returncode == 0
        assert [known.number for known in submissions(run.logs)] == ["0002"]

    def test_setup_file_that_is_not_there_is_named(self, inside, fake, run):
        done = inside("submit", "run", "--setup", "nowhere.sh")
        assert (done.returncode, "cannot read nowhere.sh" in done.stderr) == (2, True)

    def test_run_that_was_not_planned_is_refused(self, inside, fake):
        done = inside("submit", "nowhere")
        assert (done.returncode, "skerch-ooc plan" in done.stderr) == (2, True)


class TestElements:
    """What an element of a submission does when something is missing."""

    @pytest.fixture
    def element(self, inside, fake, run, monkeypatch):
        """Submits, and then is the first element of the last stage; measuring was left out."""
        # There are no other hosts, whose files might be late.
        monkeypatch.setattr(submission, "_SHORT_WAIT", 0.0)
        inside("submit", "run", "--tries", 2)
        monkeypatch.setenv("SLURM_JOB_ID", "103")
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "102")

        def be(number, index=0, lowest=0):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
            monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", str(lowest))
            return inside(
                "task", "run", "assess", "--index", index, "--of", 1 + index,
                "--submission", number,
            )  # fmt: skip

        return be

    def test_it_submits_what_is_missing_and_ends_with_4(self, element, run):
        done = element("0001")
        assert "of measure 23 tasks (0, 1, 2, 3, 4, ...) are not done" in done.stderr
        assert "submitted again, as 0002: job 104 to 106" in done.stderr
        assert "skerch-ooc submit" not in done.stderr
        assert (done.returncode, done.stderr.splitlines()[-1]) == (4, ending(4))

    @pytest.mark.thorough
    def test_it_gives_up_after_as_many_tries_as_were_given(self, element, run):
        codes = [element(f"000{number}").returncode for number in (1, 2, 3, 4)]
        assert codes == [4] * 4
        assert len(submissions(run.logs)) == 3
        assert "the last 3 submission(s) have changed nothing" in element("0003").stderr

    def test_progress_counts_the_tries_anew(self, element, run):
        element("0001")
        ooc.measure(run, threads=1)
        next(run.shards.glob("*.h5")).unlink()
        element("0002")
        assert [known.unchanged for known in submissions(run.logs)] == [0, 1, 0]

    def test_another_element_of_its_array_leaves_it_to_the_first(self, element, run):
        assert element("0001", index=1).returncode == 4
        assert len(submissions(run.logs)) == 1

    def test_one_of_an_older_submission_submits_nothing(self, element, run):
        element("0001")
        assert "submission 0002 has taken over" in element("0001").stderr
        assert len(submissions(run.logs)) == 2

    def test_submission_that_was_refused_does_not_take_over(self, element, inside, fake, run):
        fake(sbatch="exit 1")
        inside("submit", "run", "--again")
        fake()
        assert "submitted again, as 0003" in element("0001").stderr

    def test_new_jobs_wait_for_the_array_that_submits_them(self, element, run, tmp_path):
        element("0001")
        assert "--dependency=afterany:102" in calls(tmp_path)[3]

    def test_jobs_that_are_replaced_are_cancelled_once_there_are_others(
        self, element, run, tmp_path
    ):
        element("0001")
        assert (tmp_path / "bin/cancelled").read_text().splitlines() == [
            "cancel --quiet 103", "cancel --quiet --state=PENDING 102",
        ]  # fmt: skip

    def test_failure_of_its_own_is_left_to_the_check(self, element, inside, run, monkeypatch):
        def full(*_, **__):
            raise ooc.IncompleteError("cannot write a shard: the disk is full")

        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        monkeypatch.setattr("skerch_ooc.stages.measure.task.publish_shard", full)
        done = inside("task", "run", "measure", "--index", 0, "--of", 9, "--submission", "0001")
        assert (done.returncode, "the disk is full" in done.stderr) == (4, True)
        assert len(submissions(run.logs)) == 1

    def test_check_submits_what_is_missing(self, element, inside, run, monkeypatch):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "103")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
        done = inside("submit", "run", "--follow", "0001")
        assert (done.returncode, "submitted again, as 0002" in done.stderr) == (0, True)

    def test_check_of_a_finished_run_has_nothing_to_do(self, element, inside, run, monkeypatch):
        inside("run", "--run", "run", "--threads", 1)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
        done = inside("submit", "run", "--follow", "0001")
        assert (done.returncode, "all stages are done" in done.stderr) == (0, True)

    def test_files_that_are_seen_late_are_waited_for(self, element, run, monkeypatch):
        ooc.measure(run, threads=1)
        late = next(run.shards.glob("*.h5"))
        late.rename(run.directory / late.name)
        monkeypatch.setattr(submission, "_SHORT_WAIT", 1.0)
        monkeypatch.setattr(
            "skerch_ooc.base.patience.time.sleep",
            lambda _: (run.directory / late.name).rename(late),
        )
        assert element("0001").returncode == 0

    def test_slurm_that_refuses_from_a_node_is_said(self, element, fake, run):
        fake(sbatch="echo not from compute nodes >&2; exit 1")
        done = element("0001")
        assert (done.returncode, "not from compute nodes" in done.stderr) == (2, True)
        assert [known.number for known in submissions(run.logs)] == ["0001"]

    def test_it_passes_on_nothing_of_its_own_job(self, element, fake, run, tmp_path):
        fake(sbatch=f"env >>{shlex.quote(str(tmp_path))}/env; echo 7")
        element("0001")
        names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
        assert not [name for name in names if name.startswith("SLURM_")]


class TestStatus:
    def state(self, inside):
        return json.loads(inside("status", "run", "--json").stdout)["slurm"]

    def write_log(self, run, name, text):
        (run.logs / "slurm/0001" / name).write_text(text)

    def test_nothing_submitted_is_nothing_shown(self, inside, fake, run):
        assert self.state(inside) is None

    def test_elements_are_told_by_their_logs_and_the_queue(self, inside, fake, run):
        inside("submit", "run", "--elements", 4)
        token = submissions(run.logs)[0].token
        fake(squeue=f"echo '101_3|PENDING|Resources|{token}|x'")
        self.write_log(run, "measure.101_0.log", f"x\n{ending(0)}\n")
        self.write_log(run, "measure.101_1.log", f"skerch-ooc: no licence\n{ending(2)}\n")
        self.write_log(run, "measure.101_2.log", "measure: 20 products\nslurmstepd: killed\n")
        assert "1 pending (Resources)" in inside("status", "run").stdout
        measure, *_ = self.state(inside)["jobs"]
        assert [element["state"] for element in measure["elements"]] == [
            "done", "failed", "killed or cancelled", "PENDING",
        ]  # fmt: skip
        assert [element["exit_code"] for element in measure["elements"]] == [0, 2, None, None]

    def test_last_failing_is_the_cause_and_not_who_found_out(self, inside, fake, run):
        inside("submit", "run", "--elements", 2)
        self.write_log(run, "measure.101_1.log", f"skerch-ooc: no licence\n{ending(2)}\n")
        self.write_log(run, "assess.102_0.log", f"too early\n{ending(4)}\n")
        state = self.state(inside)
        assert state["last_failing"].endswith("measure.101_1.log")
        assert state["reason"] == "skerch-ooc: no licence"
        assert "skerch-ooc: no licence" in inside("status", "run").stdout

    def test_queue_that_fails_is_said_and_no_more(self, inside, fake, run):
        inside("submit", "run")
        fake(squeue="echo down >&2; exit 1")
        done = inside("status", "run")
        assert (done.returncode, "squeue failed: down" in done.stdout) == (0, True)

    def test_queue_that_is_silent_is_not_waited_for(self, inside, fake, run, monkeypatch):
        inside("submit", "run")
        monkeypatch.setattr("skerch_ooc.pipeline.status._QUEUE_SECONDS", 0.2)
        fake(squeue="exec sleep 60")
        assert "squeue did not answer within 0.2 s" in inside("status", "run").stdout

    def test_without_a_queue_files_tell_what_they_can(self, inside, fake, run, monkeypatch):
        inside("submit", "run", "--elements", 1)
        monkeypatch.setenv("PATH", "/nowhere")
        state = self.state(inside)
        assert state["queue"] == "there is no squeue here"
        assert state["jobs"][0]["elements"][0]["state"] == "unknown"

    def test_element_that_stopped_early_is_told_from_one_that_is_done(self, inside, fake, run):
        inside("submit", "run", "--elements", 1)
        said = f"12:00:00 {STOPPED_IN_GOOD_ORDER}\n{ending(0)}\nslurmstepd: 3 CPU hours\n"
        self.write_log(run, "measure.101_0.log", said)
        assert self.state(inside)["jobs"][0]["elements"][0]["state"] == "stopped early"

    def test_jobs_of_an_earlier_submission_are_shown_too(self, inside, fake, run):
        inside("submit", "run")
        inside("submit", "run", "--again")
        fake(squeue=f"echo '101_0|RUNNING|None|{submissions(run.logs)[0].token}|x'")
        said = inside("status", "run").stdout
        assert "submission 0001: 1 element in the queue" in said
        assert said.endswith("wait: 1 element in the queue\n")

    def test_watch_ends_when_nobody_works_any_more(self, inside, fake, run):
        inside("submit", "run")
        done = inside("status", "run", "--watch", "--interval", "0.1")
        assert (done.returncode, "no job is in the queue any more" in done.stderr) == (4, True)

    def test_next_step_after_a_submission_is_another(self, inside, fake, run):
        inside("submit", "run")
        assert inside("status", "run").stdout.endswith("skerch-ooc submit run\n")

    def test_watch_ends_when_all_is_done(self, inside, run, tmp_path):
        inside("run", "--run", "run", "--threads", 1)
        done = inside("status", "run", "--watch", "--interval", "0.1")
        assert (done.returncode, "all stages are done" in done.stdout) == (0, True)

    def test_element_that_was_killed_is_the_reason_for_giving_up(
        self, inside, fake, run, monkeypatch
    ):
        monkeypatch.setattr(submission, "_SHORT_WAIT", 0.0)
        inside("submit", "run", "--tries", 0)
        self.write_log(run, "measure.101_0.log", "begins on x\nmeasure: 20 products\n")
        for name, value in (("JOB_ID", "103"), ("TASK_ID", "0"), ("TASK_MIN", "0")):
            monkeypatch.setenv(f"SLURM_ARRAY_{name}", value)
        done = inside("submit", "run", "--follow", "0001")
        assert (done.returncode, "killed or cancelled; it said: measure: 20" in done.stderr) == (
            4,
            True,
        )

    def test_log_in_whatever_bytes_is_read(self, tmp_path):
        path = tmp_path / "x.log"
        path.write_bytes(b"\xff\xfe" * 9000 + b"\nlast\n" + ending(3).encode() + b"\n\n")
        log = read_log(path)
        assert (log.exit_code, log.last_line) == (3, "last")

    def test_python_that_lacks_the_package_was_not_killed(self, tmp_path):
        path = tmp_path / "x.log"
        path.write_text(f"{BEGINNING} node7\n/venv/bin/python3.11: No module named skerch_ooc\n")
        log = read_log(path)
        assert (log.exit_code, "No module" in log.last_line) == (1, True)

    def test_log_of_a_requeued_element_is_that_of_its_last_time(self, tmp_path):
        path = tmp_path / "x.log"
        path.write_text(f"one\n{ending(2)}\n{BEGINNING} node7\ntwo\n")
        log = read_log(path)
        assert (log.exit_code, log.last_line) == (None, "two")


class TestWorkload:
    def stages(self, run):
        return {
            str(left.stage): tuple(left.tasks) for left in State(ooc.open_run(run.directory)).left
        }

    def test_small_run_has_two_stages(self, run):
        assert list(self.stages(run)) == ["measure", "assess"]

    def test_measured_tasks_are_not_left(self, run):
        ooc.measure(run, threads=1)
        assert self.stages(run) == {"assess": (0,)}

    def test_finished_run_has_nothing_left(self, inside, run):
        inside("run", "--run", "run", "--threads", 1)
        assert self.stages(run) == {}

    def test_run_that_grew_has_new_columns_left(self, inside, run):
        inside("run", "--run", "run", "--threads", 1)
        ooc.extend(run, 40)
        assert self.stages(run) == {"measure": (17, 18, 19), "assess": (0,)}

    def test_stages_of_later_rounds_are_left_before_their_time(self, tmp_path):
        spec = write_spec(
            tmp_path, "synthetic", 20, sketch={"test_measurements": 4, "block": 10},
            operator={"shape": [140_000, 140_000], "args": {"n": 140_000}},
            recovery={"method": "hmt", "power_iterations": 1},
        )  # fmt: skip
        run = ooc.plan(spec, tmp_path / "run", threads=1)
        names = ["measure", "merge", "solve", "vectors"]
        later = [f"{name}.{number}" for number in (2, 3) for name in names]
        assert list(self.stages(run)) == [*names, *later, "assess"]


class TestMemory:
    @pytest.fixture
    def run(self, tmp_path):
        table = {
            "kind": "eigh", "measurements": 2000,
            "operator": {"factory": "none:none", "shape": [100_000, 100_000]},
            "sketch": {"block": 16},
        }  # fmt: skip
        return ooc.plan(table, tmp_path / "run", memory="40GiB")

    @pytest.mark.parametrize(
        ("values", "text"),
        [({"mem": "500M"}, r"stage assess needs about .* MiB.* --for assess=--mem=\d+M"),
         ({"memory": "500MiB"}, "--memory 500MiB: the stage assess needs about")],
    )  # fmt: skip
    def test_too_little_for_a_stage_is_refused_with_what_it_needs(self, run, values, text):
        options = JobOptions(max_array_size=1001, **values)
        with pytest.raises(UsageError, match=text):
            submit(run, options, dry_run=True)

    def test_enough_for_each_stage_is_taken(self, run):
        stages = ["measure", "merge", "solve", "vectors", "assess"]
        of_stage = options_of_stages([f"{stage}=--mem=20G" for stage in stages])
        options = JobOptions(max_array_size=1001, mem="1M", of_stage=of_stage)
        assert submit(run, options, dry_run=True) is not None


class TestLimits:
    def test_walltime_is_what_slurm_says_less_a_reserve(self, monkeypatch):
        monkeypatch.setattr("skerch_ooc.base.time_budget.time.time", lambda: 1000.0)
        assert walltime_left({"SLURM_JOB_END_TIME": "1600"}) == 570.0

    @pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_END_TIME": "soon"}])
    def test_walltime_that_nobody_says_is_none(self, environment):
        assert walltime_left(environment) is None

    @pytest.mark.parametrize(
        ("environment", "mebibytes"),
        [
            ({"SLURM_MEM_PER_NODE": "2000"}, 1800),
            ({"SLURM_MEM_PER_NODE": "2000", "SLURM_TASKS_PER_NODE": "2(x3),1"}, 900),
            ({"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_PER_TASK": "4"}, 3600),
        ],
    )
    def test_memory_of_an_element_is_what_slurm_gave_it(self, monkeypatch, environment, mebibytes):
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert Resources.of().memory == mebibytes * 1024**2

    def test_workers_share_what_an_element_was_given(self, monkeypatch):
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        monkeypatch.setenv("SLURM_MEM_PER_NODE", "2000")
        assert Resources.of(workers=4).memory == 450 * 1024**2

    def test_workers_have_four_gibibytes_each_where_there_is_room(self, monkeypatch):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1 << 40))
        assert Resources.of(workers=8).memory == 4 << 30


def test_line_after_one_that_was_cut_short_is_a_line_of_its_own(tmp_path):
    path = tmp_path / "log.jsonl"
    append_line(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"torn')
    append_line(path, {"b": 2})
    assert path.read_text().splitlines() == ['{"a": 1}', '{"torn', '{"b": 2}']
