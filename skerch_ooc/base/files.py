"""Files and JSON in any store: publishing, checked reading, logs of lines, listing, removal."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.stores import store_of


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


def list_names(folder: Path) -> set[str]:
    """Lists the names of all that is in a folder."""
    return set(store_of(folder).names(folder))


def versions_in(folder: Path, names: Iterable[str]) -> dict[str, list[object]]:
    """Returns, for those of some files that are there, their size and time, or version."""
    return store_of(folder).versions(folder, names)


def sizes_in(folder: Path) -> dict[str, int]:
    """Returns the bytes of each file in a folder, by its name."""
    return store_of(folder).sizes(folder)


def sync_file(path: Path) -> None:
    """Waits until the bytes of a file, or the entries of a folder, are durable."""
    store_of(path).sync_file(path)


def sync_folder(folder: Path) -> None:
    """Waits until the entries of a folder are durable, where the file system does that."""
    store_of(folder).sync_folder(folder)


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
        private: The finished file, as :func:`private_file` named it. It is gone afterwards.
        final: The name under which others will find it.

    Returns:
        Whether this call published the file: the first publication wins, later ones are dropped.
    """
    return store_of(final).publish(private, final)


def private_file(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """Yields a private path for a file of ``folder``; a file that is still there is removed."""
    return store_of(folder).private_file(folder)


def is_there(path: Path) -> bool:
    """Whether a file or folder is there."""
    return path.exists()


def is_readable(path: Path) -> bool:
    """Whether a path leads to a file that this process may read."""
    return path.is_file() and os.access(path, os.R_OK)


def is_taken(path: Path) -> bool:
    """Whether a name is taken, even by a link that leads nowhere."""
    return store_of(path).is_taken(path)


def folders_in(folder: Path) -> list[Path]:
    """Lists the folders in a folder, in order; none if it is gone.

    Raises:
        OSError: If it cannot be read.
    """
    return store_of(folder).folders(folder)


def lacks_folder(folder: Path) -> bool:
    """Whether a folder, without which no file can be written there, is not there."""
    return store_of(folder).lacks_folder(folder)


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    return path.is_dir()


def size_of(path: Path) -> int:
    """Returns the bytes of a file; 0 if it is gone, or its status cannot be read."""
    return store_of(path).size(path)


def written_at(path: Path) -> int:
    """Returns when a file was written, in nanoseconds since the epoch.

    Raises:
        FileNotFoundError: If it is not there.
    """
    return store_of(path).status(path)[1]


def mark_of(path: Path) -> tuple[object, ...] | None:
    """Returns what tells a file from one that replaces it; ``None`` if it is not there."""
    try:
        return store_of(path).status(path)
    except FileNotFoundError:
        return None


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
    store_of(path).make_folder(path)


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    path.unlink(missing_ok=True)


def as_given(path: Path) -> Path:
    """Makes a path absolute and resolves no link: other hosts may know it under this name only."""
    return store_of(path).as_given(path)


def look_again(folder: Path) -> list[str]:
    """Lists a folder, so that a network file system refreshes what it remembers of it."""
    return store_of(folder).names(folder)


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


def publish_bytes(data: bytes, final: Path) -> bool:
    """Writes, syncs and publishes ``data`` as the file ``final``; returns as :func:`publish`."""
    return store_of(final).put_if_absent(final, data)


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that must not be there; closed, it is on its way to other hosts."""
    store_of(path).put_new(path, content)


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file in place of an older one, atomically: readers see the old or the new one."""
    store_of(path).replace(path, content)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file for people, in place of an older one."""
    replace_bytes(path, readable_json(value))


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
    return store_of(path).read(path)


def read_json_lines(path: Path) -> Iterator[Any]:
    """Yields the values in a log of JSON lines; lines that cannot be read are left out."""
    with contextlib.suppress(OSError):
        for line in store_of(path).lines(path):
            # For brackets that are nested thousands deep, json raises RecursionError.
            with contextlib.suppress(ValueError, RecursionError):
                yield json.loads(line.decode(errors="replace"))


def require_regular(path: Path) -> None:
    """Refuses a link, folder or device in the place of a plain file.

    Raises:
        CorruptError: If it is not a plain file.
        FileNotFoundError: If nothing is there.
    """
    store_of(path).require_regular(path)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line to a log, so that lines of processes do not mix.

    Raises:
        OSError: If it cannot be written, or is not a plain file.
    """
    store_of(path).append(path, json.dumps(record, sort_keys=True).encode() + b"\n")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
