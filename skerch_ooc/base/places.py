"""Places of runs: folders of this machine, and prefixes of object stores; both are paths.

An :class:`ObjectPath` is composed as every path is, so that what names files need not know where
they lie. Its methods that look at files ask the store; what only a file system can do fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from skerch_ooc.base.errors import UsageError, quoted
from skerch_ooc.base.object_store import ObjectStore, store_at

SCHEMES = ("s3", "gs", "az")
"""The object stores in which a run can lie, by the scheme of their URLs."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.S)
"""A URL, also as a path shows it, which leaves out the second slash."""

_FREE = re.compile(r"[A-Za-z0-9_.=+-]+")
"""What stores of all kinds take as it is in a name."""

_PLAIN: type[Path] = type(Path())


class ObjectPath(_PLAIN):  # type: ignore[valid-type, misc]
    """A name in an object store, with the interface of a path; made by :func:`place`."""

    __slots__ = ()

    @property
    def store(self) -> ObjectStore:
        """The store, as this process knows it."""
        return store_at(f"{self.parts[0]}//{self.parts[1]}")

    @property
    def key(self) -> str:
        """The name of the object within its bucket."""
        return "/".join(self.parts[2:])

    def __str__(self) -> str:
        first, _, rest = super().__str__().partition("/")
        return f"{first}//{rest}" if first.endswith(":") else f"{first}/{rest}".rstrip("/")

    def __fspath__(self) -> str:
        """Fails: no call of the system may take an object for a file."""
        if self.is_absolute():
            raise TypeError(f"{self} is an object of a store, not a file")
        return str(self)

    def is_absolute(self) -> bool:
        """Whether it names its bucket."""
        return len(self.parts) > 1 and self.parts[0].endswith(":")

    def absolute(self) -> ObjectPath:
        """Returns the path itself."""
        return self

    def resolve(self, strict: bool = False) -> ObjectPath:
        """Returns the path itself: stores have no links."""
        del strict
        return self

    def exists(self, **_: Any) -> bool:
        """Whether there is an object of this name, or there are some below it."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Whether there is an object of this name."""
        return self.store.status(self.key) is not None

    def is_dir(self, **_: Any) -> bool:
        """Whether there are objects below this name."""
        return self.store.has_any(self.key)

    def is_symlink(self) -> bool:
        """It never is."""
        return False

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yields the names directly below this one: of objects, and of what has some below."""
        return (self / name for name in self.store.names(self.key))

    def glob(self, pattern: str, **_: Any) -> Iterator[ObjectPath]:
        """Yields the objects whose names match; with a slash at its end, what has some below."""
        wanted = pattern.rstrip("/").split("/")
        fixed = next((i for i, one in enumerate(wanted[:-1]) if set(one) & set("*?[")), None)
        start = self.joinpath(*wanted[: len(wanted) - 1 if fixed is None else fixed])
        depth = len(self.parts)
        found = {
            path.parts[depth : depth + len(wanted)]
            for path in map(start.joinpath, self.store.keys(start.key))
            if len(path.parts) - depth >= len(wanted) + pattern.endswith("/")
            if pattern.endswith("/") or len(path.parts) - depth == len(wanted)
        }
        for parts in sorted(found):
            if all(map(fnmatchcase, parts, wanted)):
                yield self.joinpath(*parts)

    def read_bytes(self) -> bytes:
        """Returns the content of the object."""
        return self.store.read(self.key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, "there is no such object", str(self))
        self.store.delete(self.key)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Does nothing: stores have no folders."""


def place(given: str | os.PathLike[str]) -> Path:
    """Returns the path of a run directory, or of a file in one, that a user or a task names.

    Args:
        given: A folder; or the URL of a prefix, such as ``s3://bucket/runs/hessian``.

    Raises:
        UsageError: If it is a URL of which no run directory can be made.
    """
    if isinstance(given, ObjectPath):
        return given
    found = _URL.fullmatch(str(given))
    if found is None:
        return Path(given)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return Path("/" + unquote(rest).lstrip("/"))
    return _object_path(scheme, rest.rstrip("/"))


def _object_path(scheme: str, rest: str) -> ObjectPath:
    url = f"{scheme}://{rest}"
    allowed = ", ".join(f"{one}://BUCKET/PREFIX" for one in SCHEMES)
    if scheme not in SCHEMES:
        raise UsageError(
            f"{_without_secrets(url)} is a URL that no run can lie at; give a folder that all "
            f"hosts see, or an object store: {allowed}"
        )
    if "#" in rest:
        raise UsageError(f"{_without_secrets(url)}: '#' cannot be part of a name; leave it out")
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise UsageError(
            f"{_without_secrets(url)}: a run directory is named without credentials or options; "
            "give these by the environment, as the store's own tools take them"
        )
    parts = rest.split("/")
    strange = [part for part in parts[1:] if not _FREE.fullmatch(part) or set(part) == {"."}]
    if len(parts) < 2 or not all(parts):
        raise UsageError(f"{url}: give a prefix in the bucket, such as {scheme}://BUCKET/runs/NAME")
    if strange:
        raise UsageError(
            f"{url}: {strange[0]!r} cannot be part of a name; give letters, digits and _.=+-"
        )
    return ObjectPath(f"{scheme}:", *parts)


def _without_secrets(url: str) -> str:
    """Returns a URL for a message: without what may be a password or a token."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def is_object(path: Path) -> bool:
    """Whether a path is that of an object."""
    return isinstance(path, ObjectPath)


def kind_of(path: Path) -> str:
    """Returns what hosts must have in common to see a path: the folder, or the bucket."""
    return "bucket" if is_object(path) else "folder"


def removal(path: Path, *, below: bool = False) -> str:
    """Returns the command by which a user removes a file, or a folder with all that is below."""
    return f"{'skerch-ooc rm' if is_object(path) else 'rm'}{' -r' * below} {quoted(path)}"
