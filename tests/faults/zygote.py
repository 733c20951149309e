"""The command line in processes that are forked from one with all libraries loaded.

Hundreds of kills need hundreds of processes, which else would spend their time importing torch.
Each is a process of its own all the same: it is killed, limited and denied like any other.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from faults import calls, recording, tracing
from faults.tracing import Fault

PATIENCE = 240
"""Seconds after which a command that has not ended is killed, by SIGALRM."""

TESTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: The exit code; minus the number of the signal that killed it.
        out: Standard output.
        err: Standard error.
        calls: The calls that concerned files, if it was traced.
        struck: Whether the fault happened.
    """

    code: int
    out: str
    err: str
    calls: list[str]
    struck: bool


class Forks:
    """Has a process forked for each command.

    Args:
        requests: Takes a line for each command.
        replies: Has a line for each end.
    """

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self._requests, self._replies = requests, replies

    def _ask(self, request: Mapping[str, Any]) -> None:
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()

    @contextlib.contextmanager
    def another(self, folder: Path) -> Iterator[Forks]:
        """Another one, for commands at the same time: a fork, that need not import torch again.

        Args:
            folder: An empty folder, for the pipes to it.
        """
        pipes = [folder / "requests", folder / "replies"]
        for pipe in pipes:
            os.mkfifo(pipe)
        self._ask({"serve": [str(pipe) for pipe in pipes]})
        with open(pipes[0], "w") as requests, open(pipes[1]) as replies:
            yield Forks(requests, replies)

    def start(
        self, folder: Path, *arguments: object, fault: Fault | None = None,
        limits: Mapping[str, int] | None = None, denied: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None, user: int | None = None,
        kill_after: float | None = None, clock_step: float = 0.0, start_after: float = 0.0,
        patience: int = PATIENCE, record: Path | None = None,
    ) -> None:  # fmt: skip
        """Starts a command; :meth:`wait` tells how it ended.

        Args:
            folder: Where it runs.
            *arguments: Of the command line.
            fault: What happens to it at a call that concerns a file.
            limits: Resource limits by name, such as ``{"RLIMIT_NOFILE": 64}``.
            denied: System calls that fail, each with its error number.
            environment: Further variables.
            user: The user that it runs as, where the tests run as root.
            kill_after: Seconds after which it is killed.
            start_after: Seconds after which it starts.
            clock_step: Seconds by which the clock jumps each time that it is looked at.
            patience: Seconds that it may take.
            record: A file for the steps that it takes with the files in its folder.
        """
        request = {
            "folder": str(folder), "arguments": [str(argument) for argument in arguments],
            "fault": asdict(fault) if fault else None, "limits": dict(limits or {}),
            "denied": dict(denied or {}), "environment": dict(environment or {}), "user": user,
            "kill_after": kill_after, "clock_step": clock_step, "start_after": start_after,
            "patience": patience, "record": str(record) if record else None,
        }  # fmt: skip
        self._ask(request)

    def wait(self) -> Ended:
        """Waits for the command that was started."""
        line = self._replies.readline()
        assert line, "the zygote died"
        return Ended(**json.loads(line))

    def __call__(self, folder: Path, *arguments: object, **faults: Any) -> Ended:
        """Runs a command; see :meth:`start`. No end may show a traceback."""
        self.start(folder, *arguments, **faults)
        ended = self.wait()
        assert "Traceback" not in ended.err, ended.err
        return ended


class Zygote(Forks):
    """Forks a process for each command; use it as a context."""

    def __init__(self) -> None:
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
        )
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(TESTS), str(TESTS / "tools"), environment.get("PYTHONPATH", "")])
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.zygote"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        super().__init__(self._process.stdin, self._process.stdout)

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def _serve() -> None:
    """The zygote's own life."""
    _load()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _answer(sys.stdin, os.fdopen(os.dup(1), "w"))


def _answer(requests: IO[str], replies: IO[str]) -> None:
    """A line for each command, a line for each end."""
    for line in requests:
        request = json.loads(line)
        if "serve" in request:
            _fork_another(*request["serve"])
            continue
        replies.write(json.dumps(asdict(_run(request))) + "\n")
        replies.flush()


def _fork_another(requests: str, replies: str) -> None:
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    try:
        # It is nobody's child: who traces a command waits for all children.
        if os.fork() == 0:
            with open(requests) as asked, open(replies, "w") as answered:
                _answer(asked, answered)
    finally:
        os._exit(0)


def _load() -> None:
    """Imports all that a command may want later: another user may have no access to it."""
    for name in ("factories", "h5py", "numpy.random", "torch"):
        importlib.import_module(name)
    import skerch_ooc

    # Of the operators only what needs no further libraries.
    left_out = ("skerch_ooc.__main__", "skerch_ooc.operators.curvature")
    for module in pkgutil.walk_packages(skerch_ooc.__path__, "skerch_ooc."):
        if module.name not in left_out:
            importlib.import_module(module.name)
    from skerch_ooc.results.report.render import environment

    templates = environment()
    templates.auto_reload = False
    for template in templates.list_templates():
        templates.get_template(template)
    assert skerch_ooc.eigh
    # Stages ask for collections, which need not look at the modules each time.
    gc.collect()
    gc.freeze()


def _run(request: Mapping[str, Any]) -> Ended:
    memories = [os.memfd_create(name) for name in ("out", "err")]
    pid = os.fork()
    if pid == 0:
        _be_command(request, memories)
    struck, seen = False, []
    if request["record"]:
        file = Path(request["record"])
        status = recording.record(pid, Path(request["folder"]), file).status
    elif request["fault"]:
        traced = tracing.trace(pid, Fault(**request["fault"]))
        status, seen, struck = traced.status, traced.calls, traced.struck
    else:
        if request["kill_after"] is not None:
            time.sleep(request["kill_after"])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        struck = os.WIFSIGNALED(status)
    texts = [_text_of(memory) for memory in memories]
    return Ended(os.waitstatus_to_exitcode(status), *texts, seen, struck)


def _text_of(memory: int) -> str:
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        return file.read().decode(errors="replace")


def _be_command(request: Mapping[str, Any], memories: Sequence[int]) -> None:
    """What the forked process does; never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        # Nothing may wait forever.
        signal.alarm(request["patience"])
        for memory, descriptor in zip(memories, (1, 2), strict=True):
            os.dup2(memory, descriptor)
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        for name, value in request["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if request["user"] is not None:
            os.setgroups([])
            os.setgid(request["user"])
            os.setuid(request["user"])
        for name, error in request["denied"].items():
            calls.deny([name], error)
        time.sleep(request["start_after"])
        if request["clock_step"]:
            _let_clock_jump(request["clock_step"])
        if request["fault"] or request["record"]:
            tracing.let_be_traced()
            calls.stop_at(calls.RECORDED if request["record"] else calls.WRITING)
        from skerch_ooc.cli.main import run_command_line

        code = run_command_line(request["arguments"])
    except BaseException:  # noqa: BLE001 (shown, whatever it is)
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _let_clock_jump(step: float) -> None:
    """Has the time of day, not the steady clock, jump at each look."""
    true, looks = time.time, itertools.count(1)
    time.time = lambda: true() + step * next(looks)
    time.time_ns = lambda: int(time.time() * 1e9)


if __name__ == "__main__":
    _serve()
