"""Sight: workers prove that they see a folder as this process does, before they get a task.

This process writes a token into the folder. A worker that is sent its first task reads the token,
writes it back into a file of its own, and returns the task undone. Once this process has read that
file, the worker gets tasks. A worker that sees nothing, or another copy, or may not write, is asked
again for as long as files are waited for; then it is named and left out, and others go on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

from skerch_ooc.base import disk_errors, files, patience, private_names
from skerch_ooc.base.errors import IncompleteError, UsageError
from skerch_ooc.base.places import kind_of, place

log = logging.getLogger("skerch_ooc")

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_QUIET_SECONDS = 5.0
_MOST_NAMED = 3
_REMEDIES = {
    "folder": "Give the folder the same path on all hosts",
    "bucket": "Give all hosts its endpoint and credentials, in the environment of the workers",
}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
"""What does not pass by waiting."""


@dataclass(frozen=True)
class Proof:
    """What a worker is asked to prove; travels with its tasks.

    Attributes:
        folder: The folder, as the user named it.
        name: The file of the token.
        token: What the file must hold.
        confirmed: The process that has proven it, if it is not told yet.
    """

    folder: str
    name: str
    token: str
    confirmed: str = ""


@dataclass(frozen=True)
class Answer:
    """What a worker finds that is asked for a proof.

    Attributes:
        process: Its process.
        worker: Its address.
        host: Its host.
        wrote: The file into which it wrote the token, if it has seen it.
        why: Why it could not.
        final: Whether waiting is of no use.
    """

    process: str
    worker: str
    host: str
    wrote: str = ""
    why: str = "what it writes there does not arrive here"
    final: bool = False

    def __str__(self) -> str:
        return f"worker {self.worker} on {self.host} ({self.why})"


@dataclass
class _Process:
    """What this process, a worker, has proven.

    Attributes:
        name: Its name, unique on all hosts.
        confirmed: The tokens of folders that it sees.
        wrote: What it answered, by the token that it has read.
    """

    name: str
    confirmed: set[str] = field(default_factory=set)
    wrote: dict[str, Answer] = field(default_factory=dict)


@lru_cache(maxsize=1)
def _process(pid: int) -> _Process:
    # By its number: a process that was forked is another one.
    return _Process(f"{socket.gethostname()}-{pid}-{secrets.token_hex(4)}")


def doubt_of(proof: Proof | None) -> Answer | None:
    """Returns what this process, a worker, finds; ``None`` once it is known to see the folder."""
    if proof is None:
        return None
    own = _process(os.getpid())
    if proof.confirmed == own.name:
        own.confirmed.add(proof.token)
    if proof.token in own.confirmed:
        return None
    answer = own.wrote.get(proof.token) or _look_for(proof, own.name)
    if answer.wrote:
        own.wrote[proof.token] = answer
    return answer


def _look_for(proof: Proof, process: str) -> Answer:
    """Reads the token, and writes it back."""
    folder, token = place(proof.folder), proof.token.encode()
    answer = partial(Answer, process, _address(), socket.gethostname())
    try:
        if files.read_log(folder / proof.name) != token:
            return answer(why=f"{proof.name} holds something else there")
    except UsageError as error:
        # Of an object store: its client is not installed there, or the environment does not suit.
        return answer(why=str(error), final=True)
    except OSError as error:
        return answer(why=_what_is_there(folder, error))
    own = private_names.private_name(folder)
    try:
        files.write_new(own, token)
    except OSError as error:
        return answer(why=f"it cannot write there: {error.strerror}", final=error.errno in _REFUSED)
    return answer(wrote=own.name)


def _what_is_there(folder: Path, error: OSError) -> str:
    """Says what a worker finds instead of the token; listing the folder refreshes its view."""
    try:
        listed = files.look_again(folder)
    except OSError as other:
        return f"{other.strerror}"
    if error.errno != errno.ENOENT:
        return f"it cannot read there: {error.strerror}"
    return "another copy of it, or seen late" if listed else "the folder is empty there"


def _address() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return f"process {os.getpid()}"


@dataclass
class _Doubt:
    """A worker that has not proven that it sees the folder.

    Attributes:
        answer: What it said last.
        since: When it was asked first.
        ask_at: When it is to be asked again.
        pause: How long it was left alone before that.
    """

    answer: Answer
    since: float
    ask_at: float
    pause: float


class Sight:
    """Who sees a folder, and who does not.

    Args:
        folder: The folder, as the user named it.

    Raises:
        IncompleteError: If this process cannot write there.
    """

    def __init__(self, folder: str) -> None:
        self._folder = place(folder)
        self._file = private_names.private_name(self._folder)
        self._token = secrets.token_hex(16)
        self._patience = patience.file_wait()
        self._confirmed: set[str] = set()
        self._doubts: dict[str, _Doubt] = {}
        self._left_out: dict[str, Answer] = {}
        self._told = False
        try:
            files.write_new(self._file, self._token.encode())
        except OSError as error:
            raise disk_errors.cannot_write(self._file, error) from error

    def close(self) -> None:
        """Removes the token."""
        with contextlib.suppress(OSError):
            files.remove(self._file)

    def proof(self, confirmed: str = "") -> Proof:
        """Makes what travels with tasks.

        Args:
            confirmed: The process that is told with it that it has proven its sight.
        """
        return Proof(str(self._folder), self._file.name, self._token, confirmed)

    @property
    def is_waiting(self) -> bool:
        """Whether a worker may still prove that it sees the folder."""
        return bool(self._doubts)

    @property
    def is_clear(self) -> bool:
        """Whether every worker that was asked sees the folder."""
        return not (self._doubts or self._left_out)

    def admits(self, answer: Answer) -> bool:
        """Hears what a worker says; returns whether it is known to see the folder now."""
        worker, now = answer.worker, time.monotonic()
        if answer.process in self._confirmed or self._has_arrived(answer):
            self._confirmed.add(answer.process)
            self._doubts.pop(worker, None)
            self._left_out.pop(worker, None)
        elif worker not in self._left_out:
            doubt = self._doubts.get(worker) or _Doubt(answer, now, now, _FIRST_PAUSE)
            self._doubts[worker] = _Doubt(
                answer,
                now - self._patience if answer.final else doubt.since,
                now + doubt.pause,
                min(2 * doubt.pause, _LONGEST_PAUSE),
            )
        return answer.process in self._confirmed

    def _has_arrived(self, answer: Answer) -> bool:
        if not private_names.is_private(answer.wrote) or "/" in answer.wrote:
            return False
        with contextlib.suppress(OSError):
            files.look_again(self._folder)
            if files.read_log(self._folder / answer.wrote) == self._token.encode():
                files.remove(self._folder / answer.wrote)
                return True
        return False

    def look(self, here: Collection[str]) -> None:
        """Looks whether workers have proven their sight meanwhile, or had time enough.

        Args:
            here: The addresses of the workers that there are.

        Raises:
            IncompleteError: If no worker sees the folder.
        """
        now = time.monotonic()
        self._doubts = {worker: one for worker, one in self._doubts.items() if worker in here}
        for doubt in list(self._doubts.values()):
            self._recheck(doubt)
        late = {
            w: one.answer for w, one in self._doubts.items() if now >= one.since + self._patience
        }
        self._doubts = {w: one for w, one in self._doubts.items() if w not in late}
        self._left_out |= late
        if here and self._left_out.keys() >= set(here):
            raise IncompleteError(
                f"no worker sees {self._folder} as {socket.gethostname()} does: "
                f"{_some(self._left_out[worker] for worker in here)}. "
                f"{_REMEDIES[kind_of(self._folder)]}, or start workers elsewhere; then the same "
                "command goes on"
            )
        if late:
            log.warning(
                "left out, as they do not see %s as this host does: %s",
                self._folder, _some(late.values()),
            )  # fmt: skip
        waits = [one.answer for one in self._doubts.values() if now > one.since + _QUIET_SECONDS]
        if waits and not self._told:
            self._told = True
            log.warning(
                "waiting at most %.0f s for workers that do not see %s as this host does: %s",
                self._patience, self._folder, _some(waits),
            )  # fmt: skip

    def _recheck(self, doubt: _Doubt) -> None:
        if doubt.answer.wrote and time.monotonic() >= doubt.ask_at:
            self.admits(doubt.answer)

    def due(self) -> list[str]:
        """Lists the workers that are to be asked again now; the answer comes later."""
        now = time.monotonic()
        asked = [
            worker
            for worker, one in self._doubts.items()
            if not one.answer.wrote and now >= one.ask_at
        ]
        for worker in asked:
            self._doubts[worker].ask_at = float("inf")
        return asked

    def allowed(self, here: Collection[str]) -> list[str]:
        """Lists the workers that may be sent tasks; new ones are among them, as they are asked."""
        out = self._doubts.keys() | self._left_out.keys()
        return [worker for worker in here if worker not in out]


def _some(answers: Iterable[Answer]) -> str:
    """Lists the first few, and says how many more there are."""
    listed = [str(answer) for answer in answers]
    more = len(listed) - _MOST_NAMED
    return ", ".join(listed[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


class Sights:
    """The folders that tasks are about, each with who sees it; tokens are removed at the end."""

    def __init__(self) -> None:
        self._known: dict[str, Sight] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sight in self._known.values():
            sight.close()

    def of(self, task: Any) -> Sight | None:
        """Returns who sees the run directory of a task; ``None`` if it names none."""
        folder = getattr(task, "run", None)
        if not isinstance(folder, str):
            return None
        if folder not in self._known:
            self._known[folder] = Sight(folder)
        return self._known[folder]
