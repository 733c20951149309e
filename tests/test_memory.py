"""Memory is promised, then kept: peak resident memory of a process, imports included."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CommandLine, write_spec

from skerch_ooc.resources import parse_bytes


def peak_of(cwd, *arguments) -> int:
    """Runs a command and returns the peak resident memory of its process in bytes.

    (Not ``ru_maxrss``, which a process inherits from the one that started it.)
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "skerch_ooc", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.01)
    assert process.returncode == 0
    return peak


def measured_run(folder, rows: int, columns: int):
    spec = write_spec(
        folder, "", columns,
        operator={"factory": "skerch_ooc.operators.synthetic:decaying",
                  "args": {"n": rows, "rank": 50}},
        sketch={"test_measurements": 8, "block": 16}, recovery={"rank": 32},
    )  # fmt: skip
    command = CommandLine(folder)
    assert command("plan", spec, "--run", "run").returncode == 0
    assert command("measure", "run").returncode == 0
    return sum(path.stat().st_size for path in (folder / "run/shards").iterdir())


CASES = [
    pytest.param(900_000, 4, id="4 times as large"),
    pytest.param(2_500_000, 10, id="10 times as large", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("rows", "ratio"), CASES)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_sketch_larger_than_memory_is_merged_and_recovered_within_it(tmp_path, rows, ratio):
    memory = "124MiB"
    size = measured_run(tmp_path, rows, 128)
    assert size > ratio * parse_bytes(memory) * 0.9
    for verb in ("merge", "recover"):
        assert peak_of(tmp_path, verb, "run", "--memory", memory) <= parse_bytes(memory)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_measuring_stays_within_its_memory(tmp_path):
    spec = write_spec(tmp_path, "synthetic", 128, operator={"args": {"n": 200_000}})
    assert peak_of(tmp_path, "run", spec, "--run", "run", "--memory", "900MiB") <= 900 * 2**20


def test_too_little_memory_is_refused_with_what_is_needed(ooc_command):
    spec = write_spec(ooc_command.cwd, "matrix", 20)
    ooc_command("plan", spec, "--run", "run")
    ooc_command("measure", "run")
    done = ooc_command("merge", "run", "--memory", "60MiB")
    assert done.returncode == 2
    needed = done.stderr.split("at least --memory ")[1].split()[0]
    assert ooc_command("merge", "run", "--memory", needed).returncode == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("2GiB", 2**31), ("1.5 kB", 1500), ("500MB", 500_000_000), ("1 TiB", 2**40)],
)
def test_amounts_of_memory_are_read(text, count):
    assert parse_bytes(text) == count
