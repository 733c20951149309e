"""Files: published once they are complete, read as they were written, found, locked and removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from skerch_ooc.base.errors import CorruptError, IncompleteError

PRIVATE_PREFIX = ".tmp-"
PRIVATE_NAME = re.compile(
    rf"{re.escape(PRIVATE_PREFIX)}(?P<host>.+)-(?P<pid>[1-9]\d{{0,8}})-[0-9a-f]{{8}}"
)
"""See :func:`private_name`."""

LATE_FILES_SECONDS = (0.2, 1.0)
"""Pauses before a listing is believed that lacks something: network folders show files late."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Failures that pass, or are the disk's: nothing is wrong with what was asked for."""

_LONGEST_LINE = 1024**2
"""Bytes of a line of a log; what is longer no process of ours has written."""

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that is hashed and stored: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def canonical_line(value: Any) -> bytes:
    """The content of a file that holds a value in its canonical spelling."""
    return canonical_json(value) + b"\n"


def readable_json(value: Any) -> bytes:
    """The content of a file that people may read."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_of_any(value: Any) -> str | None:
    """The digest of what was found in a file; ``None`` of what is never written, such as 1e999."""
    try:
        return digest(value)
    except (ValueError, RecursionError):
        return None


def private_name(folder: Path) -> Path:
    """A name in ``folder`` that no other process uses; listings of published files leave it out."""
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return folder / f"{PRIVATE_PREFIX}{token}"


def is_private(name: str) -> bool:
    """Whether a name is a private one: what is under it is not published."""
    return name.startswith(PRIVATE_PREFIX)


def private_files(folder: Path) -> list[str]:
    """The private names in a folder."""
    return [name for name in os.listdir(folder) if is_private(name)]


def cannot_write(path: Path | str | None, error: OSError) -> IncompleteError:
    """What to say of a file that could not be written, or not be made sure of."""
    return IncompleteError(
        f"cannot write {path or 'a file'}: {error.strerror or error}; what was published before is "
        "untouched: make room or give permission, then run the same command again"
    )


def sync_file(path: Path) -> None:
    """Waits until the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(private: Path, final: Path) -> bool:
    """Gives a complete, synced file its public name, unless that name exists already.

    Args:
        private: The finished file, in the same folder as ``final``. It is gone afterwards.
        final: The name under which others will find it.

    Returns:
        Whether this call published the file: the first publication wins, later ones are dropped.
    """
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
    sync_file(final.parent)
    return first


@contextlib.contextmanager
def private_file(folder: Path) -> Iterator[Path]:
    """Yields a private name in ``folder``; whatever is still under it at the end is removed."""
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
    """Whether a name is taken, be it by a link that leads nowhere."""
    return os.path.lexists(path)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, in order; none if it is gone.

    Listed, not globbed: a folder that may not be read is not empty.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    return path.is_dir()


def size_of(path: Path | str) -> int:
    """The bytes of a file; 0 if it is gone, or cannot be looked at."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def holds(path: Path, content: bytes) -> bool:
    """Whether a file is there and holds just these bytes.

    Raises:
        CorruptError: If something else than a plain file stands in its place.
    """
    with contextlib.suppress(FileNotFoundError):
        require_regular(path)
        return path.read_bytes() == content
    return False


def make_folder(path: Path) -> None:
    """Makes a folder, and those that it lies in, unless it is there."""
    path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    path.unlink(missing_ok=True)


def look_again(folder: Path) -> None:
    """Has a network folder look for new files, instead of remembering what was there."""
    os.listdir(folder)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Locks a file while it is entered; the file is made, with its folder, if it is not there.

    Yields:
        Whether files can be locked there.

    Raises:
        BlockingIOError: If another process has locked it.
        OSError: If it cannot be made.
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


def wait_for_files(paths: Iterable[Path]) -> list[Path]:
    """Waits a little for files that other hosts have published, until they are seen here.

    Returns:
        Those that are not there even then.
    """
    missing = list(paths)
    for pause in (*LATE_FILES_SECONDS, None):
        for folder in {path.parent for path in missing}:
            look_again(folder)
        missing = [path for path in missing if not is_taken(path)]
        if not missing or pause is None:
            break
        time.sleep(pause)
    return missing


def publish_bytes(data: bytes, final: Path) -> bool:
    """Publishes ``data`` as the file ``final``, in the same way as :func:`publish`."""
    with private_file(final.parent) as private:
        with open(private, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return publish(private, final)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that people may read, in place of an older one."""
    replace_bytes(path, readable_json(value))


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file that people may read, in place of an older one: all of it, or nothing."""
    with private_file(path.parent) as private:
        with open(private, "xb") as file:
            file.write(content)
        sync_file(private)
        os.replace(private, path)
    sync_file(path.parent)


def read_json(path: Path, spelling: Callable[[Any], bytes] | None = None) -> Any:
    """Reads a JSON file that this package wrote.

    Args:
        path: The file.
        spelling: What writes a value as it was written; any other spelling of it is damage.

    Raises:
        CorruptError: If it is not a regular file, not JSON, or spelt in another way.
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
    """The content of a file that holds a value and, beside it, the hash of it."""
    return canonical_line(value | {"sha256": digest(value)})


def read_signed(path: Path, advice: str) -> dict[str, Any]:
    """Reads what :func:`signed_line` made, and checks it.

    Args:
        path: The file.
        advice: What to say of a file that was altered, after that.

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
    """Reads a file that others may write to, or may have put anything in the place of.

    Raises:
        OSError: If it is not there, or no plain file: a pipe would keep its reader for ever.
    """
    with _plain(path, os.O_RDONLY) as file:
        return file.read()


def read_json_lines(path: Path) -> Iterator[Any]:
    """The values in a log of JSON lines, one by one; what cannot be read is left out."""
    with (
        contextlib.suppress(OSError),
        _plain(path, os.O_RDONLY) as raw,
        io.BufferedReader(raw) as file,
    ):
        for line in _lines(file):
            # Brackets within brackets, thousands deep, are no ValueError.
            with contextlib.suppress(ValueError, RecursionError):
                yield json.loads(line.decode(errors="replace"))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, but those that are longer than any that was meant."""
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) <= _LONGEST_LINE:
            yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)


@contextlib.contextmanager
def _plain(path: Path, flags: int) -> Iterator[io.FileIO]:
    """Opens a plain file; never waits for the other end of a pipe, and follows no link."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        yield file


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def require_regular(path: Path) -> os.stat_result:
    """The status of a file that must be a plain file, not a link, folder or device.

    Raises:
        CorruptError: If it is something else.
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
    """Appends one JSON line to a log, in a single write, so that processes do not mix."""
    line = json.dumps(record, sort_keys=True).encode() + b"\n"
    with _plain(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
        size = os.fstat(file.fileno()).st_size
        # After a line that was cut short, by a full disk or a quota.
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        os.write(file.fileno(), b"\n" + line if torn else line)
