"""Principal components: as scikit-learn's, of whatever holds samples, in one reading."""

from __future__ import annotations

import logging
import subprocess
import sys

import dask.array
import h5py
import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import skerch_ooc as ooc
from skerch_ooc.base.errors import IncompleteError, OperatorError, QualityError, UsageError
from skerch_ooc.base.progress import Progress
from skerch_ooc.operators import samples
from skerch_ooc.pipeline.principal import fit as fitting
from skerch_ooc.pipeline.principal import sums
from skerch_ooc.pipeline.principal.scoring import write_scores_of
from skerch_ooc.planning import sizes

DIGITS = load_digits().data
ARRAYS = (
    "components_", "explained_variance_", "explained_variance_ratio_", "singular_values_", "mean_",
    "noise_variance_",
)  # fmt: skip
COUNTS = ("n_components_", "n_samples_", "n_features_in_")


def tall(rows=2000, columns=40, seed=0):
    """Samples with a spectrum that decays, and a mean."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    return (rng.standard_normal((rows, columns)) * 0.8 ** np.arange(columns)) @ turned + 3


def assert_equal(found, expected, rtol=1e-10):
    for name in ARRAYS:
        one, other = getattr(found, name), getattr(expected, name)
        # What is left out may be nothing but rounding.
        scale = expected.explained_variance_ if name == "noise_variance_" else np.abs(other)
        np.testing.assert_allclose(one, other, rtol, rtol * np.max(scale), err_msg=name)
    for name in COUNTS:
        assert getattr(found, name) == getattr(expected, name)


ALL = "of all components there are as many as rows, repeated ones and those of weight zero counted"
NOT_PASSED = {
    "check_sample_weight_equivalence_on_dense_data": ALL,
    "check_sample_weight_equivalence_on_sparse_data": ALL,
}


class TestSameAsScikitLearn:
    @pytest.mark.parametrize("method", ["qr", "gram"])
    @pytest.mark.parametrize("n_components", [1, 10, 0.9, 61])
    def test_on_the_digits_in_all_attributes(self, n_components, method):
        found = ooc.PCA(n_components, method=method).fit(DIGITS)
        assert_equal(found, PCA(n_components, svd_solver="full").fit(DIGITS), 1e-9)

    @pytest.mark.parametrize("method", ["qr", "krylov"])
    def test_on_the_digits_to_a_tolerance(self, method):
        found = ooc.PCA(10, method=method, tolerance=1e-8).fit(DIGITS)
        assert_equal(found, PCA(10, svd_solver="full").fit(DIGITS), 1e-5)

    def test_with_all_components_of_the_digits(self):
        found, expected = ooc.PCA().fit(DIGITS), PCA(svd_solver="full").fit(DIGITS)
        # Three pixels are always dark: what is left over has no direction of its own.
        for each in (found, expected):
            each.components_ = each.components_[:61]
        assert_equal(found, expected, 1e-9)

    @pytest.mark.parametrize("whiten", [False, True])
    def test_in_scores_and_back(self, whiten):
        found = ooc.PCA(10, whiten=whiten).fit(DIGITS)
        expected = PCA(10, whiten=whiten, svd_solver="full").fit(DIGITS)
        scores = found.transform(DIGITS)
        np.testing.assert_allclose(scores, expected.transform(DIGITS), atol=1e-9)
        np.testing.assert_allclose(
            found.inverse_transform(scores), expected.inverse_transform(scores), atol=1e-9
        )

    @pytest.mark.parametrize("n_components", [5, 40])
    def test_in_likelihoods(self, n_components):
        x = tall()
        found = ooc.PCA(n_components).fit(x)
        expected = PCA(n_components, svd_solver="full").fit(x)
        np.testing.assert_allclose(found.score_samples(x), expected.score_samples(x), rtol=1e-6)
        assert found.score(x) == pytest.approx(expected.score(x))

    @pytest.mark.parametrize("shape", [(30, 200), (40, 40), (2, 5), (200, 1)])
    @pytest.mark.parametrize("method", ["qr", "gram"])
    def test_of_any_shape(self, shape, method):
        x = np.random.default_rng(1).standard_normal(shape) + 5
        number = max(1, min(shape[0] - 1, shape[1]) // 2)
        found = ooc.PCA(number, method=method).fit(x)
        assert_equal(found, PCA(number, svd_solver="full").fit(x), 1e-9)

    def test_names_of_scores(self):
        assert list(ooc.PCA(2).fit(DIGITS).get_feature_names_out()) == ["pca0", "pca1"]

    @parametrize_with_checks([ooc.PCA()], expected_failed_checks=lambda _: NOT_PASSED)
    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
    def test_passes_the_checks_of_estimators(self, estimator, check):
        check(estimator)

    def test_works_in_a_pipeline_that_is_searched(self):
        x, y = load_digits(return_X_y=True)
        found, expected = (
            GridSearchCV(
                make_pipeline(each, LogisticRegression(max_iter=50, tol=0.1)),
                {f"{type(each).__name__.lower()}__n_components": [2, 8]}, cv=2,
            ).fit(x / 16, y)
            for each in (ooc.PCA(), PCA(svd_solver="full"))
        )  # fmt: skip
        assert found.best_score_ == pytest.approx(expected.best_score_, abs=0.01)

    def test_clone_has_the_same_parameters_and_is_not_fitted(self):
        made = clone(ooc.PCA(3, memory="2 GiB", tolerance=1e-4).fit(DIGITS))
        assert made.get_params()["n_components"] == 3
        assert not hasattr(made, "components_")

    def test_clones_share_what_runs_tasks_and_shows_progress(self):
        estimator = ooc.PCA(3, executor=ooc.Dask(workers=1), progress=ooc.terminal_progress())
        made = clone(estimator)
        assert made.executor is estimator.executor
        assert made.progress is estimator.progress

    def test_frames_come_out_where_they_are_wanted(self):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(tall(50, 3), columns=["a", "b", "c"])
        made = ooc.PCA(2).set_output(transform="pandas").fit(frame)
        assert list(made.transform(frame).columns) == ["pca0", "pca1"]
        assert list(made.feature_names_in_) == ["a", "b", "c"]


class TestWhatIsFitted:
    @pytest.fixture
    def x(self):
        return tall()

    @pytest.fixture
    def expected(self, x):
        return PCA(4, svd_solver="full").fit(x)

    def path_of(self, folder, x):
        with h5py.File(folder / "a.h5", "w") as file:
            file["x"] = x
            file["y"] = x[:, :2]
        np.save(folder / "a.npy", x)
        (folder / "rows").mkdir()
        for number, some in enumerate(np.array_split(x, 3)):
            np.save(folder / "rows" / f"{number}.npy", some)
        (folder / "a.toml").write_text(
            'kind = "svd"\nmeasurements = 10\n[operator]\nfactory = "stored"\n'
            '[operator.args]\npath = "a.h5"\ndataset = "x"\n'
        )

    @pytest.mark.parametrize(
        "name", ["a.npy", "rows", "a.toml", "spec", "operator", "run", "memmap", "dataset"]
    )
    def test_files_of_all_kinds(self, tmp_path, monkeypatch, x, expected, name):
        self.path_of(tmp_path, x)
        monkeypatch.chdir(tmp_path)
        made = {
            "spec": lambda: ooc.Spec.from_toml("a.toml"),
            "operator": lambda: ooc.OperatorSpec(
                factory="stored", args={"path": "a.h5", "dataset": "x"}
            ),
            "run": lambda: ooc.plan("a.toml", "run").directory,
            "memmap": lambda: np.load("a.npy", mmap_mode="r"),
            "dataset": lambda: h5py.File("a.h5")["x"],
        }.get(name, lambda: tmp_path / name)()
        assert_equal(ooc.PCA(4).fit(made), expected)

    def test_arrays_of_dask(self, x, expected):
        array = dask.array.from_array(x, chunks=(300, 40))
        found = ooc.PCA(4).fit(array)
        assert_equal(found, expected)
        np.testing.assert_allclose(found.transform(array), expected.transform(x), atol=1e-9)

    @pytest.mark.parametrize("library", ["zarr", "xarray"])
    def test_arrays_of_other_libraries(self, tmp_path, x, expected, library):
        made = pytest.importorskip(library)
        if library == "zarr":
            array = made.create_array(tmp_path / "a.zarr", data=x, chunks=(300, 40))
        else:
            array = made.DataArray(x, dims=("time", "place"))
        assert_equal(ooc.PCA(4).fit(array), expected)

    @pytest.mark.covered(1)
    @pytest.mark.parametrize("density", [0.01, 0.5])
    @pytest.mark.parametrize("method", ["gram", "qr", "krylov"])
    @pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csc_matrix])
    def test_sparse_matrices(self, density, method, kind):
        x = scipy.sparse.random(500, 60, density=density, random_state=0)
        expected = PCA(3, svd_solver="full").fit(x.toarray())
        found = ooc.PCA(3, method=method, tolerance=1e-9).fit(kind(x))
        assert_equal(found, expected, 1e-6)
        np.testing.assert_allclose(
            found.transform(kind(x)), expected.transform(x.toarray()), atol=1e-6
        )

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("method", ["gram", "krylov"])
    def test_sparse_matrices_with_full_columns_of_large_means(self, method):
        x = scipy.sparse.random(800, 100, density=0.01, random_state=0).tolil()
        full = np.random.default_rng(0).integers(0, 16, (800, 2)) / 8
        x[:, 3:5] = full + 2.0**20
        found = ooc.PCA(3, method=method, tolerance=1e-8).fit(scipy.sparse.csr_matrix(x))
        x[:, 3:5] = full + 1
        expected = PCA(3, svd_solver="full").fit(x.toarray())
        expected.mean_[3:5] += 2.0**20 - 1
        assert_equal(found, expected, 1e-9 if method == "gram" else 1e-5)

    def test_sparse_whole_numbers(self):
        x = scipy.sparse.random(500, 60, density=0.02, random_state=0, format="csr")
        x.data = np.arange(1, 1 + x.nnz) % 7
        found, expected = ooc.PCA(3).fit(x), PCA(3, svd_solver="full").fit(x.toarray())
        assert_equal(found, expected)
        np.testing.assert_allclose(
            found.score_samples(x), expected.score_samples(x.toarray()), rtol=1e-8
        )

    def test_entries_of_sparse_matrices_that_are_stored_twice_are_added(self):
        rng = np.random.default_rng(0)
        rows, columns = rng.integers(0, 300, 900), rng.integers(0, 40, 900)
        x = scipy.sparse.csr_matrix((300, 40))
        order = np.argsort(rows, kind="stable")
        starts = np.searchsorted(rows[order], np.arange(301))
        x = scipy.sparse.csr_matrix((rng.random(900), columns[order], starts), (300, 40))
        assert not x.has_canonical_format
        found = ooc.PCA(3, method="gram").fit(x)
        assert_equal(found, PCA(3, svd_solver="full").fit(x.toarray()))

    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int16"])
    def test_tensors(self, x, dtype):
        tensor = torch.from_numpy(x).to(getattr(torch, dtype))
        found = ooc.PCA(4).fit(tensor)
        assert_equal(found, PCA(4, svd_solver="full").fit(tensor.double().numpy()))
        wide = torch.float64 if dtype in ("float64", "int16") else torch.float32
        assert torch.from_numpy(found.transform(tensor)).dtype == wide

    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_frames(self, x, expected, library):
        frames = pytest.importorskip(library)
        frame = frames.DataFrame({f"c{i}": column for i, column in enumerate(x.T)})
        found = ooc.PCA(4).fit(frame)
        assert_equal(found, expected)
        np.testing.assert_allclose(found.transform(frame), expected.transform(x), atol=1e-9)
        assert found.feature_names_in_[-1] == "c39"

    def test_scores_of_one_kind_by_components_of_another(self, tmp_path, x, expected):
        np.save(tmp_path / "a.npy", x)
        found = ooc.PCA(4).fit(torch.from_numpy(x)).transform(str(tmp_path / "a.npy"))
        np.testing.assert_allclose(found, expected.transform(x), atol=1e-9)

    @pytest.mark.parametrize("method", ["gram", "qr", "krylov"])
    def test_single_precision_is_summed_in_double(self, x, method):
        single = x.astype(np.float32)
        found = ooc.PCA(4, method=method, tolerance=1e-6).fit(single)
        rtol = 1e-4 if method == "krylov" else 1e-10
        assert_equal(found, PCA(4, svd_solver="full").fit(single.astype(np.float64)), rtol)


class TestOptionsOfFiles:
    """What options make of a file belongs to the components, also for samples that come later."""

    @pytest.fixture
    def holed(self):
        x = tall() * np.linspace(1, 9, 40)
        x[::7, 3] = np.nan
        return x

    def fit(self, folder, x, method="gram", **options):
        np.save(folder / "a.npy", x)
        args = {"path": str(folder / "a.npy"), **options}
        given = ooc.OperatorSpec(factory="stored", args=args)
        return ooc.PCA(4, method=method, tolerance=1e-9, run_dir=folder / method).fit(given)

    @pytest.mark.covered(1)
    @pytest.mark.parametrize("method", ["gram", "krylov"])
    @pytest.mark.parametrize("subtract", [None, "column-mean"])
    def test_scaled(self, tmp_path, method, subtract):
        x, new = tall() * np.linspace(1, 9, 40), tall(30)
        options = {} if subtract is None else {"subtract": subtract}
        found = self.fit(tmp_path, x, method, scale="column-std", **options)
        scaler = StandardScaler().fit(x)
        expected = PCA(4, svd_solver="full").fit(scaler.transform(x) + x.mean(0) / scaler.scale_)
        assert_equal(found, expected, 1e-7)
        scores = expected.transform(new / scaler.scale_)
        np.save(tmp_path / "new.npy", new)
        again = ooc.PCA.load(tmp_path / method)
        for each in (found, again):
            np.testing.assert_allclose(each.transform(new), scores, atol=1e-6)
            np.testing.assert_allclose(each.transform(tmp_path / "new.npy"), scores, atol=1e-6)
        np.testing.assert_allclose(
            found.inverse_transform(scores),
            expected.inverse_transform(scores) * scaler.scale_, atol=1e-6,
        )  # fmt: skip

    @pytest.mark.parametrize("method", ["gram", "krylov"])
    def test_filled(self, tmp_path, holed, method):
        found = self.fit(tmp_path, holed, method, missing="column-mean")
        imputer = SimpleImputer().fit(holed)
        expected = PCA(4, svd_solver="full").fit(imputer.transform(holed))
        assert_equal(found, expected, 1e-7)
        np.save(tmp_path / "new.npy", holed[:20])
        np.testing.assert_allclose(
            ooc.PCA.load(tmp_path / method).transform(tmp_path / "new.npy"),
            expected.transform(imputer.transform(holed[:20])), atol=1e-6,
        )  # fmt: skip

    def test_weighted_columns(self, tmp_path):
        x, weights = tall(), np.linspace(0, 2, 40)
        np.save(tmp_path / "w.npy", weights)
        found = self.fit(tmp_path, x, column_weights=str(tmp_path / "w.npy"))
        expected = PCA(4, svd_solver="full").fit(x * np.sqrt(weights))
        assert_equal(found, expected)
        np.testing.assert_allclose(
            found.transform(x), expected.transform(x * np.sqrt(weights)), atol=1e-9
        )

    @pytest.mark.parametrize("method", ["gram", "krylov"])
    def test_means_of_rows_taken_off(self, tmp_path, method):
        found = self.fit(tmp_path, tall(), method, subtract="both")
        x = tall() - tall().mean(axis=1, keepdims=True)
        assert_equal(found, PCA(4, svd_solver="full").fit(x), 1e-6)

    @pytest.mark.parametrize("method", ["gram", "krylov"])
    def test_weighted_rows(self, tmp_path, method):
        np.save(tmp_path / "w.npy", WEIGHTS)
        found = self.fit(tmp_path, tall(), method, row_weights=str(tmp_path / "w.npy"))
        assert_weighted(found, tall(), WEIGHTS)
        again = ooc.PCA.load(tmp_path / method)
        np.testing.assert_allclose(again.transform(tall()), found.transform(tall()), rtol=1e-12)

    def test_weights_that_change_in_their_file_are_others(self, tmp_path):
        np.save(tmp_path / "w.npy", WEIGHTS)
        self.fit(tmp_path, tall(), row_weights=str(tmp_path / "w.npy"))
        np.save(tmp_path / "w.npy", WEIGHTS[::-1])
        with pytest.raises(UsageError, match="keeps other components"):
            self.fit(tmp_path, tall(), row_weights=str(tmp_path / "w.npy"))

    @pytest.mark.covered(1)
    @pytest.mark.parametrize("method", ["gram", "krylov"])
    @pytest.mark.parametrize("subtract", [None, "column-mean"])
    def test_samples_that_are_columns(self, tmp_path, method, subtract):
        options = {} if subtract is None else {"subtract": subtract}
        found = self.fit(tmp_path, tall().T, method, transpose=True, **options)
        expected = PCA(4, svd_solver="full").fit(tall())
        assert_equal(found, expected, 1e-7)
        np.testing.assert_allclose(found.transform(tall()), expected.transform(tall()), atol=1e-6)

    @pytest.mark.parametrize(
        "method", ["auto", *(pytest.param(one, marks=pytest.mark.thorough)
                             for one in ("gram", "qr", "krylov"))]
    )  # fmt: skip
    def test_samples_that_are_columns_and_too_many_to_be_held(self, tmp_path, monkeypatch, method):
        monkeypatch.setattr(samples, "_SHARE", 10**6)
        monkeypatch.setattr(fitting, "_SMALL", 0)
        found = self.fit(tmp_path, tall().T, method, transpose=True)
        expected = PCA(4, svd_solver="full").fit(tall())
        assert found.method_ == ("gram" if method == "auto" else method)
        assert_equal(found, expected, 1e-7)
        args = {"path": str(tmp_path / "a.npy"), "transpose": True}
        given = ooc.OperatorSpec(factory="stored", args=args)
        np.testing.assert_allclose(found.transform(given), expected.transform(tall()), atol=1e-6)

    @pytest.mark.parametrize("method", ["gram", "krylov"])
    def test_missing_entry_of_samples_that_are_columns_is_named(
        self, tmp_path, monkeypatch, method
    ):
        monkeypatch.setattr(samples, "_SHARE", 10**6)
        x = tall()
        x[123, 7] = np.nan
        with pytest.raises(OperatorError, match="row 123, column 7"):
            self.fit(tmp_path, x.T, method, transpose=True)

    @pytest.mark.parametrize("share", [1, 10**6])
    def test_samples_that_are_columns_with_weights(self, tmp_path, monkeypatch, share):
        monkeypatch.setattr(samples, "_SHARE", share)
        np.save(tmp_path / "w.npy", WEIGHTS)
        weights = str(tmp_path / "w.npy")
        found = self.fit(tmp_path, tall().T, transpose=True, row_weights=weights)
        assert_weighted(found, tall(), WEIGHTS)

    def test_many_features_of_few_samples_that_are_columns_take_two_readings(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(samples, "_SHARE", 10**6)
        x, read = tall(60, 200), []
        columns = samples.TurnedSamples.columns
        monkeypatch.setattr(
            samples.TurnedSamples, "columns", lambda one: read.append(1) or columns(one)
        )
        found = self.fit(tmp_path, x.T, transpose=True)
        assert_equal(found, PCA(4, svd_solver="full").fit(x), 1e-9)
        assert len(read) == 2

    def test_samples_that_are_columns_are_not_prepared(self, tmp_path):
        with pytest.raises(OperatorError, match="leave out what is to be made of them"):
            self.fit(tmp_path, tall().T, transpose=True, scale="column-std")

    @pytest.mark.parametrize("method", ["gram", "qr", "krylov"])
    def test_sparse_files(self, tmp_path, method):
        x = scipy.sparse.random(900, 60, density=0.02, random_state=0, format="csr")
        scipy.sparse.save_npz(tmp_path / "a.npz", x)
        found = ooc.PCA(3, method=method, tolerance=1e-9).fit(tmp_path / "a.npz")
        expected = PCA(3, svd_solver="full").fit(x.toarray())
        assert_equal(found, expected, 1e-6)
        np.testing.assert_allclose(
            found.transform(tmp_path / "a.npz"), expected.transform(x.toarray()), atol=1e-6
        )


WEIGHTS = np.random.default_rng(5).random(2000) * (np.arange(2000) > 99)
"""Some of which are zero."""


def assert_weighted(found, x, weights, rtol=1e-8):
    """Compares with the weighted covariance of numpy."""
    covariance = np.cov(x.T, aweights=weights)
    number = found.n_components_
    values, directions = np.linalg.eigh(covariance)
    values, directions = values[::-1][:number], directions.T[::-1][:number]
    np.testing.assert_allclose(found.mean_, np.average(x, axis=0, weights=weights), rtol)
    np.testing.assert_allclose(found.explained_variance_, values, rtol)
    np.testing.assert_allclose(found.explained_variance_ratio_, values / np.trace(covariance), rtol)
    same = np.abs((found.components_ * directions).sum(axis=1))
    np.testing.assert_allclose(same, 1.0, rtol=rtol)


class TestWeights:
    def test_are_as_good_as_repeated_rows(self):
        times = np.random.default_rng(3).integers(0, 4, 300)
        found = ooc.PCA(4).fit(tall(300), sample_weight=times)
        expected = ooc.PCA(4).fit(np.repeat(tall(300), times, axis=0))
        for name in ("mean_", "components_", "singular_values_", "explained_variance_ratio_"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), 1e-9)

    @pytest.mark.parametrize("method", ["gram", "qr", "krylov"])
    def test_of_an_array(self, method):
        found = ooc.PCA(4, method=method, tolerance=1e-9).fit(tall(), sample_weight=WEIGHTS)
        assert_weighted(found, tall(), WEIGHTS)

    @pytest.mark.parametrize("method", ["gram", "qr", "krylov"])
    @pytest.mark.parametrize("full", [False, True])
    def test_of_a_sparse_matrix(self, method, full):
        x = scipy.sparse.random(2000, 40, density=0.02, random_state=0, format="lil")
        if full:
            x[:, 3] = 1000 + np.random.default_rng(0).standard_normal((2000, 1))
        found = ooc.PCA(3, method=method, tolerance=1e-10).fit(x.tocsr(), sample_weight=WEIGHTS)
        assert_weighted(found, x.toarray(), WEIGHTS, 1e-7)

    def test_of_few_rows(self, monkeypatch):
        monkeypatch.setattr(fitting, "_SMALL", 0)
        x, weights = tall(40, 120), WEIGHTS[-40:]
        assert_weighted(ooc.PCA(4, method="gram").fit(x, sample_weight=weights), x, weights)

    def test_of_runs_of_rows_with_no_weight(self, monkeypatch):
        monkeypatch.setattr(samples, "SLAB_BYTES", 1 << 12)
        monkeypatch.setattr(samples, "RUN_BYTES", 1)
        monkeypatch.setattr(samples, "TILE_ROWS", 1)
        weights = WEIGHTS * (np.arange(2000) > 900)
        assert_weighted(ooc.PCA(4).fit(tall(), sample_weight=weights), tall(), weights)

    def test_that_are_equal_change_nothing_but_singular_values(self):
        found = ooc.PCA(4).fit(tall(), sample_weight=np.full(2000, 2.0))
        expected = PCA(4, svd_solver="full").fit(tall())
        np.testing.assert_allclose(found.singular_values_, expected.singular_values_ * 2**0.5)
        found.singular_values_ = expected.singular_values_
        assert_equal(found, expected, 1e-9)

    @pytest.mark.parametrize(
        ("weights", "said"),
        [(np.ones(3), "give 2000 weights"), (-np.ones(2000), "not negative"),
         (np.zeros(2000), "zero throughout")],
    )  # fmt: skip
    def test_that_are_none_are_refused(self, weights, said):
        with pytest.raises(OperatorError, match=said):
            ooc.PCA(2).fit(tall(), sample_weight=weights)

    def test_that_are_others_are_known(self, tmp_path):
        ooc.PCA(2, run_dir=tmp_path / "run").fit(tall(), sample_weight=WEIGHTS)
        with pytest.raises(UsageError, match="keeps other components"):
            ooc.PCA(2, run_dir=tmp_path / "run").fit(tall(), sample_weight=WEIGHTS[::-1])

    def test_are_not_needed_for_scores(self, tmp_path):
        np.save(tmp_path / "a.npy", tall())
        pca = ooc.PCA(2, run_dir=tmp_path / "run")
        pca.fit(tmp_path / "a.npy", sample_weight=WEIGHTS)
        path, _ = write_scores_of(tmp_path / "run", "default", None, Progress())
        with h5py.File(path) as file:
            np.testing.assert_allclose(file["scores"][()], pca.transform(tall()), rtol=1e-10)

    def test_that_workers_do_not_see_are_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", tall())
        estimator = ooc.PCA(3, executor=ooc.Dask(workers=1), run_dir=tmp_path / "run")
        with pytest.raises(UsageError, match="row_weights"):
            estimator.fit(tmp_path / "a.npy", sample_weight=WEIGHTS)


GIVEN = {
    "numpy": lambda folder, x: x,
    "pandas": lambda folder, x: pytest.importorskip("pandas").DataFrame(x).add_prefix("c"),
    "masked": lambda folder, x: np.ma.masked_invalid(x),
    "dask": lambda folder, x: dask.array.from_array(x, chunks=(300, 7)),
    "file": lambda folder, x: np.save(folder / "x.npy", x) or folder / "x.npy",
}


class TestMissing:
    """Entries that are missing become means, which samples that come later get too."""

    @pytest.fixture
    def holed(self):
        x = tall() * np.linspace(1, 9, 40)
        x[::7, 3] = np.nan
        return x

    @pytest.mark.parametrize("kind", GIVEN)
    @pytest.mark.parametrize("method", ["gram", pytest.param("krylov", marks=pytest.mark.thorough)])
    def test_are_filled(self, tmp_path, holed, kind, method):
        given = GIVEN[kind](tmp_path, holed)
        found = ooc.PCA(
            4, method=method, missing="column-mean", tolerance=1e-9, run_dir=tmp_path / "run"
        ).fit(given)
        imputer = SimpleImputer().fit(holed)
        expected = PCA(4, svd_solver="full").fit(imputer.transform(holed))
        assert_equal(found, expected, 1e-7)
        scores = expected.transform(imputer.transform(holed[:20]))
        later = GIVEN[kind](tmp_path, holed[:20])
        np.testing.assert_allclose(found.transform(later), scores, atol=1e-6)
        if kind != "pandas":
            again = ooc.PCA.load(tmp_path / "run")
            np.testing.assert_allclose(again.transform(later), scores, atol=1e-6)

    def test_are_refused_by_default(self, holed):
        with pytest.raises(ValueError, match="NaN"):
            ooc.PCA(4).fit(holed)

    def test_are_not_filled_by_a_factory(self):
        given = ooc.OperatorSpec(factory="decaying", args={"n": 30, "rank": 3})
        with pytest.raises(UsageError, match="let decaying do that"):
            ooc.PCA(2, missing="column-mean").fit(given)


class TestShareByRounds:
    """A share of the variance where components are found one by one."""

    @pytest.mark.parametrize("share", [0.9, pytest.param(0.9999, marks=pytest.mark.thorough)])
    def test_is_what_all_values_say(self, tmp_path, share):
        x = tall(300, 120)
        found = ooc.PCA(share, method="krylov", tolerance=1e-9, run_dir=tmp_path / "run").fit(x)
        assert_equal(found, PCA(share, svd_solver="full").fit(x), 1e-7)

    @pytest.mark.thorough
    def test_goes_on_where_it_was_interrupted(self, tmp_path, monkeypatch):
        x = tall(300, 120)

        def interrupted(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("skerch_ooc.pipeline.grow.rundir.amend_run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ooc.PCA(0.9999, method="krylov", run_dir=tmp_path / "run").fit(x)
        found = ooc.PCA(0.9999, method="krylov", run_dir=tmp_path / "run").fit(x)
        assert found.n_components_ == PCA(0.9999, svd_solver="full").fit(x).n_components_

    @pytest.mark.thorough
    def test_of_a_flat_spectrum_takes_nearly_all(self):
        x = np.random.default_rng(0).standard_normal((50, 40))
        found = ooc.PCA(0.97, method="krylov").fit(x)
        assert found.n_components_ == PCA(0.97, svd_solver="full").fit(x).n_components_

    def test_that_does_not_fit_into_the_memory_is_said(self, monkeypatch):
        monkeypatch.setattr("skerch_ooc.pipeline.principal.rounds._HELD", 10**6)
        with pytest.raises(QualityError, match=r"components? explain .* give more memory"):
            ooc.PCA(0.9999, method="krylov").fit(tall(300, 120))


class TestExactness:
    @pytest.mark.parametrize("held", [False, True])
    @pytest.mark.parametrize("method", ["gram", "qr", "krylov"])
    def test_means_of_1e8_times_the_spread_lose_nothing(self, tmp_path, method, held):
        # Steps of 2^-20, so that the sum with the mean is exact.
        x = np.round(tall(3000, 24) * 2**20) / 2**20
        np.save(tmp_path / "a.npy", x + 2.0**27)
        data = x + 2.0**27 if held else tmp_path / "a.npy"
        found = ooc.PCA(3, method=method, tolerance=1e-9).fit(data)
        expected = PCA(3, svd_solver="full").fit(x)
        expected.mean_ = expected.mean_ + 2.0**27
        assert_equal(found, expected, 1e-6 if method == "krylov" else 1e-11)

    @pytest.mark.parametrize("method", ["gram", "qr"])
    def test_means_that_jump_in_the_middle_lose_nothing(self, monkeypatch, method):
        monkeypatch.setattr(samples, "SLAB_BYTES", 1 << 14)
        x = np.random.default_rng(0).standard_normal((1000, 4))
        x[500:] += [1e7, 0, 0, 0]
        found = ooc.PCA(3, method=method).fit(x)
        exact = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
        np.testing.assert_allclose(found.singular_values_[1:], exact[1:3], rtol=1e-7)

    def test_factor_tells_singular_values_that_squares_lose(self):
        x = np.random.default_rng(0).standard_normal((300, 6)) * 0.01 ** np.arange(6)
        exact = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
        found = ooc.PCA(6, method="qr").fit(x)
        np.testing.assert_allclose(found.singular_values_, exact, rtol=1e-4)

    def test_squares_say_what_they_lose(self, caplog):
        x = np.random.default_rng(0).standard_normal((300, 6)) * 0.01 ** np.arange(6)
        with caplog.at_level(logging.WARNING, "skerch_ooc"):
            ooc.PCA(6, method="gram").fit(x)
        assert "2 of 6 components have singular values below 1e-07" in caplog.text

    def test_constant_features_have_no_variance(self):
        x = tall(300, 5)
        x[:, 2] = 0.1
        found = ooc.PCA(5, method="gram").fit(x)
        assert found.explained_variance_[4] == 0
        assert found.mean_[2] == 0.1

    def test_slabs_and_runs_do_not_matter(self, monkeypatch):
        x = tall(20_000, 7)
        expected = ooc.PCA(4, method="gram").fit(x)
        monkeypatch.setattr(samples, "SLAB_BYTES", 1 << 12)
        monkeypatch.setattr(samples, "RUN_BYTES", 1)
        assert_equal(ooc.PCA(4, method="gram").fit(x), expected, 1e-13)

    def test_wide_matrices_are_done_in_rounds(self, monkeypatch):
        monkeypatch.setattr(fitting, "MOST_COLUMNS", 50)
        monkeypatch.setattr(fitting, "_SMALL", 0)
        x = tall(600, 120)
        found = ooc.PCA(5, tolerance=1e-9).fit(x)
        assert found.method_ == "krylov"
        assert_equal(found, PCA(5, svd_solver="full").fit(x), 1e-7)

    def test_few_rows_are_multiplied_with_each_other(self, monkeypatch):
        monkeypatch.setattr(fitting, "MOST_COLUMNS", 50)
        monkeypatch.setattr(fitting, "_SMALL", 0)
        monkeypatch.setattr(samples, "SLAB_BYTES", 1 << 12)
        x = tall(40, 120)
        found = ooc.PCA(0.99).fit(x)
        assert found.method_ == "gram"
        assert_equal(found, PCA(0.99, svd_solver="full").fit(x), 1e-9)

    def test_a_file_of_few_rows_is_held_where_that_is_little(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fitting, "MOST_COLUMNS", 50)
        monkeypatch.setattr(fitting, "_SMALL", 0)
        x = tall(40, 120)
        np.save(tmp_path / "a.npy", x)
        found = ooc.PCA(8).fit(tmp_path / "a.npy")
        assert found.method_ == "gram"
        assert_equal(found, PCA(8, svd_solver="full").fit(x), 1e-9)

    def test_rounds_that_do_not_suffice_are_told(self, monkeypatch):
        monkeypatch.setattr(sizes, "most_rounds", lambda kind, rank, width: 4)
        with pytest.raises(QualityError, match=r"0 of 1 within .*; give a larger tolerance"):
            ooc.PCA(1, method="krylov", tolerance=1e-13).fit(
                np.random.default_rng(0).standard_normal((180, 170))
            )

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("seed", [3, np.random.RandomState(0), np.random.default_rng(0)])
    def test_random_state_is_the_seed_of_rounds(self, seed):
        found = ooc.PCA(2, method="krylov", tolerance=1e-9, random_state=seed).fit(tall(300, 20))
        assert_equal(found, PCA(2, svd_solver="full").fit(tall(300, 20)), 1e-7)


def bytes_read():
    """Bytes that this process has asked the system for so far."""
    with open("/proc/self/io") as file:
        return int(file.read().split("rchar:")[1].split()[0])


class TestReading:
    @pytest.mark.parametrize("kept", [False, True])
    def test_takes_one_reading(self, tmp_path, kept):
        x = tall(20_000, 50)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["x"] = x
        estimator = ooc.PCA(3, method="gram", run_dir=tmp_path / "run" if kept else None)
        before = bytes_read()
        estimator.fit(tmp_path / "a.h5")
        assert 1 <= (bytes_read() - before) / x.nbytes < 1.1

    def test_is_done_once_for_a_run_dir(self, tmp_path, monkeypatch):
        np.save(tmp_path / "a.npy", tall())
        first = ooc.PCA(3, run_dir=tmp_path / "run").fit(tmp_path / "a.npy")
        monkeypatch.setattr(sums, "moments_of", None)
        again = ooc.PCA(3, run_dir=tmp_path / "run").fit(tmp_path / "a.npy")
        assert_equal(again, first, 0)

    def test_goes_on_after_the_runs_of_rows_that_were_summed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(samples, "RUN_BYTES", 1)
        x, summed, moments_of = tall(20_000, 6), [], sums.moments_of
        np.save(tmp_path / "a.npy", x)

        def until_third(held, rows, kind):
            if len(summed) == 2:
                raise KeyboardInterrupt
            summed.append(rows)
            return moments_of(held, rows, kind)

        monkeypatch.setattr(sums, "moments_of", until_third)
        estimator = ooc.PCA(3, method="gram", run_dir=tmp_path / "run")
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(tmp_path / "a.npy")
        begun = summed.copy()
        monkeypatch.setattr(
            sums, "moments_of", lambda *args: (summed.append(args[1]), moments_of(*args))[1]
        )
        estimator.fit(tmp_path / "a.npy")
        assert len(summed) == len(set(summed)) == 5
        assert summed[:2] == begun
        assert_equal(estimator, PCA(3, svd_solver="full").fit(x))
        assert list((tmp_path / "run/sketch").iterdir()) == []

    @pytest.mark.thorough
    def test_dask_makes_the_same_bits(self, tmp_path, quick_workers):
        np.save(tmp_path / "a.npy", tall())
        made = [
            ooc.PCA(3, method="gram", run_dir=tmp_path / name, executor=executor).fit(
                tmp_path / "a.npy"
            )
            for name, executor in (("one", ooc.Serial()), ("two", ooc.Dask(workers=1)))
        ]
        assert_equal(made[1], made[0], 0)

    def test_dask_does_rounds(self, tmp_path, quick_workers):
        np.save(tmp_path / "a.npy", tall())
        estimator = ooc.PCA(
            2, method="krylov", tolerance=1e-9, run_dir=tmp_path / "run",
            executor=ooc.Dask(workers=1),
        )  # fmt: skip
        found = estimator.fit(tmp_path / "a.npy")
        assert_equal(found, PCA(2, svd_solver="full").fit(tall()), 1e-7)

    @pytest.mark.thorough
    def test_memory_stays_below_what_is_allowed(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            made = file.create_dataset("x", (40_000, 1000), "f8")
            for start in range(0, 40_000, 8000):
                made[start : start + 8000] = np.random.default_rng(start).random((8000, 1000))
        code = (
            "import skerch_ooc as ooc; from skerch_ooc.base.resources import peak_memory\n"
            "pca = ooc.PCA(3, memory='900 MiB').fit('a.h5'); pca.transform('a.h5', out='s.h5')\n"
            "print(peak_memory(), pca.method_)"
        )
        finished = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        peak, method = finished.stdout.split()
        assert method == "gram"
        assert int(peak) < 900 * 2**20


class TestKept:
    @pytest.mark.parametrize("method", ["gram", "krylov"])
    def test_components_are_loaded_as_they_were(self, tmp_path, method):
        first = ooc.PCA(3, method=method, run_dir=tmp_path / "run").fit(tall(200, 9))
        again = ooc.PCA.load(tmp_path / "run")
        assert_equal(again, first, 0)
        assert (again.method_, again.n_components) == (method, 3)

    def test_scores_stay_whitened(self, tmp_path):
        first = ooc.PCA(3, whiten=True, run_dir=tmp_path / "run").fit(tall())
        again = ooc.PCA.load(tmp_path / "run")
        np.testing.assert_allclose(again.transform(tall()), first.transform(tall()), 1e-9)

    def test_is_named_where_a_run_is_asked_for(self, tmp_path):
        ooc.PCA(3, run_dir=tmp_path / "run").fit(tall())
        with pytest.raises(UsageError, match="skerch-ooc scores "):
            ooc.open_run(tmp_path / "run")

    def test_the_same_array_is_known_again(self, tmp_path):
        first = ooc.PCA(3, run_dir=tmp_path / "run").fit(tall())
        assert_equal(ooc.PCA(3, run_dir=tmp_path / "run").fit(tall()), first, 0)

    @pytest.mark.parametrize("change", ["data", "number"])
    def test_other_components_are_not_replaced(self, tmp_path, change):
        ooc.PCA(3, run_dir=tmp_path / "run").fit(tall())
        other = ooc.PCA(4 if change == "number" else 3, run_dir=tmp_path / "run")
        with pytest.raises(UsageError, match="keeps other components"):
            other.fit(tall(seed=int(change == "data")))

    def test_file_that_changed_is_not_taken_for_the_same(self, tmp_path):
        np.save(tmp_path / "a.npy", tall())
        ooc.PCA(3, run_dir=tmp_path / "run").fit(tmp_path / "a.npy")
        np.save(tmp_path / "a.npy", tall(seed=1))
        with pytest.raises(UsageError, match="keeps other components") as refused:
            ooc.PCA(3, run_dir=tmp_path / "run").fit(tmp_path / "a.npy")
        assert "changed since" in str(refused.value)
        assert "digest" not in str(refused.value)

    @pytest.mark.parametrize("change", ["content", "name"])
    def test_folder_that_changed_is_not_taken_for_the_same(self, tmp_path, change):
        folder = tmp_path / "rows"
        folder.mkdir()
        for number in range(2):
            np.save(folder / f"{number}.npy", tall(200))
        ooc.PCA(3, run_dir=tmp_path / "run").fit(folder)
        ooc.PCA(3, run_dir=tmp_path / "run").fit(folder)
        if change == "name":
            (folder / "0.npy").rename(folder / "2.npy")
        else:
            np.save(folder / "1.npy", tall(200, seed=1))
        with pytest.raises(UsageError, match="keeps other components"):
            ooc.PCA(3, run_dir=tmp_path / "run").fit(folder)

    def test_names_of_features_are_kept(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(tall(50, 2), columns=["a", "b"])
        ooc.PCA(1, run_dir=tmp_path / "run").fit(frame)
        assert list(ooc.PCA.load(tmp_path / "run").feature_names_in_) == ["a", "b"]

    def test_nothing_is_loaded_of_an_empty_folder(self, tmp_path):
        with pytest.raises(IncompleteError, match="no principal components"):
            ooc.PCA.load(tmp_path)

    def test_damage_is_found(self, tmp_path):
        ooc.PCA(3, run_dir=tmp_path / "run").fit(tall())
        path = fitting.pca_path(tmp_path / "run")
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        with pytest.raises(ooc.CorruptError, match="then fit again"):
            ooc.PCA.load(tmp_path / "run")


class TestRefused:
    @pytest.mark.parametrize("n_components", [0, -1, 1.5, 0.0, "mle", True, 41, np.nan])
    def test_numbers_of_components(self, n_components):
        with pytest.raises(UsageError, match="n_components = "):
            ooc.PCA(n_components).fit(tall())

    @pytest.mark.parametrize(
        ("parameters", "text"),
        [
            ({"method": "arpack"}, "must be one of auto, gram, qr, krylov"),
            ({"method": "krylov"}, "give how many"),
            ({"missing": "zero"}, 'missing = .*must be "column-mean"'),
            ({"random_state": "x"}, "random_state = 'x'"),
            ({"random_state": -1}, "at least 0"),
            ({"memory": "300 MiB", "method": "gram"}, "give memory = "),
        ],
    )
    def test_parameters(self, parameters, text):
        with pytest.raises(UsageError, match=text):
            ooc.PCA(**parameters).fit(tall())

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_entries_that_are_not_finite_are_named(self, tmp_path, bad):
        x = tall()
        x[1234, 5] = bad
        np.save(tmp_path / "a.npy", x)
        with pytest.raises(OperatorError, match="row 1234, column 5"):
            ooc.PCA(3).fit(tmp_path / "a.npy")

    def test_squares_beyond_double_precision(self):
        with pytest.raises(OperatorError, match="too large for double precision"):
            ooc.PCA(3).fit(tall() * 1e200)

    @pytest.mark.parametrize("as_given", [np.asarray, scipy.sparse.csr_array])
    def test_squares_below_double_precision(self, as_given):
        with pytest.raises(OperatorError, match="too small for double precision"):
            ooc.PCA(3, method="gram").fit(as_given(tall() * 1e-200))

    def test_constant_samples_are_not_called_too_small(self):
        assert not ooc.PCA(1, method="gram").fit(np.full((20, 3), 0.1)).singular_values_.any()

    @pytest.mark.parametrize("named", [False, True])
    def test_workers_that_would_have_nothing_to_read_or_to_write_to(self, tmp_path, named):
        np.save(tmp_path / "a.npy", tall())
        estimator = ooc.PCA(3, executor=ooc.Dask(workers=1))
        with pytest.raises(UsageError, match="run_dir is missing" if named else "no executor"):
            estimator.fit(tmp_path / "a.npy" if named else tall())

    def test_masked_entries(self):
        x = np.ma.MaskedArray(tall(), tall() > 3)
        with pytest.raises(
            OperatorError, match="entries of the array are masked, the first in row"
        ):
            ooc.PCA(3).fit(x)

    @pytest.mark.parametrize(
        "data",
        [
            torch.zeros(3, 4, dtype=torch.complex64),
            torch.zeros(3),
            torch.zeros(1, 4),
            torch.eye(4).to_sparse(),
            object,
        ],
        ids=["complex", "one dimension", "one sample", "sparse tensor", "no matrix"],
    )
    def test_objects_that_hold_no_samples(self, data):
        with pytest.raises((OperatorError, ValueError)):
            ooc.PCA(1).fit(data)

    def test_frames_with_text(self):
        frames = pytest.importorskip("polars")
        with pytest.raises(OperatorError, match="no number"):
            ooc.PCA(1).fit(frames.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]}))

    def test_files_of_other_features(self, tmp_path):
        np.save(tmp_path / "a.npy", tall(50, 3))
        with pytest.raises(UsageError, match="3 features, and PCA was fitted with 40"):
            ooc.PCA(2).fit(tall()).transform(tmp_path / "a.npy")

    def test_scores_of_another_number(self):
        with pytest.raises(UsageError, match="give one of 2 columns"):
            ooc.PCA(2).fit(tall()).inverse_transform(np.zeros((4, 3)))

    def test_likelihoods_without_noise(self):
        with pytest.raises(UsageError, match="give a smaller n_components"):
            ooc.PCA(5).fit(tall(5, 10)).score_samples(tall(5, 10))


WITHOUT = """
import sys
sys.modules["sklearn"] = None
import numpy as np, skerch_ooc as ooc
from skerch_ooc.base.errors import UsageError
x = np.random.default_rng(0).standard_normal((100, 5))
pca = ooc.PCA().set_params(n_components=2)
for call in (lambda: pca.transform(x), lambda: pca.set_params(components=2)):
    try:
        call()
    except UsageError as error:
        print(error)
assert pca.fit_transform(x).shape == (100, 2)
assert pca.get_feature_names_out().tolist() == ["pca0", "pca1"]
try:
    pca.transform(x[:, :3])
except UsageError as error:
    print(error)
assert "sklearn.base" not in sys.modules
"""


@pytest.mark.thorough
def test_scikit_learn_is_not_needed():
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines() == [
        "this PCA is not fitted yet; call fit first",
        "no parameter components; give one of: n_components, whiten, method, tolerance, memory, "
        "run_dir, random_state, executor, progress, missing",
        "the samples have 3 features, and PCA was fitted with 5; give those",
    ]
