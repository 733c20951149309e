"""Listing and removing the files of a run safely, for ``clean``: plain files in real folders.

A run directory may come from a stranger. Folders are opened one inside the other, a link in the
place of a folder is not followed, and a file is removed only from the folder in which it was found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from skerch_ooc.base.disk_errors import cannot_write
from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.base.files import sync_file, sync_folder
from skerch_ooc.base.private_names import is_private
from skerch_ooc.store.names import FOLDERS, LOGS, RESULTS, SKETCH, FileKind, Folder, kind_of

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_FOLDER = (FileNotFoundError, NotADirectoryError)
_PLACES: tuple[Folder, ...] = ((), *((name,) for name in FOLDERS), (LOGS, "slurm"))
_WITH_FOLDERS: tuple[Folder, ...] = ((SKETCH,), (RESULTS,), (LOGS, "slurm"))


@dataclass(frozen=True)
class Entry:
    """A plain file of a run.

    Attributes:
        folder: The folders that lead to it, from the run directory.
        name: Its name.
        size: Its bytes.
        written: When it was last written, in seconds since the epoch.
        mark: Device, inode, size and time, by which a file that replaced this one is noticed.
    """

    folder: Folder
    name: str
    size: int
    written: float
    mark: tuple[int, ...]

    @property
    def path(self) -> str:
        """Its path within the run."""
        return "/".join((*self.folder, self.name))

    @cached_property
    def kind(self) -> FileKind | None:
        """The kind of file, by name and folder; ``None`` if it is none of this package's."""
        return kind_of(self.folder, self.name)

    @property
    def is_private(self) -> bool:
        """Whether it is unpublished: a process still writes it, or was killed before."""
        return is_private(self.name)


@dataclass(frozen=True)
class Inventory:
    """The files in the folders of a run.

    Attributes:
        entries: The plain files.
        others: Paths of all that is neither a plain file nor a folder: links, devices.
        folders: The folders that were listed.
    """

    entries: list[Entry]
    others: list[str]
    folders: list[Folder]

    def inside(self, folder: Folder) -> list[Entry]:
        """Returns the plain files of one folder."""
        return [entry for entry in self.entries if entry.folder == folder]

    def below(self, folder: Folder) -> list[Folder]:
        """Returns the folders directly below one."""
        return [one for one in self.folders if one[:-1] == folder]


def take_inventory(directory: Path) -> Inventory:
    """Lists the files of a run, in the folders in which it has any."""
    inventory = Inventory([], [], [])
    inner = {place: _scan(directory, place, inventory) for place in _PLACES}
    for place in _WITH_FOLDERS:
        for name in inner[place]:
            _scan(directory, (*place, name), inventory)
    return inventory


@contextlib.contextmanager
def _opened(directory: Path, folder: Folder) -> Iterator[int]:
    """Opens a folder of a run through no link; yields its descriptor."""
    # Each folder is opened relative to the one above it: by path, a folder that somebody replaces
    # with a link in between would lead to files outside the run.
    descriptor = os.open(directory, _FLAGS)
    try:
        for depth, name in enumerate(folder, 1):
            inner = _inner(descriptor, name, directory.joinpath(*folder[:depth]))
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _inner(descriptor: int, name: str, path: Path) -> int:
    try:
        return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(error.errno, error.strerror, str(path)) from error
        # The system names it relative to the folder above.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _statuses(directory: Path, folder: Folder) -> list[tuple[str, os.stat_result]]:
    found = []
    # A link in the place of a folder is no entry here; the listing of the folder above has it.
    with contextlib.suppress(*_NO_FOLDER), _opened(directory, folder) as descriptor:
        for name in sorted(os.listdir(descriptor)):
            with contextlib.suppress(FileNotFoundError):
                found.append((name, os.stat(name, dir_fd=descriptor, follow_symlinks=False)))
    return found


def _scan(directory: Path, folder: Folder, inventory: Inventory) -> list[str]:
    """Adds the files of a folder to the inventory; returns the names of the folders in it."""
    inventory.folders.append(folder)
    inner = []
    for name, status in _statuses(directory, folder):
        if stat.S_ISREG(status.st_mode):
            inventory.entries.append(_entry(folder, name, status))
        elif stat.S_ISDIR(status.st_mode):
            inner.append(name)
        else:
            inventory.others.append("/".join((*folder, name)))
    return inner


def _entry(folder: Folder, name: str, status: os.stat_result) -> Entry:
    return Entry(folder, name, status.st_size, status.st_mtime, _mark(status))


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def make_durable(directory: Path, inventory: Inventory, entries: Iterable[Entry]) -> None:
    """Waits until published files are on the disk, before others are removed on their account.

    Whoever published them has done so, unless it was killed in between: then they are there, and
    would be gone after a power failure.

    Args:
        directory: The run directory.
        inventory: The files of the run, and its folders, which are synced too.
        entries: The files.

    Raises:
        IncompleteError: If the system cannot write them.
    """
    try:
        for entry in entries:
            # One that was replaced or removed meanwhile is the affair of whoever did that.
            with contextlib.suppress(FileNotFoundError):
                sync_file(directory / entry.path)
        for folder in inventory.folders:
            with contextlib.suppress(*_NO_FOLDER):
                sync_folder(directory.joinpath(*folder))
        sync_folder(directory.absolute().parent)
    except OSError as error:
        raise cannot_write(error.filename or directory, error) from error


def remove_entries(directory: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Removes files in the given order, and then the folders of sketches that are empty.

    Args:
        directory: The run directory.
        entries: The files; one that was replaced since it was listed is left alone.

    Returns:
        The files that were removed.

    Raises:
        IncompleteError: If a file cannot be removed.
    """
    removed: list[Entry] = []
    for folder, group in groupby(entries, key=lambda entry: entry.folder):
        try:
            with _opened(directory, folder) as descriptor:
                removed += [entry for entry in group if _remove_one(directory, descriptor, entry)]
        except _NO_FOLDER:
            continue
    for folder in {entry.folder for entry in removed}:
        if len(folder) == 2 and folder[0] == SKETCH:
            _remove_empty(directory, folder)
    return removed


def _remove_one(directory: Path, descriptor: int, entry: Entry) -> bool:
    try:
        status = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or _mark(status) != entry.mark:
            return False
        os.unlink(entry.name, dir_fd=descriptor)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise IncompleteError(
            f"cannot remove {directory / entry.path}: {error.strerror}; what comes before it is "
            "removed: give permission, then run the same command again"
        ) from error
    return True


def _remove_empty(directory: Path, folder: Folder) -> None:
    with contextlib.suppress(OSError), _opened(directory, folder[:-1]) as descriptor:
        os.rmdir(folder[-1], dir_fd=descriptor)
