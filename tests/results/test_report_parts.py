"""Parts of a report: each figure and table against what a dense computation says."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operators import dense
from reports import KINDS, LAYERS, SQUARE, grid, of_grid, parsed

import skerch_ooc as ooc
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.results.report import known, maps
from skerch_ooc.results.report.convergence import Progression, Reached, convergence, progression_of
from skerch_ooc.results.report.facts import Facts, gather
from skerch_ooc.results.report.layers import MOST_LAYERS, layers_of, read_shares
from skerch_ooc.results.report.logs import read_logs
from skerch_ooc.results.report.write import charts

MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The run of some kind, which is made once."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "run"
        KINDS[kind](folder)
        return folder

    return make


@pytest.fixture(scope="module")
def facts(made):
    @cache
    def of(kind: str) -> Facts:
        return gather(ooc.open_run(made(kind)), "default")

    return of


def figures(facts: Facts) -> dict[str, str]:
    return {one.name: one.figure for one in facts.known}


def table(run_dir: Path) -> list[dict[str, str]]:
    text = (run_dir / "results/default/values.csv").read_text()
    return [*csv.DictReader(text.splitlines())]


def number(text: str) -> float:
    (found,) = re.findall(rf"[{MINUS}\d.]+", text.replace("\u202f", "").split("±")[0])
    return float(found.replace(MINUS, "-"))


class TestValuesFile:
    @pytest.mark.parametrize("kind", ["eigh", "pairs, missed", "no error test"])
    def test_has_all_values_with_their_bounds(self, made, facts, kind):
        ooc.report(ooc.open_run(made(kind)))
        rows = table(made(kind))
        values = facts(kind).values
        assert [float(row["value"]) for row in rows] == values.values.tolist()
        if values.bounds is not None:
            assert [float(row["off_by_at_most"]) for row in rows] == values.bounds.tolist()

    def test_says_which_pairs_are_known(self, made):
        ooc.report(ooc.open_run(made("pairs, missed")))
        rows = table(made("pairs, missed"))
        assert {row["is_known_to_the_tolerance"] for row in rows} == {"no"}

    def test_goes_with_its_result(self, made, tmp_path):
        shutil.copytree(made("eigh"), tmp_path / "run")
        run = ooc.open_run(tmp_path / "run")
        ooc.report(run)
        (tmp_path / "run/results/default/eigh.h5").unlink()
        ooc.recover(run)
        assert not (tmp_path / "run/results/default/values.csv").exists()

    def test_is_not_written_beside_a_page_elsewhere(self, made, tmp_path):
        ooc.report(ooc.open_run(made("eigh")), output=tmp_path / "page.html")
        assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


class TestKnown:
    def test_trace_of_a_sketch_is_near(self, facts):
        truth = float(torch.trace(dense(SQUARE, "decay")))
        (found,) = (one for one in facts("eigh").known if one.name == "trace")
        error = float(found.how.rpartition(" ")[2])
        assert abs(number(found.figure) - truth) < 5 * error + 1e-3

    def test_trace_after_rounds_is_near(self, facts):
        truth = float(torch.trace(dense(SQUARE, "slow")))
        (found,) = (one for one in facts("pairs").known if one.name == "trace")
        error = float(re.findall(r"standard error ([\d.]+)", found.how)[0])
        # Student's t of four columns is farther off in one of a thousand cases.
        assert abs(number(found.figure) - truth) < 13 * error

    @pytest.mark.parametrize("kind", ["pairs", "pairs, missed"])
    def test_no_more_negative_eigenvalues_are_claimed_than_there_are(self, facts, kind):
        values = torch.linalg.eigvalsh(dense(SQUARE, "slow"))
        claimed = number(figures(facts(kind))["negative eigenvalues"].removeprefix("at least "))
        assert 0 < claimed <= int((values < 0).sum())

    @pytest.mark.parametrize("kind", ["pairs", "pairs, missed"])
    def test_some_eigenvalue_is_as_low_as_is_claimed(self, facts, kind):
        lowest = float(torch.linalg.eigvalsh(dense(SQUARE, "slow")).min())
        assert lowest <= number(figures(facts(kind))["the most negative one"]) + 1e-3 * abs(lowest)

    def test_no_eigenvalue_is_lower_than_the_error_allows(self, facts):
        lowest = float(torch.linalg.eigvalsh(dense(SQUARE, "slow")).min())
        (one,) = (one for one in facts("pairs").known if one.name == "the most negative one")
        assert number(one.how.rpartition("none is below ")[2]) <= lowest

    def test_positive_operator_has_no_negative_one_that_was_found(self, facts):
        assert figures(facts("flat"))["the most negative one"] == "none was found"

    def test_without_shards_nothing_is_estimated_anew(self, made, tmp_path):
        shutil.copytree(made("eigh"), tmp_path / "run")
        run = ooc.open_run(tmp_path / "run")
        ooc.clean(run, shards=True)
        assert figures(gather(run, "default"))["trace"] == "not computed here"

    def test_long_stream_is_left_to_its_command(self, made, monkeypatch):
        monkeypatch.setattr(known, "MOST_STREAMED", 100)
        (one,) = (
            one for one in gather(ooc.open_run(made("eigh")), "default").known
            if one.name == "trace"
        )  # fmt: skip
        assert one.how.endswith("skerch-ooc estimates DIR")

    def test_singular_values_have_norms_alone(self, facts):
        assert [*figures(facts("svd"))] == ["Frobenius norm", "spectral norm"]


class TestLayers:
    def test_are_modules_in_their_order(self):
        assert [(one.name, len(one.rows)) for one in layers_of(LAYERS)] == [
            ("fc1", 44), ("block.0.norm", 6), ("block.0.out", 40),
        ]  # fmt: skip

    @given(
        st.lists(
            st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5).map(".".join),
            min_size=1, max_size=300, unique=True,
        ),
    )  # fmt: skip
    def test_many_are_few_and_leave_nothing_out(self, names):
        found = layers_of(ParameterLayout.of([(name, (3,)) for name in names]))
        assert len(found) <= MOST_LAYERS
        ends = [0, *(one.rows.stop for one in found)]
        assert [one.rows.start for one in found] == ends[:-1]
        assert ends[-1] == 3 * len(names)

    def test_shares_are_those_of_the_squares(self, made, facts):
        vectors = ooc.recover(ooc.open_run(made("model"))).eigenvectors[:].numpy()[:, :6]
        squares = vectors.astype(np.float64) ** 2
        expected = np.array([squares[:44].sum(0), squares[44:50].sum(0), squares[50:].sum(0)])
        np.testing.assert_allclose(facts("model").shares.shares, expected / expected.sum(0))

    def test_very_tall_vectors_are_read_in_part_and_say_so(self):
        class Tall:
            shape, read = (6_000_000, 2), 0

            def __getitem__(self, key):
                self.read += key[0].stop - key[0].start
                return torch.ones(key[0].stop - key[0].start, 2)

        layout = ParameterLayout.of([("a.weight", (5_990_000,)), ("b.weight", (10_000,))])
        tall = Tall()
        found = read_shares(tall, layers_of(layout))
        assert (found.is_exact, tall.read < 2_500_000) == (False, True)
        np.testing.assert_allclose(found.shares[1], 10_000 / 6_000_000)

    def test_borders_are_drawn_with_names_where_there_is_room(self, facts):
        (chart,) = (chart for chart in charts(facts("model")) if chart.name == "vectors")
        assert [name for _, name in chart.drawn["borders"]] == ["fc1", "", "block.0.out"]

    def test_page_has_them_as_a_table(self, made):
        page = parsed(ooc.report(ooc.open_run(made("model"))))
        assert {"fc1", "block.0.norm", "block.0.out"} <= {node.text for node in page.all("th")}


class TestConvergence:
    def test_last_round_agrees_with_the_result(self, made, facts):
        last = facts("pairs").progression.rounds[-1]
        assert (last.met, last.round) == (5, facts("pairs").values.pairs.rounds)
        np.testing.assert_allclose(last.bounds, facts("pairs").values.relative, rtol=1e-6)

    def test_bounds_fall_from_the_first_round_to_the_last(self, facts):
        rounds = facts("pairs").progression.rounds
        assert rounds[0].bounds.max() > 10 * rounds[-1].bounds.max()

    def test_products_of_rounds_are_counted(self, facts):
        rounds = facts("pairs").progression.rounds
        assert [one.products for one in rounds[:2]] == [4, 8]

    def test_is_none_of_a_sketch(self, made):
        assert progression_of(ooc.open_run(made("eigh"))) is None

    @pytest.mark.parametrize("tolerance", [None, 1e-4])
    @pytest.mark.parametrize("bound", [0.0, 1e-300, 1.0, 1e300])
    def test_any_can_be_drawn(self, bound, tolerance):
        rounds = tuple(
            Reached(number, 4 * number, np.full(number, bound), None) for number in range(1, 60)
        )
        chart = convergence(Progression(rounds, tolerance, 5))
        assert chart is None or not re.search(rb"nan|inf\b", chart.file())


class TestShares:
    def test_of_singular_values_add_up_with_what_is_left_out(self, tmp_path):
        a = torch.diag(torch.tensor([3.0, 2, 1] + [0.0] * 17))
        ooc.svd(a, measurements=10, noise="gaussian", run_dir=tmp_path / "run")
        page = ooc.report(ooc.open_run(tmp_path / "run"))
        with (page.parent / "values.csv").open() as file:
            shares = [float(line["share_of_squared_norm"]) for line in csv.DictReader(file)]
        np.testing.assert_allclose(shares[:3], np.array([9, 4, 1]) / 14, rtol=1e-5)
        assert "of ‖A‖²</th>" in page.read_text()


class TestMaps:
    def test_are_the_right_vectors_with_north_on_top(self, made, facts):
        vectors = ooc.recover(ooc.open_run(made("grid"))).V[:].numpy()
        expected = vectors[:, 0].reshape(6, 8)[::-1]
        found = facts("grid").maps
        np.testing.assert_allclose(found.cells[0], expected / np.abs(expected).max(), atol=1e-6)
        assert (found.across.name, found.up.ends) == ("lon", (f"{MINUS}60.00", "60.00"))

    def test_weights_are_divided_out(self, tmp_path):
        of_grid(tmp_path / "run", column_weights="cos-latitude")
        run = ooc.open_run(tmp_path / "run")
        roots = np.sqrt(np.cos(np.deg2rad(np.linspace(-60, 60, 6))))[:, None]
        expected = (ooc.recover(run).V[:].numpy()[:, 0].reshape(6, 8) / roots)[::-1]
        cells = maps.maps_of(run, "default").cells[0]
        np.testing.assert_allclose(cells, expected / np.abs(expected).max(), atol=1e-6)

    def test_of_the_transpose_are_the_left_vectors(self, tmp_path):
        of_grid(tmp_path / "run", transpose=True)
        assert maps.maps_of(ooc.open_run(tmp_path / "run"), "default").noun.startswith("left")

    def test_are_left_out_where_the_file_is_gone(self, made, tmp_path):
        of_grid(tmp_path / "run")
        (tmp_path / "run.nc").unlink()
        assert maps.maps_of(ooc.open_run(tmp_path / "run"), "default") is None

    def test_large_grids_are_drawn_of_few_cells(self, tmp_path):
        fields = grid(tmp_path / "a.nc", 100, 150)
        usv = ooc.svd(torch.from_numpy(fields.reshape(12, -1)), measurements=6,
                      run_dir=tmp_path / "run")  # fmt: skip
        found = np.stack([*maps._cells(usv.V, 100, 150, None)], axis=1)
        assert found.shape[1:] == (48, 72)

    def test_of_any_entries_are_drawn_within_a_bound(self):
        noise = np.random.default_rng(0).uniform(-1, 1, (6, 48, 72))
        side = maps.MapSide("x", ("", ""))
        chart = maps.maps(maps.Maps("vectors", noise, side, side, (), 0.5, False), np.ones(6))
        assert len(chart.file()) < 350_000

    def test_places_without_entries_are_marked(self):
        cells = np.ones((2, 3, 4))
        cells[:, 1, 1:3] = 0
        side = maps.MapSide("x", ("", ""))
        found = maps.Maps("vectors", cells, side, side, (), 0.5, False)
        drawn = maps.maps(found, np.ones(2)).file().decode()
        assert drawn.count('<path class="absent" d="M1 1h2v1h-2z"/>') == 2
        assert (
            "absent"
            not in maps.maps(replace(found, cells=0 * cells), np.ones(2))
            .file()
            .decode()
            .partition("</style>")[2]
        )


class TestWorkers:
    @staticmethod
    def read(made, tmp_path, **more):
        shutil.copytree(made("eigh"), tmp_path / "run")
        path = tmp_path / "run/logs/receipts.jsonl"
        lines = path.read_text().splitlines()
        place = next(i for i, line in enumerate(lines) if json.loads(line)["stage"] == "merge")
        workers = json.loads(lines[place]) | {"stage": "workers", "of": "merge"} | more
        path.write_text("\n".join([*lines[:place], json.dumps(workers), *lines[place:], ""]))
        return read_logs(ooc.open_run(tmp_path / "run"), "default").costs["merge"]

    def test_memory_of_a_stage_is_that_of_its_workers(self, made, tmp_path):
        cost = self.read(made, tmp_path, peak_bytes=12345.0)
        assert (cost.peak_bytes, cost.by_workers, cost.tasks) == (12345.0, True, 1)

    @pytest.mark.parametrize("odd", [{"peak_bytes": "x"}, {"of": ["merge"]}, {"of": "<svg>"}])
    def test_odd_lines_are_left_out(self, made, tmp_path, odd):
        assert not self.read(made, tmp_path, **odd).by_workers


class TestPointing:
    def test_each_value_says_what_it_is(self, facts):
        for chart in charts(facts("eigh")):
            if chart.name == "spectrum":
                said = re.findall(r"<title>(\d+): ", chart.file().decode())
                assert sorted(map(int, said)) == [*range(1, len(facts("eigh").values) + 1)]

    def test_leading_values_are_reached_by_the_keyboard(self, made):
        page = parsed(ooc.report(ooc.open_run(made("eigh"))))
        reached = [node for node in page.all("g") if node.attributes.get("tabindex") == "0"]
        assert all(node.attributes["aria-label"] for node in reached)
        assert sum(node.attributes["aria-label"].startswith("1: ") for node in reached) == 2
