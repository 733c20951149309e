"""An HTTP proxy before a server of S3 that loses, repeats, delays, refuses and cuts what passes.

Which request meets which fault depends on the seed, the request, and how often the same one was
made before, and not on the order in which threads and processes make them. Requests are noted, so
that tests can count them. Some are changed, and no longer as they were signed: the server must not
check.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import unescape

Fault = Literal[
    "lost",  # done, but the connection is closed without an answer
    "reset",  # done, but the connection is reset: clients may not try again by themselves
    "broken",  # not done, and the connection is reset
    "busy",  # not done: 503; after `seconds`, if given, it may be tried again
    "slow",  # done, and answered `seconds` later
    "twice",  # done twice at once; the second answer is given
    "again",  # done and answered, and done once more `seconds` later
    "cut",  # half of what was asked for comes, and then the connection is closed
    "flipped",  # one bit of what was asked for is another
    "unconditional",  # done whatever condition was made: If-None-Match and If-Match are left out
    "late",  # a listing without what was first written in the last `seconds`
]

_CONDITIONS = {"if-none-match", "if-match"}
_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"}
_CONTENTS = re.compile(r"<Contents>.*?<Key>(.*?)</Key>.*?</Contents>", re.DOTALL)
_FOLDERS = re.compile(r"<CommonPrefixes>\s*<Prefix>(.*?)</Prefix>\s*</CommonPrefixes>", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """A request, as it is counted.

    Attributes:
        kind: ``get``, ``head``, ``list``, ``put``, ``create`` (a put on the condition that there is
            nothing), ``copy``, ``begin``, ``part`` and ``finish`` of an upload in parts,
            ``abort``, or ``delete``.
        key: The object, without its bucket; the prefix of a listing.
        range: The bytes that are asked for, as ``0-99``; empty if it is all.
    """

    kind: str
    key: str
    range: str = ""

    @classmethod
    def of(cls, method: str, path: str, headers: Any) -> Request:
        """Reads it off a request line and headers."""
        parts = urlsplit(path)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        if "list-type" in query:
            return cls("list", query.get("prefix", [""])[0])
        kind = _kind(method, query, headers)
        return cls(kind, key, headers.get("range", "").removeprefix("bytes="))


def _kind(method: str, query: dict, headers: Any) -> str:
    if "uploads" in query:
        return "begin"
    if "uploadId" in query:
        return {"PUT": "part", "POST": "finish", "DELETE": "abort"}.get(method, "parts")
    if method == "PUT" and "x-amz-copy-source" in headers:
        return "copy"
    if method == "PUT" and "if-none-match" in headers:
        return "create"
    return "delete" if "delete" in query else method.lower()


def any_request(request: Request) -> bool:
    """Of a fault that any request may meet."""
    return True


@dataclass
class Rule:
    """A fault, and which requests meet it.

    Attributes:
        fault: What happens.
        where: Whether a request may meet it.
        share: How many of those that may meet it do.
        times: How often it happens at most.
        seconds: What the fault says of it.
    """

    fault: Fault
    where: Callable[[Request], bool] = any_request
    share: float = 1.0
    times: int | None = None
    seconds: float = 0.0


@dataclass
class Answer:
    """What the server said."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class FaultyStore:
    """The proxy.

    Attributes:
        upstream: Host and port of the server.
        rules: The first one that a request meets holds. May be changed at any time.
        seed: Chooses among requests.
        endpoint: The address of the proxy.
        requests: All requests so far.
        injected: How often each fault has happened.
        closed: Whether it is over: connections that clients keep are not answered any more.
    """

    upstream: str
    rules: list[Rule]
    seed: int = 0
    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    closed: bool = False
    _written: dict[str, float] = field(default_factory=dict)
    _seen: Counter[Request] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kinds(self) -> Counter[str]:
        """How many requests of each kind there were."""
        with self._lock:
            return Counter(request.kind for request in self.requests)

    def forget(self) -> None:
        """Counts from 0 again."""
        with self._lock:
            self.requests.clear()
            self.injected.clear()

    def rule_for(self, request: Request) -> Rule | None:
        """Notes a request, and chooses what happens to it."""
        with self._lock:
            self.requests.append(request)
            self._seen[request] += 1
            for number, rule in enumerate(self.rules):
                text = f"{self.seed} {number} {request} {self._seen[request]}"
                if (
                    rule.times != 0
                    and rule.where(request)
                    and zlib.crc32(text.encode()) < rule.share * 2**32
                ):
                    rule.times = rule.times and rule.times - 1
                    self.injected[rule.fault] += 1
                    return rule
        return None

    def forward(self, line: tuple[str, str], headers: dict[str, str], body: bytes) -> Answer:
        """Lets the server do what is asked for."""
        connection = http.client.HTTPConnection(self.upstream)
        try:
            connection.request(*line, body=body, headers=headers)
            found = connection.getresponse()
            answer = Answer(found.status, found.reason, found.getheaders(), found.read())
        finally:
            connection.close()
        if line[0] in ("PUT", "POST") and answer.status < 300:
            with self._lock:
                key = unquote(urlsplit(line[1]).path).lstrip("/").partition("/")[2]
                self._written.setdefault(key, time.monotonic())
        return answer

    def without_late(self, answer: Answer, seconds: float) -> None:
        """Takes out of a listing what was first written, through this proxy, a short time ago."""
        with self._lock:
            written = dict(self._written)
        limit = time.monotonic() - seconds
        late = {key for key, when in written.items() if when > limit}

        def kept(found: re.Match, below: bool) -> str:
            name = unescape(found[1])
            if not below:
                return "" if name in late else found[0]
            inside = {key for key in written if key.startswith(name)}
            return "" if inside and inside <= late else found[0]

        text = _CONTENTS.sub(lambda found: kept(found, below=False), answer.body.decode())
        answer.body = _FOLDERS.sub(lambda found: kept(found, below=True), text).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    store: FaultyStore

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.store.closed:
            return self._close(reset=True)
        request = Request.of(self.command, self.path, self.headers)
        rule = self.store.rule_for(request) or Rule("slow")
        line = (self.command, self.path)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        if rule.fault == "unconditional":
            headers = {k: v for k, v in headers.items() if k.lower() not in _CONDITIONS}
        if rule.fault == "broken":
            return self._close(reset=True)
        if rule.fault == "busy":
            return self._busy(rule.seconds)
        answer = self.store.forward(line, headers, body)
        if rule.fault in ("lost", "reset"):
            return self._close(reset=rule.fault == "reset")
        if rule.fault == "twice":
            answer = self.store.forward(line, headers, body)
        if rule.fault == "again":
            later = threading.Timer(rule.seconds, self.store.forward, (line, headers, body))
            later.daemon = True
            later.start()
        if rule.fault == "slow":
            time.sleep(rule.seconds)
        return self._answer(answer, rule)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 (names of http.server)

    def _answer(self, answer: Answer, rule: Rule) -> None:
        if rule.fault == "late" and b"<ListBucketResult" in answer.body:
            self.store.without_late(answer, rule.seconds)
        length, sent = len(answer.body), answer.body
        if rule.fault == "flipped" and sent:
            sent = sent[:-1] + bytes([sent[-1] ^ 1])
        if self.command == "HEAD":
            length = int(dict(answer.headers).get("Content-Length", 0))
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", f"{length}")
        self.end_headers()
        self.wfile.write(sent[: length // 2] if rule.fault == "cut" else sent)
        if rule.fault == "cut":
            self._close(reset=False)

    def _busy(self, seconds: float) -> None:
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"
        headers = [("Retry-After", f"{seconds:.0f}")] if seconds else []
        self._answer(Answer(503, "Slow Down", headers, b"" if self.command == "HEAD" else body),
                     Rule("slow"))  # fmt: skip

    def _close(self, *, reset: bool) -> None:
        with contextlib.suppress(OSError):
            self.wfile.flush()
            if reset:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        if reset:
            # Else http.server shuts it down before, and no reset follows.
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that do not wait for their answer."""


@contextlib.contextmanager
def faulty_store(endpoint: str, *rules: Rule, seed: int = 0) -> Iterator[FaultyStore]:
    """Runs a proxy in this process, which also others can use.

    Args:
        endpoint: The address of the server.
        rules: Which faults happen.
        seed: Chooses which of the requests that may meet a fault do.
    """
    store = FaultyStore(urlsplit(endpoint).netloc, list(rules), seed)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.closed = True
        server.shutdown()
        server.server_close()
        thread.join()
