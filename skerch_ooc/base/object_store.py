"""Object stores (S3, GCS, Azure) by ``obstore``: first publication, ranges, listings, logs.

Names are those of objects within a bucket. A new object is written on the condition that there is
none of its name, so the first publication wins as on a file system, and an object once published
never changes. Credentials and endpoints are those that ``obstore`` finds in the environment.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from skerch_ooc.base.disk_errors import ReadError
from skerch_ooc.base.object_client import FINAL, Tries, client_of, explained, require_no_page
from skerch_ooc.base.patience import file_wait

Result = TypeVar("Result")

RANGE_BYTES = 8 << 20
"""Bytes of a request: below, the time of an answer outweighs that of its bytes."""

THREADS = 8
"""Requests of a process that are under way at once."""

SINGLE_BYTES = 64 << 20
"""Most bytes that are written by one request; more is sent in parts, and then given its name."""

_COPY_BYTES = 5 << 30
"""Most bytes that S3 copies at once."""

_HEAD_BYTES = 1 << 16

_PAGE = 1000

_CONFLICTS = 4
"""So often an object is written that is said to be there, and is not."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_WHOLE = "non-partial response"
"""What the client says where a range was asked for and something else came."""

_LOG_SECONDS = 1.0
"""A log is written at most this often."""

_LOG_BYTES = 1 << 18
"""A log that is longer is continued in another object."""


@dataclass(frozen=True)
class Listed:
    """What a store says of an object.

    Attributes:
        key: Its name.
        size: Its bytes.
        version: What tells it from another one of its name (its ETag).
        written: When it was written, in seconds since the epoch.
    """

    key: str
    size: int
    version: str
    written: float

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Listed:
        """Makes it of what ``obstore`` says."""
        version = str(meta["e_tag"] or meta["version"] or meta["last_modified"])
        return cls(meta["path"], int(meta["size"]), version, meta["last_modified"].timestamp())


@lru_cache(maxsize=64)
def _store(root: str, pid: int) -> ObjectStore:
    # By the number of the process: connections do not survive a fork.
    del pid
    return ObjectStore(root, client_of(root))


def store_at(root: str) -> ObjectStore:
    """Returns the store of a bucket, such as ``s3://bucket``.

    Raises:
        UsageError: If ``obstore`` is not installed, or the environment does not suit it.
    """
    return _store(root, os.getpid())


@dataclass
class _Log:
    """The lines that this process has added to a log, in the object that holds the last of them."""

    key: str
    lines: bytearray = field(default_factory=bytearray)
    written: float = 0.0
    due: bool = False


class ObjectStore:
    """A bucket, as one process knows it.

    Args:
        root: Its URL.
        client: The client of ``obstore``.

    Attributes:
        root: Its URL.

    All methods raise OSError if the store refuses, or does not answer within the patience that
    ``SKERCH_OOC_FILE_WAIT`` sets; a ReadError where something was to be read.
    """

    def __init__(self, root: str, client: Any) -> None:
        self.root = root
        self._client = client
        self._logs: dict[str, _Log] = {}
        self._lock = threading.Lock()
        atexit.register(self.flush)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="object-store")
        # A thread that waits for some of the pool is none of the pool.
        self.ahead = ThreadPoolExecutor(1, thread_name_prefix="object-store-ahead")

    def name(self, key: str) -> str:
        """Returns the URL of an object."""
        return f"{self.root}/{key}"

    def put_if_absent(self, key: str, content: bytes | memoryview) -> bool:
        """Writes an object, unless there is one of its name.

        Returns:
            Whether the object is that of this call. Where the answer to a first try was lost, the
            store refuses the second one because of the first: contents are compared.
        """
        for left in reversed(range(_CONFLICTS)):
            try:
                self._put(key, content, mode="create")
                return True
            except FileExistsError:
                found = self.status(key)
                if found is not None:
                    return found.size == len(content) and self.read(key) == bytes(content)
                # Another process was about to write it, and failed after all.
                if not left:
                    raise
        raise AssertionError(_CONFLICTS)

    def put_new(self, key: str, content: bytes) -> None:
        """Writes an object that must not be there.

        Raises:
            FileExistsError: If there is one.
        """
        self._put(key, content, mode="create")

    def replace(self, key: str, content: bytes) -> None:
        """Writes an object, in the place of an older one if there is one."""
        self._put(key, content, mode="overwrite")

    def put_file(self, path: Path, key: str, private: str) -> bool:
        """Writes a file of this machine as an object, unless there is one of its name.

        Args:
            path: The file.
            key: The object.
            private: The name under which a large file is sent before.

        Returns:
            Whether the object is that of this call, as :meth:`put_if_absent`.
        """
        size = path.stat().st_size
        if size <= SINGLE_BYTES:
            return self.put_if_absent(key, path.read_bytes())
        if self.status(key) is not None:
            return False
        if size > _COPY_BYTES:
            # No store copies that much at once: if two publish it in the same minutes, a reader may
            # find it replaced by equal values, and says so.
            self._put(key, path, mode="overwrite")
            return True
        # An upload in parts knows no condition: it is made under a private name, which is copied,
        # within the store, to the public one.
        try:
            self._put(private, path, mode="overwrite")
            return self._give_name(private, key)
        finally:
            with contextlib.suppress(OSError):
                self.delete(private)

    def _give_name(self, private: str, key: str) -> bool:
        try:
            self.copy_new(private, key)
        except FileExistsError:
            # The seal of a sealed file has the hash of its time and process.
            heads = [self.read_range(one, 0, _HEAD_BYTES) for one in (private, key)]
            return heads[0] == heads[1]
        return True

    def copy_new(self, key: str, target: str) -> None:
        """Gives an object a second name.

        Raises:
            FileExistsError: If there is an object of this name.
        """
        import obstore

        copy = partial(obstore.copy, self._client, key, target, overwrite=False)
        self._ask(target, copy, reading=False)

    def _put(self, key: str, content: Any, *, mode: Any) -> None:
        import obstore

        put = partial(
            obstore.put, self._client, key, content, mode=mode,
            use_multipart=isinstance(content, Path), chunk_size=RANGE_BYTES,
            max_concurrency=THREADS,
        )  # fmt: skip
        self._ask(key, put, reading=False)

    def _ask(self, key: str, ask: Callable[[], Result], *, reading: bool) -> Result:
        """Asks the store, and again where the connection broke; see :func:`explained`.

        What is written on a condition is not sent again by ``obstore`` itself, as it cannot know
        whether the store has done it. Here whoever finds a name taken compares.
        """
        end, pause = time.monotonic() + file_wait(), _FIRST_PAUSE
        tries = Tries()
        while True:
            try:
                with explained(self.name(key), reading=reading), tries.counted():
                    return ask()
            except OSError as error:
                if _WHOLE in (error.strerror or ""):
                    self._look_for_page(key)
                over = time.monotonic() + pause > end
                if error.errno != errno.EIO or over or FINAL.search(error.strerror or ""):
                    raise tries.told(error) from None
                tries.failed.append(error.strerror or "")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _look_for_page(self, key: str) -> None:
        """Raises ReadError if a web page is answered in the place of an object's range."""
        import obstore

        with explained(self.name(key), reading=True):
            first = next(iter(obstore.get(self._client, key).stream()), b"")
        require_no_page(self.name(key), bytes(first))

    def status(self, key: str) -> Listed | None:
        """Returns what the store says of an object; ``None`` if there is none."""
        import obstore

        head = partial(obstore.head, self._client, key)
        try:
            return Listed.of(self._ask(key, head, reading=True))
        except FileNotFoundError:
            return None
        except ReadError as error:
            if error.errno != errno.EACCES and "400 " not in (error.strerror or ""):
                raise
            # The answer to such a request has no room for the reason.
            with contextlib.suppress(FileNotFoundError):
                self.read_range(key, 0, 1)
            raise

    def read(self, key: str) -> bytes:
        """Returns an object.

        Raises:
            FileNotFoundError: If there is none.
        """
        import obstore

        found = self._ask(key, lambda: bytes(obstore.get(self._client, key).bytes()), reading=True)
        require_no_page(self.name(key), found)
        return found

    def open(self, key: str, length: int) -> tuple[Listed, bytes]:
        """Returns what the store says of an object, and its first bytes, by one request.

        Raises:
            FileNotFoundError: If there is none.
        """
        import obstore

        def first() -> tuple[Listed, bytes]:
            found = obstore.get(self._client, key, options={"range": (0, length)})
            return Listed.of(found.meta), bytes(found.bytes())

        try:
            return self._ask(key, first, reading=True)
        except ReadError as error:
            if "416" not in (error.strerror or ""):
                raise
            # An object without a byte has no range.
            found = self.status(key)
            if found is None or found.size:
                raise
            return found, b""

    def read_range(self, key: str, offset: int, length: int, version: str | None = None) -> bytes:
        """Returns some bytes of an object; fewer if it ends before.

        Args:
            key: The object.
            offset: The first byte.
            length: How many.
            version: The version that it must have.

        Raises:
            FileNotFoundError: If there is none.
            CorruptError: If it has another version.
        """
        return bytes(self.read_view(key, offset, length, version))

    def read_part(self, data: memoryview, key: str, offset: int, version: str | None) -> int:
        """Reads bytes of an object by one request; returns how many there were."""
        found = self.read_view(key, offset, len(data), version)
        data[: len(found)] = found
        return len(found)

    def read_view(self, key: str, offset: int, length: int, version: str | None) -> memoryview:
        """As :meth:`read_range`, without a copy."""
        import obstore

        if length <= 0:
            return memoryview(b"")
        options: Any = {"range": (offset, offset + length)}
        if version is not None:
            options["if_match"] = version

        def part() -> memoryview:
            return memoryview(obstore.get(self._client, key, options=options).bytes())

        return self._ask(key, part, reading=True)

    def read_into(self, data: memoryview, key: str, offset: int, version: str | None) -> int:
        """Reads bytes of an object by several requests at once; returns how many there were."""
        starts = range(0, len(data), RANGE_BYTES)

        def fill(start: int) -> int:
            return self.read_part(data[start : start + RANGE_BYTES], key, offset + start, version)

        if len(starts) <= 1:
            return sum(map(fill, starts))
        return sum(self.pool.map(fill, starts))

    def delete(self, key: str) -> None:
        """Removes an object, if there is one."""
        import obstore

        with contextlib.suppress(FileNotFoundError):
            self._ask(key, partial(obstore.delete, self._client, key), reading=False)

    def copy(self, key: str, target: str) -> None:
        """Gives an object a second name; one that has this name is replaced."""
        import obstore

        self._ask(key, partial(obstore.copy, self._client, key, target), reading=False)

    def listed(self, prefix: str) -> list[Listed]:
        """Lists the objects directly below a name, in the order of their names."""
        found = self._directly_below(prefix)
        return sorted(map(Listed.of, found["objects"]), key=lambda one: one.key)

    def _directly_below(self, prefix: str) -> Any:
        import obstore

        look = partial(obstore.list_with_delimiter, self._client, f"{prefix}/")
        return self._ask(prefix, look, reading=True)

    def names(self, prefix: str) -> list[str]:
        """Lists the names directly below one: of objects, and of what has some below."""
        found = self._directly_below(prefix)
        keys = [one["path"] for one in found["objects"]] + list(found["common_prefixes"])
        return sorted(key.rstrip("/").rpartition("/")[2] for key in keys)

    def folders(self, prefix: str) -> list[str]:
        """Lists the names directly below one that have objects below themselves."""
        found = self._directly_below(prefix)["common_prefixes"]
        return sorted(key.rstrip("/").rpartition("/")[2] for key in found)

    def all_below(self, prefix: str) -> Iterator[Listed]:
        """Lists all objects below a name."""
        import obstore

        # From the first page on: where the connection breaks, later ones cannot be asked for.
        look = partial(obstore.list, self._client, f"{prefix}/", chunk_size=_PAGE)
        for page in self._ask(prefix, lambda: list(look()), reading=True):
            yield from map(Listed.of, page)

    def keys(self, prefix: str) -> list[str]:
        """Lists all that lies below a name, relative to it, in order."""
        return sorted(one.key[len(prefix) + 1 :] for one in self.all_below(prefix))

    def has_any(self, prefix: str) -> bool:
        """Whether any object lies below a name."""
        import obstore

        look = partial(obstore.list, self._client, f"{prefix}/", chunk_size=1)
        return self._ask(prefix, lambda: next(iter(look()), None), reading=True) is not None

    def append(self, key: str, line: bytes) -> None:
        """Adds a line to a log.

        A log is made of objects below its name, one for each process that has written to it. They
        are written at most once a second: the last lines of a process that is killed may be lost.
        """
        with self._lock:
            log = self._logs.get(key)
            if log is None or len(log.lines) > _LOG_BYTES:
                if log is not None and log.due:
                    self._write(log)
                token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
                log = self._logs[key] = _Log(f"{key}/{token}.jsonl")
            log.lines += line
            if not log.due:
                self._write_soon(log)

    def _write_soon(self, log: _Log) -> None:
        wait = log.written + _LOG_SECONDS - time.monotonic()
        if wait <= 0:
            self._write(log)
            return
        log.due = True
        timer = threading.Timer(wait, self._write_late, (log,))
        timer.daemon = True
        timer.start()

    def _write_late(self, log: _Log) -> None:
        with self._lock, contextlib.suppress(OSError):
            if log.due:
                self._write(log)

    def _write(self, log: _Log) -> None:
        log.written, log.due = time.monotonic(), False
        self.replace(log.key, bytes(log.lines))

    def flush(self) -> None:
        """Writes what logs of this process still hold back."""
        for log in list(self._logs.values()):
            self._write_late(log)

    def log_lines(self, key: str) -> Iterator[bytes]:
        """Yields the lines of a log, those of each process in a row."""
        self.flush()
        for content in self.pool.map(self._read_log, sorted(self.listed(key), key=_age)):
            yield from content.splitlines(keepends=True)

    def _read_log(self, one: Listed) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return self.read(one.key)
        return b""


def _age(one: Listed) -> tuple[float, str]:
    return one.written, one.key
