"""Scores in files: of components, of runs, in each format, by the command line."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from sklearn.decomposition import PCA

import skerch_ooc as ooc
from skerch_ooc.base.errors import DriftError, OperatorError, UsageError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.progress import Progress
from skerch_ooc.cli.main import run_command_line
from skerch_ooc.pipeline.principal.scoring import write_scores_of
from skerch_ooc.results import scores
from skerch_ooc.store.sealed import verify


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((9000, 8)) * 0.7 ** np.arange(8) + 5


@pytest.fixture(scope="module")
def expected(x):
    return PCA(3, svd_solver="full").fit_transform(x)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, x):
    """A folder with a matrix and what was made of it."""
    folder = tmp_path_factory.mktemp("fitted")
    np.save(folder / "a.npy", x)
    args = {"path": str(folder / "a.npy"), "subtract": "column-mean"}
    spec = {
        "kind": "svd", "rounds": 8, "recovery": {"rank": 3},
        "operator": {"factory": "stored", "args": args},
    }  # fmt: skip
    ooc.run(spec, folder / "run")
    for method in ("gram", "krylov"):
        ooc.PCA(3, method=method, run_dir=folder / method, tolerance=1e-9).fit(folder / "a.npy")
    return folder


def in_file(path):
    with h5py.File(path) as file:
        return file["scores"][:]


@pytest.mark.parametrize("name", ["run", "gram", "krylov"])
class TestOfADirectory:
    def test_are_those_of_principal_components(self, fitted, tmp_path, name, expected):
        path, _ = write_scores_of(fitted / name, "default", tmp_path / "s.h5", Progress())
        np.testing.assert_allclose(in_file(path), expected, atol=1e-6)

    def test_by_the_command_line_are_made_once(self, fitted, name, capsys):
        made = fitted / name / "results/default/scores.h5"
        for _ in range(2):
            assert run_command_line(["scores", str(fitted / name)]) == 0
            assert capsys.readouterr().out == f"{made}: 9000 x 3, float64\n"
        assert verify(made).layout.shape == (9000, 3)


def test_a_run_with_scores_is_still_sound(fitted):
    write_scores_of(fitted / "run", "default", None, Progress())
    assert run_command_line(["verify", str(fitted / "run")]) == 0


def test_columns_that_are_not_centred_are_told(tmp_path, x, capsys):
    ooc.svd(x[:200], run_dir=tmp_path / "run", rounds=8, rank=2)
    assert run_command_line(["scores", str(tmp_path / "run")]) == 0
    assert "not centred" in capsys.readouterr().err


class TestFormats:
    @pytest.mark.parametrize("rows", [1000, 4096, 9000])
    def test_hdf5_holds_them_however_they_come(self, tmp_path, rows):
        values = np.random.default_rng(0).standard_normal((9000, 3))
        sheet = scores.Sheet(values.shape, values.dtype, "run", "components")
        blocks = ((piece, values[piece.slice]) for piece in cut(Range(0, 9000), rows))
        path = scores.write_scores(tmp_path / "new/s.h5", sheet, blocks)
        np.testing.assert_array_equal(in_file(path), values)

    def test_zarr(self, tmp_path, x, expected):
        zarr = pytest.importorskip("zarr")
        path = ooc.PCA(3).fit(x).transform(x, out=tmp_path / "s.zarr")
        found = zarr.open_array(path)
        np.testing.assert_allclose(found[:], expected, atol=1e-9)
        assert found.attrs["columns"] == ["pca0", "pca1", "pca2"]

    def test_parquet(self, tmp_path, x, expected):
        parquet = pytest.importorskip("pyarrow.parquet")
        path = ooc.PCA(3).fit(x).transform(x.astype(np.float32), out=tmp_path / "s.parquet")
        table = parquet.read_table(path)
        assert table.column_names == ["pca0", "pca1", "pca2"]
        found = np.stack([column.to_numpy() for column in table.columns], axis=1)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert json.loads(table.schema.metadata[b"identity"])["type"] == "scores"

    def test_another_suffix_is_refused_before_work(self, x, tmp_path):
        with pytest.raises(UsageError, match=r"ends in \.h5, \.zarr, \.parquet, \.csv"):
            ooc.PCA(3).fit(x).transform("nothing.npy", out=tmp_path / "s.txt")

    @pytest.mark.parametrize("suffix", [".h5", ".zarr", ".parquet", ".csv"])
    def test_what_is_there_is_kept(self, x, tmp_path, suffix):
        path = tmp_path / f"s{suffix}"
        path.write_text("precious")
        with pytest.raises(UsageError, match=r"is there already|pip install"):
            ooc.PCA(3).fit(x).transform(x, out=path)
        assert path.read_text() == "precious"

    def test_missing_library_is_named(self, x, tmp_path, monkeypatch):
        monkeypatch.setitem(scores._WRITERS, ".zarr", ("no_such_library", None))
        with pytest.raises(UsageError, match="pip install no_such_library"):
            ooc.PCA(3).fit(x).transform(x, out=tmp_path / "s.zarr")


class TestRefused:
    def test_samples_that_changed(self, tmp_path, x):
        np.save(tmp_path / "a.npy", x)
        ooc.PCA(2, run_dir=tmp_path / "run").fit(tmp_path / "a.npy")
        np.save(tmp_path / "a.npy", x[:100])
        with pytest.raises(DriftError, match="have changed"):
            write_scores_of(tmp_path / "run", "default", None, Progress())

    def test_samples_that_were_objects(self, tmp_path, x):
        ooc.PCA(2, run_dir=tmp_path / "run").fit(x)
        with pytest.raises(OperatorError, match=r"call PCA\.load"):
            write_scores_of(tmp_path / "run", "default", None, Progress())

    def test_eigenvalues_have_none(self, tmp_path, x):
        ooc.eigh(x.T @ x, run_dir=tmp_path / "run", measurements=8)
        with pytest.raises(UsageError, match='scores are of kind = "svd"'):
            write_scores_of(tmp_path / "run", "default", None, Progress())

    def test_empty_folders(self, tmp_path):
        with pytest.raises(UsageError, match="neither a run nor components"):
            write_scores_of(tmp_path, "default", None, Progress())
