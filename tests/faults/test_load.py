"""Many files, many tasks, much time: nothing is quadratic, and memory does not grow."""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peaks import run_with_peak
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import list_shards

FEW_FILES = {"RLIMIT_NOFILE": 64}
MIB = 1 << 20


def sum_of(folder: Path, parts: int, columns: int) -> Path:
    """The spec of a run of so many shards for each of so many parts, of one column each."""
    return write_spec(
        folder, "sum_of_terms", columns - 10,
        operator={"args": {"terms": parts, "n": columns}, "parts": parts},
        sketch={"block": 1, "test_measurements": 10},
    )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("parts", "columns"),
    [
        (4, 75),
        pytest.param(4, 250, marks=pytest.mark.soak),
        pytest.param(50, 1000, marks=pytest.mark.soak),
    ],
    ids=["300", "1,000", "50,000"],
)
def test_many_shards_in_one_folder(parts, columns, zygote, tmp_path, tally):
    """Each in a file of its own, and no process may have more than 64 of them open."""
    with tally.fault("load", f"{parts * columns:,} shards in one folder") as attempt:
        spec, run = sum_of(tmp_path, parts, columns), tmp_path / "run"

        def command(*arguments):
            begin = time.monotonic()
            ended = zygote(tmp_path, *arguments, limits=FEW_FILES, patience=3600)
            print(f"{time.monotonic() - begin:8.2f} s  {' '.join(map(str, arguments))}")
            assert ended.code == 0, ended.err
            return ended

        command("plan", spec, "--run", "run")
        command("measure", "run")
        shards = list_shards(run / "shards")
        assert len(shards) == parts * columns
        assert "merge run" in command("status", "run").out
        lost = run / "shards" / shards[277].name
        column = SealedFile(lost).bulk().read_tile(0)
        lost.unlink()
        assert json.loads(command("status", "run", "--json").out)["shards"] == len(shards) - 1
        command("measure", "run")
        assert (SealedFile(lost).bulk().read_tile(0) == column).all()
        for verb in ("merge", "recover", "assess", "verify", "status"):
            ended = command(verb, "run")
        assert "nothing: all stages are done" in ended.out
        assert ooc.assess(ooc.open_run(run)).relative_error < 1e-5
        attempt.ended("same")


@pytest.fixture
def million(tmp_path):
    """The spec of a million tasks."""
    return write_spec(
        tmp_path, "scaled", 10**6,
        operator={"shape": [2 * 10**6, 2 * 10**6]}, sketch={"block": 1, "test_measurements": 10},
    )  # fmt: skip


@pytest.mark.thorough
def test_million_tasks_are_planned_looked_at_and_begun_in_little_memory(million, tmp_path, tally):
    with tally.fault("load", "a plan of a million tasks") as attempt:
        libraries = run_with_peak(tmp_path, "--help")[1]
        planning = ("plan", million, "--run", "run", "--memory", "1000TiB")
        for light in (planning, ("status", "run"), ("status", "run", "--json")):
            done, peak = run_with_peak(tmp_path, *light)
            assert done.returncode == 0, done.stderr
            assert peak < libraries + 64 * MIB
        state = json.loads(run_with_peak(tmp_path, "status", "run", "--json")[0].stdout)
        assert state["products"]["planned"] == 10**6 + 10
        done, peak = run_with_peak(tmp_path, "submit", "run", "--dry-run", "--max-array-size", 1000)
        assert done.returncode == 0, done.stderr
        assert "--array=0-999" in done.stdout
        assert peak < libraries + 128 * MIB
        attempt.ended("same")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "command",
    [
        ("measure", "run", "--max-seconds", "0.001"),
        ("task", "run", "measure", "--index", "3", "--of", "1000", "--max-seconds", "0.001"),
    ],
    ids=" ".join,
)
def test_million_tasks_wait_without_being_made(command, million, tmp_path, tally):
    """Torch is loaded for the operator: the memory is that of a process that has it."""
    with tally.fault("load", "a plan of a million tasks") as attempt:
        planned, _ = run_with_peak(tmp_path, "plan", million, "--run", "run", "--memory", "1000TiB")
        assert planned.returncode == 0, planned.stderr
        done, peak = run_with_peak(tmp_path, *command)
        assert "stopped in good order" in done.stderr
        assert peak < 400 * MIB
        attempt.ended("same")


class Memory:
    """Resident memory of a process and of all that it started, as time goes by."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.samples: dict[int, list[tuple[float, int]]] = {}

    def sample(self) -> None:
        now = time.monotonic()
        for number in (self.process.pid, *self._below(self.process.pid)):
            size = self._resident(number)
            if size:
                self.samples.setdefault(number, []).append((now, size))

    def _below(self, number: int) -> list[int]:
        found = []
        # By each of its threads: any may have started others.
        for children in Path(f"/proc/{number}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, children.read_text().split()):
                    found += [child, *self._below(child)]
        return found

    @staticmethod
    def _resident(number: int) -> int:
        try:
            found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{number}/status").read_text())
        except OSError:
            return 0
        return int(found[1]) * 1024 if found else 0

    def growth(self, begin: float, end: float) -> dict[int, int]:
        """From the second quarter of a time to the last, of each process: medians, in bytes."""
        quarter = (end - begin) / 4
        spans = [(begin + quarter, begin + 2 * quarter), (begin + 3 * quarter, end)]
        found = {}
        for number, samples in self.samples.items():
            sizes = [[size for at, size in samples if a <= at <= b] for a, b in spans]
            if all(len(some) > 3 for some in sizes):
                early, late = map(statistics.median, sizes)
                found[number] = int(late - early)
                print(f"process {number}: {early / MIB:.1f} MiB, then {late / MIB:.1f} MiB")
        return found


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for memory")
def test_memory_of_workers_scheduler_and_client_does_not_grow(tmp_path, tally):
    """By more than a few MB between the second quarter of the time and the last."""
    with tally.fault("load", "two workers for a long time") as attempt:
        seconds = float(os.environ.get("SKERCH_OOC_LOAD_SECONDS", "600"))
        spec = write_spec(
            tmp_path, "scaled", 10**5,
            operator={"args": {"n": 10**5, "delay": 0.02}, "shape": [10**5, 10**5]},
            sketch={"block": 1, "test_measurements": 10},
        )  # fmt: skip
        planned, _ = run_with_peak(tmp_path, "plan", spec, "--run", "run", "--memory", "1000TiB")
        assert planned.returncode == 0, planned.stderr
        process = subprocess.Popen(
            [
                sys.executable, "-m", "skerch_ooc", "measure", "run", "--executor", "dask",
                "--workers", "2", "--threads", "1", "--max-seconds", str(seconds),
            ],
            cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        memory, begin = Memory(process), time.monotonic()
        while process.poll() is None:
            memory.sample()
            time.sleep(0.5)
            _forget_shards(tmp_path / "run/shards", begin)
        growth = memory.growth(begin, begin + seconds)
        receipts = (tmp_path / "run/logs/receipts.jsonl").read_text().count("\n")
        print(f"{receipts} tasks in {seconds:.0f} s")
        assert "stopped in good order" in process.communicate()[1]
        # The client, the scheduler if it is a process of its own, and the workers.
        assert len(growth) >= 3
        assert max(growth.values()) < 6 * MIB
        attempt.ended("same")


def _forget_shards(folder: Path, begin: float) -> None:
    """Keeps the disk from filling up: the content of what was published a while ago is let go."""
    for shard in folder.glob("[!.]*.h5"):
        status = shard.stat()
        if status.st_size and time.time() - status.st_mtime > 5:
            os.truncate(shard, 0)
