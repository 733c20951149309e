"""Reports: one page that needs nothing but itself, of any run, whatever its logs say."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from operators import dense
from reports import KINDS, Page, parsed

import skerch_ooc as ooc
from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError
from skerch_ooc.planning.spec import OperatorSpec, Spec
from skerch_ooc.results.density import Density
from skerch_ooc.results.pairs import KnownPairs
from skerch_ooc.results.report import axes, numbers, spectrum
from skerch_ooc.results.report.facts import gather
from skerch_ooc.results.report.logs import read_logs
from skerch_ooc.results.report.render import DARK, LIGHT, SERIES, environment, plain
from skerch_ooc.results.report.values import Values
from skerch_ooc.results.report.whole import density_of_the_whole
from skerch_ooc.results.report.write import charts, page
from skerch_ooc.stages.recover.krylov import Quadrature
from skerch_ooc.store.sealed import SealedFile

HOSTILE = (
    "</title></style><script>alert('1')</script>\"'><img src=x onerror=alert(1)>&lt;\u202e\x00"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report of a run of some kind, which is made once."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "run"
        KINDS[kind](folder)
        return ooc.report(ooc.open_run(folder))

    return make


@pytest.fixture
def finished(made, tmp_path):
    """A finished run that a test may change."""
    return copy_of(made("eigh"), tmp_path / "run")


def copy_of(page: Path, to: Path) -> Path:
    shutil.copytree(page.parents[2], to)
    return to


def bytes_of(run_dir: Path) -> bytes:
    """The page of a run, which is not written."""
    facts = gather(ooc.open_run(run_dir), "default")
    return page(facts, charts(facts))


def page_of(run_dir: Path) -> Page:
    return parsed(bytes_of(run_dir))


def log(run_dir: Path, *lines: str, name: str = "receipts") -> None:
    (run_dir / f"logs/{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def receipts(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "logs/receipts.jsonl").read_text().splitlines()]


def measured(run_dir: Path) -> dict:
    return next(record for record in receipts(run_dir) if record["stage"] == "measure")


class TestPage:
    @pytest.mark.sampled(4)
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_well_formed(self, made, kind):
        assert parsed(made(kind)).wrong == []

    @pytest.mark.sampled(8)
    @pytest.mark.parametrize("kind", KINDS)
    def test_names_each_of_its_parts_once(self, made, kind):
        ids = [
            node.attributes["id"] for node in parsed(made(kind)).nodes if "id" in node.attributes
        ]
        assert len(ids) == len(set(ids)) > 0

    @pytest.mark.sampled(8)
    @pytest.mark.parametrize("kind", KINDS)
    def test_holds_no_number_that_is_none(self, made, kind):
        words = set(re.findall(r"[\w.]+", made(kind).read_text().lower()))
        assert not words & {"nan", "inf", "infinity"}

    @pytest.mark.sampled(8)
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_small(self, made, kind):
        assert made(kind).stat().st_size < 250_000

    def test_asks_for_nothing_and_runs_nothing(self, made):
        page, text = parsed(made("eigh")), made("eigh").read_text()
        attributes = {name for node in page.nodes for name in node.attributes}
        assert not attributes & {"src", "href", "srcset", "action", "data", "style"}
        assert not any(name.startswith("on") for name in attributes)
        assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("a")
        assert not re.search(r"://|url\(|@import|javascript:", text)

    def test_forbids_browsers_to_ask_for_anything(self, made):
        (policy,) = (
            node.attributes["content"]
            for node in parsed(made("eigh")).all("meta")
            if node.attributes.get("http-equiv") == "Content-Security-Policy"
        )
        assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

    @pytest.mark.parametrize("kind", ["eigh", "svd", "no error test", "one entry"])
    def test_headings_leave_out_no_level(self, made, kind):
        levels = [
            int(n.name[1]) for n in parsed(made(kind)).nodes if re.fullmatch("h[1-6]", n.name)
        ]
        assert levels[0] == 1
        assert max(later - before for before, later in itertools.pairwise(levels)) <= 1

    @pytest.mark.parametrize("kind", ["eigh", "svd", "rounds"])
    def test_figures_are_named_and_described(self, made, kind):
        page = parsed(made(kind))
        said = {node.attributes.get("id"): node.text for node in page.nodes}
        for svg in page.all("svg"):
            named = svg.attributes["aria-labelledby"].split()
            assert [bool(said[name].strip()) for name in named] == [True, True]

    def test_holds_all_figures_of_an_eigendecomposition(self, made):
        shown = [node.attributes["id"] for node in parsed(made("eigh")).all("figure")]
        assert shown == [f"figure-{name}" for name in (
            "spectrum", "spectrum-log", "density", "scree", "error", "vectors", "timeline",
        )]  # fmt: skip

    @pytest.mark.thorough
    def test_holds_the_density_of_the_whole_after_rounds(self, made):
        shown = [node.attributes["id"] for node in parsed(made("pairs")).all("figure")]
        assert shown == [f"figure-{name}" for name in (
            "spectrum", "spectrum-log", "density", "density-whole", "convergence", "scree", "error",
            "vectors", "timeline",
        )]  # fmt: skip

    def test_holds_no_density_of_singular_values(self, made):
        shown = [n.attributes["id"] for n in parsed(made("pairs, complex svd")).all("figure")]
        assert "figure-density-whole" not in shown

    def test_shows_the_vectors_of_both_sides(self, made):
        titles = [node.text for node in parsed(made("svd")).all("h3")]
        assert {"Leading left singular vectors", "Leading right singular vectors"} <= set(titles)

    def test_says_what_the_terminal_says_of_the_error(self, made, inside):
        run_dir = made("eigh").parents[2]
        on_terminal = inside("assess", run_dir).stdout
        said = re.findall(r"below [\d.]+ times this with probability [\d.]+", on_terminal)
        assert len(said) == 2
        assert all(text in parsed(made("eigh")).text for text in said)

    @pytest.mark.parametrize("kind", ["eigh", "flat"])
    def test_says_how_to_make_the_error_smaller(self, made, kind):
        text = parsed(made(kind)).text
        assert "skerch-ooc extend DIR --measurements 60" in text
        assert "skerch-ooc recover DIR --method singlepass" in text

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            ("flat", "This error is large"),
            ("no error test", "plan with sketch.test_measurements of at least 10"),
            ("tolerance", "The tolerance of 40 % is met"),
            ("rank 1", "about as small as float64 allows"),
            ("limited rank", "skerch-ooc recover DIR --rank all"),
            ("rounds", "with more measurements, or one more of power_iterations"),
            ("one test", "the error would be surer"),
            ("updated", "1 x a Python object + 1 x a Python object"),
            ("complex eigh", "magnitude of the entries"),
            ("one entry", "Vectors of one entry"),
            ("pairs", "5 of 5 pairs within 1.0 × 10⁻⁴ after"),
            ("pairs", "showed nothing else"),
            ("pairs", "nodes, which the ticks mark, weighted by 4 random columns"),
            ("pairs, complex svd", "4 of 4 pairs within 0.0010 after"),
            ("pairs, missed", "0 of 8 pairs within 1.0 × 10⁻⁶ after 3 rounds"),
            ("pairs, missed", "8, in a ring, are not known to the tolerance"),
            ("pairs, missed", "Nothing has confirmed that no copy of a value is missing"),
            ("pairs, smallest", "20 of 20 pairs after 4 rounds"),
            ("pairs, smallest", "by their number, the smallest first"),
            ("no error test", "The error is not known"),
        ],
    )
    def test_says(self, made, kind, text):
        assert text in parsed(made(kind)).text

    def test_shows_run_id_seed_and_fingerprint(self, made):
        run = ooc.open_run(made("eigh").parents[2])
        facts = [node.text for node in parsed(made("eigh")).all("dd")]
        assert {run.plan.run_id, str(run.plan.identity.seed)} <= set(facts)

    def test_tells_what_each_stage_took(self, made):
        rows = [node.text for node in parsed(made("eigh")).all("th")]
        assert {"measure", "merge", "recover"} <= set(rows)

    def test_has_the_same_bytes_each_time(self, made, tmp_path):
        run = ooc.open_run(made("svd").parents[2])
        again = ooc.report(run, output=tmp_path / "again.html")
        assert again.read_bytes() == made("svd").read_bytes()


class TestPairs:
    @staticmethod
    def rows(page: Path) -> list[list[str]]:
        """The cells of the table of pairs, without its head."""
        table = page.read_text().partition("<caption>Pairs and their bounds</caption>")[2]
        body = table.partition("<tbody>")[2].partition("</tbody>")[0]
        return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in body.split("</tr>")[:-1]]

    def test_are_listed_with_their_bounds(self, made):
        result = ooc.recover(ooc.open_run(made("pairs").parents[2]))
        stated = [numbers.value(float(value), 7) for value in result.eigenvalues]
        rounding = float(SealedFile(result.path).arrays["rounding"])
        bounds = [numbers.scientific(float(bound)) for bound in result.bounds]
        apart = [numbers.scientific(float(bound) - rounding) for bound in result.bounds]
        rows = self.rows(made("pairs"))
        assert [tuple(row[1:4]) for row in rows] == list(zip(stated, bounds, apart, strict=True))

    @pytest.mark.parametrize(("kind", "marked"), [("pairs", 0), ("pairs, missed", 8)])
    def test_those_above_the_tolerance_are_marked(self, made, kind, marked):
        assert [row[5] for row in self.rows(made(kind))].count("above the tolerance") == marked

    @pytest.mark.parametrize(("kind", "rings"), [("pairs", 0), ("pairs, missed", 8)])
    def test_values_above_the_tolerance_have_a_ring(self, made, kind, rings):
        figure = (made(kind).parent / "figures/spectrum.svg").read_text()
        assert figure.count('<circle class="curve line-rose"') == rings

    def test_many_are_cut(self):
        pairs = KnownPairs(200, 200, 200, 1e-4, 1e-5, 1e-6, 9, True, True, False)
        values, bounds = np.arange(200.0, 0.0, -1.0), np.full(200, 1e-6)
        found = Values(values, "eigh", 0.1, bounds, pairs, 1e-7, bounds / values)
        tables: Any = environment().get_template("tables.jinja")
        text = str(tables.make_module({"facts": SimpleNamespace(values=found)}).pairs())
        assert (text.count("<tr>"), "Of 200 pairs the first 100." in text) == (101, True)

    def test_bounds_are_said_to_hold_without_a_probability(self, made):
        text = parsed(made("pairs")).text
        assert "what each may be, by its bound" in text
        assert "each with probability" not in text

    def test_other_order_of_the_same_rounds_is_said(self, made, tmp_path):
        run = ooc.open_run(copy_of(made("pairs"), tmp_path / "run"))
        ooc.recover(run, which="SA", rank=3, name="low")
        ooc.assess(run, "low")
        page = parsed(ooc.report(run, "low"))
        assert "number, the smallest first" in page.text
        assert "krylov, which SA, rank 3" in page.text

    def test_counts_of_the_density_name_what_is_near_zero(self, made):
        found = ooc.density(ooc.open_run(made("pairs").parents[2]))
        caption = parsed(made("pairs")).text.partition("How densely all")[2]
        below, near = numbers.value(-found.near_zero, 3), numbers.value(found.near_zero, 3)
        for name, end in (("negative", f"are below {below}"), ("positive", f"above {near}")):
            count = numbers.whole(round(found.counts()[name].value))
            assert re.search(rf"about {count} (\([^)]*\) )?{re.escape(end)}", caption), caption

    def test_without_shards_the_density_is_left_out(self, made, tmp_path):
        run = ooc.open_run(copy_of(made("pairs"), tmp_path / "run"))
        ooc.clean(run, shards=True)
        page = parsed(ooc.report(run))
        assert "figure-density-whole" not in [n.attributes["id"] for n in page.all("figure")]
        assert "5 of 5 pairs" in page.text


class TestColours:
    @staticmethod
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    @pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
    @pytest.mark.parametrize("ground", ["page", "paper", "wash"])
    @pytest.mark.parametrize("text", ["ink", "soft", *SERIES])
    def test_texts_stand_out_of_what_is_behind_them(self, colours, ground, text):
        low, high = sorted((self.luminance(colours[text]), self.luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5


class TestFigureFiles:
    @pytest.mark.parametrize("kind", ["eigh", "svd", "no error test"])
    def test_are_those_of_the_page(self, made, kind):
        shown = {node.attributes["id"] for node in parsed(made(kind)).all("figure")}
        files = (made(kind).parent / "figures").iterdir()
        assert {f"figure-{path.stem}" for path in files} == shown

    @pytest.mark.sampled(8)
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_xml_without_scripts(self, made, kind):
        for path in (made(kind).parent / "figures").iterdir():
            names = {node.tag.rpartition("}")[2] for node in ElementTree.parse(path).iter()}
            assert names <= {"svg", "title", "desc", "style", "g", "path", "line", "rect", "circle",
                             "text", "tspan"}  # fmt: skip


class TestStrangers:
    def test_text_of_others_is_text_wherever_it_stands(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "import torch\ndef make(**_):\n    return torch.diag(0.9 ** torch.arange(60.))\n"
        )
        hostile = OperatorSpec("mine.py:make", {"name": HOSTILE, HOSTILE: [HOSTILE]})
        spec = Spec(measurements=10, operator=hostile, folder=tmp_path)
        run = ooc.plan(spec, tmp_path / "<b>&'run")
        ooc.measure(run)
        ooc.recover(run)
        ooc.assess(run)
        record = measured(run.directory)
        odd = {"host": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}, "pid": 7}
        log(run.directory, json.dumps(record | odd))
        shown = page_of(run.directory)
        assert shown.wrong == []
        assert not shown.all("script") + shown.all("img") + shown.all("b")
        assert plain(HOSTILE) in shown.text
        assert shown.all("h1")[0].text == "<b>&'run"

    def test_hostile_names_leave_figures_well_formed(self, finished):
        log(finished, json.dumps(measured(finished) | {"host": HOSTILE}))
        ooc.report(ooc.open_run(finished))
        svg = ElementTree.parse(finished / "results/default/figures/timeline.svg")
        names = [node.tag.rpartition("}")[2] for node in svg.iter()]
        assert "script" not in names

    def test_nothing_that_a_run_names_is_imported(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "import torch\ndef make():\n    return torch.diag(0.9 ** torch.arange(60.))\n"
        )
        spec = tmp_path / "spec.toml"
        spec.write_text('measurements = 10\n[operator]\nfactory = "mine.py:make"\n')
        run = ooc.plan(spec, tmp_path / "run")
        ooc.measure(run)
        ooc.recover(run)
        ooc.assess(run)
        (tmp_path / "mine.py").write_text("raise SystemExit('I was imported')\n")
        loaded = set(sys.modules)
        assert "mine.py:make" in page_of(run.directory).text
        assert not {name for name in set(sys.modules) - loaded if "mine" in name}


def changed(**fields):
    return lambda record: json.dumps(record | fields)


ODD_LINES = {
    "nothing": lambda record: "",
    "no JSON": lambda record: "{" + json.dumps(record),
    "no object": lambda record: "[1, 2]",
    "deep": lambda record: "[" * 200_000,
    "huge": lambda record: json.dumps(record | {"host": "x" * 2_000_000}),
    "binary": lambda record: "\x00\x01\udcff".encode("utf-8", "surrogateescape").decode("latin1"),
    "no time": changed(time=None),
    "time of another kind": changed(time=17),
    "time that is none": changed(time="yesterday"),
    "time out of range": changed(time="9999-12-31T23:59:59-23:00"),
    "seconds that are none": changed(task_seconds=math.nan),
    "endless seconds": changed(task_seconds=math.inf),
    "too many seconds": changed(task_seconds=1e308),
    "negative seconds": changed(task_seconds=-1.0),
    "long whole number": changed(task_seconds=10**400),
    "seconds as text": changed(task_seconds="1"),
    "boolean pid": changed(pid=True),
    "listed host": changed(host=["a"]),
    "unknown role": changed(role="<svg>"),
    "columns backwards": changed(columns=[9, 3]),
    "columns of text": changed(columns=["a", "b"]),
    "one column": changed(columns=[1]),
    "listed stage": changed(stage=["measure"]),
    "blocks of another kind": changed(blocks={"role": "right"}),
    "round of text": changed(round="two"),
}


class TestLogs:
    @pytest.mark.parametrize("line", ODD_LINES)
    def test_odd_line_is_left_out(self, finished, line):
        run, good = ooc.open_run(finished), measured(finished)
        log(finished, json.dumps(good))
        expected = read_logs(run, "default")
        log(finished, json.dumps(good), ODD_LINES[line](good))
        assert read_logs(run, "default") == expected

    @pytest.mark.parametrize(
        "fields",
        [
            {"peak_bytes": math.nan}, {"versions": [1]}, {"versions": {"a": 3}}, {"device": 3},
            {"host": "\ud800"}, {"time": "0001-01-01T00:00:00+00:00"},
            {"time": "2300-01-01T00:00:00"}, {"peak_bytes": "much"}, {"round": 10**15},
        ],
        ids=str,
    )  # fmt: skip
    def test_line_that_is_odd_in_part_spoils_nothing(self, finished, fields):
        first = measured(finished)
        log(finished, json.dumps(first), json.dumps(first | fields))
        assert page_of(finished).wrong == []

    @pytest.mark.parametrize("name", ["receipts", "plan"])
    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{}\n" * 100, b'{"estimate": 1}'])
    def test_log_that_says_nothing_is_no_reason_to_stop(self, finished, name, content):
        (finished / f"logs/{name}.jsonl").write_bytes(content)
        assert page_of(finished).wrong == []

    def test_listing_of_another_kind_spoils_nothing(self, finished):
        log(finished, '{"listing": [], "digest": {}}', name="listings")
        assert page_of(finished).wrong == []

    def test_estimates_that_make_no_sense_are_not_known(self, finished):
        estimate = {"seconds": math.nan, "shard_bytes": 1e300, "peak_bytes": {"measure": "x"}}
        log(finished, json.dumps({"estimate": estimate}), name="plan")
        assert "not known" in page_of(finished).text

    def test_without_logs_it_says_what_is_not_known(self, finished):
        shutil.rmtree(finished / "logs")
        shown = page_of(finished)
        assert "Who worked when is not known" in shown.text
        assert shown.wrong == []

    def test_many_lines_make_no_long_page(self, finished):
        record = measured(finished)
        times = [f"2026-01-01T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}" for s in range(300)]
        roles = ("right", "test")
        lines = [
            json.dumps(record | {"pid": i % 40, "time": times[i % 300], "role": roles[i % 2]})
            for i in range(25_000)
        ]
        log(finished, *lines)
        content = bytes_of(finished)
        assert len(content) < 600_000
        assert "5000 later tasks are not drawn" in parsed(content).text

    def test_the_longest_tasks_are_reached_by_keyboard_in_their_order(self, finished):
        record = measured(finished) | {"write_seconds": 0.0, "host": "node", "pid": 3}
        log(finished, *(
            json.dumps(record | {"time": f"2026-01-01T10:{at:02}:00", "task_seconds": 50.0 - at})
            for at in range(1, 20)
        ))  # fmt: skip
        figure = bytes_of(finished).decode().partition('id="figure-timeline"')[2]
        labels = re.findall(r'tabindex="0" role="img" aria-label="node 3: ([^"]*)"', figure)
        assert [text.rpartition(", ")[2] for text in labels] == [
            f"{50 - at}.0 s" for at in range(1, 13)
        ]

    def test_long_pauses_are_cut_out_of_the_timeline(self, finished):
        record = measured(finished) | {"task_seconds": 5.0, "write_seconds": 0.0}
        log(
            finished, *(json.dumps(record | {"time": f"2026-01-0{day}T10:00:00"}) for day in (1, 3))
        )
        text = page_of(finished).text
        assert "pauses cut out" in text
        assert "The longest pause that is cut out is 48.0 h" in text


class TestRefusals:
    def test_run_that_is_not_recovered_yet(self, finished):
        (finished / "results/default/eigh.h5").unlink()
        with pytest.raises(IncompleteError, match="skerch-ooc recover"):
            ooc.report(ooc.open_run(finished))

    def test_result_that_is_not_assessed_yet(self, finished):
        (finished / "results/default/assessment.json").unlink()
        with pytest.raises(IncompleteError, match=r"skerch-ooc assess \S+run$"):
            ooc.report(ooc.open_run(finished))

    def test_assessment_of_another_result(self, finished):
        path = finished / "results/default/assessment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"error": 1e-9}))
        with pytest.raises(IncompleteError, match="skerch-ooc assess"):
            ooc.report(ooc.open_run(finished))

    @pytest.mark.usefixtures("no_late_files")
    def test_result_of_before_the_run_grew(self, tmp_path):
        a, run_dir = dense((60, 60), "decay"), tmp_path / "run"
        ooc.eigh(a, measurements=20, run_dir=run_dir)
        run = ooc.extend(ooc.open_run(run_dir), 24)
        with pytest.raises(IncompleteError, match="measure them with: the call in Python"):
            ooc.report(run)
        ooc.measure(run, operator=a)
        with pytest.raises(IncompleteError, match="skerch-ooc recover"):
            ooc.report(run)

    def test_page_goes_with_its_result(self, tmp_path):
        a, run_dir = dense((60, 60), "decay"), tmp_path / "run"
        ooc.eigh(a, measurements=20, run_dir=run_dir)
        page = ooc.report(ooc.open_run(run_dir))
        run = ooc.extend(ooc.open_run(run_dir), 24)
        ooc.measure(run, operator=a)
        ooc.recover(run)
        assert [page.exists(), *(page.parent / "figures").iterdir()] == [False]

    def test_damaged_result(self, finished):
        path = finished / "results/default/eigh.h5"
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptError, match=r"eigh\.h5"):
            ooc.report(ooc.open_run(finished))

    def test_damaged_vectors(self, finished):
        path = finished / "results/default/eigh.h5"
        content = bytearray(path.read_bytes())
        content[3000] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptError, match=r"eigh\.h5"):
            ooc.report(ooc.open_run(finished))

    def test_name_that_leads_out_of_the_results(self, finished):
        with pytest.raises(UsageError, match="plain folder name"):
            ooc.report(ooc.open_run(finished), "../default")

    def test_what_cannot_be_written_names_the_option(self, finished):
        shutil.rmtree(finished / "results/default/figures")
        (finished / "results/default/figures").write_text("a file in its place")
        with pytest.raises(IncompleteError, match=r"skerch-ooc report \S+ --output FILE"):
            ooc.report(ooc.open_run(finished))

    def test_nothing_is_left_of_a_page_that_cannot_be_written(self, finished, tmp_path):
        (tmp_path / "page.html").mkdir()
        with pytest.raises(IncompleteError, match=r"page\.html"):
            ooc.report(ooc.open_run(finished), output=tmp_path / "page.html")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]


class TestCommand:
    def test_prints_where_page_and_figures_are(self, inside, finished):
        done = inside("report", "run")
        page = Path("run/results/default")
        assert done.stdout == f"{page / 'report.html'}\n{page / 'figures'}\n"

    def test_writes_elsewhere_and_leaves_the_run_alone(self, inside, made, finished):
        shutil.rmtree(finished / "results/default/figures")
        (finished / "results/default/report.html").unlink()
        before = sorted(finished.rglob("*"))
        assert inside("report", "run", "--output", "page.html").stdout == "page.html\n"
        assert Path("page.html").read_bytes() == made("eigh").read_bytes()
        assert sorted(finished.rglob("*")) == before

    def test_reports_on_another_result(self, inside, finished):
        inside("recover", "run", "--method", "singlepass", "--name", "other")
        refused = inside("report", "run", "--name", "other")
        assert (refused.returncode, "assess run --name other" in refused.stderr) == (4, True)
        inside("assess", "run", "--name", "other")
        assert inside("report", "run", "--name", "other").returncode == 0
        assert "result other" in parsed(finished / "results/other/report.html").text

    def test_status_names_it_when_all_is_done(self, inside, finished):
        assert "skerch-ooc report run" in inside("status", "run").stdout

    def test_verify_has_nothing_against_it(self, inside, finished):
        assert inside("verify", "run").returncode == 0


SPECTRA = {
    "zeros": np.zeros(5),
    "one zero": np.zeros(1),
    "one": np.array([2.0]),
    "equal": np.full(30, 1e-5),
    "zeros among others": np.array([3.0, -1.0, 0.0, 0.0]),
    "tiny": np.array([1e-300, -1e-305, 5e-324]),
    "large": np.array([1.7e308, -1e308]),
    "steep": 10.0 ** -np.arange(0.0, 300.0, 10.0),
    "many": 1 / (1 + np.arange(100_000.0)),
    "negative": -np.arange(20.0, 0.0, -1.0),
}


NODES = {
    "one": [2.0],
    "zero": [0.0],
    "equal": [1e-5, 1e-5],
    "tiny": [-5e-324, 0.0, 1e-300],
    "large": [-1.7e150, 1e150],
    "steep": [*10.0 ** np.arange(-300.0, 10.0, 10.0)],
    "many": [*np.linspace(-3.0, 5.0, 20_000)],
}


class TestDrawing:
    @pytest.mark.covered(1)
    @pytest.mark.parametrize("n", [1, 11_689_512])
    @pytest.mark.parametrize("nodes", NODES)
    def test_any_density_can_be_drawn(self, nodes, n):
        places = np.array(NODES[nodes])
        weights = np.full((len(places), 3), n / len(places))
        quadrature = Quadrature(places, weights, np.zeros(len(places)))
        figure = density_of_the_whole(Density(n, quadrature, quadrature)).file()
        assert (b"nan" in figure, b"inf" in figure, len(figure) < 40_000) == (False, False, True)

    @pytest.mark.covered(1)
    @pytest.mark.parametrize("error", [None, 0.0, 1e-300, 0.5, 1e300])
    @pytest.mark.parametrize("values", SPECTRA)
    @pytest.mark.parametrize("kind", ["eigh", "svd", "eigh with bounds"])
    def test_any_spectrum_can_be_drawn(self, values, kind, error):
        array = np.abs(SPECTRA[values]) if kind == "svd" else SPECTRA[values]
        bounds = np.full(len(array), error) if kind == "eigh with bounds" and error else None
        found = Values(array, kind.split()[0], error, bounds)
        for draw in (spectrum.linear_spectrum, spectrum.logarithmic_spectrum, spectrum.density):
            figure = draw(found).file()
            places = re.findall(rb' (?:x|y|cx|cy|x1|y1|x2|y2|width|height)="([^"]*)"', figure)
            assert all(-1 <= float(place) <= 500 for place in places)
            assert len(figure) < 120_000

    @example(ends=[0.0, 5e-324], value=0.0)
    @given(
        ends=st.lists(st.floats(-1e308, 1e308), min_size=2, max_size=2),
        value=st.floats(allow_nan=False),
    )
    def test_linear_axis_keeps_any_value_within_the_figure(self, ends, value):
        axis = axes.linear(min(ends), max(ends), 300.0, 20.0)
        assert 20 - 1e-6 <= axis.at(value) <= 300 + 1e-6

    @given(values=st.lists(st.floats(0, 1e308), min_size=1, max_size=6))
    def test_logarithmic_axis_has_few_numbers(self, values):
        axis = axes.logarithmic(values, 300.0, 20.0)
        assert axis is None or 1 <= len(axis.ticks()) <= 12

    @given(ends=st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=2))
    def test_linear_axis_has_few_numbers(self, ends):
        assert len(axes.linear(min(ends), max(ends), 300.0, 20.0).ticks()) <= 14


class TestMarkup:
    @given(st.text(st.characters(exclude_categories=())))
    def test_text_comes_back_as_it_can_be_shown(self, text):
        page = Page()
        template = environment().from_string('<p title="{{ text }}">{{ text }}</p>')
        page.feed(template.render(text=text).encode().decode())
        (node,) = page.all("p")
        shown = plain(text)
        assert node.text == shown.replace("\r", "\n")
        assert node.attributes["title"] == shown

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (0.0, "0"), (10.26052, "10.26"), (-0.5, "−0.5000"), (1.27e-5, "1.270 × 10⁻⁵"),
            (123456.0, "1.235 × 10⁵"), (12437.0, "12440"), (math.nan, "unknown"), (9.9996, "10.00"),
        ],
    )  # fmt: skip
    def test_numbers_are_written_for_people(self, number, text):
        assert numbers.value(number) == text

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (0.0127, "1.3 %"),
            (0.5, "50 %"),
            (0.878, "87.8 %"),
            (1.32, "132 %"),
            (1e-6, "1.0 × 10⁻⁶"),
        ],
    )
    def test_shares_are_written_for_people(self, number, text):
        assert numbers.share(number) == text

    @pytest.mark.parametrize(
        ("number", "text"), [(0.92, "0.92"), (0.9983, "0.9983"), (1.0, "> 0.9999")]
    )
    def test_probability_is_not_rounded_up_to_certainty(self, number, text):
        assert numbers.probability(number) == text


def test_very_tall_vectors_are_read_tile_by_tile():
    from skerch_ooc.results.report.leading import read_leading

    class Tall:
        shape, dtype, most = (1_000_000, 9), torch.float32, 0

        def __getitem__(self, key):
            rows, columns = key
            length = rows.stop - rows.start
            self.most = max(self.most, length)
            assert columns == slice(None, 6)
            return torch.arange(rows.start, rows.stop, dtype=torch.float32)[:, None].expand(
                length, 6
            )

    tall = Tall()
    read = read_leading(tall)
    assert (tall.most, read.read < 300_000, len(read.places) <= 400) == (4096, True, True)
    assert np.all(read.low[:, 0] <= read.places + 0.5)
    assert read.high[-1, 0] == 999_999


def test_run_whose_shards_were_removed_has_its_report(tmp_path):
    KINDS["eigh"](tmp_path / "run")
    run = ooc.open_run(tmp_path / "run")
    ooc.clean(run, shards=True)
    assert "What was found" in parsed(ooc.report(run)).text
