"""Whole runs in this process, planned to its results."""

from __future__ import annotations

from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.run import run_all
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.spec import Spec


def whole_run(spec, run_dir, executor=None, memory="4GiB", threads=1, overrides=()):
    work = Work.of(executor, memory, threads)
    planned = make_plan(Spec.from_toml(spec, overrides), run_dir, work)
    run_all(planned, work)
    return run_dir
