"""Options of objects in Python: arrays, frames and datasets are prepared as files are."""

from __future__ import annotations

import dask.array
import numpy as np
import pandas
import pytest
import scipy.sparse
import torch
import xarray
from test_matrix_objects import HEIGHT, OBJECTS, WIDTH, entries, small_slabs

import skerch_ooc as ooc
from skerch_ooc.base.errors import OperatorError, UsageError
from skerch_ooc.operators.adapters import product_of
from skerch_ooc.operators.prepared import prepared as made_of

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["small_slabs"]

ROWS = np.random.default_rng(8).random(HEIGHT)
COLUMNS = np.random.default_rng(9).random(WIDTH)
CODE, GONE = -99, 7


def dense(operator, options, dtype="float64"):
    """The matrix that is applied, by its products with the columns of the identity."""
    made = made_of(operator, options, None)
    return product_of(made, dtype, "cpu")(np.eye(made.shape[1], dtype=dtype))


def prepared(a, options):
    """What options make of an array, by numpy alone."""
    a = a.T if options.get("transpose") else a
    a = a.astype(float)
    for code in options.get("missing_codes", ()):
        a[a == code] = np.nan
    gone = np.isnan(a).all(axis=0)
    if options.get("subtract") in ("row-mean", "both"):
        a = a - np.nanmean(a, axis=1, keepdims=True)
    if options.get("missing") == "column-mean" or gone.any():
        a[:, gone] = 0
        a = np.where(np.isnan(a), np.nanmean(a, axis=0), a)
    if options.get("subtract") in ("column-mean", "both"):
        a = a - a.mean(axis=0)
    if options.get("scale"):
        a = a / np.where(a.std(axis=0) > 0, a.std(axis=0), 1)
    a[:, gone] = 0
    height, width = a.shape
    rows, columns = options.get("row_weights"), options.get("column_weights")
    a = a if rows is None else np.sqrt(rows)[:height, None] * a
    return a if columns is None else a * np.sqrt(columns)[:width]


OPTIONS = {
    "transposed": {"transpose": True},
    "centred": {"subtract": "column-mean"},
    "centred by rows": {"subtract": "row-mean"},
    "centred by both": {"subtract": "both"},
    "standardised": {"subtract": "column-mean", "scale": "column-std"},
    "weighted": {"row_weights": ROWS, "column_weights": COLUMNS},
    "transposed, standardised, weighted": {
        "transpose": True, "subtract": "both", "scale": "column-std",
        "row_weights": COLUMNS, "column_weights": ROWS,
    },
    "filled": {"missing_codes": [CODE], "missing": "column-mean", "subtract": "column-mean"},
    "filled and standardised": {
        "missing_codes": [CODE], "missing": "column-mean", "subtract": "column-mean",
        "scale": "column-std", "row_weights": ROWS,
    },
    "without a column": {
        "missing_codes": [CODE], "empty_columns": "leave-out", "subtract": "both",
    },
}  # fmt: skip


def with_codes(a, options):
    """Entries with codes for missing ones, where options have them."""
    a = a.copy()
    if options.get("missing"):
        a[::7, 5] = CODE
        a[3, 2:9] = CODE
    elif options.get("empty_columns"):
        a[:, GONE] = CODE
    return a


SPARSE = {
    "csr": lambda folder, a: scipy.sparse.csr_array(a),
    "csc": lambda folder, a: scipy.sparse.csc_array(a),
}
KINDS = OBJECTS | SPARSE
FEW = ("numpy", "pandas", "csr", "dask of blocks")
# Sparse matrices are not prepared where a whole column is stored as missing.
CASES = [
    pytest.param(kind, name, marks=() if kind in FEW else (pytest.mark.thorough,))
    for kind in KINDS
    for name in OPTIONS
    if not (kind in SPARSE and name == "without a column")
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_entries_are_prepared_as_options_say(tmp_path, kind, name):
    options = OPTIONS[name]
    a = with_codes(entries("int16" if "filled" in name else "float64"), options)
    found = dense(KINDS[kind](tmp_path, a), options)
    expected = prepared(a, options)
    limit = 1e-4 if a.dtype == np.int16 else 1e-10
    np.testing.assert_allclose(found, expected, atol=limit * np.abs(expected).max())


def test_masked_entries_are_filled():
    a = entries()
    masked = np.ma.array(a, mask=a > 9)
    holes = np.where(a > 9, np.nan, a)
    found = dense(masked, {"missing": "column-mean"})
    np.testing.assert_allclose(found, np.where(a > 9, np.nanmean(holes, axis=0), a), rtol=1e-12)


@pytest.mark.parametrize("kind", ["numpy", "pandas", "dask"])
@pytest.mark.parametrize("options", [{"subtract": "column-mean"}, {"scale": "column-std"}])
def test_missing_entries_are_refused_by_their_place_whatever_else_is_done(tmp_path, kind, options):
    a = entries()
    a[4, 5] = np.nan
    with pytest.raises(OperatorError, match=r"row 4.*column 5"):
        dense(KINDS[kind](tmp_path, a), options)


def test_latitudes_of_an_xarray_are_weights():
    a = entries()
    latitudes = np.linspace(-80, 80, WIDTH)
    field = xarray.DataArray(a, dims=("time", "place"), coords={"lat": ("place", latitudes)})
    found = dense(field, {"column_weights": "cos-latitude"})
    np.testing.assert_allclose(found, a * np.sqrt(np.cos(np.deg2rad(latitudes))), rtol=1e-12)


def test_weights_may_lie_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("w.npy", COLUMNS)
    found = dense(entries(), {"column_weights": "w.npy"})
    np.testing.assert_allclose(found, entries() * np.sqrt(COLUMNS), rtol=1e-12)


STANDARDISED = {"subtract": "column-mean", "scale": "column-std", "row_weights": ROWS}


class TestDecomposition:
    @pytest.mark.parametrize(
        "kind", ["pandas", "csr", *(pytest.param(one, marks=pytest.mark.thorough)
                                    for one in ("numpy", "torch", "h5py", "zarr", "dask"))]
    )  # fmt: skip
    def test_singular_values_are_those_of_what_options_make(self, tmp_path, kind):
        a = entries()
        made = KINDS[kind](tmp_path, a)
        found = ooc.svd(made, measurements=WIDTH, run_dir=tmp_path / "run", **STANDARDISED)
        expected = np.linalg.svd(prepared(a, STANDARDISED))[1]
        np.testing.assert_allclose(found.S, expected[: len(found.S)], rtol=1e-8)

    def test_eigenpairs_are_those_of_what_options_make(self, tmp_path):
        gram = entries().T @ entries()
        options = {"row_weights": COLUMNS, "column_weights": COLUMNS}
        found = ooc.eigh(gram, measurements=WIDTH, run_dir=tmp_path / "run", **options)
        expected = np.linalg.eigvalsh(prepared(gram, options))[::-1]
        np.testing.assert_allclose(found.eigenvalues[:9], expected[:9], rtol=1e-8)

    def test_plan_says_the_options(self, tmp_path):
        ooc.svd(entries(), measurements=5, run_dir=tmp_path / "run", **STANDARDISED)
        args = dict(ooc.open_run(tmp_path / "run").plan.identity.args)
        assert args["subtract"] == "column-mean"
        assert args["row_weights"].startswith("sha256:")

    @pytest.mark.parametrize("more", [{"scale": None}, {"row_weights": ROWS[::-1]}])
    def test_same_directory_with_other_options_is_refused(self, tmp_path, more):
        ooc.svd(entries(), measurements=5, run_dir=tmp_path / "run", **STANDARDISED)
        with pytest.raises(UsageError, match=r"operator\.args"):
            ooc.svd(entries(), measurements=5, run_dir=tmp_path / "run", **(STANDARDISED | more))

    def test_same_call_goes_on(self, tmp_path):
        first = ooc.svd(entries(), measurements=5, run_dir=tmp_path / "run", **STANDARDISED)
        again = ooc.svd(entries(), measurements=5, run_dir=tmp_path / "run", **STANDARDISED)
        np.testing.assert_array_equal(first.S, again.S)

    def test_arguments_of_a_spec_without_a_factory_are_options(self, tmp_path):
        spec = {"kind": "svd", "measurements": 10, "operator": {"args": {"subtract": "both"}}}
        found = ooc.run(spec, tmp_path / "run", operator=entries())
        expected = np.linalg.svd(prepared(entries(), {"subtract": "both"}))[1]
        np.testing.assert_allclose(found.S[:3], expected[:3], rtol=0.2)

    def test_stages_by_hand_have_the_options_too(self, tmp_path):
        spec = {"kind": "svd", "measurements": WIDTH, "operator": {"args": {"subtract": "both"}}}
        run = ooc.plan(spec, tmp_path / "run", operator=entries())
        ooc.measure(run, operator=entries())
        ooc.merge(run)
        found = ooc.recover(run)
        expected = np.linalg.svd(prepared(entries(), {"subtract": "both"}))[1]
        np.testing.assert_allclose(found.S[:9], expected[:9], rtol=1e-8)


REFUSED = {
    "an unknown word": (entries(), {"centre": True}, "unknown for the entries of an object"),
    "a path": (entries(), {"path": "a.npy"}, "unknown for the entries of an object"),
    "a value that is none": (entries(), {"subtract": "mean"}, 'must be one of "column-mean"'),
    "two means that depend on each other": (
        entries(), {"missing": "column-mean", "subtract": "both"}, "not unambiguous"
    ),
    "weights that are no numbers": (entries(), {"row_weights": ["a"]}, "one number for each"),
    "weights of another length": (entries(), {"row_weights": COLUMNS}, f"give {HEIGHT} weights"),
    "negative weights": (entries(), {"row_weights": -ROWS}, "not negative"),
    "weights by a name": (entries(), {"row_weights": "area"}, "no such dataset beside it"),
    "a column that is missing throughout": (
        np.where(np.arange(WIDTH) == GONE, np.nan, entries()), {"missing": "column-mean"},
        'empty_columns = "leave-out"',
    ),
    "the same of Dask": (
        dask.array.from_array(np.where(np.arange(WIDTH) == GONE, np.nan, entries())),
        {"missing": "column-mean"}, 'empty_columns = "leave-out"',
    ),
    "an operator of its own": (
        type("Mine", (), {"shape": (3, 2)})(), {"subtract": "both"}, "let what makes the operator"
    ),
    "a sparse tensor": (
        torch.eye(3).to_sparse(), {"subtract": "both"}, "let what makes the operator"
    ),
    "a column of a frame": (pandas.Series([1.0]), {"subtract": "both"}, "give a frame"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case):
    operator, options, said = REFUSED[case]
    with pytest.raises(OperatorError) as caught:
        dense(operator, options)
    assert said in str(caught.value)


def test_matrix_that_is_made_already_takes_no_options(tmp_path):
    np.save(tmp_path / "a.npy", entries())
    made = ooc.operators.matrix.stored(str(tmp_path / "a.npy"))
    with pytest.raises(OperatorError, match="to what makes it"):
        made_of(made, {"subtract": "both"}, None)


def test_option_that_is_misspelt_names_one_like_it(tmp_path):
    with pytest.raises(UsageError, match="did you mean subtract"):
        ooc.svd(entries(), measurements=5, run_dir=tmp_path / "run", subtracts="both")
