"""Counts which faults were tried and what became of them, over all test processes.

With ``SKERCH_OOC_RELIABILITY=docs/reliability.md`` the session that ends writes its counts into the
table of that page; with ``SKERCH_OOC_RELIABILITY_COUNTS=FILE`` those of earlier sessions, too,
which kept theirs in the same file: so the tests can be run in parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = "SKERCH_OOC_RELIABILITY"
COUNTS = "SKERCH_OOC_RELIABILITY_COUNTS"

OUTCOMES = ("same", "named", "refused", "harmless")
"""The same contents in the end; an error that names the file; one valid result, or a clear refusal;
the values that are read are unchanged."""

LOST = "lost"
BEGIN, END = "<!-- counted by the tests: begin -->", "<!-- counted by the tests: end -->"


@dataclass
class Attempt:
    """A fault that is being tried.

    Attributes:
        count: How many faults it is.
        outcome: One of :data:`OUTCOMES`, once it is known.
    """

    count: int = 1
    outcome: str = LOST

    def ended(self, outcome: str) -> None:
        """Says what became of it."""
        assert outcome in OUTCOMES
        self.outcome = outcome


@dataclass
class Tally:
    """Counts of this process."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @contextlib.contextmanager
    def fault(self, kind: str, where: str, count: int = 1) -> Iterator[Attempt]:
        """Counts a fault; what fails inside, or does not say how it ended, counts as lost.

        Args:
            kind: The kind of the fault: a section of the table.
            where: What it hit: a line of the table.
            count: How many faults it is.
        """
        attempt = Attempt(count)
        try:
            yield attempt
        except BaseException:
            attempt.outcome = LOST
            raise
        finally:
            self.counts[kind, where, attempt.outcome] += attempt.count

    def save(self) -> None:
        """Hands the counts since the last time to the session that writes the page."""
        path = os.environ.get(COUNTS)
        if path and self.counts:
            lines = [json.dumps([*key, count]) for key, count in self.counts.items()]
            with open(path, "a") as file:
                file.write("\n".join(lines) + "\n")
            self.counts.clear()


def begin_session() -> None:
    """Names the file in which processes leave their counts, if a page is wanted."""
    if os.environ.get(PAGE) and not os.environ.get(COUNTS):
        os.environ[COUNTS] = str(Path(tempfile.mkdtemp(prefix="reliability-")) / "counts.jsonl")


def end_session(seconds: float, tests: int, failed: int) -> None:
    """Writes the table into the page, if one is wanted."""
    page, counts = os.environ.get(PAGE), os.environ.get(COUNTS)
    if not page or not counts or not Path(counts).exists():
        return
    with open(counts, "a") as file:
        file.write(json.dumps([seconds, tests, failed]) + "\n")
    total: Counter[tuple[str, str, str]] = Counter()
    sessions = []
    for line in Path(counts).read_text().splitlines():
        entry = json.loads(line)
        if len(entry) == 4:
            total[tuple(entry[:3])] += entry[3]
        else:
            sessions.append(entry)
    seconds, tests, failed = map(sum, zip(*sessions, strict=True))
    before, _, rest = Path(page).read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    summary = f"{tests} tests, {failed} failed, {seconds / 60:.0f} minutes"
    Path(page).write_text(f"{before}{BEGIN}\n{table_of(total)}\n\n{summary}.\n{END}{after}")


def table_of(total: Counter[tuple[str, str, str]]) -> str:
    """The counts as a table in Markdown."""
    columns = ("tried", *OUTCOMES, LOST)
    rows: list[Sequence[object]] = [("fault", "where", *columns), ("---", "---", *["---:"] * 6)]
    places = sorted({(kind, where) for kind, where, _ in total})
    before = None
    for kind, where in places:
        counts = [total[kind, where, outcome] for outcome in (*OUTCOMES, LOST)]
        shown = [count or "" for count in counts[:-1]] + [counts[-1]]
        rows.append((kind if kind != before else "", where, sum(counts), *shown))
        before = kind
    sums = [
        sum(count for key, count in total.items() if key[2] == outcome)
        for outcome in (*OUTCOMES, LOST)
    ]
    rows.append(("**all**", "", sum(sums), *sums))
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
