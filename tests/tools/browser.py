"""A headless Chromium, spoken to by the DevTools protocol over two pipes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0


def program() -> str | None:
    """The browser that is installed here."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one page.

    Args:
        process: The browser.
        commands: Where it reads.
        answers: Where it writes.

    Attributes:
        complaints: What was written to its console, or could not be loaded.
    """

    def __init__(self, process: subprocess.Popen, commands: int, answers: int) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self._numbers = itertools.count(1)
        self._read = b""
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Shows a file, in a window of this size."""
        if self._session is None:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._until("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def violations(self, axe: str) -> list[list[str]]:
        """What axe-core has against the page: which rule, and the first element that breaks it."""
        self.evaluate(f"{axe};0")
        found = "axe.run().then(all => all.violations.map(v => [v.id, v.nodes[0].html]))"
        done = self.call(
            "Runtime.evaluate", expression=found, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"]["value"]

    def press(self, key: str) -> None:
        """Presses a key."""
        for what in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=what, key=key, code=key)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _until(self, event: str) -> None:
        while not any(seen["method"] == event for seen in self._events):
            self._message()

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 16)
            assert part, "the browser ended"
            self._read += part
        text, _, self._read = self._read.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters))
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("file:"):
                self.complaints.append(f"asks for {url}")


@pytest.fixture(scope="session")
def axe() -> str:
    """The program axe-core, which looks at a page as screen readers need it, where it is given."""
    given = os.environ.get("SKERCH_OOC_AXE")
    if given is None and os.environ.get("SKERCH_OOC_REQUIRE_CHROMIUM"):
        pytest.fail("axe-core is required here: SKERCH_OOC_AXE has to be the path of axe.min.js")
    if given is None:
        pytest.skip("SKERCH_OOC_AXE is not the path of axe-core's axe.min.js")
    return Path(given).read_text()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Browser]:
    """A browser that runs while it is entered, with its data in a folder."""
    (its_commands, commands), (answers, its_answers) = os.pipe(), os.pipe()
    options = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--remote-debugging-pipe", f"--user-data-dir={folder}",
    )  # fmt: skip
    # It reads from descriptor 3 and writes to 4.
    line = f'exec "$0" "$@" 3<&{its_commands} 4>&{its_answers}'
    found = program()
    assert found is not None
    process = subprocess.Popen(
        ["bash", "-c", line, found, *options], pass_fds=(its_commands, its_answers),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_commands)
    os.close(its_answers)
    try:
        yield Browser(process, commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser, where one is installed."""
    if program() is None and os.environ.get("SKERCH_OOC_REQUIRE_CHROMIUM"):
        pytest.fail("Chromium is required here, and is not installed")
    if program() is None:
        pytest.skip("Chromium is not installed")
    with started(tmp_path_factory.mktemp("browser")) as opened:
        yield opened
