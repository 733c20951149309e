"""What a process may use: memory, threads, and how both are found out."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
from threadpoolctl import threadpool_limits

from skerch_ooc.base.errors import UsageError

MIB = 1024**2
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4}  # fmt: skip
_DEFAULT_MEMORY = 4 * 1024**3
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Resources:
    """What one process may use.

    Attributes:
        memory: Peak resident memory in bytes, imports included.
        threads: Threads of the linear algebra (and of the operator) in one process.
        workers: Processes that measure side by side. Where one process works for all of them
            (merge, vectors) it may keep ``threads * workers`` cores busy.
        device: The torch device on which merge and recovery multiply tiles.
        remote_threads: Threads of each process on other machines; ``None`` if they are as here.
    """

    memory: int
    threads: int
    workers: int = 1
    device: str = "cpu"
    remote_threads: int | None = None

    @property
    def task_threads(self) -> int:
        """Threads of the process that does a task."""
        return self.remote_threads or self.threads

    @property
    def cores(self) -> int:
        """Cores that the whole run may keep busy."""
        return self.threads * self.workers

    @classmethod
    def of(
        cls,
        memory: int | str | None = None,
        threads: int | None = None,
        workers: int = 1,
        device: str | None = None,
    ) -> Resources:
        """Fills in what was not said.

        Args:
            memory: Bytes, or text such as ``"2GiB"``; by default 4 GiB, or the worker's share of
                half the memory that is free now if that is less; in a Slurm job nine tenths of
                what each of its tasks was given.
            threads: By default ``SLURM_CPUS_PER_TASK``, else the worker's share of the cores.
            workers: Processes that share this machine.
            device: The torch device of merge and recovery; by default the processor.

        Raises:
            UsageError: If a value is out of range.
        """
        if memory is None:
            given, share = _slurm_memory(os.environ), max(workers, 1)
            memory = min(_DEFAULT_MEMORY, psutil.virtual_memory().available // 2 // share)
            # Workers that are started here share the one task that starts them.
            memory = given // share if given else memory
        if isinstance(memory, str):
            memory = parse_bytes(memory)
        if threads is None:
            threads = max(1, available_cores() // max(workers, 1))
        for name, value in (("memory", memory), ("threads", threads), ("workers", workers)):
            if value < 1:
                raise UsageError(f"{name} = {value}: must be at least 1")
        if max(threads, workers) > _MOST_THREADS:
            raise UsageError(
                f"threads = {threads}, workers = {workers}: must be at most {_MOST_THREADS}"
            )
        return cls(memory=memory, threads=threads, workers=workers, device=device or "cpu")


_LARGE = 100 * 2**30


def parse_bytes(text: str) -> int:
    """Reads ``"2GiB"``, ``"500 MB"`` or ``"1073741824"`` as bytes.

    Raises:
        UsageError: If the text is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGT]?i?B|)\s*", text, re.I)
    if not match:
        raise UsageError(f"{text!r} is not an amount of memory; write for instance 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(count: float) -> str:
    """An amount of bytes for people: ``"1.5 GiB"``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def ask_for(needed: int) -> str:
    """An amount to ask the user for: a tenth more, as no two processes or probes are equal."""
    needed += needed // 10
    if needed >= _LARGE:
        return f"{needed // 2**30 + 1}GiB"
    return f"{needed // MIB + 8}MiB"


def available_cores() -> int:
    """Cores that this process may use: Slurm's word, else the scheduler's mask."""
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm) > 0:
        return int(slurm)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _slurm_memory(environment: Mapping[str, str]) -> int | None:
    """Nine tenths of what Slurm gave each task of this job; ``None`` where it does not say."""

    def number(name: str) -> int:
        found = re.match("[0-9]+", environment.get(f"SLURM_{name}", "")) if in_job else None
        return int(found[0]) if found else 0

    in_job = "SLURM_JOB_ID" in environment
    per_core = number("MEM_PER_CPU") * max(number("CPUS_PER_TASK"), 1)
    # Of a job over several nodes this begins with how many tasks the largest has.
    per_task = per_core or number("MEM_PER_NODE") // max(number("TASKS_PER_NODE"), 1)
    return per_task * MIB * 9 // 10 or None


def resident_memory() -> int:
    """Resident memory of this process now, in bytes."""
    return int(psutil.Process().memory_info().rss)


@cache
def processor_flags() -> frozenset[str]:
    """What Linux says that this processor can do; nothing elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split())
    return frozenset()


def release_memory() -> None:
    """Gives memory that is no longer used back to the system, where that can be asked for."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # The allocator of glibc keeps what was freed; a stage that follows would be short of it.
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    with contextlib.suppress(OSError):
        # Not from getrusage, whose peak is inherited from the process that started this one.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """Limits the threads of the linear algebra libraries of this process while it is entered."""
    with threadpool_limits(limits=threads):
        yield


@contextlib.contextmanager
def operator_threads(threads: int) -> Iterator[None]:
    """Limits the threads of whatever operators compute with: linear algebra libraries and torch."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    with blas_threads(threads):
        if torch:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """As :func:`operator_threads`, for work that is going to use torch."""
    importlib.import_module("torch")
    with operator_threads(threads):
        yield


SPARE_BYTES = 48 * 1024**2
"""Room for what is not counted one by one: Python's own objects, HDF5, the allocator's slack."""
