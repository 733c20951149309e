"""What the tests share: operators that can be named by factories, and the command line."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from commands import CommandLine
from forking import served
from object_servers import (  # noqa: F401 (fixtures)
    bucket,
    faulty,
    object_server,
    other_bucket,
    other_object_server,
)
from pairwise import cover
from slurmd import empty_queue, real_python, slurm  # noqa: F401 (fixtures)

# Before any library reads them: products that are compared bit for bit, in this process and in
# those that tests start, must be made by as many threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

# Processes that tests start keep the bytecode of the package, as they do for a user: without it
# each of them compiles two hundred modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# What collecting makes is kept: looking through it again and again takes a quarter of the time.
gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Garbage is collected again, once all tests are there."""
    gc.freeze()
    gc.enable()


TOGETHER = {
    "test_bucket_": "buckets", "test_object_cache": "buckets", "test_faulty_store": "buckets",
    "test_shipping": "buckets", "/faults/": "faults", "/executors/": "executors",
}  # fmt: skip
"""By what a file's path has in it: files that are run by one process, one after the other.

They share servers that take seconds to start; and as one long group they are begun early, so that
no process is left alone with one of them in the end.
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """With ``--dist loadfile``, files that share servers count as one file."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            return next((group for part, group in TOGETHER.items() if part in path), path)

    return ByServer(config, log)


SAMPLE = "SKERCH_OOC_THOROUGH_SAMPLE"
"""A variable such as ``"1/8:SEED"``: that share of the thorough cases, another one for each seed,
is run by default too."""


def _is_drawn() -> Callable[[pytest.Item], bool]:
    """Which thorough cases are run by default, too."""
    share, _, seed = (os.environ.get(SAMPLE) or "0").partition(":")
    below = Fraction(share) * 2**32
    return lambda item: zlib.crc32(f"{seed} {item.nodeid}".encode()) < below


Marks = dict[pytest.Item, set[str]]
"""The names of each item's marks: there are tens of thousands of items, each is asked once."""


def _cases_of_tests(marks: Marks, mark: str) -> Iterator[tuple[list[pytest.Item], int]]:
    """The cases of each test that is marked so, and the number that the mark has.

    Without those that are left out by a mark of their own: others are chosen in their place.
    """
    tests: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item, names in marks.items():
        if mark in names and names.isdisjoint(("soak", "thorough")):
            tests.setdefault((item.path, item.nodeid.partition("[")[0]), []).append(item)
    for cases in tests.values():
        (number,) = cases[0].get_closest_marker(mark).args
        yield cases, number


def _leave_out(marks: Marks, item: pytest.Item, mark: str) -> None:
    item.add_marker(mark)
    marks[item].add(mark)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as soak what is thorough, and of sampled and covered tests all cases but a few."""
    marks = {item: {mark.name for mark in item.iter_markers()} for item in items}
    for item in items:
        if "soak" in marks[item]:  # A case of its own among thorough ones: takes longer.
            item.own_markers = [mark for mark in item.own_markers if mark.name != "thorough"]
            marks[item] = {mark.name for mark in item.iter_markers()}
    is_drawn = _is_drawn()
    for cases, most in _cases_of_tests(marks, "sampled"):
        by_default = {(2 * i + 1) * len(cases) // (2 * most) for i in range(most)}
        for number, item in enumerate(cases):
            if len(cases) > most and number not in by_default:
                _leave_out(marks, item, "thorough")
    for cases, together in _cases_of_tests(marks, "covered"):
        # Values are told apart by what is written of them.
        names = sorted(cases[0].callspec.params)
        values = [[repr(item.callspec.params[name]) for name in names] for item in cases]
        for number in set(range(len(cases))).difference(cover(values, together)):
            _leave_out(marks, cases[number], "thorough")
    for item in items:
        if "thorough" in marks[item] and not is_drawn(item):
            item.add_marker("soak")


@pytest.fixture
def ooc_command(tmp_path: Path) -> CommandLine:
    """The command line, run in the test's own folder by a new Python."""
    return CommandLine(tmp_path)


@pytest.fixture(scope="session")
def served_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a ``skerch-ooc`` that is forked from a process that has torch loaded."""
    with served(tmp_path_factory.mktemp("commands")) as folder:
        yield folder


@pytest.fixture(scope="session")
def forked_in(served_commands: Path) -> Callable[[Path], CommandLine]:
    """The command line in any folder, in processes of its own that need not import torch first."""
    return lambda folder: CommandLine(folder, [served_commands / "skerch-ooc"])


@pytest.fixture
def forked_command(forked_in: Callable[[Path], CommandLine], tmp_path: Path) -> CommandLine:
    """The command line, run in the test's own folder as ``forked_in`` does."""
    return forked_in(tmp_path)


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """The command line, run in the test's own folder and process."""
    from skerch_ooc.cli.main import run_command_line

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    logger = logging.getLogger("skerch_ooc")
    before = logger.handlers[:], logger.propagate
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]

    def run(*arguments: object) -> subprocess.CompletedProcess:
        capsys.readouterr()
        code = run_command_line([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    yield run
    logger.handlers[:], logger.propagate = before
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def call_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list]]:
    """Where the factories of these tests log each call (also from other processes)."""
    path = tmp_path / "calls.log"
    monkeypatch.setenv("SKERCH_OOC_TEST_LOG", str(path))

    def calls() -> list[dict]:
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    yield calls


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Operators are applied by one thread: of small products more cost what they do not gain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        yield


@pytest.fixture
def no_late_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing files are looked for once more, and not waited for: there are no other hosts."""
    monkeypatch.setattr("skerch_ooc.base.patience.LATE_FILES_SECONDS", (0.0,))


@pytest.fixture
def quick_workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers that ``ooc.Dask`` starts here are forked, and need not import torch first."""
    from workers import forked_workers

    if "call_log" in request.fixturenames:
        request.getfixturevalue("call_log")
    with forked_workers():
        yield


@pytest.fixture(scope="module", autouse=True)
def _memory_of_other_tests() -> Iterator[None]:
    """Gives back what a module's tests leave behind: promises of memory count the whole process."""
    from skerch_ooc.base.resources import release_memory

    # Nor is it looked through by each collection that a stage asks for.
    gc.collect()
    gc.freeze()
    yield
    release_memory()


_MANY_MODULES = 10
_frozen_modules = 0


@pytest.fixture(autouse=True)
def _quick_collections() -> None:
    """Leaves what is there before a test out of collections, which stages ask for.

    Most of it are modules: whenever more of them have been loaded it is done again.
    """
    global _frozen_modules
    if len(sys.modules) >= _frozen_modules + _MANY_MODULES:
        _frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Collections are as ever when Python ends."""
    gc.enable()
    gc.unfreeze()
