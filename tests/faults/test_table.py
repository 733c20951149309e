"""The page on reliability: its table is counted, and what it says was mended has a test."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from faults import tally as tallies

TESTS = Path(__file__).resolve().parent.parent
PAGE = (TESTS.parent / "docs/reliability.md").read_text()
FOUND = PAGE.partition("## Found")[2].partition("\n## ")[0]
LINES = [line for line in FOUND.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[2:40])
def test_each_defect_that_was_found_has_a_test(line):
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", line.rsplit("|", 2)[1])
    assert named
    for file, name in named:
        text = (TESTS / file).read_text()
        assert f"def {name}(" in text or not name


def test_what_was_not_said_to_have_ended_well_counts_as_lost():
    tally = tallies.Tally()
    with tally.fault("kind", "where", 3) as attempt:
        attempt.count = 2
    with tally.fault("kind", "where") as attempt:
        attempt.ended("same")
    assert tally.counts == Counter({("kind", "where", "lost"): 2, ("kind", "where", "same"): 1})


def test_what_fails_counts_as_lost_even_if_it_said_otherwise():
    tally = tallies.Tally()

    def fail() -> None:
        with tally.fault("kind", "where") as attempt:
            attempt.ended("same")
            raise AssertionError

    with pytest.raises(AssertionError):
        fail()
    assert tally.counts == Counter({("kind", "where", "lost"): 1})


def test_table_has_a_line_for_each_place_and_a_sum():
    counts = Counter({("a", "x", "same"): 2, ("a", "y", "named"): 1, ("b", "x", "lost"): 1})
    *_, first, second, third, last = tallies.table_of(counts).splitlines()
    assert first == "| a | x | 2 | 2 |  |  |  | 0 |"
    assert second == "|  | y | 1 |  | 1 |  |  | 0 |"
    assert third == "| b | x | 1 |  |  |  |  | 1 |"
    assert last == "| **all** |  | 4 | 2 | 1 | 0 | 0 | 1 |"


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A page, and what writes it at the end of a session with one fault."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tallies.BEGIN}\nold\n{tallies.END}\nafter\n")
    monkeypatch.setenv(tallies.PAGE, str(page))
    # Not that of the session which this test is part of.
    monkeypatch.setenv(tallies.COUNTS, str(tmp_path / "counts.jsonl"))

    def session():
        tallies.begin_session()
        tally = tallies.Tally()
        with tally.fault("kind", "where") as attempt:
            attempt.ended("same")
        tally.save()
        tallies.end_session(120.0, 7, 0)
        return page.read_text()

    return session


def test_page_keeps_what_stands_around_the_table(counted):
    text = counted()
    assert text.startswith(f"before\n{tallies.BEGIN}\n| fault | where | tried |")
    assert text.endswith(f"7 tests, 0 failed, 2 minutes.\n{tallies.END}\nafter\n")
    assert "old" not in text


def test_sessions_that_keep_one_file_are_counted_together(counted):
    assert "| kind | where | 1 | 1 |" in counted()
    text = counted()
    assert "| kind | where | 2 | 2 |" in text
    assert "14 tests, 0 failed, 4 minutes." in text
