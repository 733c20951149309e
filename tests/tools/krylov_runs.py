"""Runs of krylov: small dense operators in this process, and tall diagonal ones from specs."""

from __future__ import annotations

from operators import dense
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.executors.share import Share
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.share import perform_share
from skerch_ooc.pipeline.state import State


def matrix_of(kind, dtype, spectrum="slow", n=90, **more):
    shape = (n, n) if kind == "eigh" else (n + 30, n)
    return dense(shape, spectrum, dtype, hermitian=kind == "eigh", **more)


def decompose(kind, operator, run_dir, **more):
    settings = {"rank": 4, "round_width": 6, "test_measurements": 12}
    return getattr(ooc, kind)(operator, run_dir=run_dir, **settings | more)


ROWS = 140_000
"""So many that merge, blocks and vectors have two tasks."""

SMALL = 9_000
"""Rows of three tiles."""


def spec_of(folder, kind="eigh", n=ROWS, **more):
    args = {"n": n, "dtype": more.get("dtype", "float32"), **more.pop("args", {})}
    sketch = {"test_measurements": 6, "block": 2} | more.pop("sketch", {})
    recovery = {"rank": 2} | more.pop("recovery", {})
    # Of many rows few rounds.
    ending = {"pairs_tolerance": 0.01} if n < ROWS else {"rounds": 3 if kind == "eigh" else 4}
    settings = {"round_width": 4} | ending | more
    return write_spec(
        folder, "diagonal", 400, kind=kind, operator={"args": args}, sketch=sketch,
        recovery=recovery, **settings,
    )  # fmt: skip


def in_shares(run, of, again=False):
    """Does all stages in shares, as elements of job arrays do, until nothing is left."""
    while left := State(run).left:
        stage = left[0].stage
        for index in reversed(range(of)):
            work = Work.of(Share(index, of), threads=1)
            perform_share(run, stage, work)
            if again:
                perform_share(run, stage, work)
