"""The notebooks: each runs in an empty folder, and what is kept of its outputs is of no machine."""

from __future__ import annotations

import importlib
import re
import socket
from pathlib import Path

import h5py
import nbformat
import numpy as np
import pytest

import skerch_ooc as ooc

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "workflows/notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
MOST_CELLS = 12
MOST_BYTES = 300_000
"""Of all notebooks together, with their outputs."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq")


@pytest.fixture
def execute(monkeypatch):
    """The script that executes the notebooks, as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("execute")


@pytest.fixture
def executed(execute, monkeypatch, tmp_path):
    """Executes a notebook in the test's folder, with this package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda name: execute.executed(FOLDER / name, tmp_path)


def kept(name):
    return nbformat.read(FOLDER / name, as_version=4)


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def texts_of(notebook):
    """All text that a notebook printed."""
    return "".join(output["text"] for output in outputs_of(notebook) if output.get("text"))


@pytest.mark.thorough
def test_hessian_has_the_outliers_that_the_notebook_speaks_of(executed, tmp_path):
    executed("hessian_of_your_model.ipynb")
    values = ooc.recover(ooc.open_run(tmp_path / "runs/hessian")).eigenvalues
    leading = ooc.recover(ooc.open_run(tmp_path / "runs/leading")).eigenvalues
    assert leading.tolist() == pytest.approx(values[:9].tolist(), rel=0.05)
    assert 7 <= int((values > 0.1 * values[0]).sum()) <= 12


@pytest.mark.thorough
def test_matrix_on_disk_has_the_singular_values_of_the_file(executed, tmp_path):
    executed("matrix_on_disk.ipynb")
    with h5py.File(tmp_path / "samples.h5") as file:
        samples = file["samples"][:].astype("float64")
    truth = np.linalg.svd(np.cov(samples.T, bias=True) * len(samples), compute_uv=False) ** 0.5
    found = ooc.recover(ooc.open_run(tmp_path / "runs/matrix")).S
    assert found[:8].tolist() == pytest.approx(truth[:8].tolist(), rel=0.02)


@pytest.mark.thorough
def test_cluster_of_two_workers_makes_the_bits_of_one_process(executed):
    printed = texts_of(executed("cluster.ipynb"))
    assert ("the same bits: True" in printed, "2 workers measured" in printed) == (True, True)


def test_all_notebooks_are_executed_by_a_test():
    assert sorted(set(re.findall(r"\w+\.ipynb", Path(__file__).read_text()))) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestKeptFile:
    def test_is_short(self, name):
        assert len(kept(name).cells) <= MOST_CELLS

    def test_was_executed_from_top_to_bottom_in_one_go(self, name):
        counts = [cell.execution_count for cell in kept(name).cells if cell.cell_type == "code"]
        assert counts == [*range(1, len(counts) + 1)]

    def test_is_what_the_script_leaves(self, execute, name):
        stripped = kept(name)
        execute.strip(stripped)
        assert stripped == kept(name)

    def test_shows_a_result_figures_and_the_way_to_the_report(self, name):
        shown = [output.get("data", {}) for output in outputs_of(kept(name))]
        pages = " ".join(data.get("text/html", "") for data in shown)
        assert all(text in pages for text in ("relative error", "<svg", "report.html"))
        assert any("image/svg+xml" in data for data in shown)

    def test_tells_nothing_of_a_machine(self, name):
        text = (FOLDER / name).read_text()
        paths = re.findall(r"(?<![\w/.:<])/(?:home|root|tmp|usr|work|Users|mnt|opt)/", text)
        assert (paths, socket.gethostname() in text) == ([], False)

    def test_is_on_the_page_about_workflows(self, name):
        assert f"`{name}`" in (ROOT / "docs/workflows.md").read_text()


def test_kept_files_are_small():
    assert sum((FOLDER / name).stat().st_size for name in NOTEBOOKS) < MOST_BYTES
