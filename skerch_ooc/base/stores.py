"""Stores of files: a POSIX file system, or a bucket; one interface, and which store has a path."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from skerch_ooc.base.places import ObjectPath
from skerch_ooc.base.posix import PosixStore
from skerch_ooc.base.scratch import scratch_folder

_FEW = 8
"""So many objects are asked for one by one."""


class Store(Protocol):
    """Where the files of a run lie. All methods raise OSError where the system refuses."""

    def put_if_absent(self, path: Path, content: bytes) -> bool:
        """Publishes a file; returns whether this call did, as the first publication wins."""

    def put_new(self, path: Path, content: bytes) -> None:
        """Writes a small file that must not be there; raises FileExistsError if it is."""

    def replace(self, path: Path, content: bytes) -> None:
        """Writes a file in place of an older one: readers see the old or the new one."""

    def private_file(self, folder: Path) -> contextlib.AbstractContextManager[Path]:
        """Yields a private path on this machine where a file is made that is to lie in a folder."""

    def publish(self, private: Path, final: Path) -> bool:
        """Publishes a finished private file, which is gone afterwards; as `put_if_absent`."""

    def read(self, path: Path) -> bytes:
        """Reads a file; one that is no plain file is refused."""

    def lines(self, path: Path) -> Iterator[bytes]:
        """Yields the lines of a log."""

    def append(self, path: Path, line: bytes) -> None:
        """Adds a line to a log."""

    def names(self, folder: Path) -> list[str]:
        """Lists the names of all that is in a folder."""

    def folders(self, folder: Path) -> list[Path]:
        """Lists the folders in a folder, in order."""

    def versions(self, folder: Path, names: Iterable[str]) -> dict[str, list[object]]:
        """Returns, for files that are there, their size and what tells them from later ones."""

    def sizes(self, folder: Path) -> dict[str, int]:
        """Returns the bytes of each file that is in a folder."""

    def is_taken(self, path: Path) -> bool:
        """Whether there is a file of this name."""

    def lacks_folder(self, folder: Path) -> bool:
        """Whether a folder, without which no file can be written there, is not there."""

    def size(self, path: Path) -> int:
        """Returns the bytes of a file; 0 if it is gone."""

    def status(self, path: Path) -> tuple[int, int, object]:
        """Returns size, time in ns, and what tells a file from another; or FileNotFoundError."""

    def require_regular(self, path: Path) -> None:
        """Refuses what is no plain file."""

    def make_folder(self, path: Path) -> None:
        """Makes a folder, where the store has any."""

    def as_given(self, path: Path) -> Path:
        """Makes a path absolute, under the name that the user gave it."""

    def sync_file(self, path: Path) -> None:
        """Waits until a file is durable."""

    def sync_folder(self, folder: Path) -> None:
        """Waits until the entries of a folder are durable."""


class Bucket:
    """The objects of the store that a path names; see :class:`Store`.

    What was written is durable once the store has answered, and there are no folders.
    """

    def put_if_absent(self, path: ObjectPath, content: bytes) -> bool:
        """See :class:`Store`."""
        return path.store.put_if_absent(path.key, content)

    def put_new(self, path: ObjectPath, content: bytes) -> None:
        """See :class:`Store`."""
        path.store.put_new(path.key, content)

    def replace(self, path: ObjectPath, content: bytes) -> None:
        """See :class:`Store`."""
        path.store.replace(path.key, content)

    @contextlib.contextmanager
    def private_file(self, folder: ObjectPath) -> Iterator[Path]:
        """Yields a path in the folder for temporary files, from which `publish` sends it."""
        del folder
        with _POSIX.private_file(scratch_folder()) as private:
            yield private

    def publish(self, private: Path, final: ObjectPath) -> bool:
        """See :class:`Store`."""
        sent_as = final.parent / private.name
        first = final.store.put_file(private, final.key, sent_as.key)
        private.unlink(missing_ok=True)
        return first

    def read(self, path: ObjectPath) -> bytes:
        """See :class:`Store`."""
        return path.store.read(path.key)

    def lines(self, path: ObjectPath) -> Iterator[bytes]:
        """See :class:`Store`."""
        return path.store.log_lines(path.key)

    def append(self, path: ObjectPath, line: bytes) -> None:
        """See :class:`Store`."""
        path.store.append(path.key, line)

    def names(self, folder: ObjectPath) -> list[str]:
        """See :class:`Store`."""
        return folder.store.names(folder.key)

    def folders(self, folder: ObjectPath) -> list[Path]:
        """See :class:`Store`."""
        return [folder / name for name in folder.store.folders(folder.key)]

    def versions(self, folder: ObjectPath, names: Iterable[str]) -> dict[str, list[object]]:
        """See :class:`Store`."""
        wanted = {name: (folder / name).key for name in names}
        if len(wanted) <= _FEW:
            # A listing has a page for each thousand objects.
            found = folder.store.pool.map(folder.store.status, wanted.values())
            listed = {one.key: one for one in found if one is not None}
        else:
            listed = {one.key: one for one in folder.store.listed(folder.key)}
        each = ((name, listed.get(key)) for name, key in wanted.items())
        return {name: [one.size, one.version] for name, one in each if one is not None}

    def sizes(self, folder: ObjectPath) -> dict[str, int]:
        """See :class:`Store`."""
        return {one.key.rpartition("/")[2]: one.size for one in folder.store.listed(folder.key)}

    def is_taken(self, path: ObjectPath) -> bool:
        """See :class:`Store`."""
        return path.is_file()

    def lacks_folder(self, folder: ObjectPath) -> bool:
        """See :class:`Store`."""
        del folder
        return False

    def size(self, path: ObjectPath) -> int:
        """See :class:`Store`."""
        status = path.store.status(path.key)
        return 0 if status is None else status.size

    def status(self, path: ObjectPath) -> tuple[int, int, object]:
        """See :class:`Store`."""
        found = path.store.status(path.key)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path))
        return found.size, round(1e9 * found.written), found.version

    def require_regular(self, path: ObjectPath) -> None:
        """Does nothing: an object is nothing else, and one that is not there cannot be read."""

    def make_folder(self, path: ObjectPath) -> None:
        """Does nothing."""

    def as_given(self, path: ObjectPath) -> Path:
        """Returns the path itself."""
        return path

    def sync_file(self, path: ObjectPath) -> None:
        """Does nothing."""

    def sync_folder(self, folder: ObjectPath) -> None:
        """Does nothing."""


_POSIX = PosixStore()
_BUCKET = Bucket()


def store_of(path: Path) -> Store:
    """Returns the store that a path leads to."""
    return _BUCKET if isinstance(path, ObjectPath) else _POSIX  # type: ignore[return-value]
