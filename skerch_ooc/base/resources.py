"""Memory, threads and cores that a process may use: limits, Slurm, current and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Self

import psutil
from threadpoolctl import ThreadpoolController

from skerch_ooc.base.errors import UsageError, shown

MIB = 1024**2
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4}  # fmt: skip
_DEFAULT_MEMORY = 4 * 1024**3
_MOST_THREADS = 1024
_LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Resources:
    """The memory, threads and device that one process may use.

    Attributes:
        memory: Peak resident memory in bytes, imports included.
        threads: Threads of the linear algebra (and of the operator) in one process.
        workers: Processes that measure side by side. A stage that is one process (merge, vectors)
            may keep ``threads * workers`` cores busy.
        device: The torch device on which merge and recovery multiply tiles.
        remote_threads: Threads of each process on other machines; ``None`` if the same as here.
        threads_by: What limited the threads where none were given; empty if the cores did.
    """

    memory: int
    threads: int
    workers: int = 1
    device: str = "cpu"
    remote_threads: int | None = None
    threads_by: str = ""

    @property
    def task_threads(self) -> int:
        """Threads of the process that runs a task."""
        return self.remote_threads or self.threads

    @property
    def of_task(self) -> Resources:
        """What a process may use that runs tasks for this one."""
        return Resources(self.memory, self.task_threads, device=self.device)

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
        """Makes resources, with defaults for the values that are not given.

        Args:
            memory: Bytes, or text such as ``"2GiB"``; by default 4 GiB, or the worker's share of
                half the memory that is free now if that is less; in a Slurm job nine tenths of
                what each of its tasks was given.
            threads: By default ``OMP_NUM_THREADS``, else ``SLURM_CPUS_PER_TASK``, else the cores;
                of several workers each has its share of the cores at most.
            workers: Processes that share this machine.
            device: The torch device of merge and recovery; by default the processor.

        Raises:
            UsageError: If a value is out of range, or ``memory`` is not an amount.
        """
        if memory is None:
            given, share = _slurm_memory(os.environ), max(workers, 1)
            memory = min(_DEFAULT_MEMORY, psutil.virtual_memory().available // 2 // share)
            # Local workers run inside the Slurm task that starts them, so they share its memory.
            memory = given // share if given else memory
        if isinstance(memory, str):
            memory = parse_bytes(memory)
        threads_by = ""
        if threads is None:
            threads = max(1, available_cores() // max(workers, 1))
            told = _threads_told(os.environ)
            if told and (told < threads or workers <= 1) and told != threads:
                threads, threads_by = told, "OMP_NUM_THREADS"
        for name, value in (("memory", memory), ("threads", threads), ("workers", workers)):
            _require_count(name, value)
        memory = int(memory)
        if max(threads, workers) > _MOST_THREADS:
            raise UsageError(
                f"threads = {threads}, workers = {workers}: must be at most {_MOST_THREADS}"
            )
        device = device or "cpu"
        return cls(memory, threads, workers, device, threads_by=threads_by)


def _require_count(name: str, value: object) -> None:
    """Refuses what is no number of at least 1, or no whole number; bytes may be a float.

    Raises:
        UsageError: If it is none.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    finite = isinstance(value, Real) and not isinstance(value, Integral) and math.isfinite(value)
    if not whole and not (finite and name == "memory"):
        raise UsageError(f"{name} = {shown(value)}: must be a whole number of at least 1")
    if value < 1:  # type: ignore[operator]
        raise UsageError(f"{name} = {value}: must be at least 1")


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
    """Formats an amount of bytes for people, such as ``"1.5 GiB"``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def ask_for(needed: int) -> str:
    """Formats the memory to ask the user for: a tenth more, as no two processes are equal."""
    needed += needed // 10
    if needed >= _LARGE:
        return f"{needed // 2**30 + 1}GiB"
    return f"{needed // MIB + 8}MiB"


def available_cores() -> int:
    """Returns the cores that this process may use: what Slurm states, else its affinity mask."""
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm) > 0:
        return int(slurm)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads_told(environment: Mapping[str, str]) -> int | None:
    """Returns the threads that ``OMP_NUM_THREADS`` tells; ``None`` where it tells no number."""
    told = environment.get("OMP_NUM_THREADS", "").strip()
    return int(told) if re.fullmatch("0*[1-9][0-9]{0,2}", told, re.ASCII) else None


def _slurm_memory(environment: Mapping[str, str]) -> int | None:
    """Returns nine tenths of the memory of each Slurm task; ``None`` where Slurm does not say."""

    def number(name: str) -> int:
        found = re.match("[0-9]+", environment.get(f"SLURM_{name}", "")) if in_job else None
        return int(found[0]) if found else 0

    in_job = "SLURM_JOB_ID" in environment
    per_core = number("MEM_PER_CPU") * max(number("CPUS_PER_TASK"), 1)
    # Over several nodes the value is a list such as "4(x2),1", which begins with the largest.
    per_task = per_core or number("MEM_PER_NODE") // max(number("TASKS_PER_NODE"), 1)
    return per_task * MIB * 9 // 10 or None


def resident_memory(needed: int = 0, most: int | None = None) -> int:
    """Returns the resident memory of this process now, in bytes.

    Args:
        needed: What is needed besides.
        most: What both may be together; where they are more, unused memory is released first.
    """
    resident = int(psutil.Process().memory_info().rss)
    if most is None or resident + needed <= most:
        return resident
    # Only then, as releasing memory takes as long as a few tiles.
    release_memory()
    return int(psutil.Process().memory_info().rss)


@cache
def processor_flags() -> frozenset[str]:
    """Returns the processor's instruction set flags, as Linux lists them; none elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split())
    return frozenset()


def release_memory() -> None:
    """Returns unused memory to the system, where the C library can be asked to."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # glibc keeps freed memory for itself: the resident memory of the process stays high, and
        # the next stage, which plans with what is left, would have too little.
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    with contextlib.suppress(OSError):
        # Not from getrusage, whose peak is inherited from the process that started this one.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakWatch:
    """Measures the largest resident memory within a context, even if it was larger before.

    Attributes:
        peak: Bytes; known when the context has ended.
    """

    peak = 0

    def __enter__(self) -> Self:
        self._before, self._over = peak_memory(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, resident_memory())
            if self._over.wait(_LOOK_SECONDS):
                return

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        # A new peak of the process is known exactly; between two looks much may come and go.
        if (peak := peak_memory()) > self._before:
            self.peak = peak


@lru_cache(maxsize=1)
def _linear_algebra(_modules: int) -> ThreadpoolController:
    """Finds the linear algebra libraries of this process; ``_modules`` is how many are loaded."""
    # Looking through all that is mapped takes some milliseconds. A library comes with a module.
    return ThreadpoolController()


@contextlib.contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """Limits the threads of this process's linear algebra libraries within the context."""
    with _linear_algebra(len(sys.modules)).limit(limits=threads):
        yield


@contextlib.contextmanager
def operator_threads(threads: int) -> Iterator[None]:
    """Limits the threads that operators compute with: linear algebra libraries and torch."""
    # Only if torch is loaded already: an operator that does not use it should not pay for it.
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


def limit_torch_of_thread() -> None:
    """Limits torch, where it is loaded, to one thread per call from the Python thread that calls.

    torch notes the number for each thread: those that begin within :func:`operator_threads` would
    compute with as many threads as there are cores.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """As :func:`operator_threads`, for work that uses torch."""
    # Imported first, as limits only reach libraries that are loaded.
    importlib.import_module("torch")
    with operator_threads(threads):
        yield


SPARE_BYTES = 48 * 1024**2
"""Bytes for what is not counted one by one: Python objects, HDF5, the slack of the allocator."""
