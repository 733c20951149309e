"""Whole runs in this process, planned to its results."""

from __future__ import annotations

import skerch_ooc as ooc
from skerch_ooc.base.progress import Progress
from skerch_ooc.base.resources import Resources
from skerch_ooc.pipeline.run import run_all
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.spec import Spec


def whole_run(spec, run_dir, executor=None, memory="4GiB", threads=1, overrides=()):
    executor = executor or ooc.Serial()
    resources = Resources.of(memory, threads, executor.workers)
    planned = make_plan(Spec.from_toml(spec, overrides), run_dir, resources)
    run_all(planned, executor, resources, Progress())
    return run_dir
