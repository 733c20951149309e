"""What the attacks share."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from faults import tally as tallies
from faults.attacks import Quiet
from faults.tally import Tally
from faults.zygote import Zygote

_TALLY = Tally()


@pytest.fixture
def tally() -> Tally:
    """Counts the faults that are tried."""
    return _TALLY


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks a process for each command."""
    with Zygote() as forks:
        yield forks


@pytest.fixture(scope="session")
def quiet(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """The runs as they are when nobody interferes."""
    return Quiet(zygote, tmp_path_factory.mktemp("quiet"))


class _Session:
    """Writes what was counted when the session ends."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._tests = self._failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._tests += report.when == "call"
        self._failed += report.failed
        if report.when == "teardown":
            # After each test, so that a session that is interrupted has counted too.
            _TALLY.save()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            tallies.end_session(time.monotonic() - self._start, self._tests, self._failed)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        tallies.begin_session()
    config.pluginmanager.register(_Session(), "reliability")
