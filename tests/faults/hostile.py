"""What attacks with bad input share: commands in this process, searches, and folders compared.

A command here has a bounded time, no traceback, one of the designed exit codes, and a standard
output that is as strict about text as that of a terminal.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerch_ooc.cli.main import run_command_line

DESIGNED = frozenset({0, 2, 3, 4, 5})
"""Exit codes of everything but failures of the system; see :mod:`skerch_ooc.base.errors`."""

SECONDS = 60.0
"""Longer than any of these commands takes, by far, on a busy machine."""

DEEP = 100_000


class HangError(BaseException):
    """A command took too long. Not an Exception: nothing must handle it."""


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def command(folder: Path, *arguments: object, seconds: float = SECONDS) -> Done:
    """Runs the command line in this process, in a folder, in bounded time.

    What is not handled is raised here; so are warnings, which are bugs of ours.
    """
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(
        io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    with _this_process_kept(folder, out, err), _in_time(seconds), warnings.catch_warnings():
        # A scale near the end of the range is no reason to show a warning as an error here.
        warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning)
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
        code = run_command_line([str(argument) for argument in arguments])
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Done(code, *texts)


def designed(folder: Path, *arguments: object, seconds: float = SECONDS) -> Done:
    """A command that ends with one of the designed exit codes, and says why if it is not 0."""
    done = command(folder, *arguments, seconds=seconds)
    assert done.code in DESIGNED, (arguments, done)
    assert "Traceback" not in done.err
    assert done.code == 0 or done.err.strip(), arguments
    return done


@contextlib.contextmanager
def _this_process_kept(folder: Path, out: Any, err: Any) -> Iterator[None]:
    """Puts back what a command changes of the process that it runs in."""
    logger = logging.getLogger("skerch_ooc")
    before = Path.cwd(), sys.path[:], logger.handlers[:], logger.propagate
    environment = dict(os.environ)
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        here, sys.path[:], logger.handlers[:], logger.propagate = before
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise HangError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def search(check: Callable[[Any], None], strategy: st.SearchStrategy[Any], examples: int) -> None:
    """Has Hypothesis try examples, always the same ones, so that what fails can be repeated."""
    quiet = settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def attempt(value: Any) -> None:
        check(value)

    quiet(given(strategy)(attempt))()


def snapshot(folder: Path, but: Path | None = None) -> dict[str, tuple[Any, ...]]:
    """All that is in a folder, with contents and times, but for one folder inside."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        if but is not None and (path == but or but in path.parents):
            continue
        status = os.lstat(path)
        content: str | None = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        # The time of the folder that holds the run may change with private names in it.
        changed = None if but is not None and path == but.parent else status.st_mtime_ns
        found[str(path.relative_to(folder))] = (status.st_mode, changed, content)
    return found


def nested(depth: int) -> Any:
    """Lists inside each other."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    2**31,
    2**48,
    2**48 + 1,
    2**63,
    2**64,
    10**30,
    10**400,
    -(10**400),
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "x",
    "0",
    "\0",
    "\ud800",
    "\udcff",
    "../../..",
    "/etc/passwd",
    "a\nb",
    "\x1b[2J",
    "x" * 5000,
    "default",
    "file.py:make",
    [],
    {},
    [0],
    [1, 2],
    [0, 2**48],
    ["x"],
    [None, None],
    {"": 1},
    {"x": {}},
    [[]],
    [0.5, 1.5],
    nested(200),
)
"""Values that a stranger may put anywhere."""

junk = st.sampled_from(JUNK) | st.integers() | st.floats() | st.text(max_size=8)


def places(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a JSON value, inner ones too."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, child in inner:
        yield (*prefix, key)
        yield from places(child, (*prefix, key))


@dataclass(frozen=True)
class Change:
    """A change of a JSON value: where, and how.

    Attributes:
        place: A number that chooses the place.
        how: ``"replace"``, ``"remove"``, ``"add"``, ``"repeat"`` or ``"swap"``.
        value: What is put there.
    """

    place: int
    how: str
    value: Any

    def __repr__(self) -> str:
        return f"Change({self.place}, {self.how!r}, {repr(self.value)[:80]})"

    def of(self, value: Any) -> Any:
        """The changed value; the other one is left as it is."""
        changed = json.loads(json.dumps(value))
        found = list(places(changed))
        *way, last = found[self.place % len(found)]
        target = changed
        for key in way:
            target = target[key]
        if self.how == "replace":
            target[last] = self.value
        elif self.how == "remove":
            del target[last]
        elif self.how == "add" and isinstance(target, dict):
            target[str(self.value)[:50]] = self.value
        elif isinstance(target, list):
            target.append(target[last])
        else:
            other = found[(self.place // len(found)) % len(found)][-1]
            target[last] = other
        return changed


changes = st.lists(
    st.builds(
        Change,
        st.integers(0, 10**4),
        st.sampled_from(["replace"] * 4 + ["remove", "add", "repeat"]),
        junk,
    ),
    min_size=1,
    max_size=2,
)


def changed(value: Any, those: list[Change]) -> Any:
    """A JSON value after some changes."""
    for change in those:
        if list(places(value)):
            value = change.of(value)
    return value


def spelt(value: Any) -> bytes:
    """Canonical JSON as this program spells it, NaN included."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own SHA-256, as an attacker can compute it too."""
    inner = {key: content for key, content in value.items() if key != "sha256"}
    return {**inner, "sha256": hashlib.sha256(spelt(inner)).hexdigest()}


def broken_texts(text: bytes) -> st.SearchStrategy[bytes]:
    """Files that are no JSON, or of a kind that no program writes."""
    deep = b"[" * DEEP + b"]" * DEEP
    key = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    fixed = [
        b"",
        b"\0" * 64,
        b"\xff\xfe",
        b"\xef\xbb\xbf" + text,
        text[: len(text) // 2],
        text + text,
        deep,
        key,
        b"9" * 5000,
        b"-1e99999",
        b"NaN",
        b"null",
        b"[]",
        b"{}",
        b'""',
        b"1",
        text.replace(b":", b": "),
        text.replace(b"{", b'{"format":1,"format":2,', 1),
        b'{"sha256":1}',
        b"\n" * 1000,
    ]
    return st.integers(0, len(fixed) - 1).map(lambda number: _Text(fixed[number])) | st.binary(
        max_size=60
    )


class _Text(bytes):
    """Bytes that are shown by their beginning."""

    def __repr__(self) -> str:
        return f"{bytes(self[:40])!r}... ({len(self)} bytes)"
