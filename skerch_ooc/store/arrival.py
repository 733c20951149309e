"""Arrival: files that other processes have published, and this one does not see yet.

Network file systems show new files late, often by half a minute or a minute. A receipt names the
files that a task has published. This process waits for those that it does not see, and then names
them, with who published them: never does it go on as if nobody had made them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from skerch_ooc.base.errors import IncompleteError, counted
from skerch_ooc.base.files import is_taken, look_again, mark_of
from skerch_ooc.base.patience import FILE_WAIT, file_wait
from skerch_ooc.base.places import is_object, kind_of, place
from skerch_ooc.base.provenance import provenance
from skerch_ooc.store import names
from skerch_ooc.store.cleaned import is_cleaned
from skerch_ooc.store.rundir import Run, open_run

Result = TypeVar("Result")

log = logging.getLogger("skerch_ooc")

FILES, BY = "files", "by"
"""What a receipt says: the files, relative to the run directory, and who published them."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_QUIET_SECONDS = 5.0
_MOST_NAMED = 3


@dataclass(frozen=True)
class _Late:
    """A file that is not seen yet.

    Attributes:
        by: Who published it.
        since: When its receipt came.
    """

    by: str
    since: float


class Arrivals:
    """Waits for the files that receipts name.

    Args:
        directory: The run directory, to which the names of files are relative.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._patience = file_wait()
        self._late: dict[Path, _Late] = {}
        self._looked = 0.0
        self._told = False
        self._peaks: dict[str, int] = {}

    def record_peaks(self, run: Run, stage: str, **more: Any) -> None:
        """Records the largest memory of those whose receipts were noted, if these state it.

        Args:
            run: The run.
            stage: What they worked on.
            more: What else says which stage that was.
        """
        if self._peaks:
            peak = max(self._peaks.values())
            found = provenance(stage="workers", of=stage, peak_bytes=peak, **more)
            run.record("receipts", found | {"workers": len(self._peaks)})

    def note(self, receipt: Mapping[str, Any]) -> None:
        """Notes the files of a receipt, and looks for those of earlier ones now and then.

        Raises:
            IncompleteError: If a file has not been seen for too long.
        """
        by = str(receipt.get(BY, f"this process on {socket.gethostname()}"))
        if "peak_bytes" in receipt:
            self._peaks[by] = max(self._peaks.get(by, 0), receipt["peak_bytes"])
        for name in receipt.get(FILES, ()):
            path = self._directory / name
            if not is_taken(path):
                self._late[path] = _Late(by, time.monotonic())
        if self._late and time.monotonic() > self._looked + _LONGEST_PAUSE:
            self._look(self._patience)

    def wait(self, most: float | None = None) -> None:
        """Waits until all files are seen.

        Args:
            most: Seconds to wait, if there is less time than usual.

        Raises:
            IncompleteError: If a file is not seen after all; names it, and who published it.
        """
        patience = self._patience if most is None else min(most, self._patience)
        pause = _FIRST_PAUSE
        while self._late:
            self._look(patience)
            if self._late:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _look(self, patience: float) -> None:
        _list_again({path.parent for path in self._late})
        self._late = {path: late for path, late in self._late.items() if not is_taken(path)}
        self._looked = now = time.monotonic()
        since = min((late.since for late in self._late.values()), default=now)
        if self._late and now >= since + patience:
            raise self._not_seen(now - since)
        if not self._told and now > since + _QUIET_SECONDS:
            self._told = True
            log.warning(
                "waiting for %s that others have published and this host, %s, does not see yet: "
                "%s; at most %.0f s",
                counted(len(self._late), "file"), socket.gethostname(), self._named(), patience,
            )  # fmt: skip

    def _not_seen(self, waited: float) -> IncompleteError:
        makers = _some(dict.fromkeys(late.by for late in self._late.values()))
        return IncompleteError(
            f"{counted(len(self._late), 'published file')} cannot be seen on "
            f"{socket.gethostname()}, though {makers} published: {self._named()} (waited "
            f"{waited:.0f} s; {FILE_WAIT}=SECONDS sets how long). Look whether both hosts see the "
            f"same {kind_of(self._directory)}; what is seen is kept, and the same command goes on"
        )

    def _named(self) -> str:
        return _some(str(path) for path in self._late)


def _some(names_: Iterable[str]) -> str:
    """Lists the first few names, and says how many more there are."""
    listed = list(names_)
    more = len(listed) - _MOST_NAMED
    return ", ".join(listed[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _list_again(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            look_again(folder)


def once_seen(directory: str, find: Callable[[], Result]) -> Result:
    """Finds what a task needs, again and again until this process sees all that was published.

    The process that sent the task has seen these files, so what is missing here is only late.

    Args:
        directory: The run directory.
        find: Finds it; raises if something is missing.

    Raises:
        IncompleteError: If it is still missing after the wait.
    """
    end, pause = time.monotonic() + file_wait(), _FIRST_PAUSE
    while True:
        try:
            return find()
        except (IncompleteError, FileNotFoundError):
            if time.monotonic() >= end or is_cleaned(place(directory)):
                raise
        _list_again(_folders_of(place(directory)))
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _folders_of(directory: Path) -> list[Path]:
    own = [directory / name for name in names.FOLDERS]
    inner = [
        path for name in (names.SKETCH, names.RESULTS) for path in (directory / name).glob("*/")
    ]
    return [directory, *own, *inner]


@lru_cache(maxsize=4)
def _opened_run(directory: str, amendments: int, mark: tuple[object, ...]) -> Run:
    """Opens a run in an object store; once for all tasks that know as much of its plan."""
    del mark
    run = open_run(directory)
    if len(run.plan.amendments) < amendments:
        # Raised, so that it is looked for again.
        raise _shorter(run, amendments)
    return run


def _shorter(run: Run, amendments: int) -> IncompleteError:
    return IncompleteError(
        f"{run.directory / names.AMENDMENTS} has {len(run.plan.amendments)} of {amendments} "
        f"amendments on {socket.gethostname()}; look whether this host sees the same "
        f"{kind_of(run.directory)}"
    )


def open_grown(directory: str, amendments: int) -> Run:
    """Opens a run whose plan has at least so many amendments, as the sender of a task knows.

    Raises:
        IncompleteError: If there are fewer.
    """
    at = place(directory)
    mark = mark_of(at / names.PLAN.name()) if is_object(at) else None
    run = open_run(directory) if mark is None else _opened_run(directory, amendments, mark)
    if len(run.plan.amendments) < amendments:
        raise _shorter(run, amendments)
    return run
