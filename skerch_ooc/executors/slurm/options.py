"""What the jobs of a run are given, checked before anything is submitted."""

from __future__ import annotations

import itertools
import operator
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.resources import parse_bytes
from skerch_ooc.planning.stage_names import STAGES

DASK = "dask"
"""The executor, and the one job, of all stages on Dask workers."""

WARNING_SECONDS = 120
"""How long before its end a job is warned whose time is not known."""

_LEAST = {
    "cpus_per_task": 1, "elements": 1, "max_array_size": 1, "throttle": 1, "workers": 1, "tries": 0,
}  # fmt: skip
_DEFAULT_TRIES = 3
_OWN = ("array", "clusters", "comment", "dependency", "error", "open-mode", "output", "parsable",
        "test-only", "wait", "wrap")  # fmt: skip
_OWN_LETTERS = "adeoMW"
_MEM = re.compile(r"--mem=(?P<count>\d{1,9})(?P<unit>[KMGT]?)B?")
_TIME = re.compile(r"(?:(?P<days>\d{1,5})-)?(?P<clock>\d{1,7}(?::\d{1,2}){0,2})")


@dataclass(frozen=True)
class JobOptions:
    """What the jobs of a run are given.

    Attributes:
        time: Walltime of a job, as Slurm writes it; ``None`` for the partition's default.
        partition: Partition.
        account: Account.
        gpus: GPUs of each element; as sbatch understands it.
        cpus_per_task: Cores, and so threads, of each element.
        mem: Memory of a node.
        job_name: Name of all jobs; by default the run's and the stage's.
        further: More options of sbatch, as they are.
        of_stage: More options of sbatch for the jobs of single stages.
        setup: Shell lines that set up the environment.
        elements: The most elements of an array.
        max_array_size: The cluster's limit; asked of scontrol by default.
        throttle: Elements of an array that may run at once.
        tries: How often the chain submits again what is missing if nothing was done in between.
        memory: ``--memory`` of each process; by default what Slurm gives it.
        device: ``--device`` of each process; see :meth:`device_of`.
        executor: ``"arrays"`` or ``"dask"``.
        workers: Tasks of the one job of ``"dask"``, each a worker.

    Raises:
        UsageError: If a value makes no sense, or an option is the command's own.
    """

    time: str | None = None
    partition: str | None = None
    account: str | None = None
    gpus: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    job_name: str | None = None
    further: tuple[str, ...] = ()
    of_stage: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    setup: str = ""
    elements: int | None = None
    max_array_size: int | None = None
    throttle: int | None = None
    tries: int = _DEFAULT_TRIES
    memory: str | None = None
    device: str | None = None
    executor: str = "arrays"
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
        if self.workers is not None and self.executor != DASK:
            raise UsageError(
                f"--workers {self.workers} needs --executor dask; else give --elements"
            )
        arrays = {"for": self.of_stage, "elements": self.elements, "throttle": self.throttle}
        for name, value in arrays.items():
            if value and self.executor == DASK:
                raise UsageError(f"--{name} is for job arrays; --executor dask is one job")
        if self.memory is not None:
            parse_bytes(self.memory)
        for stage, words in self.of_stage.items():
            if stage not in STAGES:
                raise UsageError(f"--for {stage}=...: must be one of {', '.join(STAGES)}")
            _require_free(words)
        _require_free(self.further)
        for stage in (*STAGES, DASK):
            self.seconds(stage)

    def sbatch(self, stage: str) -> list[str]:
        """The options of sbatch for the jobs of a stage; later ones replace earlier ones."""
        # Of one job with several tasks each has its GPUs, as each element of an array has.
        gpus = "gpus-per-task" if stage == DASK else "gpus"
        named = {
            "time": self.time, "partition": self.partition, "account": self.account,
            gpus: self.gpus, "cpus-per-task": self.cpus_per_task, "mem": self.mem,
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in named.items() if value is not None]
        return [*words, *self.further, *self.of_stage.get(stage, ())]

    def memory_of(self, stage: str) -> int | None:
        """Memory of each process of a stage of job arrays, in bytes; ``None`` if it is not known.

        Without ``--memory`` a process takes nine tenths of what Slurm gives it.
        """
        if self.memory is not None:
            return parse_bytes(self.memory)
        given = [word for word in self.sbatch(stage) if word.startswith("--mem")]
        found = _MEM.fullmatch(given[-1]) if given else None
        if found is None or self.executor == DASK:
            return None
        unit = 1024 ** "KMGT".index(found["unit"] or "M")
        # Zero stands for all memory of a node.
        return int(found["count"]) * unit * 1024 * 9 // 10 or None

    def device_of(self, stage: str) -> str | None:
        """``--device`` of the processes of a stage.

        Where only some stages are given GPUs (``--for "measure=--gpus=1"``), it is for them alone.
        """
        given = {name for name in STAGES if _asks_for_gpus(self.sbatch(name))}
        if given and stage in STAGES and stage not in given:
            return None
        return self.device

    def seconds(self, stage: str) -> int | None:
        """The walltime of the jobs of a stage; ``None`` if it is the partition's, or none."""
        given = [value for _, value in _given(self.sbatch(stage), "--time|-t")]
        return walltime_seconds(given[-1]) if given else None

    def as_json(self) -> dict[str, Any]:
        """All values as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JobOptions:
        """The inverse of :meth:`as_json`."""
        of_stage = {stage: tuple(words) for stage, words in values["of_stage"].items()}
        return cls(**{**values, "further": tuple(values["further"]), "of_stage": of_stage})


def _asks_for_gpus(words: Sequence[str]) -> bool:
    """Whether options of sbatch ask for GPUs; of an option that is repeated the last one counts."""
    given = dict(_given(words, r"--gpus(?:-per-[a-z]+)?|-G|--gres"))
    return any(
        (option != "--gres" or "gpu" in value) and not re.search(r"(?:^|:)0$", value)
        for option, value in given.items()
    )


def _given(words: Sequence[str], options: str) -> Iterator[tuple[str, str]]:
    """Options of sbatch and their values, in each way in which sbatch takes them.

    Args:
        words: All that sbatch is given.
        options: Which ones, as a regular expression.
    """
    for word, following in itertools.pairwise([*words, ""]):
        found = re.fullmatch(rf"({options})(?:=(.*)|(?<=-\w)(.+))?", word, re.S)
        if found is not None:
            yield found[1], found[2] or found[3] or following


def options_of_stages(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads ``"measure=--gpus=1 --qos=long"``: options of sbatch for the jobs of single stages.

    Raises:
        UsageError: If a text is not of this form.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        stage, equals, words = text.partition("=")
        try:
            split = shlex.split(words)
        except ValueError as error:
            raise UsageError(f"--for {text}: {error}") from error
        if not equals or not split or " " in stage:
            raise UsageError(f"--for {text}: must be like measure=--gpus=1")
        found[stage] = found.get(stage, ()) + tuple(split)
    return found


def walltime_seconds(text: str) -> int | None:
    """Reads a walltime: minutes, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M`` or ``D-H:M:S``.

    Returns:
        Seconds; ``None`` for no limit.

    Raises:
        UsageError: If it is none of these.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = _TIME.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--time {text}: must be minutes, or like 30:00, 4:00:00, 1-12 or 1-12:30:00"
        )
    parts = [int(part) for part in found["clock"].split(":")]
    # With days the clock begins with hours, alone it is minutes, and pairs are minutes and seconds.
    units = (3600, 60, 1) if found["days"] or len(parts) == 3 else (60, 1)
    total = int(found["days"] or 0) * 86400 + sum(map(operator.mul, parts, units))
    # Slurm takes zero for no limit.
    return total or None


def _require_free(words: tuple[str, ...]) -> None:
    """Refuses options that jobs of a run are given by this package, or that are none."""
    for before, word in itertools.pairwise(("", *words)):
        takes_value = before.startswith("-") and "=" not in before
        if not word.startswith("-") and not takes_value:
            # As sbatch would take it for the script.
            raise UsageError(f"{word!r} is no option of sbatch; it must begin with -")
    for word in words:
        name = word.partition("=")[0]
        long = name.startswith("--") and name != "--" and any(
            own == name[2:] or (len(name) > 4 and own.startswith(name[2:])) for own in _OWN
        )  # fmt: skip
        short = re.match(rf"-[{_OWN_LETTERS}]", name)
        if long or short:
            raise UsageError(
                f"{name} is given to sbatch by this command; leave it out (arrays: --elements, "
                "--throttle; logs are in the run directory)"
            )
