"""Clients of object stores: made as the environment says, and what stores answer as our errors."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from skerch_ooc.base.disk_errors import ReadError
from skerch_ooc.base.errors import CorruptError, UsageError
from skerch_ooc.base.patience import file_wait

_ALLOW_HTTP = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")
_YES = {"true", "1", "yes", "on"}
_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 60
_SECRET = re.compile(r"(?i)\?\S*|(authorization|credential|signature|token)[=:]\s*\S+")
_LONGEST = 300
_CREDENTIAL = re.compile(r"^(AWS|GOOGLE|AZURE)_.*(KEY|SECRET|TOKEN|SAS|PASSWORD)")
_SHORT = 5
_PREAMBLE = re.compile(r"^(Generic \w+ error|Object at location \S+ not found): ")
_TOLD = ("Code", "Message")

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
"""What stores say of a bucket that is not there."""

_NO_RIGHT = ("403 Forbidden", "401 Unauthorized", "ExpiredToken", "InvalidToken")
"""What is said where credentials lack, or are no longer good."""

_HOSTS_ROLE = ("169.254.169.254", "metadata.google.internal")
"""Where credentials are asked for that the environment does not have."""

_TRIES = re.compile(
    r"( in [\d.]+[mµu]?s)?(, after \d+ retries)?(, max_retries: \d+)?(, retry_timeout: \d+s)?"
)
"""What a client says of its last try; how long it has tried in all is another matter."""

_PAGE = re.compile(rb"\s*(<!doctype html|<html)\b", re.IGNORECASE)
"""How a web page begins; no file of a run but the report does."""

_RETRIES = re.compile(r"after (\d+) retries")
"""How often a client has tried again by itself."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")


FINAL = re.compile(r"status code: 4(?!08|09|29)\d\d|builder error")
"""What a store, or its client, says again however often it is asked."""


def client_of(root: str) -> Any:
    """Makes the client of a bucket, with the credentials and endpoint of the environment.

    Raises:
        UsageError: If ``obstore`` is not installed, or the environment does not suit it.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise UsageError(
            f"{root} is in an object store, which takes obstore, and {error}; install it with: "
            "pip install 'skerch_ooc[object-store]'"
        ) from error
    allowed = any(os.environ.get(name, "").lower() in _YES for name in _ALLOW_HTTP)
    for variable in _ENDPOINTS:
        _require_address(variable, root, plain=allowed)
    patience = max(file_wait(), 1.0)
    backoff: Any = {
        "init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2,
    }  # fmt: skip
    options: Any = {
        "timeout": timedelta(seconds=min(_ANSWER_SECONDS, patience / 2)),
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        # Options that are given take the place of all that the environment says of them.
        "allow_http": allowed,
    }
    # S3 copies on a condition only as an upload of one part, which is finished on that condition.
    config: Any = {"copy_if_not_exists": "multipart"} if root.startswith("s3:") else {}
    try:
        return from_url(
            root,
            config=config,
            client_options=options,
            retry_config={
                "max_retries": 20, "backoff": backoff, "retry_timeout": timedelta(seconds=patience),
            },
        )  # fmt: skip
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{root} cannot be used: {words_of(error)}; give credentials and endpoint by the "
            "environment"
        ) from None


def _require_address(variable: str, root: str, *, plain: bool) -> None:
    """Refuses an endpoint of which the client would make none.

    Raises:
        UsageError: If a variable is set that names no address, or one of plain http unasked.
    """
    said = os.environ.get(variable)
    if said is None:
        return
    try:
        parts = urlsplit(said)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"{variable} is no address of a store; give https://HOST or https://HOST:PORT, or "
            "unset it"
        )
    if parts.scheme == "http" and not plain:
        allowing = "AZURE_ALLOW_HTTP" if root.startswith("az:") else "AWS_ALLOW_HTTP"
        raise UsageError(
            f"{variable} is an address of plain http, which sends all in the clear; give one of "
            f"https, or allow it with {allowing}=true"
        )


def words_of(error: BaseException) -> str:
    """Returns what a store answered, in one line, without what may be a secret."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    # What else a store tells in such an answer may name the key, or what was signed by it.
    told = [found[1] for tag in _TOLD if (found := re.search(f"<{tag}>(.*?)</{tag}>", text))]
    text = _PREAMBLE.sub("", f"{text.partition('<')[0]}{': '.join(told)}")
    text = _TRIES.sub("", text).replace(":)", ")")
    for name, value in os.environ.items():
        if _CREDENTIAL.search(name) and len(value) > _SHORT:
            text = text.replace(value, f"({name})")
    text = _SECRET.sub("", text).strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


@dataclass
class Tries:
    """How often a store was asked for one thing, and why that failed.

    Attributes:
        made: How many tries there were, those of the client counted.
        failed: What was said of those that others followed.
    """

    made: int = 0
    failed: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what is tried inside."""
        try:
            yield
        except Exception as error:
            retries = _RETRIES.search(str(error))
            self.made += 1 + (int(retries[1]) if retries else 0)
            raise

    def told(self, error: OSError) -> OSError:
        """Adds to an error how many tries there were, and what else they failed for."""
        if self.made <= 1 or error.errno is None:
            return error
        last = error.strerror or ""
        others = [words for words in dict.fromkeys(self.failed) if words != last]
        also = f", before that: {'; '.join(others)}" if others else ""
        return type(error)(error.errno, f"{last} (the last of {self.made} tries{also})",
                           error.filename)  # fmt: skip


@contextlib.contextmanager
def explained(name: str, *, reading: bool) -> Iterator[None]:
    """Makes errors of the system of those of ``obstore``, whose own texts may name a key.

    Raises:
        CorruptError: If an object has changed while it was read.
        OSError: If it is not there, is there already, or the store refuses or does not answer.
    """
    from obstore import exceptions

    try:
        yield
    except exceptions.AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, "there is an object of this name", name) from None
    except exceptions.PreconditionError:
        raise CorruptError(
            f"{name} was replaced while it was read; run the same command again"
        ) from None
    except (exceptions.BaseError, OSError) as error:
        words = words_of(error)
        kind = ReadError if reading else OSError
        if any(one in words for one in _HOSTS_ROLE):
            why = "there are no credentials in the environment, and this host gives none"
            raise kind(errno.EACCES, why, name) from None
        if any(one in words for one in _NO_BUCKET):
            raise kind(errno.ENXIO, f"there is no such bucket ({words})", name) from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, words, name) from None
        if isinstance(error, _refusals()) or any(one in words for one in _NO_RIGHT):
            raise kind(errno.EACCES, f"the store refuses ({words})", name) from None
        raise kind(errno.EIO, words, name) from None


def require_no_page(name: str, content: bytes) -> None:
    """Refuses a web page in the place of an object.

    Raises:
        ReadError: If it is one; it says how it begins.
    """
    page = _PAGE.match(content[:_LONGEST])
    if page and not name.endswith(".html"):
        why = f"the store answered with a web page, which begins with {page[1].decode()!r}"
        raise ReadError(errno.EPROTO, why, name)


def _refusals() -> tuple[type[Exception], ...]:
    from obstore import exceptions

    return exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError
