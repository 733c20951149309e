"""Arguments and options that several verbs have."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.object_cache import CACHE, CACHE_SIZE, require_folder
from skerch_ooc.base.places import place
from skerch_ooc.base.progress import terminal_progress
from skerch_ooc.base.resources import parse_bytes
from skerch_ooc.cli.signals import budget_of

if TYPE_CHECKING:
    from skerch_ooc.base.time_budget import Budget
    from skerch_ooc.executors.executor import Executor
    from skerch_ooc.executors.work import Work

Option = Callable[[Any], Any]
"""What gives a command an option or an argument, or several."""


class _NamedPath(click.Path):
    """A path that names something: what is empty would be the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """See :class:`click.ParamType`."""
        if not str(value) or "\0" in str(value):
            self.fail(f"{str(value)!r} is no path", param, ctx)
        found = super().convert(value, param, ctx)
        return place(found) if isinstance(found, Path) else found


class _ShownByFirstName(click.Option):
    """An option of several names, of which help shows the first: it has to fit a line."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """See :class:`click.Option`."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        return record[0].replace(f", {self.opts[1]}", ""), record[1]


def positive(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Lets only positive numbers pass; for click."""
    if value is not None and not value > 0:
        raise UsageError(f"{option.opts[0]} {value}: must be positive")
    return value


def factor(ctx: click.Context, param: click.Parameter, value: str) -> float:
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


def number(_: click.Context, _option: click.Parameter, text: str | None) -> int | str | None:
    """The whole number that a text is, or the text; for click."""
    if text is None or not re.fullmatch("-?[0-9]{1,20}", text):
        return text
    return int(text)


PATH = _NamedPath(path_type=Path)

DIR = click.argument("directory", metavar="DIR", type=PATH)
OBJECT = click.argument("path", metavar="URL", type=PATH)
SPEC = click.argument("spec", metavar="SPEC", type=PATH)
PLANNED_SPEC = click.argument("spec", metavar="[SPEC]", type=PATH, required=False)
RUN = click.option(
    "--run", "run_dir", required=True, metavar="DIR", type=PATH,
    help="Folder of the run, new or to go on with.",
)  # fmt: skip
COMPARE = click.option(
    "--compare", is_flag=True, help="Compare the operator even if all is measured."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
MEMORY = click.option(
    "--memory", metavar="SIZE", help="Peak resident memory of a process, such as 2GiB."
)
THREADS = click.option(
    "--threads", type=int, metavar="N", help="Threads of a process; else as OMP_NUM_THREADS says."
)
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Replace a value of the spec, such as seed=2.",
)  # fmt: skip
DEVICE = click.option(
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
    click.option(
        "--patience", type=float, metavar="S", callback=positive,
        help="Seconds to wait for Dask workers; default 120.",
    ),
)  # fmt: skip
MAX_SECONDS = click.option(
    "--max-seconds", type=float, metavar="S", callback=positive,
    help="Stop in good order after S seconds; can be resumed.",
)  # fmt: skip
MAX_ERROR = click.option(
    "--max-relative-error", type=float, metavar="E", callback=positive,
    help="Exit with 3 if the relative error is above E.",
)  # fmt: skip
PLAN_ONLY = click.option("--plan-only", is_flag=True, help="Measure later, by measure or submit.")
NAME = click.option("--name", metavar="NAME", help="Folder of the result, in results/.")
RESULT = click.option(
    "--name", metavar="NAME", help="Folder of the result, in results/.", default="default"
)


@dataclass(frozen=True)
class WorkOptions:
    """By whom a verb has its work done, and with what.

    Attributes:
        executor: Its name.
        workers: Worker processes to start.
        scheduler: Of workers that are running.
        tries: How often a task that fails is tried.
        patience: Seconds that a scheduler may be without workers.
        memory: Peak resident memory of each process.
        threads: Threads of each process.
        device: Torch device of the operator and of the tiles.
        max_seconds: Time after which measuring stops in good order.
    """

    executor: str = "serial"
    workers: int | None = None
    scheduler: str | None = None
    tries: int | None = None
    patience: float | None = None
    memory: str | None = None
    threads: int | None = None
    device: str | None = None
    max_seconds: float | None = None

    def work(
        self,
        planned_device: str | None = None,
        *,
        executor: Executor | None = None,
        budget: Budget | None = None,
    ) -> Work:
        """Work that is shown on the terminal.

        Args:
            planned_device: The operator's, if none was given.
            executor: Instead of the one that the options name.
            budget: When to stop.

        Raises:
            UsageError: If the options contradict each other.
        """
        from skerch_ooc.executors.work import Work

        executor = executor or self._executor(self.device or planned_device)
        return Work.of(
            executor, self.memory, self.threads, self.device, terminal_progress(), budget
        )

    def stoppable_work(self, planned_device: str) -> Work:
        """The same, which stops in good order at its time, or when it is asked to."""
        return self.work(planned_device, budget=budget_of(self.max_seconds))

    def _executor(self, device: str | None) -> Executor:
        from skerch_ooc.base.resources import available_cores
        from skerch_ooc.executors.dask import Dask
        from skerch_ooc.executors.dask_local import visible_gpus
        from skerch_ooc.executors.serial import Serial

        if self.executor == "dask":
            _quiet_distributed()
            tries, workers = 1 if self.tries is None else self.tries, self.workers
            if self.scheduler is not None:
                return Dask(self.scheduler, workers=workers, tries=tries, patience=self.patience)
            gpus = len(visible_gpus()) if (device or "").startswith("cuda") else 0
            return Dask(workers=(gpus or available_cores()) if workers is None else workers,
                        tries=tries, patience=self.patience)  # fmt: skip
        options = {"--scheduler": self.scheduler, "--tries": self.tries,
                   "--patience": self.patience}  # fmt: skip
        for option, value in options.items():
            if value is not None:
                raise UsageError(f"{option} {value} needs --executor dask")
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


@dataclass(frozen=True)
class ResultOptions:
    """How a result is shown, and when it is not good enough.

    Attributes:
        max_relative_error: Above it the exit code says so.
        as_json: Show figures as JSON.
    """

    max_relative_error: float | None
    as_json: bool


def gathered(name: str, kind: type[Any], *options: Option) -> Option:
    """Gives a command options, and the values of all that a class has fields for as one argument.

    Args:
        name: Of the argument.
        kind: The class.
        options: The options; others of the command may belong to the argument as well.
    """

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def with_one(**values: Any) -> Any:
            own = {key: values.pop(key) for key in kind.__dataclass_fields__ if key in values}
            return command(**{name: kind(**own)}, **values)

        return with_options(with_one, *options)

    return decorate


def with_options(command: Any, *options: Option) -> Any:
    """A command with several arguments and options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def _caching(variable: str, check: Callable[[str], Any]) -> Callable[..., None]:
    """Makes what sets a variable of the cache for this process; for click."""

    def give(_: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        if variable == CACHE_SIZE and not os.environ.get(CACHE):
            raise UsageError(f"{option.opts[0]} {value} needs --cache FOLDER, or {CACHE}")
        check(value)
        os.environ[variable] = value

    return give


_CACHE = (
    click.option(
        "--cache", metavar="FOLDER", expose_value=False, is_eager=True,
        callback=_caching(CACHE, require_folder), help="Keep what is read of a bucket there.",
    ),
    click.option(
        "--cache-size", metavar="SIZE", expose_value=False,
        callback=_caching(CACHE_SIZE, parse_bytes), help="How large that may grow; else 10GiB.",
    ),
)  # fmt: skip


def CACHED(command: Any) -> Any:  # noqa: N802 (it is used as the options above are)
    """Gives a verb that reads results the options of the cache."""
    return with_options(command, *_CACHE)


WORKING = gathered("working", WorkOptions, MEMORY, THREADS, DEVICE)
PLACE = gathered("working", WorkOptions, *_WHERE, MEMORY, THREADS, DEVICE)
SHOWN = gathered("shown", ResultOptions, MAX_ERROR, JSON)
