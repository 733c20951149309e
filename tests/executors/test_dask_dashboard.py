"""Where work of Dask can be watched is said as far as somebody answers there."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from skerch_ooc.executors.dask import _watched

BOKEH = b"<html><head><title>Dask: Status</title></head></html>"
NO_BOKEH = b"<p>Dask needs bokeh>=3.1.0 for the dashboard.</p>"


@contextlib.contextmanager
def page(content):
    """A server of one page; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if content else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/status"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("content", "said"),
    [(BOKEH, "; dashboard {}"), (NO_BOKEH, "; for its dashboard install bokeh"), (b"", "")],
    ids=["bokeh", "no bokeh", "no page"],
)
def test_page_is_asked_for(content, said):
    with page(content) as link:
        assert _watched(SimpleNamespace(dashboard_link=link)) == said.format(link)


def test_nobody_answers():
    with page(BOKEH) as link:
        pass
    assert _watched(SimpleNamespace(dashboard_link=link)) == ""


@pytest.mark.parametrize("link", [None, "", "/user/me/proxy/8787/status"])
def test_address_is_none(link):
    assert _watched(SimpleNamespace(dashboard_link=link)) == ""


def test_scheduler_has_none():
    class Client:
        @property
        def dashboard_link(self):
            raise KeyError("dashboard")

    assert _watched(Client()) == ""
