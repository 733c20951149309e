"""Work: what is filled in where nothing was said, and what of it is handed on."""

from __future__ import annotations

import dataclasses
import logging
import time

import pytest

import skerch_ooc as ooc
from skerch_ooc.base.time_budget import Budget
from skerch_ooc.executors.share import Share
from skerch_ooc.executors.work import Work

GIB = 1 << 30


class Workers(ooc.Serial):
    """An executor of several processes, with threads of their own, that starts none."""

    workers = 3
    remote = True
    threads = 5


def test_nothing_said_is_work_in_this_process_on_the_device_of_the_plan():
    work = Work.of()
    assert isinstance(work.executor, ooc.Serial)
    assert (work.device, work.resources.device, work.resources.workers) == (None, "cpu", 1)
    assert not work.budget.spent


def test_device_is_that_of_the_operator_and_of_the_tiles():
    work = Work.of(device="meta")
    assert (work.device, work.resources.device) == ("meta", "meta")


@pytest.mark.parametrize(("threads", "of_task"), [(None, 5), (2, 2)])
def test_threads_of_workers_are_theirs_unless_they_are_given(threads, of_task):
    assert Work.of(Workers(), GIB, threads).resources.task_threads == of_task


def test_memory_of_all_workers_is_said(caplog):
    with caplog.at_level(logging.INFO, "skerch_ooc"):
        Work.of(Workers(), GIB, 1)
    assert "at most 1.0 GiB for each of 3 workers, 3.0 GiB in all" in caplog.text


def test_work_here_is_the_same_but_for_who_does_it():
    work = Work.of(Share(1, 3), GIB, 2, "meta", budget=Budget(0.0))
    here = work.here
    assert (work.executor.share, here.executor.share) == ((1, 3), (0, 1))
    assert dataclasses.replace(here, executor=work.executor) == work


def test_budgets_are_not_shared_by_those_who_gave_none():
    first, second = Work.of(), Work.of()
    first.budget.stop()
    assert (first.budget.spent, second.budget.spent) == (True, False)


def test_budget_is_kept():
    budget = Budget(time.monotonic())
    assert Work.of(budget=budget).budget is budget


def test_value_out_of_range_is_refused():
    with pytest.raises(ooc.UsageError, match="threads = 0: must be at least 1"):
        Work.of(threads=0)
