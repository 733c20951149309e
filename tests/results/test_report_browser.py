"""Reports as a real browser shows them: on telephones and screens, in light and dark."""

from __future__ import annotations

import re

import pytest
from browser import axe, browser  # noqa: F401 (fixtures)
from reports import KINDS

import skerch_ooc as ooc
from skerch_ooc.results.report import numbers

pytestmark = pytest.mark.browser

HOST = "gpu-node-000123.cluster.example.org"
WIDTHS = (320, 390, 768, 1200)
SIZES = """[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect(); return Math.min(box.width, box.height) })"""
OUTSIDE = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 ||
           box.top < frame.top - 1 || box.bottom > frame.bottom + 1
  }).map(text => svg.querySelector('title').textContent + ': ' + text.textContent) })"""
COLOUR = "getComputedStyle(document.{0}).{1}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of the kinds whose figures differ most."""
    made = {}
    for kind in KINDS_SHOWN:
        folder = tmp_path_factory.mktemp("runs") / ("a run of a rather long name " * 4).strip()
        KINDS[kind](folder)
        receipts = folder / "logs/receipts.jsonl"
        host = f'"host": "{HOST}"'
        receipts.write_text(re.sub(r'"host": "[^"]*"', host, receipts.read_text()))
        made[kind] = ooc.report(ooc.open_run(folder))
    return made


KINDS_SHOWN = (
    "eigh", "complex svd", "no error test", "one entry", "tiles", "rank 1", "flat", "pairs, missed",
    "model", "grid",
)  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS_SHOWN)
def test_page_is_no_wider_than_its_window(browser, pages, kind, width):  # noqa: F811
    browser.open(pages[kind], width=width)
    sizes = "(d => [d.scrollWidth, d.clientWidth, innerWidth])(document.documentElement)"
    content, room, window = browser.evaluate(sizes)
    # Of a window with a scroll bar a little is left.
    assert (content <= room, width - 20 <= room <= window == width) == (True, True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS_SHOWN)
def test_nothing_is_asked_for_and_nothing_complained_of(browser, pages, kind, dark):  # noqa: F811
    browser.complaints.clear()
    browser.open(pages[kind], width=1200, dark=dark)
    assert browser.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS_SHOWN)
def test_screen_readers_have_what_they_need(browser, pages, axe, kind, dark):  # noqa: F811
    browser.open(pages[kind], width=390 if dark else 1200, dark=dark)
    assert browser.violations(axe) == []


SHOWN_TIPS = """[...document.querySelectorAll('.tip')].filter(
  tip => getComputedStyle(tip).visibility == 'visible').map(tip => tip.textContent)"""


def test_keyboard_reaches_one_value_after_the_other(browser, pages):  # noqa: F811
    browser.open(pages["eigh"], width=1200)
    values = ooc.recover(ooc.open_run(pages["eigh"].parents[2])).eigenvalues
    reached = []
    for _ in range(2):
        browser.press("Tab")
        reached += browser.evaluate(SHOWN_TIPS)
    said = [numbers.value(float(value), 5) for value in values[:2]]
    assert [text.partition(" ±")[0] for text in reached] == [f"1: {said[0]}", f"2: {said[1]}"]


def test_keyboard_reaches_the_tasks_of_the_timeline(browser, pages):  # noqa: F811
    browser.open(pages["eigh"], width=1200)
    browser.evaluate("document.querySelector('#figure-timeline .point').focus()")
    reached = browser.evaluate(SHOWN_TIPS)
    browser.press("Tab")
    reached += browser.evaluate(SHOWN_TIPS)
    assert [bool(re.search(r"\d s$|…$", text)) for text in reached] == [True, True]
    assert reached[0] != reached[1]


def test_value_that_is_pointed_at_is_shown(browser, pages):  # noqa: F811
    browser.open(pages["eigh"], width=1200)
    place = browser.evaluate("""(box => [box.x + box.width / 2, box.y + box.height / 2])(
      document.querySelector('.point circle').getBoundingClientRect())""")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    assert [text[:2] for text in browser.evaluate(SHOWN_TIPS)] == ["1:"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_figures_are_seen(browser, pages, width, dark):  # noqa: F811
    browser.open(pages["eigh"], width=width, dark=dark)
    sizes = browser.evaluate(SIZES)
    assert len(sizes) == 7
    assert min(sizes) > 60


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS_SHOWN)
def test_texts_of_figures_are_within_them(browser, pages, kind, width):  # noqa: F811
    browser.open(pages[kind], width=width)
    assert browser.evaluate(OUTSIDE) == []


def test_light_and_dark_are_the_readers_choice(browser, pages):  # noqa: F811
    seen = []
    for dark in (False, True):
        browser.open(pages["eigh"], width=390, dark=dark)
        wanted = [("body", "backgroundColor"), ("querySelector('figure svg .fill-blue')", "fill")]
        seen.append([browser.evaluate(COLOUR.format(*what)) for what in wanted])
    assert [a != b for a, b in zip(*seen, strict=True)] == [True, True]


def test_what_is_printed_is_light(browser, pages):  # noqa: F811
    browser.open(pages["eigh"], width=1000, dark=True)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
    assert browser.evaluate(COLOUR.format("body", "backgroundColor")) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_figure_files_are_shown_alone(browser, pages, dark):  # noqa: F811
    browser.complaints.clear()
    path = pages["eigh"].parent / "figures/spectrum.svg"
    browser.open(path, width=600, dark=dark)
    ground = browser.evaluate(COLOUR.format("documentElement", "backgroundColor"))
    assert (ground, browser.complaints) == ("rgb(26, 29, 34)" if dark else "rgb(255, 255, 255)", [])
