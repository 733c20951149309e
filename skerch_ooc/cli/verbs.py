"""The command line: verbs over the Python interface, designed exit codes, no tracebacks."""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import json
import logging
import math
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, cast

import click

import skerch_ooc
from skerch_ooc.errors import CorruptError, IncompleteError, OocError, UsageError, quoted
from skerch_ooc.files import NO_ROOM, cannot_write
from skerch_ooc.progress import STOPPED_IN_GOOD_ORDER, Progress, for_terminal
from skerch_ooc.slurm.logs import ending

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130
OTHER_FAILURE = 1
_QUEUE_SECONDS = 5.0
"""How long status waits for the queue, which is but decoration."""

_ANY_NAME = "skerch_ooc-any-name"
_LONGEST_INTERVAL = 86400.0

_NO_WRITING = {errno.EROFS, errno.EACCES, errno.EPERM} | NO_ROOM


class _NamedPath(click.Path):
    """A path that names something: what is empty would be the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """See :class:`click.ParamType`."""
        if not str(value) or "\0" in str(value):
            self.fail(f"{str(value)!r} is no path", param, ctx)
        return super().convert(value, param, ctx)


class _ShownByFirstName(click.Option):
    """An option of several names, of which help shows the first: it has to fit a line."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """See :class:`click.Option`."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        return record[0].replace(f", {self.opts[1]}", ""), record[1]


class _Verbs(click.Group):
    """Verbs, which help lists by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See :class:`click.Group`."""
        del ctx
        for title, names in _SECTIONS.items():
            rows = [(f"{name:9}", self.commands[name].get_short_help_str(80)) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)


_SECTIONS = {
    "Start": ("probe", "plan", "run"),
    "Stages, one by one": ("measure", "merge", "recover", "assess"),
    "Look": ("status", "estimates", "report", "verify"),
    "Grow": ("extend", "update"),
    "On a cluster": ("submit", "task"),
    "Tidy": ("clean",),
}

_PATH = _NamedPath(path_type=Path)

_DIR = click.argument("directory", metavar="DIR", type=_PATH)
_SPEC = click.argument("spec", metavar="SPEC", type=_PATH)
_PLANNED_SPEC = click.argument("spec", metavar="[SPEC]", type=_PATH, required=False)
_RUN = click.option(
    "--run", "run_dir", required=True, metavar="DIR", type=_PATH,
    help="Folder of the run, new or to go on with.",
)  # fmt: skip


def _positive(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise UsageError(f"{option.opts[0]} {value}: must be positive")
    return value


_JSON = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
_MEMORY = click.option(
    "--memory", metavar="SIZE", help="Peak resident memory of a process, such as 2GiB."
)
_THREADS = click.option("--threads", type=int, metavar="N", help="Threads of a process.")
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the spec, such as seed=2.",
)
_DEVICE = click.option(
    "--device", metavar="NAME", help="Torch device of operator and tiles, such as cuda."
)
_WHERE = (
    click.option(
        "--executor", type=click.Choice(["serial", "dask"]), default="serial",
        metavar="serial|dask", help="In this process (the default), or on Dask workers.",
    ),
    click.option(
        "--workers", type=int, metavar="N", help="Dask workers to start; default: cores, or GPUs.",
    ),
    click.option(
        "--scheduler", "--scheduler-file", "scheduler", cls=_ShownByFirstName,
        metavar="ADDR|FILE", help="A running Dask scheduler: address, or its file.",
    ),
    click.option(
        "--tries", type=int, metavar="N", help="How often Dask tries a task that fails; default 1."
    ),
)  # fmt: skip


def _factor(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A number, or a fraction of two."""
    above, slash, below = value.partition("/")
    try:
        # Of a number with an exponent Fraction would write out all digits.
        found = float(Fraction(int(above), int(below))) if slash else float(value)
        if math.isfinite(found):
            return found
        raise ValueError(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is no number, and no fraction such as 3/11", ctx, param
        ) from None


_MAX_SECONDS = click.option(
    "--max-seconds", type=float, metavar="S", callback=_positive,
    help="Stop in good order after S seconds; can be resumed.",
)  # fmt: skip
_MAX_ERROR = click.option(
    "--max-relative-error", type=float, metavar="E", callback=_positive,
    help="Exit with 3 if the relative error is above E.",
)  # fmt: skip
_NAME = click.option("--name", metavar="NAME", help="Folder of the result, in results/.")
_RESULT = click.option(
    "--name", metavar="NAME", help="Folder of the result, in results/.", default="default"
)


@dataclass(frozen=True)
class _Where:
    """Where a command is to do its work.

    Attributes:
        name: Of the executor.
        workers: Worker processes to start.
        scheduler: Of workers that are running.
        tries: How often a task that fails is tried.
    """

    name: str
    workers: int | None
    scheduler: str | None
    tries: int | None

    def executor(self, device: str | None) -> Any:
        """The executor for work on a device.

        Raises:
            UsageError: If the options contradict each other.
        """
        from skerch_ooc.executors.dask import Dask, visible_gpus
        from skerch_ooc.executors.serial import Serial
        from skerch_ooc.resources import available_cores

        if self.name == "dask":
            _quiet_distributed()
            tries, workers = 1 if self.tries is None else self.tries, self.workers
            if self.scheduler is not None:
                return Dask(self.scheduler, workers=workers, tries=tries)
            gpus = len(visible_gpus()) if (device or "").startswith("cuda") else 0
            return Dask(workers=(gpus or available_cores()) if workers is None else workers,
                        tries=tries)  # fmt: skip
        if self.scheduler is not None:
            raise UsageError(f"--scheduler {self.scheduler} needs --executor dask")
        if self.tries is not None:
            raise UsageError(f"--tries {self.tries} needs --executor dask")
        if self.workers not in (None, 1):
            raise UsageError(
                f"--workers {self.workers} needs --executor dask; serial is one process"
            )
        return Serial()


def _quiet_distributed() -> None:
    """Leaves it to us to say what happened to a cluster, unless Dask's configuration says more."""
    import dask
    import distributed  # noqa: F401 (makes its loggers)

    if dask.config.get("logging", None) is None:
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] in ("distributed", "tornado"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _where(command: Command) -> Command:
    """Gives a command the options that say where it works, as the one argument ``where``."""

    @functools.wraps(command)
    def with_where(
        *args: Any, executor: str, workers: int | None, scheduler: str | None, tries: int | None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        return command(*args, where=_Where(executor, workers, scheduler, tries), **kwargs)

    decorated: Any = with_where
    for option in reversed(_WHERE):
        decorated = option(decorated)
    return cast("Command", decorated)


class _Terminated(KeyboardInterrupt):
    """A signal that asks to end; its number is the argument."""


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(skerch_ooc.__version__, prog_name="skerch-ooc")
def cli() -> None:
    """Eigen- and singular value decompositions of operators too large for memory.

    Example:  skerch-ooc run hessian.toml --run runs/hessian
    """


def _verb(example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a function a verb, whose help ends with an example."""
    return cli.command(epilog=f"\b\nExample:  skerch-ooc {example}")


@_verb("plan hessian.toml --run runs/hessian --set seed=2")
@_options(_SPEC, _RUN, _MEMORY, _THREADS, _DEVICE, _SET, _JSON)
def plan(
    spec: Path, run_dir: Path, memory: str | None, threads: int | None, device: str | None,
    overrides: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Freeze a run, after a probe; says what it will cost.

    The cost is products, disk, memory and time. The run goes on with this plan only.
    """
    from skerch_ooc import pipeline, tables
    from skerch_ooc.resources import Resources
    from skerch_ooc.spec import Spec

    with _operators_print_to_stderr():
        planned = pipeline.make_plan(
            Spec.from_toml(spec, overrides), run_dir, Resources.of(memory, threads), device=device
        )
    if as_json:
        findings = planned.findings.as_json() if planned.findings else None
        _print_json({"run": planned.run.plan.run_id, "costs": planned.costs.as_json(),
                     "probe": findings})  # fmt: skip
    else:
        click.echo(tables.plan_table(planned))


@_verb("probe hessian.toml --memory 2GiB")
@_options(_SPEC, _MEMORY, _THREADS, _DEVICE, _SET, _JSON)
def probe(
    spec: Path, memory: str | None, threads: int | None, device: str | None,
    overrides: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Examine an operator; says what a run would cost, writes nothing.

    Is it Hermitian, finite, the same at each call? What do products take, by the width of blocks?
    """
    from skerch_ooc import pipeline, tables
    from skerch_ooc.spec import Spec

    with _operators_print_to_stderr():
        probed = pipeline.probe_spec(
            Spec.from_toml(spec, overrides), memory=memory, threads=threads, device=device
        )
    if as_json:
        _print_json(probed.as_json())
    else:
        click.echo(tables.probe_table(probed))


@_verb("run hessian.toml --run runs/hessian --memory 2GiB")
@_options(
    _PLANNED_SPEC, _RUN, _where, _MEMORY, _THREADS, _DEVICE, _SET,
    _MAX_SECONDS, _MAX_ERROR, _JSON,
)  # fmt: skip
def run(
    spec: Path | None, run_dir: Path, where: _Where,
    memory: str | None, threads: int | None, device: str | None, overrides: Sequence[str],
    max_seconds: float | None, max_relative_error: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Do all stages; the same command resumes, also without SPEC."""
    from skerch_ooc import pipeline, tables
    from skerch_ooc.executors import resources_of
    from skerch_ooc.spec import Spec

    progress = for_terminal()
    request = None if spec is None else Spec.from_toml(spec, overrides)
    if request is None:
        if overrides:
            repeated = [word for override in overrides for word in ("--set", override)]
            raise UsageError(
                f"--set {overrides[0]} changes a spec, and none is given; give it too: "
                f"skerch-ooc run SPEC --run {quoted(run_dir)} {shlex.join(repeated)}"
            )
        known = pipeline.open_run(run_dir)
    chosen = where.executor(device or (request.operator.device if request else known.plan.device))
    resources = resources_of(chosen, memory, threads, device)
    budget = _budget(max_seconds)
    with _operators_print_to_stderr():
        planned = (
            pipeline.make_plan(request, run_dir, resources, device=device)
            if request
            else pipeline.planned_before(known)
        )
        if planned.fresh:
            progress.say(tables.plan_line(planned))
        assessment = pipeline.run_all(
            planned, chosen, resources, progress, device=device, budget=budget
        )
    _conclude(planned.run, assessment, progress, max_relative_error, as_json)


@_verb("extend runs/hessian --measurements 800")
@_options(
    _DIR, _where, _MEMORY, _THREADS, _DEVICE, _MAX_SECONDS, _MAX_ERROR,
    _JSON,
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
    directory: Path, where: _Where,
    memory: str | None, threads: int | None, device: str | None,
    max_seconds: float | None, max_relative_error: float | None,
    as_json: bool, measurements: int, plan_only: bool, repeat_rounds: bool,
) -> None:  # fmt: skip
    """Grow a run to M measurements; measures only the new columns.

    The result equals that of a run that was planned with M from the start.
    """
    from skerch_ooc import pipeline
    from skerch_ooc.executors import resources_of

    progress = for_terminal()
    opened = pipeline.open_run(directory)
    chosen = where.executor(device or opened.plan.device)
    grown = pipeline.extend(opened, measurements, repeat_rounds=repeat_rounds)
    if plan_only:
        click.echo(f"planned {measurements} measurements; next: {_how_to_measure(grown)}")
        return
    planned = pipeline.planned_before(grown)
    resources = resources_of(chosen, memory, threads, device)
    with _operators_print_to_stderr():
        assessment = pipeline.run_all(
            planned, chosen, resources, progress, device=device, budget=_budget(max_seconds)
        )
    _conclude(planned.run, assessment, progress, max_relative_error, as_json)


@_verb("update runs/hessian --factory my.py:make --arg batch=8")
@_options(
    _DIR, _where, _MEMORY, _THREADS, _DEVICE, _MAX_SECONDS, _MAX_ERROR, _JSON,
)  # fmt: skip
@click.option(
    "--factory", required=True, metavar="NAME",
    help="What makes B; see above.",
)  # fmt: skip
@click.option(
    "--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="A keyword argument of it."
)
@click.option(
    "--scale", callback=_factor, default="1", show_default=True, metavar="a",
    help="The factor of B; may be 3/11.",
)  # fmt: skip
@click.option(
    "--forget",
    callback=_factor,
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
    directory: Path, where: _Where,
    memory: str | None, threads: int | None, device: str | None,
    max_seconds: float | None, max_relative_error: float | None, as_json: bool,
    factory: str, arguments: Sequence[str], scale: float, forget: float, parts: int | None,
    again: bool, plan_only: bool,
) -> None:  # fmt: skip
    """Add a summand to a finished run, A <- b A + a B; measures only B.

    NAME is file.py:function, relative to this folder, package.module:function, or a name that a
    package has registered.
    """
    from skerch_ooc import pipeline
    from skerch_ooc.executors import resources_of
    from skerch_ooc.spec import OperatorSpec, parse_arguments
    from skerch_ooc.updating import Update, update_run

    progress = for_terminal()
    opened = pipeline.open_run(directory)
    chosen = where.executor(device or opened.plan.device)
    resources = resources_of(chosen, memory, threads, device)
    budget = _budget(max_seconds)
    wanted = OperatorSpec(factory, parse_arguments(arguments), parts=parts or "auto")
    asked = Update(wanted, scale, forget, None, Path.cwd(), again, assessed=True)
    with _operators_print_to_stderr():
        grown, operands = update_run(opened, asked, resources)
        if plan_only:
            click.echo(f"planned; next: {_how_to_measure(grown)}")
            return
        planned = pipeline.planned_before(grown)
        planned.operands = None if chosen.remote else operands
        assessment = pipeline.run_all(
            planned, chosen, resources, progress, device=device, budget=budget
        )
    _conclude(planned.run, assessment, progress, max_relative_error, as_json)


def _how_to_measure(run: Any) -> str:
    """What to do with a plan that has grown."""
    command = run.how_to_measure()
    if not command.startswith("skerch-ooc"):
        return str(command)
    path = quoted(run.directory)
    return f"skerch-ooc run --run {path}, or skerch-ooc submit {path}"


@contextlib.contextmanager
def _operators_print_to_stderr() -> Iterator[None]:
    """Keeps standard output for results: what an operator prints would spoil the JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _conclude(
    run: Any, assessment: Any, progress: Any, max_relative_error: float | None, as_json: bool
) -> None:
    """Shows what all stages led to, and holds it against what was asked for."""
    from skerch_ooc import pipeline
    from skerch_ooc.tolerance import require_tolerance

    if assessment is None:
        _say_stopped(progress)
        return
    _show_result(run, "default", assessment, as_json)
    require_tolerance(run.plan, assessment)
    pipeline.require_quality(assessment, max_relative_error)


def _show_result(run: Any, name: str, assessment: Any, as_json: bool) -> None:
    from skerch_ooc import tables
    from skerch_ooc.advice import Found
    from skerch_ooc.stages.recover import result_path

    if as_json:
        _print_json(assessment.as_json())
    else:
        click.echo(tables.result_table(result_path(run, name), assessment))
        click.echo(tables.advice_text(Found.of(run, name, assessment)))


@_verb("measure runs/hessian --executor dask --workers 8")
@_options(_DIR, _where, _MEMORY, _THREADS, _DEVICE, _MAX_SECONDS)
def measure(
    directory: Path, where: _Where,
    memory: str | None, threads: int | None, device: str | None, max_seconds: float | None,
) -> None:  # fmt: skip
    """Measure what is missing; nothing published is measured again."""
    from skerch_ooc import pipeline
    from skerch_ooc.executors import resources_of
    from skerch_ooc.stages.measure import measure as measure_missing

    progress = for_terminal()
    opened = pipeline.open_run(directory)
    chosen = where.executor(device or opened.plan.device)
    resources = resources_of(chosen, memory, threads)
    with _operators_print_to_stderr():
        complete = measure_missing(
            opened, chosen, resources, progress, device=device, budget=_budget(max_seconds)
        )
    if complete:
        click.echo(f"all columns that are known by now are measured; next: "
                   f"skerch-ooc merge {quoted(directory)}")  # fmt: skip
    else:
        _say_stopped(progress)


@_verb("merge runs/hessian --memory 2GiB")
@_options(_DIR, _where, _MEMORY, _THREADS, _DEVICE)
@click.option(
    "--rechunk/--no-rechunk", default=None,
    help="Write row shards too; default: if there are many.",
)  # fmt: skip
def merge(
    directory: Path, where: _Where, memory: str | None,
    threads: int | None, device: str | None, rechunk: bool | None,
) -> None:  # fmt: skip
    """Form the Gram matrices of the sketch, in one stream over it."""
    from skerch_ooc import pipeline
    from skerch_ooc.executors import resources_of

    opened = pipeline.open_run(directory)
    chosen = where.executor(device)
    resources = resources_of(chosen, memory, threads, device)
    with chosen.session(resources.threads):
        another_round = pipeline.merge_stage(opened, resources, for_terminal(), rechunk, chosen)
    following = "measure" if another_round else "recover"
    click.echo(f"merged; next: skerch-ooc {following} {quoted(directory)}")


@_verb("recover runs/hessian --method singlepass --name again")
@_options(_DIR, _NAME, _where, _MEMORY, _THREADS, _DEVICE)
@click.option("--method", metavar="NAME", help="Instead of the plan's method.")
@click.option("--core", metavar="C", help="How much of the core to invert, or auto.")
@click.option("--rank", metavar="R", help="Values and vectors to return, or all.")
@click.option("--vectors", metavar="HOW", help="stored, or implicit: made when they are read.")
def recover(
    directory: Path, name: str | None, where: _Where,
    memory: str | None, threads: int | None, device: str | None, method: str | None,
    core: str | None, rank: str | None, vectors: str | None,
) -> None:  # fmt: skip
    """Recover the decomposition from the merged sketch, at no product.

    With other settings it makes another result, beside those that are there.
    """
    from skerch_ooc import pipeline
    from skerch_ooc.executors import resources_of
    from skerch_ooc.stages import recover as stage

    opened = pipeline.open_run(directory)
    settings = pipeline.recovery_settings(opened, method, _number(core), _number(rank), vectors)
    name = stage.result_name(settings, opened.plan) if name is None else name
    chosen = where.executor(device)
    resources = resources_of(chosen, memory, threads, device)
    with chosen.session(resources.threads):
        path = stage.recover(opened, settings, name, resources, for_terminal(), chosen)
    suffix = "" if name == "default" else f" --name {name}"
    click.echo(f"{path}; next: skerch-ooc assess {quoted(directory)}{suffix}")


@_verb("task runs/hessian measure --index 0 --of 16")
@_options(_DIR, _MEMORY, _THREADS, _DEVICE, _MAX_SECONDS)
@click.argument("stage", metavar="STAGE")
@click.option("--index", type=int, required=True, metavar="I", help="Which share, from 0.")
@click.option("--of", type=int, required=True, metavar="N", help="How many shares there are.")
@click.option(
    "--submission",
    metavar="NUMBER",
    help="The submission it is of, which it goes on with.",
)
def task(
    directory: Path, stage: str, index: int, of: int, memory: str | None, threads: int | None,
    device: str | None, max_seconds: float | None, submission: str | None,
) -> None:  # fmt: skip
    """Do a share of a stage, for job arrays: tasks t with t mod N = I.

    STAGE is measure, merge, solve, vectors or assess; of a later round measure.2 and so on. Nothing
    published is done again, and shares do not know of each other.
    """
    # Before anything else: while libraries are loaded, a signal would end the process.
    budget = _budget(max_seconds, patient=True)
    from skerch_ooc import pipeline, shares
    from skerch_ooc.executors import resources_of
    from skerch_ooc.executors.share import Share
    from skerch_ooc.workload import Stage

    opened = pipeline.open_run(directory)
    share = Share(index, of, budget)
    wanted = Stage.parse(stage, opened.plan.rounds)
    resources, progress = resources_of(share, memory, threads, device), for_terminal()
    with _told_of_submission(opened, wanted, submission, budget, progress):
        if wanted.name != "assess":
            with _operators_print_to_stderr():
                shares.perform_share(opened, wanted, share, resources, progress, device=device)
            if budget.stopped:
                _say_stopped(progress)
        elif share.first:
            assessment = pipeline.finish(opened, resources, progress)
            _show_result(opened, "default", assessment, as_json=False)


@contextlib.contextmanager
def _told_of_submission(
    run: Any, stage: Any, number: str | None, budget: Any, progress: Progress
) -> Iterator[None]:
    """Where jobs submit what is missing, that is what they say, and not what people should do."""
    if number is None:
        yield
        return
    from skerch_ooc import submission

    try:
        submission.require_earlier_stages(run, stage)
    except IncompleteError as error:
        progress.say(str(error))
        if not submission.follow(run.directory, number, budget, progress.say):
            progress.say("the first element of this array, or the check at the end, sees to that")
        raise click.exceptions.Exit(error.exit_code) from error
    try:
        yield
    except IncompleteError as error:
        progress.say(f"{error} (the check at the end submits what is missing)")
        raise click.exceptions.Exit(error.exit_code) from error


@_verb("submit runs/hessian --time 2:00:00 --mem 16G -- --qos=x")
@_options(_DIR)
@click.argument("further", nargs=-1, type=click.UNPROCESSED, metavar="[-- SBATCH-OPTION...]")
@click.option("--time", metavar="T", help="Walltime of an element: 90, or 1:30:00.")
@click.option("--partition", metavar="P", help="Partition of all jobs.")
@click.option("--account", metavar="A", help="Account of all jobs.")
@click.option("--gpus", metavar="G", help="GPUs of an element.")
@click.option("--cpus-per-task", type=int, metavar="C", help="Cores, and threads, of an element.")
@click.option("--mem", metavar="SIZE", help="Memory of an element, such as 16G.")
@click.option("--job-name", metavar="NAME", help="Default: of the run and the stage.")
@click.option(
    "--for",
    "of_stage",
    multiple=True,
    metavar="STAGE=OPTIONS",
    help='Of sbatch, for a stage only: "measure=--gpus=1".',
)
@click.option(
    "--setup",
    type=_PATH,
    metavar="FILE",
    help="Shell lines for the nodes, such as module load.",
)
@click.option("--elements", type=int, metavar="N", help="The most elements of an array.")
@click.option(
    "--max-array-size", type=int, metavar="N", help="Limit of the cluster; default: asked of it."
)
@click.option("--throttle", type=int, metavar="N", help="The most elements of an array at once.")
@click.option(
    "--tries", type=int, metavar="N",
    help="Submissions in a row without progress; default 3.",
)  # fmt: skip
@_options(_MEMORY, _DEVICE)
@click.option(
    "--executor", type=click.Choice(["arrays", "dask"]), metavar="arrays|dask",
    help="Job arrays (the default), or a job of Dask workers.",
)  # fmt: skip
@click.option("--workers", type=int, metavar="N", help="Workers of --executor dask.")
@click.option("--again", is_flag=True, help="Even if jobs of it are in the queue.")
@click.option("--dry-run", is_flag=True, help="Print scripts and commands; submits nothing.")
@click.option("--follow", metavar="NUMBER", hidden=True)
def submit(
    directory: Path, of_stage: Sequence[str], setup: Path | None, again: bool, dry_run: bool,
    follow: str | None, further: Sequence[str], **given: Any,
) -> None:  # fmt: skip
    """Submit what is left of a planned run to Slurm, as job arrays.

    They wait for each other; `status DIR` shows how far they are. `submit DIR` again submits what
    is missing, by default with the options of the last time. What follows -- goes to sbatch, as do
    all options from --time to --job-name.
    """
    from skerch_ooc import rundir, submission, tables
    from skerch_ooc.slurm.options import JobOptions, options_of_stages

    if follow is not None:
        # The last job of a submission.
        budget = _budget(None, patient=True)
        submission.follow(directory, follow, budget, for_terminal().say)
        return
    options = JobOptions(
        further=tuple(further), of_stage=options_of_stages(of_stage),
        setup="" if setup is None else _text_of(setup),
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    opened = rundir.open_run(directory)
    as_before = None if options == JobOptions() else options
    done = submission.submit(opened, as_before, again=again, dry_run=dry_run)
    if done is None:
        click.echo("nothing to submit: all stages are done; see skerch-ooc status "
                   f"{shlex.quote(str(directory))}")  # fmt: skip
    elif dry_run:
        click.echo(tables.dry_run_text(done))
    else:
        click.echo(tables.submitted_table(done, directory))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; give --setup a file of shell lines"
        ) from error


@_verb("assess runs/hessian --max-relative-error 0.01")
@_options(_DIR, _RESULT, _MAX_ERROR, _JSON)
def assess(directory: Path, name: str, max_relative_error: float | None, as_json: bool) -> None:
    """Estimate the error of a result, with its probability bounds."""
    from skerch_ooc import pipeline

    opened = pipeline.open_run(directory)
    assessment = pipeline.assess(opened, name)
    _show_result(opened, name, assessment, as_json)
    pipeline.require_quality(assessment, max_relative_error)


@_verb("estimates runs/hessian --json")
@_options(_DIR, _RESULT, _MEMORY, _THREADS, _JSON)
def estimates(
    directory: Path, name: str, memory: str | None, threads: int | None, as_json: bool
) -> None:
    """Estimate the operator's trace and norms, at no product."""
    from skerch_ooc import pipeline, tables

    found = pipeline.estimates(
        pipeline.open_run(directory), name, memory=memory,
        threads=threads, progress=for_terminal(),
    )  # fmt: skip
    if as_json:
        _print_json(found.as_json())
    else:
        click.echo(tables.estimates_table(found))


@_verb("report runs/hessian --output hessian.html")
@_options(_DIR, _RESULT)
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path),
    help="Write the page alone there; default: to the result.",
)  # fmt: skip
def report(directory: Path, name: str, output: Path | None) -> None:
    """Write a page about a result: spectrum, error, vectors, costs.

    One HTML file that needs nothing else; its figures are written as files, too.
    """
    from skerch_ooc import rundir
    from skerch_ooc.reporting import report as write_report

    path = write_report(rundir.open_run(directory), name, output=output)
    click.echo(path)
    if output is None:
        click.echo(path.parent / "figures")


@_verb("status runs/hessian --watch")
@_options(_DIR, _JSON)
@click.option("--watch", is_flag=True, help="Show it again until all is done, or nobody works.")
@click.option(
    "--interval", type=float, default=5.0, show_default=True, metavar="S", callback=_positive,
    help="Seconds between two looks of --watch.",
)  # fmt: skip
def status(directory: Path, as_json: bool, watch: bool, interval: float) -> None:
    """Show what is done, what is in Slurm's queue, and what comes next."""
    from skerch_ooc import rundir, tables
    from skerch_ooc.status import status as status_of
    from skerch_ooc.submission import QueueQuestion

    shown = None
    while True:
        run = rundir.open_run(directory)
        question = QueueQuestion(run)
        state = status_of(run)
        queue = question.answer(_QUEUE_SECONDS)
        if queue and state.next and state.cleaned is None:
            # Who submitted a run goes on with it in the same way.
            state = replace(state, next=f"skerch-ooc submit {quoted(directory)}")
        if as_json:
            text = _json_of(state.as_json() | {"slurm": queue and queue.as_json()})
        else:
            text = tables.status_table(state, queue)
        if text != shown:
            if shown is not None and sys.stdout.isatty() and not as_json:
                click.clear()
            click.echo(text)
        if not watch or state.next is None:
            return
        if queue and queue.is_over:
            raise IncompleteError(f"no job is in the queue any more; go on with: {state.next}")
        shown = text
        time.sleep(min(interval, _LONGEST_INTERVAL))


@_verb("verify runs/hessian")
@_options(_DIR)
def verify(directory: Path) -> None:
    """Read every byte of every file of a run, and check it.

    Exits with 5, and names the files, if any is damaged.
    """
    from skerch_ooc import rundir
    from skerch_ooc.status import status as status_of
    from skerch_ooc.verification import verify_run

    opened = rundir.open_run(directory)
    wrong = verify_run(opened, for_terminal())
    if wrong:
        raise CorruptError("\n".join(wrong))
    click.echo("every byte is as it was published")
    missing = status_of(opened).columns_missing
    if missing:
        click.echo(f"not measured, or gone: {missing}; next: {opened.how_to_measure()}")


@_verb("clean runs/hessian --sketch --dry-run")
@_options(_DIR, _JSON)
@click.option("--sketch", is_flag=True, help="Also what merge made, and can make again.")
@click.option("--shards", is_flag=True, help="Also the shards of a finished run; results stay.")
@click.option(
    "--older-than", default="1d", show_default=True, metavar="T",
    help="Age at which other hosts' files are leftovers.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List what would go, and remove nothing.")
def clean(
    directory: Path, as_json: bool, sketch: bool, shards: bool, older_than: str, dry_run: bool
) -> None:
    """Free disk space; refuses while anything still needs the files.

    Without options: leftovers of processes that have ended, and files that nothing uses any more.
    """
    from skerch_ooc import cleaning, rundir, tables

    done = cleaning.clean(
        rundir.open_run(directory), sketch=sketch, shards=shards, older_than=older_than,
        dry_run=dry_run, progress=for_terminal() if shards else None,
    )  # fmt: skip
    if as_json:
        _print_json(done.as_json())
    else:
        click.echo(tables.cleaning_table(done))


def _budget(max_seconds: float | None, *, patient: bool = False) -> Any:
    """A budget that SIGTERM and SIGUSR1 spend too: the running task is finished, the exit is 0.

    Outside of measuring they interrupt, as Ctrl-C does, unless the command is patient, as all that
    it does are tasks. The second time they end the process at once: nothing is lost either way.
    """
    from skerch_ooc.budget import Budget, walltime_left

    limits = [limit for limit in (max_seconds, walltime_left(os.environ)) if limit is not None]
    budget = Budget(min(limits, default=None))

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if not (budget.active or patient):
            raise _Terminated(number)
        budget.stop()

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, on_signal)
    return budget


def _number(text: str | None) -> int | str | None:
    if text is None or not re.fullmatch("-?[0-9]{1,20}", text):
        return text
    return int(text)


def _print_json(value: Any) -> None:
    click.echo(_json_of(value))


def _json_of(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True)


def _say_stopped(progress: Progress) -> None:
    progress.say(STOPPED_IN_GOOD_ORDER)


class _Messages(logging.Handler):
    """Writes to what standard error is at the moment: a live bar stands in for it at times."""

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", file=sys.stderr, flush=True)


def _show_messages() -> None:
    """Sends this package's own messages, not those of the libraries below, to standard error."""
    logger = logging.getLogger("skerch_ooc")
    logger.handlers[:] = [_Messages()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _speak_of_any_name() -> None:
    """Lets standard output take names that are no text: bytes as they are, else as escapes."""
    codecs.register_error(_ANY_NAME, _as_bytes_or_escapes)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and sys.stdout.errors == "strict":
        reconfigure(errors=_ANY_NAME)


def _as_bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    try:
        # A name in a folder may be any bytes.
        return wrong.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(error)


def run_command_line(arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code: see :mod:`skerch_ooc.errors`; 128 and the number of the signal after one (130
        after Ctrl-C), 1 for other failures of the system. A bug of ours shows its traceback.
    """
    _show_messages()
    _speak_of_any_name()
    code = OTHER_FAILURE
    try:
        code = _exit_code(arguments)
    finally:
        if "SLURM_JOB_ID" in os.environ and arguments[:1] in (["task"], ["submit"]):
            # Who looks for the elements that failed reads but the end of their logs.
            click.echo(ending(code), err=True)
    return code


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        code = cli.main(args=list(arguments), prog_name="skerch-ooc", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("interrupted; nothing published is lost, the same command goes on", err=True)
        # As shells name the end by a signal. (click makes an Abort of every interruption.)
        cause = error.__cause__ or error
        return 128 + cause.args[0] if isinstance(cause, _Terminated) else INTERRUPTED
    except OocError as error:
        click.echo(f"skerch-ooc: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in _NO_WRITING:
            click.echo(f"skerch-ooc: {type(error).__name__}: {error}", err=True)
            return OTHER_FAILURE
        click.echo(f"skerch-ooc: {cannot_write(error.filename, error)}", err=True)
        return IncompleteError.exit_code
    except MemoryError as error:
        click.echo(f"skerch-ooc: {type(error).__name__}: {error}", err=True)
        return OTHER_FAILURE
    return code if isinstance(code, int) else 0
