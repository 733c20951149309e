"""How results, runs and specs show themselves: in a notebook, as text, and drawn by matplotlib."""

from __future__ import annotations

import shutil
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from operators import dense

import skerch_ooc as ooc
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.pipeline.principal.sklearn_base import PlainEstimator
from skerch_ooc.results.curves import curve, small_chart
from skerch_ooc.results.plots import plot_values
from skerch_ooc.results.vectors import StoredVectors

pytestmark = pytest.mark.usefixtures("one_thread")

N = 120
NAMES = ("eigh", "svd", "krylov", "without test vectors", "exact")


@pytest.fixture(scope="module", autouse=True)
def without_windows():
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    pyplot.close("all")
    matplotlib.use(backend)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Finished results, which tests only read."""
    folder = tmp_path_factory.mktemp("shown")
    a, complex_a = dense((N, N), "decay"), dense((N, 70), "decay", "complex64", hermitian=False)
    return {
        "eigh": ooc.eigh(a, measurements=40, run_dir=folder / "eigh"),
        "svd": ooc.svd(complex_a, measurements=30, run_dir=folder / "svd"),
        "krylov": ooc.eigh(a, rank=4, rounds=4, round_width=8, run_dir=folder / "krylov"),
        "without test vectors": ooc.eigh(
            a, measurements=30, test_measurements=0, run_dir=folder / "untested"
        ),
        "exact": ooc.eigh(torch.ones(N, N), measurements=10, run_dir=folder / "exact"),
    }


@pytest.fixture(scope="module")
def others(results):
    """An object of each other public class that holds results, by a name."""
    eig, run = results["eigh"], run_of(results["eigh"])
    estimates, comparison = ooc.estimates(run), ooc.compare(run, run)
    return {
        "estimates": estimates, "figure": estimates.trace, "norm": estimates.spectral_norm,
        "diagonal": estimates.diagonal(), "overlap": ooc.overlap(eig, eig),
        "trace": ooc.trace(run_of(results["krylov"]), np.exp), "comparison": comparison,
        "compared": comparison.a, "vectors": eig.eigenvectors,
        "layout": ooc.ParameterLayout.of([("<b>w</b>", (3, 4))]), "cleaning": ooc.clean(run),
    }  # fmt: skip


def run_of(result):
    return ooc.open_run(result.path.parents[2])


def shown(thing):
    """What a notebook shows: the rows of the table, and whether a chart follows it."""
    tree = ElementTree.fromstring(thing._repr_html_())
    rows = {row.findtext("th"): row.findtext("td") for row in tree.iter("tr")}
    return rows, tree.find("svg") is not None


class TestNotebook:
    @pytest.mark.parametrize("name", ["eigh", "svd", "krylov"])
    def test_shows_values_and_error_of_a_result_with_a_chart(self, results, name):
        rows, has_chart = shown(results[name])
        first = next(text for label, text in rows.items() if label.startswith("first"))
        values = results[name].S if name == "svd" else results[name].eigenvalues
        assert [*map(float, first.split(", "))] == pytest.approx(values[:5].tolist(), rel=1e-3)
        error = ooc.assess(run_of(results[name])).relative_error
        assert float(rows["relative error"].split(",")[0]) == pytest.approx(error, rel=1e-2)
        assert has_chart

    def test_shows_no_chart_of_nothing(self):
        assert small_chart([curve(np.arange(3), np.zeros(3))], ("number", "magnitude")) == ""

    def test_says_that_the_error_is_unknown(self, results):
        rows, _ = shown(results["without test vectors"])
        assert rows["relative error"] == "unknown, without test vectors"
        assert "unknown" in shown(ooc.assess(run_of(results["without test vectors"])))[0][
            "relative error"]  # fmt: skip

    def test_reads_no_vectors(self, results, monkeypatch):
        monkeypatch.setattr(StoredVectors, "open_row", None)
        monkeypatch.setattr(StoredVectors, "factor", None)
        assert "orthogonality" in shown(results["eigh"])[0]

    def test_shows_the_message_about_an_altered_assessment(self, results, tmp_path):
        directory = tmp_path / "copy"
        shutil.copytree(results["eigh"].path.parents[2], directory)
        result = ooc.recover(ooc.open_run(directory))
        written = result.path.with_name("assessment.json")
        written.write_text(written.read_text().replace("1", "2"))
        assert "was altered" in shown(result)[0]["relative error"]
        written.unlink()
        assert "not assessed yet" in shown(result)[0]["relative error"]
        shutil.rmtree(directory)
        assert "not assessed yet" in shown(result)[0]["relative error"]

    @pytest.mark.parametrize("name", NAMES)
    def test_shows_runs_and_their_plans(self, results, name):
        run = run_of(results[name])
        rows, _ = shown(run)
        assert rows["directory"] == str(run.directory)
        assert rows["results"] == "default"
        assert rows["method"].startswith(run.plan.recovery.method)
        assert shown(run.plan)[0].items() <= rows.items()

    def test_shows_a_run_whose_folder_is_gone(self, results, tmp_path):
        directory = tmp_path / "<b>copy</b>"
        shutil.copytree(results["eigh"].path.parents[2], directory)
        run = ooc.open_run(directory)
        shutil.rmtree(directory)
        rows, _ = shown(run)
        assert (rows["directory"], rows["results"]) == (str(directory), "none")

    def test_shows_what_a_spec_asks_for_and_no_defaults(self):
        spec = ooc.Spec(
            30, seed=3, operator={"factory": "a.py:f", "args": {"n": 1}}, sketch={"block": 4}
        )
        rows, _ = shown(spec)
        assert rows == {
            "measurements": "30", "kind": "'eigh'", "seed": "3", "operator.factory": "'a.py:f'",
            "operator.args": "{'n': 1}", "sketch.block": "4", "recovery.method": "'nystrom'",
            "all else": "as by default",
        }  # fmt: skip

    @pytest.mark.parametrize("name", NAMES)
    def test_shows_assessments(self, results, name):
        assessment = ooc.assess(run_of(results[name]))
        rows, has_chart = shown(assessment)
        assert rows["rank"].startswith(str(assessment.rank))
        assert has_chart == bool(assessment.scree)
        assert ("pairs" in rows) == (name == "krylov")

    def test_shows_densities(self, results):
        rows, has_chart = shown(ooc.density(run_of(results["krylov"])))
        assert rows["nodes"] == "32"
        assert has_chart

    @pytest.mark.parametrize(
        ("name", "entry", "said"),
        [("estimates", "trace", "float"), ("figure", "value", "float"), ("norm", "value", "float"),
         ("diagonal", "sum", "float"), ("trace", "estimate", "about"),
         ("overlap", "overlap", "1.000000, of 0 to 1"), ("comparison", "kind", "eigh, float64"),
         ("compared", "values", ""), ("vectors", "size", "120 x"),
         ("layout", "<b>w</b>", "(3, 4)"), ("cleaning", None, None)],
    )  # fmt: skip
    def test_shows_all_else_that_holds_results(self, others, name, entry, said):
        rows, _ = shown(others[name])
        assert not [row for row in rows if row.endswith("Error")]
        if said == "float":
            assert np.isfinite(float(rows[entry]))
        elif entry is not None:
            assert rows[entry].startswith(said)

    def test_shows_both_sides_of_a_comparison(self, others):
        tree = ElementTree.fromstring(others["comparison"]._repr_html_())
        assert [one.text or "" for one in tree.iter("th")][:3] == ["", "a", "b"]
        assert [len(row.findall("td")) for row in tree.find("table").find("tbody")] == [2] * 12

    def test_every_public_result_shows_itself(self):
        held = {"LazyMatrix", "Diagonal", "Figure", "Overlap", "TraceEstimate", "Cleaning"}
        public = [getattr(ooc, name) for name in ooc.__all__]
        results = [one for one in public if isinstance(one, type) and (
            one.__name__ in held or one.__module__.startswith("skerch_ooc.results"))]  # fmt: skip
        assert [one for one in results if not hasattr(one, "_repr_html_")] == []

    def test_shows_an_estimator_where_there_is_no_sklearn(self):
        class Plain(PlainEstimator):
            def __init__(self, count=None, whiten=False):
                self.count, self.whiten = count, whiten

        plain = Plain(3)
        plain.mean_, plain.method_ = np.zeros(2), "gram"
        assert shown(plain)[0] == {"count": "3", "method_": "gram"}
        assert repr(plain) == "Plain(count=3)"

    def test_shows_an_error_instead_of_raising_it(self):
        class Broken:
            @never_raising
            def _repr_html_(self):
                raise OSError("a <disk> is gone")

        assert shown(Broken())[0] == {"OSError": "a <disk> is gone"}

    def test_shows_names_that_are_no_text(self):
        path = b"/runs/\xff".decode(errors="surrogateescape")
        assert "\\udcff" in table("Run", [("directory", path)])


class TestText:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_short(self, results, name):
        run = run_of(results[name])
        for thing in (results[name], run.plan, ooc.assess(run)):
            assert len(repr(thing).replace(str(run.directory), "")) < 600

    def test_of_a_run_names_its_directory_and_plan(self, results):
        run = run_of(results["eigh"])
        assert repr(run) == (
            f"Run({str(run.directory)!r}, Plan(kind='eigh', shape=(120, 120), dtype='float64', "
            "method='nystrom', measurements=40))"
        )

    def test_of_a_density_says_between_what_it_lies(self, results):
        density = ooc.density(run_of(results["krylov"]))
        assert repr(density).startswith(f"Density(n={N}, 32 nodes from -0.")


def heights(ax):
    """All heights of the lines of some axes, in order."""
    return np.concatenate([line.get_ydata() for line in ax.get_lines()])


class TestPlot:
    def test_of_values_has_all_magnitudes(self, results):
        eig = results["eigh"]
        ax = eig.plot()
        positive, negative, residuals = (line.get_ydata() for line in ax.get_lines())
        values = eig.eigenvalues.numpy()
        np.testing.assert_allclose(positive, values[values > 0])
        np.testing.assert_allclose(negative, -values[values < 0])
        np.testing.assert_allclose(residuals, eig.residuals.numpy())
        assert ax.get_yscale() == "log"

    def test_of_pairs_has_their_bounds(self, results):
        ax = results["krylov"].plot()
        assert "bound of the error" in ax.get_legend_handles_labels()[1]

    def test_of_density_is_that_density(self, results):
        density = ooc.density(run_of(results["krylov"]))
        x, y = density.plot().get_lines()[0].get_data()
        np.testing.assert_allclose(y, density.pdf(x))

    @pytest.mark.parametrize("name", ["eigh", "exact"])
    def test_of_an_error_is_its_scree(self, results, name):
        assessment = ooc.assess(run_of(results[name]))
        ax = assessment.plot()
        ax.figure.canvas.draw()
        upper = [high for _, _, high in assessment.scree]
        np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), upper)

    def test_of_an_unknown_error_is_refused_with_what_tells_it(self, results):
        assessment = ooc.assess(run_of(results["without test vectors"]))
        with pytest.raises(ooc.UsageError, match=r"plan with sketch\.test_measurements"):
            assessment.plot()

    def test_goes_into_axes_that_are_given(self, results):
        _, (left, right) = pyplot.subplots(1, 2)
        assert results["eigh"].plot(left) is left
        assert results["svd"].plot(ax=right) is right

    def test_of_nothing_is_drawn(self):
        ax = plot_values(None, np.zeros(3), "eigenvalues", np.zeros(3), "bound")
        ax.figure.canvas.draw()
        assert ax.get_yscale() == "linear"

    def test_without_matplotlib_the_error_says_what_to_install(self, results, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ooc.UsageError, match=r"pip install 'skerch_ooc\[report\]'"):
            results["eigh"].plot()
