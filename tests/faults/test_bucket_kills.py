"""SIGKILL at any moment to processes of a run in a bucket: nothing is lost or repeated."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import time

import psutil
import pytest
from commands import CommandLine
from contents import run_contents
from specs import write_spec

from skerch_ooc.base.places import place

RUNS = {
    "serial": {
        "spec": {"measurements": 60, "sketch": {"block": 3, "test_measurements": 6}},
        "where": (),
    },
    "krylov": {
        "spec": {"measurements": 40, "round_width": 8, "rounds": 5, "sketch": {"block": 4},
                 "recovery": {"method": "krylov", "rank": 4}},
        "where": (),
    },
    "two workers": {
        "spec": {"measurements": 60, "sketch": {"block": 3, "test_measurements": 6},
                 "recovery": {"method": "hmt"}},
        "where": ("--executor", "dask", "--workers", 2),
    },
}  # fmt: skip
BY_DEFAULT = 3
IN_SOAK = {"serial": 90, "krylov": 90, "two workers": 20}
_SECONDS = 120.0
_IMPORTS = 0.3
"""The share of a command's time before it has done anything."""


def spec_of(folder, name):
    folder.mkdir()
    wanted = dict(RUNS[name]["spec"])
    measurements = wanted.pop("measurements")
    return write_spec(
        folder, "matrix", measurements, kind="eigh", **wanted,
        operator={"args": {"n": 300, "delay": 0.02}},
    )  # fmt: skip


def versions(url):
    run = place(url)
    return {
        one.key: one.version
        for one in run.store.all_below(run.key)
        if "/shards/" in one.key and "/.tmp-" not in one.key
    }


def processes_of(command):
    """The command, and its workers if it has any, as likely as they."""
    inner = psutil.Process(command.pid).children(recursive=True)
    with contextlib.suppress(psutil.Error):
        workers = [child for child in inner if "spawn_main" in " ".join(child.cmdline())]
        return [psutil.Process(command.pid), *workers]
    return [psutil.Process(command.pid)]


def killed_at_random(command, arguments, most, chance):
    """Starts a command and kills it, or a worker of it, at a random time; whether it struck."""
    process = command.start(*arguments, start_new_session=True)
    end = time.monotonic() + chance.uniform(_IMPORTS * most, most)
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    struck = False
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            chance.choice(processes_of(process)).send_signal(signal.SIGKILL)
            struck = True
    try:
        _, err = process.communicate(timeout=_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (0, 4, -signal.SIGKILL), err
    return struck, process.returncode


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        pytest.param("serial", BY_DEFAULT, marks=pytest.mark.thorough),
        *(pytest.param(*one, marks=pytest.mark.soak) for one in IN_SOAK.items()),
    ],
)
def test_killed_run_goes_on_to_the_same_bits(bucket, tmp_path, call_log, name, kills):
    chance = random.Random(f"{name} {kills}")
    spec = spec_of(tmp_path / "spec", name)
    where = RUNS[name]["where"]
    # A server of forked commands does not bear that those who ask it are killed.
    command = CommandLine(spec.parent)
    start = time.monotonic()
    quiet = command("run", spec, "--run", f"{bucket}/quiet", *where)
    assert quiet.returncode == 0, quiet.stderr
    most = time.monotonic() - start
    wanted, number, done = run_contents(place(f"{bucket}/quiet")), 0, 0
    once = collections.Counter(call["crc"] for call in call_log())
    while done < kills:
        number += 1
        url = f"{bucket}/killed{number}"
        before = collections.Counter(call["crc"] for call in call_log())
        seen, struck_here, code = {}, 0, 4
        while code != 0:
            struck, code = killed_at_random(
                command, ("run", spec, "--run", url, *where), most, chance
            )
            struck_here += struck
            now = versions(url)
            # What was published once is there, and is what it was.
            assert now.items() >= seen.items()
            seen = now
        done += struck_here
        assert run_contents(place(url)) == wanted
        applied = collections.Counter(call["crc"] for call in call_log()) - before
        # A process that is killed has one task under way; the next one compares the operator anew.
        assert sum((applied - once).values()) <= 4 * struck_here + 1
