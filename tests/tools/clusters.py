"""Dask clusters whose scheduler and workers are processes of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import skerch_ooc

DASK = (sys.executable, "-m", "dask")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PATIENCE = 60.0


class Cluster:
    """A scheduler and its workers.

    Args:
        folder: For the scheduler file, logs and scratch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.scheduler: subprocess.Popen | None = None
        self.workers: list[subprocess.Popen] = []

    def _start(self, name: str, command, environment: Mapping[str, str]) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "a") as log:
            return subprocess.Popen(
                [*map(str, command)],
                cwd=self.folder,
                env=os.environ | ONE_THREAD | dict(environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_scheduler(self, command=DASK, **environment: str) -> None:
        """Starts a scheduler; its file has another address than one before it."""
        self.file.unlink(missing_ok=True)
        if self.scheduler is not None:
            self.scheduler.wait()
        self.scheduler = self._start(
            "scheduler",
            [*command, "scheduler", "--scheduler-file", self.file, "--port", 0, "--no-dashboard",
             "--host", "127.0.0.1"],
            environment,
        )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while not self.file.exists():
            assert time.monotonic() < end, (self.folder / "scheduler.log").read_text()
            time.sleep(0.05)

    def start_worker(self, command=DASK, nanny: bool = False, **environment: str) -> None:
        """Starts a worker of one thread."""
        number = len(list(self.folder.glob("worker*.log")))
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        self.workers.append(
            self._start(
                f"worker{number}",
                [*command, "worker", "--scheduler-file", self.file, "--nthreads", 1,
                 "--no-dashboard", "--memory-limit", 0, "--death-timeout", 60,
                 "--local-directory", self.folder, *([] if nanny else ["--no-nanny"])],
                environment,
            )
        )  # fmt: skip

    def stop(self) -> None:
        """Ends all of it."""
        processes = [*self.workers, *([self.scheduler] if self.scheduler else [])]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def in_own_view(mounts: str) -> tuple[str, ...]:
    """What comes before a command that is to see other file systems than all others do.

    Args:
        mounts: What the shell is to do in a namespace of its own.
    """
    return ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")


def needs_own_views() -> None:
    """Skips a test where processes cannot have their own view of the file system."""
    done = subprocess.run((*in_own_view("true"), "true"), check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no mount namespaces here: {done.stderr.decode().strip()}")


@contextlib.contextmanager
def cluster_in(folder: Path) -> Iterator[Cluster]:
    """A cluster that is to be started, and is ended with all its processes."""
    folder.mkdir(exist_ok=True)
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()


def other_package(folder: Path, file: str, old: str, new: str) -> str:
    """A copy of the package that differs in one place: what PYTHONPATH has to be for it."""
    source = Path(skerch_ooc.__file__).resolve().parent
    shutil.copytree(source, folder / "skerch_ooc", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "skerch_ooc" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return str(folder)


def without_package(name: str = "skerch_ooc") -> tuple[str, ...]:
    """The command ``dask`` where a package, by default this one, is not installed."""
    code = f"import sys; sys.modules['{name}'] = None; from dask.__main__ import main; main()"
    return (sys.executable, "-c", code)
