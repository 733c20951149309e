"""Which of several failures is shown as the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerch_ooc.executors.slurm.failures import Failure, cause_of
from skerch_ooc.executors.slurm.logs import Log

KILLED, REFUSED, INCOMPLETE = None, 2, 4


def failure(position, code, modified=0.0, said=""):
    return Failure(position, Log(Path("x.log"), code, said, modified))


def test_nothing_that_failed_has_no_cause():
    assert cause_of([]) is None


@pytest.mark.parametrize(
    ("cause", "other"),
    [
        (failure(0, REFUSED, 5.0), failure(0, REFUSED, 4.0)),
        (failure(0, REFUSED, 4.0), failure(1, REFUSED, 5.0)),
        (failure(1, REFUSED, 4.0), failure(0, INCOMPLETE, 5.0)),
        (failure(1, KILLED, 4.0), failure(1, INCOMPLETE, 5.0)),
    ],
    ids=["the last", "of the first stage", "not who found out", "also if it was killed"],
)
def test_cause_is(cause, other):
    assert cause_of([cause, other]) == cause_of([other, cause]) == cause


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (REFUSED, "no licence", "no licence"),
        (REFUSED, "", "it said nothing, and ended with 2"),
        (KILLED, "12 products", "killed or cancelled; it said: 12 products"),
        (KILLED, "", "killed or cancelled; it said nothing"),
    ],
)
def test_reason_is_what_the_log_says_last(code, said, reason):
    assert failure(0, code, said=said).reason == reason
