"""Files and JSON: atomic publishing, checked reading, logs of lines, locks, listing, removal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError

log = logging.getLogger("skerch_ooc")

PRIVATE_PREFIX = ".tmp-"
PRIVATE_NAME = re.compile(
    rf"{re.escape(PRIVATE_PREFIX)}(?P<host>.+)-(?P<pid>[1-9]\d{{0,8}})-[0-9a-f]{{8}}"
)
"""Matches the names that :func:`private_name` makes."""

LATE_FILES_SECONDS = (0.2, 1.0)
"""Seconds to wait before a file counts as missing: network folders show new files late."""

FILE_WAIT = "SKERCH_OOC_FILE_WAIT"
"""The variable that says how many seconds to wait for files that are known to be published."""

_FILE_WAIT_SECONDS = 90.0
"""Network file systems remember for up to a minute that a file was not there."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Error numbers for which the disk is to blame (full, over quota, failing), not the request."""

_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EIO}
"""Error numbers of reading as well as of writing."""

_REMEDIES = {
    errno.EFBIG: "raise the limit of sizes of files (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "look at the disk",
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "move away what is in the place of its folder"),
    **dict.fromkeys(
        (errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.ENODEV),
        "look whether its folder is there and the disk is mounted",
    ),
}
"""What to do against errors of writing that neither room nor permission mends."""

_noted: set[str] = set()
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.S)
"""A URL as a path shows it, which leaves out the second slash."""

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


def canonical_json(value: Any) -> bytes:
    """Spells a JSON value in the one way that is hashed and stored: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def canonical_line(value: Any) -> bytes:
    """Returns the content of a file that holds a value in its canonical spelling."""
    return canonical_json(value) + b"\n"


def readable_json(value: Any) -> bytes:
    """Returns the content of a JSON file for people: indented, with sorted keys."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value in its canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_of_any(value: Any) -> str | None:
    """Returns the digest of a value that a file holds; ``None`` if it has no canonical spelling.

    Python reads 1e999 from JSON as infinity, for instance, which canonical JSON refuses.
    """
    try:
        return digest(value)
    except (ValueError, RecursionError):
        return None


def private_name(folder: Path) -> Path:
    """Makes a unique name in ``folder``, which listings of published files leave out."""
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return folder / f"{PRIVATE_PREFIX}{token}"


def is_private(name: str) -> bool:
    """Whether a name is that of an unpublished file, as :func:`private_name` makes it."""
    return name.startswith(PRIVATE_PREFIX)


def private_files(folder: Path) -> list[str]:
    """Lists the names of the unpublished files in a folder."""
    return [name for name in os.listdir(folder) if is_private(name)]


def list_names(folder: Path) -> set[str]:
    """Lists the names of all that is in a folder."""
    return set(os.listdir(folder))


def cannot_write(path: Path | str | None, error: OSError) -> IncompleteError:
    """Makes the error for a file that could not be written or synced to the disk."""
    return IncompleteError(
        f"cannot write {path or 'a file'}: {error.strerror or error}; what was published before is "
        f"untouched: {remedy(error)}, then run the same command again"
    )


def remedy(error: OSError) -> str:
    """Says what lets a file be written that could not be."""
    return _REMEDIES.get(error.errno or 0, "make room or give permission")


class ReadError(OSError):
    """A file that is there could not be read."""


def read_error(path: Path, error: OSError) -> OSError:
    """Makes the error for a file that could not be read, which names it; none that is not there."""
    if isinstance(error, (FileNotFoundError, ReadError)):
        return error
    return ReadError(error.errno, error.strerror, str(path))


def explained(error: OSError) -> IncompleteError | None:
    """Makes the error that says what could not be read or written, where the disk is to blame.

    Returns:
        The error; ``None`` if it is something else that failed.
    """
    if isinstance(error, ReadError) or (error.errno in _NO_ACCESS and _is_unreadable(error)):
        return IncompleteError(
            f"cannot read {error.filename}: {error.strerror or error}; give permission or look at "
            "the disk, then run the same command again"
        )
    if error.errno in _NO_ACCESS | NO_ROOM | {errno.EROFS}:
        return cannot_write(error.filename, error)
    return None


def _is_unreadable(error: OSError) -> bool:
    """Whether the file that an error names is there, and cannot be read."""
    if not isinstance(error.filename, (str, bytes)):
        return False
    try:
        descriptor = os.open(error.filename, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.pread(descriptor, 1, 0)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def sync_file(path: Path) -> None:
    """Waits until the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until the entries of a folder are on the disk.

    Where the file system refuses that for folders, it is noted once and the work goes on: all that
    it takes away is what is promised for a power failure.
    """
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
        _note_unsynced(error.strerror or str(error), folder)


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


def sync_tree(path: Path) -> None:
    """Waits until a folder is on the disk with all that it holds; or a file, if it is one."""
    for folder, _, inner in os.walk(path, topdown=False):
        for name in inner:
            sync_file(Path(folder, name))
        sync_folder(Path(folder))
    if path.is_file():
        sync_file(path)


def publish(private: Path, final: Path) -> bool:
    """Gives a complete, synced file its public name, unless that name exists already.

    Args:
        private: The finished file, in the same folder as ``final``. It is gone afterwards.
        final: The name under which others will find it.

    Returns:
        Whether this call published the file: the first publication wins, later ones are dropped.
    """
    # A link fails if the name exists, where a rename would replace what is there: the file that was
    # published first, which others may have read already, stays.
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
    # The file itself was synced before; its new name is on the disk only once the folder is synced.
    sync_folder(final.parent)
    return first


@contextlib.contextmanager
def private_file(folder: Path) -> Iterator[Path]:
    """Yields a private name in ``folder``; a file that still has it on exit is removed."""
    path = private_name(folder)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def is_there(path: Path) -> bool:
    """Whether a file or folder is there."""
    return path.exists()


def is_readable(path: Path) -> bool:
    """Whether a path leads to a file that this process may read."""
    return path.is_file() and os.access(path, os.R_OK)


def is_taken(path: Path) -> bool:
    """Whether a name is taken, even by a link that leads nowhere."""
    return os.path.lexists(path)


def folders_in(folder: Path) -> list[Path]:
    """Lists the folders in a folder, in order; none if it is gone.

    Raises:
        OSError: If it cannot be read.
    """
    # Not by glob, which finds a folder empty if it may not be read.
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    return path.is_dir()


def size_of(path: Path | str) -> int:
    """Returns the bytes of a file; 0 if it is gone, or its status cannot be read."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def holds(path: Path, content: bytes) -> bool:
    """Whether a file is there and holds exactly these bytes.

    Raises:
        CorruptError: If a link, folder or device stands in its place.
    """
    with contextlib.suppress(FileNotFoundError):
        require_regular(path)
        return path.read_bytes() == content
    return False


def make_folder(path: Path) -> None:
    """Makes a folder, and the folders above it, unless it is there; their entries are synced."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    # Files would be lost in a power failure together with a folder above them. The entry of one
    # that is there already is synced too: who made it may have been killed before.
    for made in missing or [path]:
        sync_folder(made.parent)


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    path.unlink(missing_ok=True)


def file_wait() -> float:
    """Returns the seconds to wait for files that other processes say they have published.

    Raises:
        UsageError: If the variable that says so is no number of seconds.
    """
    said = os.environ.get(FILE_WAIT)
    if said is None:
        return _FILE_WAIT_SECONDS
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(said)) < float("inf"):
            return seconds
    raise UsageError(f"{FILE_WAIT}={said}: must be a number of seconds, at least 0")


def as_given(path: Path) -> Path:
    """Makes a path absolute and resolves no link: other hosts may know it under this name only."""
    if path.is_absolute():
        return path
    # The shell remembers by which links the current folder was reached; the system does not.
    said = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(said) and os.path.samefile(said, "."):
            return Path(said) / path
    return path.absolute()


def require_no_url(path: Path) -> None:
    """Refuses a URL in the place of a folder: what is meant for a store would lie on this disk.

    Raises:
        UsageError: If it is one.
    """
    found = _URL.match(str(path))
    if found:
        raise UsageError(
            f"{found[1]}://{found[2]} is a URL, and a run lies in a folder; give a folder that all "
            "hosts see"
        )


def look_again(folder: Path) -> list[str]:
    """Lists a folder, so that a network file system refreshes what it remembers of it."""
    return os.listdir(folder)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock on a file; the file and its folder are made if they are not there.

    The system releases the lock when the process ends, however it ends.

    Yields:
        Whether the lock is held; ``False`` where the file system supports no locks.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the file cannot be made.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        able = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            able = False
        yield able
    finally:
        os.close(descriptor)


def looks_for_late_files() -> Iterator[bool]:
    """Yields for each look at a folder that lacks something whether it is the last; pauses between.

    Network folders show late what other hosts have published.
    """
    for pause in LATE_FILES_SECONDS:
        yield False
        time.sleep(pause)
    yield True


def publish_bytes(data: bytes, final: Path) -> bool:
    """Writes, syncs and publishes ``data`` as the file ``final``; returns as :func:`publish`."""
    with private_file(final.parent) as private:
        with open(private, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return publish(private, final)


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that must not be there; closed, it is on its way to other hosts."""
    with open(path, "xb") as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file for people, in place of an older one."""
    replace_bytes(path, readable_json(value))


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file in place of an older one, atomically: readers see the old or the new one."""
    with private_file(path.parent) as private:
        with open(private, "xb") as file:
            file.write(content)
        sync_file(private)
        os.replace(private, path)
    sync_folder(path.parent)


def read_json(path: Path, spelling: Callable[[Any], bytes] | None = None) -> Any:
    """Reads a JSON file that this package wrote.

    Args:
        path: The file.
        spelling: The function that spelt the value when it was written; a file that is spelt in any
            other way is damaged. By default the spelling is not checked.

    Raises:
        CorruptError: If it is not a plain file, not JSON, or spelt in another way.
        OSError: If it is not there, or cannot be read.
    """
    require_regular(path)
    content = path.read_bytes()
    try:
        value = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path} is not valid JSON ({error}); restore it from a copy") from error
    if spelling is not None and not _is_spelt(content, value, spelling):
        raise CorruptError(
            f"{path} was altered: it is not spelt as it was written; restore it from a copy"
        )
    return value


def _is_spelt(content: bytes, value: Any, spelling: Callable[[Any], bytes]) -> bool:
    # Values that are never written, such as 1e999, have no spelling.
    with contextlib.suppress(ValueError, RecursionError):
        return spelling(value) == content
    return False


def signed_line(value: dict[str, Any]) -> bytes:
    """Returns the content of a file that holds a value together with its SHA-256."""
    return canonical_line(value | {"sha256": digest(value)})


def read_signed(path: Path, advice: str) -> dict[str, Any]:
    """Reads a file that :func:`signed_line` made, and checks its hash.

    Args:
        path: The file.
        advice: How to mend the file; ends the message that it was altered.

    Returns:
        The value, without its hash.

    Raises:
        FileNotFoundError: If it is not there.
        CorruptError: If it was altered.
    """
    value = read_json(path, canonical_line)
    stated = value.pop("sha256", None) if isinstance(value, dict) else None
    if stated is None or stated != digest_of_any(value):
        raise CorruptError(f"{path} was altered{advice}")
    return dict(value)


def read_log(path: Path) -> bytes:
    """Reads a file that other programs write, and in whose place anything may stand.

    Raises:
        OSError: If it is not there, or not a plain file: reading a pipe would never end.
    """
    with _plain(path, os.O_RDONLY) as file:
        return file.read()


def read_json_lines(path: Path) -> Iterator[Any]:
    """Yields the values in a log of JSON lines; lines that cannot be read are left out."""
    with (
        contextlib.suppress(OSError),
        _plain(path, os.O_RDONLY) as raw,
        io.BufferedReader(raw) as file,
    ):
        for line in _lines(file):
            # For brackets that are nested thousands deep, json raises RecursionError.
            with contextlib.suppress(ValueError, RecursionError):
                yield json.loads(line.decode(errors="replace"))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file; overlong ones are skipped, without being held in memory."""
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


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def require_regular(path: Path) -> os.stat_result:
    """Returns the status of a plain file, and refuses a link, folder or device in its place.

    Raises:
        CorruptError: If it is not a plain file.
        FileNotFoundError: If nothing is there.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CorruptError(
            f"{path} is not a plain file (a link, folder or device stands in its place); "
            "put the file itself there, or remove it and run the stage that makes it again"
        )
    return status


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line to a log, in a single write, so that lines of processes do not mix.

    Raises:
        OSError: If it cannot be written, or is not a plain file.
    """
    line = json.dumps(record, sort_keys=True).encode() + b"\n"
    with _plain(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
        size = os.fstat(file.fileno()).st_size
        # A full disk or a quota may have cut the last line short: this one must not continue it.
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        os.write(file.fileno(), b"\n" + line if torn else line)
