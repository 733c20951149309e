"""Servers of object stores on this machine, for tests: each a process of its own on loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faulty_store import FaultyStore, faulty_store

KEY, SECRET = "AKIATESTSKERCHOOC0001", "test-secret-that-nobody-may-see"
"""Credentials that the servers take, and that tests search for where none may be."""

_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A server of an object store.

    Attributes:
        endpoint: Its address.
        process: Its process.
    """

    endpoint: str
    process: subprocess.Popen

    @property
    def environment(self) -> dict[str, str]:
        """What lets obstore find it."""
        return environment_of(self.endpoint)


def environment_of(endpoint: str) -> dict[str, str]:
    """What lets obstore find the S3 server at an address."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


COMMANDS = {
    # Keeps objects in memory.
    "moto": lambda port, _: ["moto.server", "-H", "127.0.0.1", "-p", f"{port}"],
    # Another program, which keeps them on the disk. It pays no heed to If-Match, and deletes
    # objects one by one only.
    "localbucket": lambda port, folder: [
        "localbucket", "--host", "127.0.0.1", "--port", f"{port}", f"{folder / 'objects'}",
    ],
}  # fmt: skip
"""Each server as a module of Python with arguments, for a port and a folder for its objects."""


@contextlib.contextmanager
def serving(kind: str, folder: Path) -> Iterator[Server]:
    """Runs a server, as yet without buckets.

    Args:
        kind: Which one; a key of `COMMANDS`.
        folder: Where it keeps what it must keep on a disk, and its log.
    """
    port = free_port()
    with open(folder / f"{kind}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *COMMANDS[kind](port, folder)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        _wait_for(server, folder / f"{kind}.log")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(server: Server, log: Path) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            urllib.request.urlopen(server.endpoint, timeout=_SECONDS).close()
            return
        except OSError:
            if server.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server did not start:\n{log.read_text()}") from None
            time.sleep(0.05)


def _new_bucket(server: Server) -> str:
    # Each test has one: clients are kept by bucket, and would lead to the server of another test.
    name = f"runs-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{server.endpoint}/{name}", method="PUT", data=b"")
    urllib.request.urlopen(request, timeout=_SECONDS).close()
    return name


def _served(kind: str, paths: pytest.TempPathFactory) -> Iterator[Server]:
    # A CI that lacks a server has not tested what it should.
    if importlib.util.find_spec(kind) is None and not os.environ.get("CI"):
        pytest.skip(f"{kind}, an S3 server for tests, is not installed")
    with serving(kind, paths.mktemp("objects")) as server:
        yield server


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server that is shared by all tests of a process."""
    yield from _served("moto", tmp_path_factory)


@pytest.fixture(scope="session")
def other_object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server by other authors, that is shared by all tests of a process."""
    yield from _served("localbucket", tmp_path_factory)


def _use(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    # What the user has set for stores of theirs would be obeyed, too.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SKERCH_OOC_FILE_WAIT", "20")
    return f"s3://{_new_bucket(server)}/run"


@pytest.fixture
def bucket(object_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a prefix in an empty bucket, which this process and its children can use."""
    return _use(object_server, monkeypatch)


@pytest.fixture
def other_bucket(other_object_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `bucket`, on the other server."""
    url = _use(other_object_server, monkeypatch)
    monkeypatch.setenv("AWS_DISABLE_BULK_DELETE", "true")
    return url


@pytest.fixture
def faulty(
    bucket: str, object_server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyStore]:
    """A proxy before `bucket`, as yet without faults; this process and its children use it."""
    with faulty_store(object_server.endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store
