"""Figures of pages: each section is what is made of those that are stored; nothing is by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from snippets import ROOT

sys.path.append(str(ROOT))

from workflows.benchmarks import all as all_of_them
from workflows.benchmarks import figures, quiet, sections

BENCHMARKS = ROOT / "workflows" / "benchmarks"
SHARED = {"all", "common", "figures", "quiet", "sections"}
TINY = "import sys\nopen(sys.argv[sys.argv.index('--json') + 1], 'w').write('{\"took\": 0.5}')\n"


@pytest.fixture(scope="module")
def measured():
    return {row.name: figures.load(row.name) for row in all_of_them.ROWS}


@pytest.mark.parametrize("section", sections.SECTIONS, ids=lambda section: section.name)
def test_section_is_what_is_made_of_stored_figures(measured, section):
    page = (ROOT / section.page).read_text()
    assert figures.sections_in(page)[section.name] == section.text(measured)


def test_every_section_of_a_page_is_known():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = {
        (page.relative_to(ROOT).as_posix(), name)
        for page in pages
        for name in re.findall("^<!-- figures: (.*) -->$", page.read_text(), re.M)
    }
    assert found == {(section.page, section.name) for section in sections.SECTIONS}


def test_every_row_has_a_section():
    shown = {row for section in sections.SECTIONS for row in section.rows}
    assert shown == {row.name for row in all_of_them.ROWS}


def test_every_benchmark_is_a_row_or_says_why_not():
    scripts = {path.name for path in BENCHMARKS.glob("*.py") if path.stem not in SHARED}
    rows = {row.script for row in all_of_them.ROWS}
    assert not rows & {*all_of_them.NOT_IN_PAGES}
    assert rows | {*all_of_them.NOT_IN_PAGES} == scripts


def test_rows_are_listed():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "all.py", "--list"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *(row.name for row in all_of_them.ROWS), "all",
    ]  # fmt: skip


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A repository of two benchmarks, the first of which fails, and of a page."""
    folder = tmp_path / figures.BENCHMARKS
    folder.mkdir(parents=True)
    (folder / "fails.py").write_text("raise SystemExit(7)")
    (folder / "tiny.py").write_text(TINY)
    (tmp_path / "page.md").write_text(
        "# Page\n\n<!-- figures: tiny -->\nold\n<!-- end of figures -->\n\nRest.\n"
    )
    made = tuple(
        all_of_them.Row(name, "", f"{name}.py", "--repeats 2", "--repeats 1", 1)
        for name in ("fails", "tiny")
    )
    section = figures.Section("page.md", "tiny", ("tiny",), lambda it: f"It took {it['took']} s.")
    for module in (figures, all_of_them):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "FOLDER", tmp_path / "tables")
    monkeypatch.setattr(all_of_them, "ROWS", made)
    monkeypatch.setattr(all_of_them, "SECTIONS", (section,))
    return made


def run(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["all.py", *options])
    return all_of_them.main()


def test_others_are_measured_where_one_fails(tmp_path, monkeypatch, capsys, rows):
    assert run(monkeypatch, "--busy") == 1
    assert "failed: fails: it exited with 7" in capsys.readouterr().err
    kept = figures.load("tiny")
    assert kept.figures == {"took": 0.5}
    assert kept.command == "tiny.py --repeats 2"
    assert kept.circumstances.versions["h5py"]
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Page\n\n<!-- figures: tiny -->\n\nIt took 0.5 s.\n\n*`tiny.py")
    assert page.endswith("*\n\n<!-- end of figures -->\n\nRest.\n")


def test_figures_stay_where_a_competitor_is_missing(monkeypatch, capsys, rows):
    needy = replace(rows[1], needs=("json", "nobody_has_this"))
    monkeypatch.setattr(all_of_them, "ROWS", (needy,))
    assert run(monkeypatch, "--busy") == 1
    assert "failed: tiny: ModuleNotFoundError: No module named" in capsys.readouterr().err
    assert not figures.FOLDER.exists()


def test_quick_writes_nothing(tmp_path, monkeypatch, capsys, rows):
    before = (tmp_path / "page.md").read_text()
    assert run(monkeypatch, "--quick", "--only", "tiny") == 0
    assert "It took 0.5 s." in capsys.readouterr().out
    assert (tmp_path / "page.md").read_text() == before
    assert not figures.FOLDER.exists()


def test_what_is_of_this_code_is_not_measured_again(monkeypatch, rows):
    monkeypatch.setattr(all_of_them, "same_code", lambda commit: commit == "this")
    assert run(monkeypatch, "--busy", "--only", "tiny") == 0
    options = all_of_them.argparse.Namespace(only=None, long=False, resume=True)
    found = figures.load("tiny")
    for commit, left in (("this", ["fails"]), ("another", ["fails", "tiny"])):
        circumstances = replace(found.circumstances, commit=commit)
        figures.keep("tiny", replace(found, circumstances=circumstances))
        assert [row.name for row in all_of_them.rows_of(options)] == left


def test_a_busy_machine_is_refused_with_who_is_at_work(monkeypatch, capsys, rows):
    monkeypatch.setattr(quiet, "busy", lambda: "other programs use 1.5 cores: sort (12)")
    assert run(monkeypatch) == 2
    assert "other programs use 1.5 cores: sort (12): end them, or" in capsys.readouterr().err
    assert not figures.FOLDER.exists()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system has no /proc")
def test_what_other_programs_use_is_seen(monkeypatch):
    monkeypatch.setattr(quiet, "LOOK_SECONDS", 0.2)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        # It takes a moment to begin.
        said = next(filter(None, (quiet.busy() for _ in range(20))))
    finally:
        other.kill()
        other.wait()
    assert re.match(r"other programs use \d\.\d cores", said)


def test_sections_stay_where_nothing_is_made_for_them():
    page = "".join(f"<!-- figures: {name} -->\n{name}\n<!-- end of figures -->" for name in "xy")
    assert figures.filled(page, {"y": "z\n"}) == page.replace("\ny\n", "\nz\n")


def test_benchmark_that_does_not_end_is_ended():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(RuntimeError, match="it was ended after 0 minutes"):
        all_of_them._run(command, {}, 0.1)


@pytest.mark.soak
def test_sections_can_be_made_of_tiny_runs():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "all.py", "--quick", "--long"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for section in sections.SECTIONS:
        assert f"{section.page}, {section.name}:\n" in done.stdout
