"""Errors of disks and stores: what could not be read or written, and what to do about it."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from skerch_ooc.base.errors import IncompleteError

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

_REMEDIES_OF_STORES = {
    errno.EIO: "look whether the store can be reached, and what it says of itself",
    errno.EACCES: "give credentials that may do that by the environment",
    errno.ENXIO: "make the bucket, or name another",
    errno.EPROTO: "look whether a proxy or a login page stands between here and the store (log in, "
    "or set NO_PROXY)",
}
"""What to do where an object store could not be read or written."""


def cannot_write(path: Path | str | None, error: OSError) -> IncompleteError:
    """Makes the error for a file that could not be written or synced to the disk."""
    why = f"{error.strerror or error}"
    if "://" in str(path) and not _is_of_store(error):
        why += f" in {tempfile.gettempdir()}, where it is made first (TMPDIR names another folder)"
    return IncompleteError(
        f"cannot write {path or 'a file'}: {why}; what was published before is untouched: "
        f"{remedy(error)}, then run the same command again"
    )


def remedy(error: OSError) -> str:
    """Says what lets a file be written that could not be."""
    if _is_of_store(error):
        return _REMEDIES_OF_STORES.get(error.errno or 0, "look at the store")
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
    if isinstance(error, ReadError) and _is_of_store(error):
        return IncompleteError(
            f"cannot read {error.filename}: {error.strerror}; {remedy(error)}, then run the same "
            "command again"
        )
    if isinstance(error, ReadError) or (error.errno in _NO_ACCESS and _is_unreadable(error)):
        return IncompleteError(
            f"cannot read {error.filename}: {error.strerror or error}; give permission or look at "
            "the disk, then run the same command again"
        )
    if error.errno == errno.ENOENT and error.filename is None and _is_nowhere():
        return IncompleteError(
            f"the current folder, {os.environ.get('PWD', '.')}, was removed; change to one that is "
            "there, then run the same command again"
        )
    if error.errno in _NO_ACCESS | NO_ROOM | {errno.EROFS} or _lacks_bucket(error):
        return cannot_write(error.filename, error)
    return None


def _lacks_bucket(error: OSError) -> bool:
    return error.errno == errno.ENXIO and _is_of_store(error)


def _is_of_store(error: OSError) -> bool:
    """Whether the file that an error names is an object, which a URL names."""
    return isinstance(error.filename, str) and "://" in error.filename


def _is_nowhere() -> bool:
    """Whether the current folder is gone, which no error of the system names."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


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
