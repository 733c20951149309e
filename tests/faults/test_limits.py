"""No room, no permission, few descriptors, no locks, no hard links, late files, odd clocks."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from faults.cases import CASES, ONE_COMMAND, state_of

ENVIRONMENT = "limits of the system"
READING = ["status", "verify", "assess", "estimates"]
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, mount")
(RUN,) = ONE_COMMAND


@pytest.fixture
def folder(tmp_path):
    """A folder with the spec of a small run."""
    CASES["eigh nystrom"].write(tmp_path)
    return tmp_path


@pytest.fixture
def expected(quiet):
    """The state of this run when nobody interferes."""
    return quiet.of("eigh nystrom")[0]


@pytest.fixture(scope="module")
def finished(zygote, tmp_path_factory):
    """A small run that is finished."""
    folder = tmp_path_factory.mktemp("finished")
    CASES["eigh nystrom"].write(folder)
    assert zygote(folder, *RUN).code == 0
    return folder / "run"


@pytest.fixture
def open_folder():
    """A folder in which all users may look, with the spec of a small run."""
    folder = Path(tempfile.mkdtemp(prefix="limits-"))
    folder.chmod(0o755)
    CASES["eigh nystrom"].write(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [100, 2_000, 20_000])
def test_files_that_may_not_grow_are_said_and_without_the_limit_the_command_goes_on(
    zygote, tally, folder, expected, size
):
    with tally.fault(ENVIRONMENT, "RLIMIT_FSIZE") as attempt:
        ended = zygote(folder, *RUN, limits={"RLIMIT_FSIZE": size})
        assert (ended.code, "File too large" in ended.err) == (4, True), ended.err
        assert zygote(folder, *RUN).code == 0
        assert state_of(folder / "run") == expected
        attempt.ended("same")


@pytest.mark.sampled(1)
@as_root
@pytest.mark.parametrize("kilobytes", [24, 60, 120])
def test_full_disk_is_said_and_with_more_room_the_command_goes_on(
    zygote, tally, folder, expected, kilobytes
):
    disk = folder / "run"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        with tally.fault(ENVIRONMENT, "a disk that is full (tmpfs)") as attempt:
            ended = zygote(folder, *RUN)
            assert (ended.code, "No space left" in ended.err) == (4, True), ended.err
            subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
            assert zygote(folder, *RUN).code == 0
            assert state_of(disk) == expected
            attempt.ended("same")
    finally:
        subprocess.run(["umount", disk], check=True)


@as_root
@pytest.mark.parametrize("verb", READING)
def test_finished_run_of_somebody_else_can_be_looked_at(zygote, tally, finished, open_folder, verb):
    shutil.copytree(finished, open_folder / "run")
    with tally.fault(ENVIRONMENT, f"{verb} of a run that may not be written") as attempt:
        ended = zygote(open_folder, verb, "run", user=NOBODY)
        assert ended.code == 0, ended.err
        attempt.ended("same")


@as_root
def test_report_of_a_run_of_somebody_else_is_written_elsewhere(
    zygote, tally, finished, open_folder
):
    shutil.copytree(finished, open_folder / "run")
    mine = open_folder / "mine"
    mine.mkdir()
    mine.chmod(0o777)
    with tally.fault(ENVIRONMENT, "report of a run that may not be written") as attempt:
        refused = zygote(open_folder, "report", "run", user=NOBODY)
        assert (refused.code, "--output" in refused.err) == (4, True), refused
        ended = zygote(open_folder, "report", "run", "--output", mine / "a.html", user=NOBODY)
        assert ended.code == 0, ended.err
        assert (mine / "a.html").read_text().startswith("<!DOCTYPE html>")
        attempt.ended("same")


@as_root
def test_clean_of_a_run_of_somebody_else_removes_nothing(zygote, tally, finished, open_folder):
    shutil.copytree(finished, open_folder / "run")
    before = sorted(open_folder.glob("**/*"))
    with tally.fault(ENVIRONMENT, "clean of a run that may not be written") as attempt:
        ended = zygote(open_folder, "clean", "run", "--sketch", user=NOBODY)
        assert (ended.code, "Permission denied" in ended.err) == (4, True), ended
        assert sorted(open_folder.glob("**/*")) == before
        attempt.ended("named")


@as_root
@pytest.mark.parametrize(
    "command",
    [("measure", "run"), ("merge", "run"), ("recover", "run", "--rank", 3), RUN,
     ("extend", "run", "--measurements", 48), ("plan", "spec.toml", "--run", "other")],
    ids=lambda command: command[0],
)  # fmt: skip
def test_where_nothing_may_be_written_that_is_said(zygote, tally, open_folder, command):
    assert zygote(open_folder, "plan", "spec.toml", "--run", "run").code == 0
    if command[0] in ("merge", "recover", "extend"):
        assert zygote(open_folder, "measure", "run").code == 0
    before = sorted(open_folder.glob("**/*"))
    with tally.fault(ENVIRONMENT, "no permission to write") as attempt:
        ended = zygote(open_folder, *command, user=NOBODY)
        assert ended.code in (2, 4), ended.err
        assert "Permission denied" in ended.err
        assert sorted(open_folder.glob("**/*")) == before
        attempt.ended("named")


@as_root
@pytest.mark.parametrize("name", ["plan.json", "plan.d/0001.json", "shards", "sketch", "results"])
def test_what_may_not_be_read_is_named(zygote, tally, finished, open_folder, name):
    shutil.copytree(finished, open_folder / "run")
    (open_folder / "run" / name).chmod(0)
    with tally.fault(ENVIRONMENT, "no permission to read") as attempt:
        ended = zygote(open_folder, "verify", "run", user=NOBODY)
        assert ended.code != 0
        assert name in ended.err
        attempt.ended("named")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["eigh nystrom", "svd hmt", "eigh by stages, row shards"])
@pytest.mark.parametrize("said", [{}, {"HDF5_USE_FILE_LOCKING": "TRUE"}], ids=["", "asked for"])
def test_no_lock_is_needed(zygote, tally, tmp_path, quiet, name, said):
    CASES[name].write(tmp_path)
    with tally.fault(ENVIRONMENT, "flock fails with 37 (ENOLCK)") as attempt:
        for command in CASES[name].commands:
            ended = zygote(tmp_path, *command, denied={"flock": errno.ENOLCK}, environment=said)
            assert ended.code == 0, ended.err
        assert state_of(tmp_path / "run") == quiet.of(name)[0]
        attempt.ended("same")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("error", ["EPERM", "ENOTSUP", "EMLINK", "EXDEV"])
def test_no_hard_link_is_needed(zygote, tally, folder, expected, error):
    denied = dict.fromkeys(("link", "linkat"), getattr(errno, error))
    with tally.fault(ENVIRONMENT, "no hard links") as attempt:
        assert zygote(folder, *RUN, denied=denied).code == 0
        assert state_of(folder / "run") == expected
        attempt.ended("same")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("pattern", ["shards/right.*.h5", "shards/test.*.h5"])
def test_file_that_is_seen_late_is_waited_for(zygote, tally, finished, folder, expected, pattern):
    shutil.copytree(finished, folder / "run")
    for derived in ("sketch", "results"):
        shutil.rmtree(folder / "run" / derived)
        (folder / "run" / derived).mkdir()
    late = sorted((folder / "run").glob(pattern))[0]
    os.rename(late, folder / "late")

    def appear() -> None:
        time.sleep(0.6)
        os.rename(folder / "late", late)

    other_host = threading.Thread(target=appear)
    with tally.fault(ENVIRONMENT, "a file that is seen late") as attempt:
        other_host.start()
        assert zygote(folder, "merge", "run").code == 0
        other_host.join()
        assert zygote(folder, *RUN).code == 0
        assert state_of(folder / "run") == expected
        attempt.ended("same")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("step", [-3600.0, -86400.0 * 400, 86400.0 * 400])
def test_clock_that_jumps_changes_nothing(zygote, tally, folder, expected, step):
    with tally.fault(ENVIRONMENT, "a clock that jumps") as attempt:
        ended = zygote(folder, *RUN, clock_step=step)
        assert ended.code == 0, ended.err
        assert state_of(folder / "run") == expected
        assert zygote(folder, "status", "run", clock_step=step).code == 0
        attempt.ended("same")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("when", [0, 1, 2**33])
def test_files_with_other_times_are_the_same_files(zygote, tally, finished, folder, expected, when):
    shutil.copytree(finished, folder / "run")
    said = zygote(folder, "status", "run", "--json").out
    for path in (folder / "run").glob("**/*"):
        os.utime(path, (when, when))
    with tally.fault(ENVIRONMENT, "times of files that changed") as attempt:
        assert zygote(folder, "status", "run", "--json").out == said
        assert zygote(folder, *RUN).code == 0
        assert state_of(folder / "run") == expected
        attempt.ended("same")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["eigh nystrom", "svd hmt", "eigh hmt by shares"])
def test_few_descriptors_are_enough(zygote, tally, tmp_path, quiet, name):
    CASES[name].write(tmp_path)
    with tally.fault(ENVIRONMENT, "RLIMIT_NOFILE=16") as attempt:
        for command in CASES[name].commands:
            assert zygote(tmp_path, *command, limits={"RLIMIT_NOFILE": 16}).code == 0
        assert state_of(tmp_path / "run") == quiet.of(name)[0]
        attempt.ended("same")
