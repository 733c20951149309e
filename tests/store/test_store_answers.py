"""What is told of answers that are none of a store: web pages in between, and failing tries."""

from __future__ import annotations

import errno
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import skerch_ooc as ooc
from skerch_ooc.base.disk_errors import ReadError
from skerch_ooc.base.object_client import Tries, require_no_page
from skerch_ooc.base.object_store import store_at

PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


class Portal(BaseHTTPRequestHandler):
    """Answers everything with a page on which people are to log in."""

    def do_GET(self):
        self.send_response(200)
        for name, value in {
            "Content-Type": "text/html", "Content-Length": str(len(PAGE)), "ETag": '"page"',
            "Last-Modified": "Sun, 01 Nov 2026 05:00:00 GMT",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(PAGE)

    do_HEAD = do_GET  # noqa: N815 (the server's name of it)

    def log_message(self, *_):
        pass


@pytest.fixture
def portal(monkeypatch):
    """The URL of a run behind a login page."""
    pytest.importorskip("obstore")
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1", "SKERCH_OOC_FILE_WAIT": "2",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield f"s3://bucket-{server.server_port}/run"
        server.shutdown()
        thread.join()


class TestWebPage:
    def test_in_the_place_of_a_plan_is_told_with_how_it_begins(self, portal):
        said = (
            r"run/plan.json: the store answered with a web page, which begins with "
            r"'<!DOCTYPE html'; look whether a proxy or a login page stands between"
        )
        with pytest.raises(ooc.IncompleteError, match=said):
            ooc.open_run(portal)

    def test_in_the_place_of_a_range_is_told_at_once(self, portal):
        store = store_at(portal.rpartition("/")[0])
        with pytest.raises(ReadError, match="answered with a web page") as caught:
            store.read_range("run/shards/a.h5", 4096, 100)
        assert caught.value.errno == errno.EPROTO

    def test_of_a_run_is_one(self):
        require_no_page("s3://bucket/run/results/default/report.html", PAGE)


class TestTries:
    def tried(self, *failures):
        tries = Tries()
        for words in failures:
            with pytest.raises(ValueError, match="after"), tries.counted():
                raise ValueError("after 3 retries")
            tries.failed.append(words)
        tries.failed.pop()
        return tries.told(OSError(errno.EIO, failures[-1], "s3://bucket/run"))

    def test_are_counted_with_those_of_the_client(self):
        assert self.tried("no answer").strerror == "no answer (the last of 4 tries)"

    def test_tell_each_other_reason_once(self):
        said = self.tried("no answer", "503", "503", "no answer").strerror
        assert said == "no answer (the last of 16 tries, before that: 503)"

    def test_of_one_are_not_counted(self):
        assert Tries(1).told(OSError(errno.EIO, "busy", "s3://bucket")).strerror == "busy"
