"""Listing and removing the files of a run safely, for ``clean``: plain files in real folders.

A run directory may come from a stranger. Folders are opened one inside the other, a link in the
place of a folder is not followed, and a file is removed only from the folder in which it was found.
In an object store there are neither folders nor links: one listing has all, and an object is
removed if it still has the version that was listed.
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
from skerch_ooc.base.errors import IncompleteError, UsageError
from skerch_ooc.base.files import sync_file, sync_folder
from skerch_ooc.base.object_store import Listed
from skerch_ooc.base.places import ObjectPath, removal
from skerch_ooc.base.private_names import is_private
from skerch_ooc.store.names import FOLDERS, LOGS, PLAN, RESULTS, SKETCH, FileKind, Folder, kind_of

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
        mark: Device, inode, size and time, or size and version of an object, by which a file that
            replaced this one is noticed.
    """

    folder: Folder
    name: str
    size: int
    written: float
    mark: tuple[object, ...]

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
    if isinstance(directory, ObjectPath):
        return _take_listing(directory)
    inventory = Inventory([], [], [])
    inner = {place: _scan(directory, place, inventory) for place in _PLACES}
    for place in _WITH_FOLDERS:
        for name in inner[place]:
            _scan(directory, (*place, name), inventory)
    return inventory


def _take_listing(directory: ObjectPath) -> Inventory:
    """Lists the objects of a run that lie where files of a run do."""
    depth = len(directory.key) + 1
    entries = []
    for one in sorted(directory.store.all_below(directory.key), key=lambda one: one.key):
        *folder, name = one.key[depth:].split("/")
        entries.append(Entry(tuple(folder), name, one.size, one.written, _mark_of_object(one)))
    inner = sorted({entry.folder for entry in entries if entry.folder[:-1] in _WITH_FOLDERS})
    folders = [*_PLACES, *inner]
    return Inventory([entry for entry in entries if entry.folder in folders], [], folders)


def _mark_of_object(one: Listed) -> tuple[object, ...]:
    return one.size, one.version


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
    would be gone after a power failure. An object is durable once it is listed.

    Args:
        directory: The run directory.
        inventory: The files of the run, and its folders, which are synced too.
        entries: The files.

    Raises:
        IncompleteError: If the system cannot write them.
    """
    if isinstance(directory, ObjectPath):
        return
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
    if isinstance(directory, ObjectPath):
        return _remove_objects(directory, entries)
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


def _remove_objects(directory: ObjectPath, entries: Sequence[Entry]) -> list[Entry]:
    """Removes objects, several at once where their order does not matter."""

    def remove(entry: Entry) -> bool:
        store, key = directory.store, f"{directory.key}/{entry.path}"
        try:
            # No store removes on a condition: one that is replaced right now was looked at before.
            found = store.status(key)
            if found is None or _mark_of_object(found) != entry.mark:
                return False
            store.delete(key)
        except OSError as error:
            raise _not_removed(directory, entry, error) from error
        return True

    removed: list[Entry] = []
    # Those of one kind do not name each other.
    for _, group in groupby(entries, key=lambda entry: (entry.folder, entry.kind)):
        alike = list(group)
        gone = list(directory.store.pool.map(remove, alike))
        removed += [entry for entry, done in zip(alike, gone, strict=True) if done]
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
        raise _not_removed(directory, entry, error) from error
    return True


def _not_removed(directory: Path, entry: Entry, error: OSError) -> IncompleteError:
    return IncompleteError(
        f"cannot remove {directory / entry.path}: {error.strerror}; what comes before it is "
        "removed: give permission, then run the same command again"
    )


def _remove_empty(directory: Path, folder: Folder) -> None:
    with contextlib.suppress(OSError), _opened(directory, folder[:-1]) as descriptor:
        os.rmdir(folder[-1], dir_fd=descriptor)


def remove_named(path: Path, *, below: bool) -> int:
    """Removes an object that a message told to remove, or all that lies below a name.

    Args:
        path: The object; or what is in a run, or a run.
        below: Whether to remove also what lies below.

    Returns:
        The number of objects that were removed.

    Raises:
        UsageError: If it is a file, is not there, or lies in no run.
        OSError: If the store refuses.
    """
    if not isinstance(path, ObjectPath):
        command = removal(path, below=below)
        raise UsageError(f"{path} is in no object store; remove it with: {command}")
    store, plan = path.store, (path / PLAN.name()).key
    keys = [one.key for one in store.all_below(path.key)] if below else []
    if keys and not any((one / PLAN.name()).exists() for one in (path, *path.parents[:-2])):
        raise UsageError(
            f"{path} is in no run (there is no {PLAN.name()} above), so that nothing below is "
            "removed; look at the URL"
        )
    if not below and path.name == PLAN.name():
        raise UsageError(
            f"{path} is the plan of a run, without which all else there is of no use; remove the "
            f"run with: {removal(path.parent, below=True)}"
        )
    if path.is_file():
        keys.append(path.key)
    if not keys:
        raise UsageError(
            f"there is {'nothing below' if below else 'no object'} {path}; look at the URL"
            + ("" if below else ", or remove what lies below with -r")
        )
    # The plan goes last: until then the same command goes on.
    list(store.pool.map(store.delete, [key for key in keys if key != plan]))
    if plan in keys:
        store.delete(plan)
    return len(keys)
