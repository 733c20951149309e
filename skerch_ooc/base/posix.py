"""Files on a POSIX file system: publishing by links, syncing, logs of lines, listing."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.private_names import private_name

log = logging.getLogger("skerch_ooc")

_LONGEST_LINE = 1024**2
"""Most bytes of a line of a log; this package writes no longer ones."""

_NO_HARD_LINKS = {
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK,
    errno.EXDEV, errno.EINVAL,
}  # fmt: skip
"""What file systems without hard links answer, be they of FUSE, SMB, 9p or in layers."""

_NO_SYNC_OF_FOLDERS = {
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES,
}  # fmt: skip
"""What file systems answer that keep entries of folders by other means, or not at all; and what is
answered for a folder that may be used, but not read."""

_noted: set[str] = set()


def fill_closed_streams() -> None:
    """Opens the null device for standard streams that this process was started without.

    Else the next files that are opened, shards among them, would have their numbers, and would get
    what libraries write to standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is taken, which is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


class PosixStore:
    """The files of this machine; see :class:`~skerch_ooc.base.stores.Store`."""

    def put_if_absent(self, path: Path, content: bytes) -> bool:
        """Writes, syncs and publishes a file, unless its name exists already."""
        with self.private_file(path.parent) as private:
            with open(private, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            return self.publish(private, path)

    def put_new(self, path: Path, content: bytes) -> None:
        """Writes a file that must not be there; closed, it is on its way to other hosts."""
        with open(path, "xb") as file:
            file.write(content)

    def replace(self, path: Path, content: bytes) -> None:
        """Writes a file in place of an older one, atomically: readers see the old or the new."""
        with self.private_file(path.parent) as private:
            with open(private, "xb") as file:
                file.write(content)
            self.sync_file(private)
            os.replace(private, path)
        self.sync_folder(path.parent)

    @contextlib.contextmanager
    def private_file(self, folder: Path) -> Iterator[Path]:
        """Yields a private name in ``folder``; a file that still has it on exit is removed."""
        path = private_name(folder)
        try:
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def publish(self, private: Path, final: Path) -> bool:
        """Gives a complete, synced file its public name, unless that name exists already."""
        # A link fails if the name exists, where a rename would replace what is there: the file that
        # was published first, which others may have read already, stays.
        try:
            os.link(private, final)
            first = True
        except FileExistsError:
            first = False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # File systems without hard links: tasks are idempotent, so if two publish in the same
            # instant the replaced file had the same contents.
            first = not os.path.lexists(final)
            if first:
                os.rename(private, final)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(private)
        # The file itself was synced before; its new name is on the disk only once the folder is.
        self.sync_folder(final.parent)
        return first

    def read(self, path: Path) -> bytes:
        """Reads a file in whose place anything may stand; reading a pipe would never end."""
        with _plain(path, os.O_RDONLY) as file:
            return file.read()

    def lines(self, path: Path) -> Iterator[bytes]:
        """Yields the lines of a log; overlong ones are skipped, without being held in memory."""
        with _plain(path, os.O_RDONLY) as raw, io.BufferedReader(raw) as file:
            yield from _lines(file)

    def append(self, path: Path, line: bytes) -> None:
        """Adds a line to a log in a single write, so that lines of processes do not mix."""
        with _plain(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            size = os.fstat(file.fileno()).st_size
            # A full disk or a quota may have cut the last line: this one must not continue it.
            torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            os.write(file.fileno(), b"\n" + line if torn else line)

    def names(self, folder: Path) -> list[str]:
        """Lists the names of all that is in a folder."""
        return os.listdir(folder)

    def folders(self, folder: Path) -> list[Path]:
        """Lists the folders in a folder, in order; none if it is gone."""
        # Not by glob, which finds a folder empty if it may not be read.
        try:
            return sorted(path for path in folder.iterdir() if path.is_dir())
        except FileNotFoundError:
            return []

    def versions(self, folder: Path, names: Iterable[str]) -> dict[str, list[object]]:
        """Returns the size and the time of each file that is there."""
        found: dict[str, list[object]] = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(f"{folder}/{name}")
                found[name] = [status.st_size, status.st_mtime_ns]
        return found

    def sizes(self, folder: Path) -> dict[str, int]:
        """Returns the bytes of all that is in a folder."""
        found = {}
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                found[name] = os.lstat(f"{folder}/{name}").st_size
        return found

    def is_taken(self, path: Path) -> bool:
        """Whether a name is taken, even by a link that leads nowhere."""
        return os.path.lexists(path)

    def lacks_folder(self, folder: Path) -> bool:
        """Whether a folder is not there."""
        return not folder.is_dir()

    def size(self, path: Path) -> int:
        """Returns the bytes of a file; 0 if it is gone, or its status cannot be read."""
        try:
            return os.lstat(path).st_size
        except OSError:
            return 0

    def status(self, path: Path) -> tuple[int, int, object]:
        """Returns its size, when it was written, and its number and the time of its last change."""
        found = path.stat()
        # The time of the last change of its entry tells of all that is written to it.
        return found.st_size, found.st_mtime_ns, (found.st_ino, found.st_ctime_ns)

    def require_regular(self, path: Path) -> None:
        """Refuses a link, folder or device in the place of a file."""
        regular_status(path)

    def make_folder(self, path: Path) -> None:
        """Makes a folder, and the folders above it; their entries are synced."""
        missing = [one for one in (path, *path.parents) if not one.exists()]
        path.mkdir(parents=True, exist_ok=True)
        # Files would be lost in a power failure together with a folder above them. The entry of one
        # that is there already is synced too: who made it may have been killed before.
        for made in missing or [path]:
            self.sync_folder(made.parent)

    def as_given(self, path: Path) -> Path:
        """Makes a path absolute and resolves no link: other hosts may know it only by this name."""
        if path.is_absolute():
            return path
        # The shell remembers by which links the current folder was reached; the system does not.
        said = os.environ.get("PWD", "")
        with contextlib.suppress(OSError):
            if os.path.isabs(said) and os.path.samefile(said, "."):
                return Path(said) / path
        return path.absolute()

    def sync_file(self, path: Path) -> None:
        """Waits until the bytes of a file, or the entries of a folder, are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """Waits until the entries of a folder are on the disk.

        Where the file system refuses that for folders, it is noted once and the work goes on: all
        that it takes away is what is promised for a power failure.
        """
        try:
            self.sync_file(folder)
        except OSError as error:
            if error.errno not in _NO_SYNC_OF_FOLDERS:
                raise
            _note_unsynced(error.strerror or str(error), folder)


def inode_of(path: Path) -> int | None:
    """Returns the number of a file or folder on its disk; ``None`` if it cannot be looked at."""
    try:
        return path.stat().st_ino
    except (OSError, ValueError):
        return None


def regular_status(path: Path) -> os.stat_result:
    """Returns the status of a plain file.

    Raises:
        CorruptError: If a link, folder or device stands in its place.
        FileNotFoundError: If nothing is there.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CorruptError(
            f"{path} is not a plain file (a link, folder or device stands in its place); "
            "put the file itself there, or remove it and run the stage that makes it again"
        )
    return status


def _note_unsynced(reason: str, folder: Path) -> None:
    if reason in _noted:
        return
    _noted.add(reason)
    log.warning(
        "the system does not sync folders such as %s (%s): after a power failure the last files "
        "may be missing; the same command then makes them again",
        folder.absolute(),
        reason,
    )


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) <= _LONGEST_LINE:
            yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)


@contextlib.contextmanager
def _plain(path: Path, flags: int) -> Iterator[io.FileIO]:
    """Opens a plain file; follows no link, and never waits for the other end of a pipe."""
    # Without O_NONBLOCK, opening a pipe that stands in the place of the file would block for ever.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        yield file
