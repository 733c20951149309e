"""Signals that end a command in good order, and the time that it is given."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any


class Terminated(KeyboardInterrupt):
    """A signal that asks to end; its number is the argument."""


def budget_of(max_seconds: float | None, *, patient: bool = False) -> Any:
    """A budget that SIGTERM and SIGUSR1 spend too: the running task is finished, the exit is 0.

    Outside of measuring they interrupt, as Ctrl-C does, unless the command is patient, as all that
    it does are tasks. The second time they end the process at once: nothing is lost either way.
    """
    from skerch_ooc.base.time_budget import WALLTIME_RESERVE, Budget, walltime_left

    left = walltime_left(os.environ)
    if left is not None and left <= 0:
        logging.getLogger("skerch_ooc").warning(
            "by SLURM_JOB_END_TIME the Slurm job of this process is over, or ends within %.0f s: "
            "nothing is measured; where this process is of no job: unset SLURM_JOB_END_TIME",
            WALLTIME_RESERVE,
        )
    limits = [limit for limit in (max_seconds, left) if limit is not None]
    budget = Budget(min(limits, default=None))

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if not (budget.active or patient):
            raise Terminated(number)
        budget.stop()

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, on_signal)
    return budget
