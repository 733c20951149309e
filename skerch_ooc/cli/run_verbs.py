"""Verbs that plan a run and do its stages: init, plan, probe, run, extend, measure, merge ..."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skerch_ooc.base.errors import UsageError, quoted
from skerch_ooc.base.progress import STOPPED_IN_GOOD_ORDER
from skerch_ooc.cli.group import complete, operators_print_to_stderr, show, verb
from skerch_ooc.cli.options import (
    COMPARE,
    DIR,
    JSON,
    MAX_SECONDS,
    NAME,
    PATH,
    PLACE,
    PLAN_ONLY,
    PLANNED_SPEC,
    RUN,
    SET,
    SHOWN,
    SPEC,
    WORKING,
    ResultOptions,
    WorkOptions,
    factor,
    number,
)

if TYPE_CHECKING:
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline.start import Planned


@verb("init --hessian")
@click.argument("folder", metavar="[DIR]", type=PATH, default=".")
@click.option("--hessian", is_flag=True, help="Of a network, with a small example to replace.")
@click.option("--matrix", metavar="FILE", help="Of a matrix in a file.")
@click.option("--operator", is_flag=True, help="Of anything with @, with an example to replace.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="An argument of the factory."
)
def init(
    folder: Path, matrix: str | None, arguments: Sequence[str], *, hessian: bool, operator: bool
) -> None:
    """Write a commented spec to begin with, and a factory.

    Both run as they are. Nothing that is there is overwritten.
    """
    from skerch_ooc.pipeline import begin
    from skerch_ooc.planning.spec import parse_arguments

    asked = {begin.HESSIAN: hessian, begin.MATRIX: matrix is not None, begin.OPERATOR: operator}
    chosen = [what for what, wanted in asked.items() if wanted]
    if len(chosen) != 1:
        given = " and ".join(f"--{what}" for what in chosen) or "nothing"
        raise UsageError(f"init {given}: give one of --hessian, --matrix FILE, --operator")
    with operators_print_to_stderr():
        begun = begin.begin(chosen[0], folder, matrix, parse_arguments(arguments))
    files = ", ".join(str(path) for path in (begun.spec, begun.factory) if path is not None)
    click.echo(f"{files}; next: {begun.command}")


@verb("plan hessian.toml --run runs/hessian --set seed=2", SPEC, RUN, WORKING, SET, JSON)
def plan(
    spec: Path, run_dir: Path, working: WorkOptions, overrides: Sequence[str], *, as_json: bool
) -> None:
    """Freeze a run, after a probe; says what it will cost.

    The cost is products, disk, memory and time. The run goes on with this plan only.
    """
    from skerch_ooc.cli import tables
    from skerch_ooc.pipeline import start
    from skerch_ooc.planning.spec import Spec

    with operators_print_to_stderr():
        planned = start.make_plan(Spec.from_toml(spec, overrides), run_dir, working.work())
    show(planned, tables.plan_table, as_json=as_json)


@verb("probe hessian.toml --memory 2GiB", SPEC, WORKING, SET, JSON)
def probe(spec: Path, working: WorkOptions, overrides: Sequence[str], *, as_json: bool) -> None:
    """Examine an operator; says what a run would cost, writes nothing.

    Is it Hermitian, finite, the same at each call? What do products take, by the width of blocks?
    """
    from skerch_ooc.cli import tables
    from skerch_ooc.pipeline import start
    from skerch_ooc.planning.spec import Spec

    with operators_print_to_stderr():
        probed = start.probe_operator(Spec.from_toml(spec, overrides), working.work())
    show(probed, tables.probe_table, as_json=as_json)


@verb(
    "run hessian.toml --run runs/hessian --memory 2GiB",
    PLANNED_SPEC, RUN, PLACE, SET, COMPARE, MAX_SECONDS, SHOWN,
)  # fmt: skip
def run(
    spec: Path | None, run_dir: Path, working: WorkOptions, overrides: Sequence[str],
    shown: ResultOptions, *, compare: bool,
) -> None:  # fmt: skip
    """Do all stages; the same command resumes, also without SPEC."""
    from skerch_ooc.cli import tables
    from skerch_ooc.pipeline import start, steps
    from skerch_ooc.planning.spec import Spec

    if spec is None and overrides:
        repeated = [word for override in overrides for word in ("--set", override)]
        raise UsageError(
            f"--set {overrides[0]} changes a spec, and none is given; give it too: "
            f"skerch-ooc run SPEC --run {quoted(run_dir)} {shlex.join(repeated)}"
        )
    if spec is None:
        known = steps.open_run(run_dir)
        planned, work = start.planned_before(known), working.stoppable_work(known.plan.device)
        _compare(planned, work, always=compare)
        complete(planned, work, shown)
        return
    request = Spec.from_toml(spec, overrides)
    work = working.stoppable_work(request.operator.device)
    with operators_print_to_stderr():
        planned = start.make_plan(request, run_dir, work)
    if planned.fresh:
        work.progress.say(tables.plan_line(planned))
        for remark in planned.remarks:
            work.progress.say(f"operator: {remark}")
    else:
        _compare(planned, work, always=compare)
    complete(planned, work, shown)


def _compare(planned: Planned, work: Work, *, always: bool) -> None:
    """Compares the operator of a run that goes on, or says that nothing is compared."""
    from skerch_ooc.pipeline.run import what_rows_leave_open, why_not_compared
    from skerch_ooc.stages.measure.operands import compared_operands

    with operators_print_to_stderr():
        if always:
            compared_operands(planned.run, work)
            if not what_rows_leave_open(planned.run):
                work.progress.say("the operator is the one that the run started with")
        elif reason := why_not_compared(planned, work):
            has_factory = planned.run.plan.identity.factory is not None
            how = "command with --compare" if has_factory else "call in Python"
            work.progress.say(
                f"the operator was not compared with that of the run: {reason}; other weights or "
                f"data would not be seen; to compare it, give the same {how}"
            )
            return
        if words := what_rows_leave_open(planned.run):
            work.progress.say(words)


@verb("extend runs/hessian --measurements 800", DIR, PLACE, MAX_SECONDS, SHOWN)
@click.option("--measurements", type=int, metavar="M", help="Columns of the sketch, all together.")
@click.option("--rounds", type=int, metavar="P", help="Rounds of krylov, all together.")
@click.option(
    "--pairs-tolerance", type=float, metavar="E", help="Rounds until pairs are known to E."
)
@PLAN_ONLY
@click.option("--repeat-rounds", is_flag=True, help="Allow hmt to repeat its later rounds.")
def extend(
    directory: Path, working: WorkOptions, shown: ResultOptions, *, plan_only: bool,
    **wanted: Any,
) -> None:  # fmt: skip
    """Grow a run to M measurements, or P rounds; measures only the new.

    It then equals a run that was planned so. Rounds can follow nystrom.
    """
    from skerch_ooc.pipeline import grow, steps
    from skerch_ooc.pipeline.run import what_rows_leave_open
    from skerch_ooc.results.words import measurements_text

    opened = steps.open_run(directory)
    work = working.stoppable_work(opened.plan.device)
    if plan_only:
        grown = grow.extend(opened, **wanted)
        sizes = measurements_text(grown.plan)
        click.echo(f"planned {sizes}; next: {grow.how_to_go_on(grown)}")
    else:
        if words := what_rows_leave_open(opened):
            work.progress.say(words)
        with operators_print_to_stderr():
            planned = grow.extend_run(opened, grow.Extension(**wanted), work)
        complete(planned, work, shown)


@verb("update runs/hessian --factory my.py:make --arg batch=8", DIR, PLACE, MAX_SECONDS, SHOWN)
@click.option(
    "--factory", required=True, metavar="NAME",
    help="What makes B; a file is relative to here.",
)  # fmt: skip
@click.option(
    "--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="A keyword argument of it."
)
@click.option(
    "--scale", callback=factor, default="1", show_default=True, metavar="a",
    help="The factor of B; may be 3/11.",
)  # fmt: skip
@click.option(
    "--forget", callback=factor, default="1", show_default=True, metavar="b",
    help="The factor of A.",
)  # fmt: skip
@click.option(
    "--parts", type=click.IntRange(min=1), metavar="N",
    help="The most parts that B is measured in.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Add what the last update added once more.")
@PLAN_ONLY
def update(
    directory: Path, working: WorkOptions, shown: ResultOptions, *, plan_only: bool, **added: Any
) -> None:
    """Add a summand to a finished run, A <- b A + a B; measures only B.

    NAME is file.py:function, package.module:function, or a registered name.
    """
    from skerch_ooc.pipeline import grow, steps

    opened = steps.open_run(directory)
    work = working.stoppable_work(opened.plan.device)
    with operators_print_to_stderr():
        planned = grow.update_run(opened, grow.Update.by_factory(**added), work)
    if plan_only:
        click.echo(f"planned; next: {grow.how_to_go_on(planned.run)}")
    else:
        complete(planned, work, shown)


@verb("measure runs/hessian --executor dask --workers 8", DIR, PLACE, MAX_SECONDS)
def measure(directory: Path, working: WorkOptions) -> None:
    """Measure what is missing; nothing published is measured again."""
    from skerch_ooc.pipeline import steps
    from skerch_ooc.stages.measure.task import measure as measure_missing

    opened = steps.open_run(directory)
    work = working.stoppable_work(opened.plan.device)
    with operators_print_to_stderr():
        complete = measure_missing(opened, work)
    if complete:
        click.echo(f"all columns that are known by now are measured; next: "
                   f"skerch-ooc merge {quoted(directory)}")  # fmt: skip
    else:
        work.progress.say(STOPPED_IN_GOOD_ORDER)


@verb("merge runs/hessian --memory 2GiB", DIR, PLACE)
@click.option(
    "--rechunk/--no-rechunk", default=None,
    help="Write row shards too; default: if there are many.",
)  # fmt: skip
def merge(directory: Path, working: WorkOptions, *, rechunk: bool | None) -> None:
    """Form the Gram matrices of the sketch, in one stream over it."""
    from skerch_ooc.pipeline import steps

    opened, work = steps.open_run(directory), working.work()
    with work.session():
        following = steps.merge_stage(opened, work, rechunk)
    click.echo(f"merged; next: skerch-ooc {following} {quoted(directory)}")


@verb("recover runs/hessian --method singlepass --name again", DIR, NAME, PLACE)
@click.option("--method", metavar="NAME", help="Instead of the plan's method.")
@click.option(
    "--core", callback=number, metavar="C", help="How much of the core to invert, or auto."
)
@click.option("--rank", callback=number, metavar="R", help="Values and vectors to return, or all.")
@click.option("--which", metavar="ORDER", help="Of krylov: LM, LA or SA.")
@click.option("--vectors", metavar="HOW", help="stored, or implicit: made when they are read.")
def recover(directory: Path, name: str | None, working: WorkOptions, **settings: Any) -> None:
    """Recover the decomposition from the merged sketch, at no product.

    With other settings it makes another result, beside those that are there.
    """
    from skerch_ooc.pipeline import steps
    from skerch_ooc.store.result_files import command_on

    opened = steps.open_run(directory)
    changed = steps.recovery_settings(opened, **settings)
    path = steps.recover_result(opened, changed, name, working.work())
    click.echo(f"{path}; next: {command_on('assess', directory, path.parent.name)}")
