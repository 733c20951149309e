"""The command line: verbs over the Python interface, designed exit codes, no tracebacks."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from skerch_ooc.base.errors import UsageError, quoted
from skerch_ooc.base.progress import for_terminal
from skerch_ooc.cli.group import (
    conclude,
    how_to_measure,
    operators_print_to_stderr,
    print_json,
    say_stopped,
    verb,
)
from skerch_ooc.cli.options import (
    DEVICE,
    DIR,
    JSON,
    MAX_ERROR,
    MAX_SECONDS,
    MEMORY,
    NAME,
    PLANNED_SPEC,
    RUN,
    SET,
    SPEC,
    THREADS,
    Where,
    factor,
    number,
    with_options,
    with_place,
)
from skerch_ooc.cli.signals import budget_of


@verb("plan hessian.toml --run runs/hessian --set seed=2")
@with_options(SPEC, RUN, MEMORY, THREADS, DEVICE, SET, JSON)
def plan(
    spec: Path, run_dir: Path, memory: str | None, threads: int | None, device: str | None,
    overrides: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Freeze a run, after a probe; says what it will cost.

    The cost is products, disk, memory and time. The run goes on with this plan only.
    """
    from skerch_ooc.cli import tables
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline import start
    from skerch_ooc.planning.spec import Spec

    with operators_print_to_stderr():
        work = Work.of(memory=memory, threads=threads, device=device)
        planned = start.make_plan(Spec.from_toml(spec, overrides), run_dir, work)
    if as_json:
        findings = planned.findings.as_json() if planned.findings else None
        print_json({"run": planned.run.plan.run_id, "costs": planned.costs.as_json(),
                     "probe": findings})  # fmt: skip
    else:
        click.echo(tables.plan_table(planned))


@verb("probe hessian.toml --memory 2GiB")
@with_options(SPEC, MEMORY, THREADS, DEVICE, SET, JSON)
def probe(
    spec: Path, memory: str | None, threads: int | None, device: str | None,
    overrides: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Examine an operator; says what a run would cost, writes nothing.

    Is it Hermitian, finite, the same at each call? What do products take, by the width of blocks?
    """
    from skerch_ooc.cli import tables
    from skerch_ooc.pipeline import start
    from skerch_ooc.planning.spec import Spec

    with operators_print_to_stderr():
        probed = start.probe_spec(
            Spec.from_toml(spec, overrides), memory=memory, threads=threads, device=device
        )
    if as_json:
        print_json(probed.as_json())
    else:
        click.echo(tables.probe_table(probed))


@verb("run hessian.toml --run runs/hessian --memory 2GiB")
@with_options(
    PLANNED_SPEC, RUN, with_place, MEMORY, THREADS, DEVICE, SET,
    MAX_SECONDS, MAX_ERROR, JSON,
)  # fmt: skip
def run(
    spec: Path | None, run_dir: Path, where: Where,
    memory: str | None, threads: int | None, device: str | None, overrides: Sequence[str],
    max_seconds: float | None, max_relative_error: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Do all stages; the same command resumes, also without SPEC."""
    from skerch_ooc.cli import tables
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline import start, steps
    from skerch_ooc.pipeline.run import run_all
    from skerch_ooc.planning.spec import Spec

    progress = for_terminal()
    request = None if spec is None else Spec.from_toml(spec, overrides)
    if request is None:
        if overrides:
            repeated = [word for override in overrides for word in ("--set", override)]
            raise UsageError(
                f"--set {overrides[0]} changes a spec, and none is given; give it too: "
                f"skerch-ooc run SPEC --run {quoted(run_dir)} {shlex.join(repeated)}"
            )
        known = steps.open_run(run_dir)
    chosen = where.executor(device or (request.operator.device if request else known.plan.device))
    work = Work.of(chosen, memory, threads, device, progress, budget_of(max_seconds))
    with operators_print_to_stderr():
        planned = (
            start.make_plan(request, run_dir, work) if request else start.planned_before(known)
        )
        if planned.fresh:
            progress.say(tables.plan_line(planned))
        assessment = run_all(planned, work)
    conclude(planned.run, assessment, progress, max_relative_error, as_json)


@verb("extend runs/hessian --measurements 800")
@with_options(
    DIR, with_place, MEMORY, THREADS, DEVICE, MAX_SECONDS, MAX_ERROR,
    JSON,
)  # fmt: skip
@click.option(
    "--measurements",
    type=int,
    required=True,
    metavar="M",
    help="Columns of the sketch, all together.",
)
@click.option("--plan-only", is_flag=True, help="Measure later, by measure or submit.")
@click.option("--repeat-rounds", is_flag=True, help="Allow hmt to repeat its later rounds.")
def extend(
    directory: Path, where: Where,
    memory: str | None, threads: int | None, device: str | None,
    max_seconds: float | None, max_relative_error: float | None,
    as_json: bool, measurements: int, plan_only: bool, repeat_rounds: bool,
) -> None:  # fmt: skip
    """Grow a run to M measurements; measures only the new columns.

    The result equals that of a run that was planned with M from the start.
    """
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline import grow, start, steps
    from skerch_ooc.pipeline.run import run_all

    progress = for_terminal()
    opened = steps.open_run(directory)
    chosen = where.executor(device or opened.plan.device)
    grown = grow.extend(opened, measurements, repeat_rounds=repeat_rounds)
    if plan_only:
        click.echo(f"planned {measurements} measurements; next: {how_to_measure(grown)}")
        return
    planned = start.planned_before(grown)
    work = Work.of(chosen, memory, threads, device, progress, budget_of(max_seconds))
    with operators_print_to_stderr():
        assessment = run_all(planned, work)
    conclude(planned.run, assessment, progress, max_relative_error, as_json)


@verb("update runs/hessian --factory my.py:make --arg batch=8")
@with_options(
    DIR, with_place, MEMORY, THREADS, DEVICE, MAX_SECONDS, MAX_ERROR, JSON,
)  # fmt: skip
@click.option(
    "--factory", required=True, metavar="NAME",
    help="What makes B; see above.",
)  # fmt: skip
@click.option(
    "--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="A keyword argument of it."
)
@click.option(
    "--scale", callback=factor, default="1", show_default=True, metavar="a",
    help="The factor of B; may be 3/11.",
)  # fmt: skip
@click.option(
    "--forget",
    callback=factor,
    default="1",
    show_default=True,
    metavar="b",
    help="The factor of A.",
)
@click.option(
    "--parts",
    type=click.IntRange(min=1),
    metavar="N",
    help="The most parts that B is measured in.",
)
@click.option("--again", is_flag=True, help="Add what the last update added once more.")
@click.option("--plan-only", is_flag=True, help="Measure later, by measure or submit.")
def update(
    directory: Path, where: Where,
    memory: str | None, threads: int | None, device: str | None,
    max_seconds: float | None, max_relative_error: float | None, as_json: bool,
    factory: str, arguments: Sequence[str], scale: float, forget: float, parts: int | None,
    again: bool, plan_only: bool,
) -> None:  # fmt: skip
    """Add a summand to a finished run, A <- b A + a B; measures only B.

    NAME is file.py:function, relative to this folder, package.module:function, or a name that a
    package has registered.
    """
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline import start, steps
    from skerch_ooc.pipeline.grow import Update, update_run
    from skerch_ooc.pipeline.run import run_all
    from skerch_ooc.planning.spec import OperatorSpec, parse_arguments

    progress = for_terminal()
    opened = steps.open_run(directory)
    chosen = where.executor(device or opened.plan.device)
    work = Work.of(chosen, memory, threads, device, progress, budget_of(max_seconds))
    wanted = OperatorSpec(factory, parse_arguments(arguments), parts=parts or "auto")
    asked = Update(wanted, scale, forget, None, Path.cwd(), again, assessed=True)
    with operators_print_to_stderr():
        grown, operands = update_run(opened, asked, work.resources)
        if plan_only:
            click.echo(f"planned; next: {how_to_measure(grown)}")
            return
        planned = start.planned_before(grown)
        planned.operands = None if chosen.remote else operands
        assessment = run_all(planned, work)
    conclude(planned.run, assessment, progress, max_relative_error, as_json)


@verb("measure runs/hessian --executor dask --workers 8")
@with_options(DIR, with_place, MEMORY, THREADS, DEVICE, MAX_SECONDS)
def measure(
    directory: Path, where: Where,
    memory: str | None, threads: int | None, device: str | None, max_seconds: float | None,
) -> None:  # fmt: skip
    """Measure what is missing; nothing published is measured again."""
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline import steps
    from skerch_ooc.stages.measure.task import measure as measure_missing

    progress = for_terminal()
    opened = steps.open_run(directory)
    chosen = where.executor(device or opened.plan.device)
    work = Work.of(chosen, memory, threads, device, progress, budget_of(max_seconds))
    with operators_print_to_stderr():
        complete = measure_missing(opened, work)
    if complete:
        click.echo(f"all columns that are known by now are measured; next: "
                   f"skerch-ooc merge {quoted(directory)}")  # fmt: skip
    else:
        say_stopped(progress)


@verb("merge runs/hessian --memory 2GiB")
@with_options(DIR, with_place, MEMORY, THREADS, DEVICE)
@click.option(
    "--rechunk/--no-rechunk", default=None,
    help="Write row shards too; default: if there are many.",
)  # fmt: skip
def merge(
    directory: Path, where: Where, memory: str | None,
    threads: int | None, device: str | None, rechunk: bool | None,
) -> None:  # fmt: skip
    """Form the Gram matrices of the sketch, in one stream over it."""
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline import steps

    opened = steps.open_run(directory)
    chosen = where.executor(device)
    work = Work.of(chosen, memory, threads, device, for_terminal())
    with work.session():
        another_round = steps.merge_stage(opened, work, rechunk)
    following = "measure" if another_round else "recover"
    click.echo(f"merged; next: skerch-ooc {following} {quoted(directory)}")


@verb("recover runs/hessian --method singlepass --name again")
@with_options(DIR, NAME, with_place, MEMORY, THREADS, DEVICE)
@click.option("--method", metavar="NAME", help="Instead of the plan's method.")
@click.option("--core", metavar="C", help="How much of the core to invert, or auto.")
@click.option("--rank", metavar="R", help="Values and vectors to return, or all.")
@click.option("--vectors", metavar="HOW", help="stored, or implicit: made when they are read.")
def recover(
    directory: Path, name: str | None, where: Where,
    memory: str | None, threads: int | None, device: str | None, method: str | None,
    core: str | None, rank: str | None, vectors: str | None,
) -> None:  # fmt: skip
    """Recover the decomposition from the merged sketch, at no product.

    With other settings it makes another result, beside those that are there.
    """
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline import steps
    from skerch_ooc.stages.recover import task as stage
    from skerch_ooc.store import result_files

    opened = steps.open_run(directory)
    settings = steps.recovery_settings(opened, method, number(core), number(rank), vectors)
    name = result_files.result_name(settings, opened.plan) if name is None else name
    chosen = where.executor(device)
    work = Work.of(chosen, memory, threads, device, for_terminal())
    with work.session():
        path = stage.recover(opened, settings, name, work)
    click.echo(f"{path}; next: {result_files.command_on('assess', directory, name)}")
