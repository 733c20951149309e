"""How far a stage is, between two reports of its tasks, too."""

from __future__ import annotations

import io
import threading
import time

import nbclient
import nbformat
import pytest

from skerch_ooc.base.progress import Lines, Meter, Stage, note_share, one_of_calls, shares_heard


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def meter_of(clock, **more):
    return Meter(Stage("measure", 100, "products", tasks=10, **more), clock)


@pytest.fixture
def clock():
    return Clock()


def test_goes_on_at_the_pace_so_far(clock):
    meter = meter_of(clock)
    clock.now = 100.0
    meter(10)
    assert meter.far == 10
    clock.now = 150.0
    assert meter.far == 15


def test_goes_at_the_foretold_pace_before_the_first_report(clock):
    meter = meter_of(clock, pace=0.1)
    clock.now = 50.0
    assert meter.far == 5


def test_stays_where_nothing_is_known(clock):
    meter = meter_of(clock)
    clock.now = 1e6
    assert meter.far == 0


@pytest.mark.parametrize(("parallel", "most"), [(1, 19.5), (4, 48)])
def test_never_ends_the_tasks_at_work_by_time_alone(clock, parallel, most):
    meter = meter_of(clock, parallel=parallel)
    clock.now = 10.0
    meter(10)
    clock.now = 1e6
    assert meter.far == pytest.approx(most)


def test_the_last_task_is_never_done_by_time_alone(clock):
    meter = meter_of(clock, parallel=4)
    clock.now = 10.0
    meter(90)
    clock.now = 1e6
    assert meter.far < 100


def test_goes_by_what_the_process_says_it_has_computed(clock):
    meter = meter_of(clock)
    clock.now = 10.0
    meter.computed(12.5)
    assert meter.far == 12.5
    meter(10)
    assert meter.far == pytest.approx(12.5)


def test_never_goes_back(clock):
    meter = meter_of(clock, pace=1.0)
    clock.now = 9.0
    assert meter.far == 9
    clock.now = 1000.0
    meter(5)
    assert meter.far == 9


def test_stage_whose_units_are_reported_one_by_one_goes_by_reports(clock):
    meter = Meter(Stage("verify", 100, "files", pace=1.0), clock)
    clock.now = 50.0
    assert meter.far == 0


def test_text_speaks_of_whole_units(clock):
    meter = meter_of(clock)
    clock.now = 10.0
    meter.computed(12.5)
    assert meter.said().startswith("12 of 100 products, 0 of 10 tasks, ")


def test_text_does_not_take_what_is_foretold_for_seen(clock):
    meter = meter_of(clock, pace=0.1)
    clock.now = 50.0
    assert meter.said() == "5 of 100 products if at the plan's pace, 0 of 10 tasks, 15:50 left"


def test_shares_of_nested_calls_are_those_of_the_whole():
    heard = []
    with shares_heard(heard.append):
        for number in range(2):
            with one_of_calls(number, 2):
                note_share(0.5)
    assert heard == [0.25, 0.5, 0.75, 1.0]
    note_share(0.9)
    assert len(heard) == 4


def test_log_has_lines_while_no_task_reports(monkeypatch):
    monkeypatch.setattr("skerch_ooc.base.progress._LOOK_SECONDS", 0.01)
    written, enough = io.StringIO(), threading.Event()
    lines = Lines(written, every=0.0)
    say = lines.say

    def heard(text):
        say(text)
        if " of 100 products" in text:
            enough.set()

    monkeypatch.setattr(lines, "say", heard)
    with lines.entered(Stage("measure", 100, "products", tasks=2, pace=100.0)):
        assert enough.wait(20)
    before = written.getvalue()
    time.sleep(0.03)
    assert written.getvalue() == before
    assert "measure: done in" in before.splitlines()[-1]


IN_A_KERNEL = """
from skerch_ooc import terminal_progress

seen = []
shell = get_ipython()

def look(message):
    kind, text = message["header"]["msg_type"], message["content"]["data"]["text/plain"]
    seen.append((kind.partition("_")[0], text.partition(",")[0]))
    return message

shell.display_pub.register_hook(look)
progress = terminal_progress()
progress._every = 0.0
for name in ("measure", "<merge>"):
    with progress.stage(name, 2, "tiles") as advance:
        advance(1)
_ = shell.display_pub.unregister_hook(look)
"""


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq")
def test_a_notebook_has_one_line_for_each_cell_that_is_replaced(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(source)
        for source in (IN_A_KERNEL, "for said in seen: print(*said)",
                       "with progress.stage('again', 1, 'tiles'): pass")
    ]  # fmt: skip
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, printed, second = (cell.outputs for cell in notebook.cells)
    assert printed[0].text.splitlines() == [
        "display measure: 2 tiles", "update measure: 1 of 2 tiles", "update measure: done",
        "update <merge>: 2 tiles", "update <merge>: 1 of 2 tiles", "update <merge>: done",
    ]  # fmt: skip
    for outputs, said in ((first, "&lt;merge&gt;: done"), (second, "again: done")):
        (output,) = outputs
        assert output.data["text/html"].startswith(
            f'<progress value="1.000" max="1"></progress> {said}, '
        )
