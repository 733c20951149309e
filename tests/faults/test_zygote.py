"""The tools of the attacks do what they say."""

from __future__ import annotations

import errno
import signal

import pytest
from specs import write_spec

from faults import tracing
from faults.tracing import Fault


@pytest.fixture
def planning(tmp_path):
    spec = write_spec(tmp_path, "matrix", 20, operator={"args": {"n": 40}, "shape": [40, 40]})
    return ("plan", spec, "--run", "run", "--set", "sketch.block=8")


def test_forked_command_ends_as_one_that_was_started(zygote, tmp_path, planning):
    assert zygote(tmp_path, *planning).code == 0
    assert zygote(tmp_path, "status", "run").out.startswith("run")
    assert zygote(tmp_path, "status", "elsewhere").code == 2


def test_calls_that_concern_files_are_counted(zygote, tmp_path, planning):
    ended = zygote(tmp_path, *planning, fault=Fault(0))
    assert ended.struck is False
    # Plan and amendment.
    assert ended.calls.count("link") + ended.calls.count("linkat") == 2


@pytest.mark.parametrize("after", [False, True])
def test_kill_comes_before_or_after_the_call(zygote, tmp_path, planning, after):
    calls = zygote(tmp_path, *planning, fault=Fault(0)).calls
    number = next(n for n, call in enumerate(calls, 1) if call.startswith("link"))
    again = [*planning[:3], "second", *planning[4:]]
    ended = zygote(tmp_path, *again, fault=Fault(number, after))
    assert (ended.code, ended.struck) == (-signal.SIGKILL, True)
    assert (tmp_path / "second/plan.json").exists() == after


@pytest.mark.skipif(not tracing.CAN_FAIL_CALLS, reason="made for x86-64 processors only")
def test_call_fails_with_the_error(zygote, tmp_path, planning):
    calls = zygote(tmp_path, *planning, fault=Fault(0)).calls
    number = next(n for n, call in enumerate(calls, 1) if call == "fsync")
    again = [*planning[:3], "second", *planning[4:]]
    ended = zygote(tmp_path, *again, fault=Fault(number, error=errno.EIO))
    assert "Input/output error" in ended.err


def test_denied_call_fails_in_the_kernel(zygote, tmp_path, planning):
    ended = zygote(tmp_path, *planning, denied={"fsync": errno.EIO})
    assert "Input/output error" in ended.err
