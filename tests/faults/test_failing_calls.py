"""Writes, fsyncs, links and renames that fail: it is said, and the same command goes on."""

from __future__ import annotations

import errno
import shutil

import pytest

from faults import tracing
from faults.attacks import attack, sampled, seeded
from faults.cases import CASES, LARGE
from faults.tracing import Fault

pytestmark = pytest.mark.skipif(
    not tracing.CAN_FAIL_CALLS, reason="how to fail a call is known of x86-64 processors only"
)
ERRORS = {
    "disk full": {"error": errno.ENOSPC, "lasting": True},
    "disk full for a moment": {"error": errno.ENOSPC},
    "input/output error": {"error": errno.EIO},
    "quota": {"error": errno.EDQUOT, "lasting": True},
}
SLICES = 4
EXHAUSTED = "eigh nystrom"
SAMPLED = ("svd oversampled", "eigh hmt", "eigh updated", "svd by stages, row shards")
"""Cases that are tried by default."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("error", ["disk full", "input/output error"])
@pytest.mark.parametrize("name", SAMPLED)
def test_failing_call_is_said_and_the_same_command_goes_on(
    zygote, tally, quiet, tmp_path, name, error
):
    expected, calls = quiet.of(name)
    faults = sampled(seeded(name, error), calls, 1, **ERRORS[error])
    attack(zygote, tally, error, name, expected, tmp_path, faults)


@pytest.mark.soak
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CASES)
def test_many_failing_calls_are_said_and_the_same_command_goes_on(
    zygote, tally, quiet, tmp_path, name, error
):
    expected, calls = quiet.of(name)
    faults = sampled(seeded(name, error, 1), calls, 1 if name in LARGE else 4, **ERRORS[error])
    attack(zygote, tally, error, name, expected, tmp_path, faults)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("error", ["disk full", "input/output error"])
def test_failure_of_every_call_is_said_and_the_same_command_goes_on(
    zygote, tally, quiet, tmp_path, error, part
):
    expected, (calls,) = quiet.of(EXHAUSTED)
    for number in range(1 + part, calls + 1, SLICES):
        folder = tmp_path / str(number)
        folder.mkdir()
        fault = Fault(number, **ERRORS[error])
        attack(zygote, tally, error, EXHAUSTED, expected, folder, [[fault]])
        shutil.rmtree(folder)
