"""Decompositions written with names and coordinates: netCDF, AnnData, tables, xarray."""

from __future__ import annotations

import csv

import h5py
import numpy as np
import pytest
import scipy.sparse
import xarray

import skerch_ooc as ooc
from skerch_ooc.base.errors import DriftError, UsageError
from skerch_ooc.base.partition import Range
from skerch_ooc.cli.main import run_command_line
from skerch_ooc.results.modes import rectangles, signs_of

LAND = np.zeros((6, 5), bool)
LAND[2:4, 1:3] = True


@pytest.fixture(scope="module")
def field():
    """Sea surface temperatures: a packed field of low rank, that knows no land."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((3, 6, 5))
    return 15 + np.einsum("tk,kyx->tyx", rng.standard_normal((40, 3)) * [4, 2, 1], maps)


@pytest.fixture(scope="module")
def sea(tmp_path_factory, field):
    """A folder with a run of the field, and with its components."""
    folder = tmp_path_factory.mktemp("sea")
    packed = np.round((field - 15) / 1e-3).astype("int16")
    packed[:, LAND] = -32768
    axes = {"time": np.arange(40), "lat": np.linspace(-75, 75, 6), "lon": np.arange(5) * 72.0}
    with h5py.File(folder / "sst.nc", "w") as file:
        for name, values in axes.items():
            file[name] = values
            file[name].make_scale(name)
        file["time"].attrs["units"] = "days since 2000-01-01"
        file["lat"].attrs["units"] = "degrees_north"
        file["sst"] = packed
        file["sst"].attrs.update(
            scale_factor=1e-3, add_offset=15.0, _FillValue=np.int16(-32768), units="degC"
        )
        for axis, name in enumerate(axes):
            file["sst"].dims[axis].attach_scale(file[name])
    args = {
        "path": str(folder / "sst.nc"), "dataset": "sst", "rows": ["time"],
        "empty_columns": "leave-out", "subtract": "column-mean", "column_weights": "cos-latitude",
    }  # fmt: skip
    spec = {
        "kind": "svd", "measurements": 15, "recovery": {"rank": 3},
        "operator": {"factory": "stored", "args": args},
    }  # fmt: skip
    ooc.run(spec, folder / "run")
    operator = ooc.OperatorSpec(factory="stored", args=args)
    ooc.PCA(3, run_dir=folder / "pca").fit(operator)
    return folder


def anomalies(field):
    return np.where(LAND, np.nan, field - field.mean(axis=0))


@pytest.fixture(scope="module", params=["run", "pca"])
def written(request, sea):
    """The file of netCDF that is made of either."""
    made = sea / f"{request.param}.nc"
    assert run_command_line(["export", str(sea / request.param), "--out", str(made)]) == 0
    with h5py.File(made) as file:
        yield file


class TestNetcdf:
    def test_patterns_lie_on_the_grid_in_the_units_of_the_field(self, written, field):
        made = np.einsum("tk,kyx->tyx", written["U"][:], written["pattern"][:])
        np.testing.assert_allclose(made, anomalies(field), atol=2e-3)
        assert written["pattern"].attrs["units"] == "degC"

    def test_vectors_are_orthonormal_with_weights_in(self, written):
        v = written["V"][:].reshape(3, -1)
        np.testing.assert_allclose(np.nansum(v[:, None] * v[None], axis=2), np.eye(3), atol=1e-6)

    def test_land_is_missing(self, written):
        for name in ("V", "pattern"):
            assert (np.isnan(written[name][:]) == LAND).all()
            assert np.isnan(written[name].attrs["_FillValue"]).all()

    def test_dimensions_are_scales_with_their_coordinates(self, written):
        names = [one[0].name for one in written["V"].dims]
        assert names == ["/mode", "/lat", "/lon"]
        assert [one[0].name for one in written["U"].dims] == ["/time", "/mode"]
        assert written["time"].attrs["units"] == "days since 2000-01-01"
        np.testing.assert_array_equal(written["lat"][:], np.linspace(-75, 75, 6))

    def test_shares_of_the_variance_are_those_of_the_weighted_field(self, written, field):
        roots = np.sqrt(np.cos(np.deg2rad(np.linspace(-75, 75, 6))))[None, :, None]
        values = np.linalg.svd((anomalies(field) * roots)[:, ~LAND], compute_uv=False)
        shares = values**2 / (values**2).sum()
        np.testing.assert_allclose(written["variance_share"][:], shares[:3], atol=1e-4)
        np.testing.assert_allclose(written["S"][:], values[:3], rtol=1e-4)


def test_a_file_of_netcdf_is_read_by_xarray_by_its_names(sea):
    made = ooc.recover(ooc.open_run(sea / "run")).to_xarray()
    assert dict(made.V.sizes) == {"mode": 3, "lat": 6, "lon": 5}
    assert str(made.time.values[1])[:10] == "2000-01-02"
    near = made.pattern.sel(mode=1, lat=-75, lon=72)
    assert near.item() == made.pattern.values[0, 0, 1]


def test_arrays_of_xarray_give_their_coordinates(tmp_path, field):
    data = xarray.DataArray(
        field, dims=("time", "lat", "lon"), coords={"lat": np.linspace(-75, 75, 6)}
    ).stack(place=("lat", "lon"))  # fmt: skip
    made = ooc.svd(data, measurements=15, rank=4, run_dir=tmp_path / "run").to_xarray(data)
    back = (made.U * made.pattern).sum("mode").unstack("place").transpose("time", "lat", "lon")
    np.testing.assert_allclose(back.values, field, atol=1e-3)
    assert back.lat.values.tolist() == np.linspace(-75, 75, 6).tolist()


@pytest.mark.parametrize("options", [{}, {"missing": "column-mean"}, {"transpose": True}])
def test_land_is_missing_where_vectors_are_only_nearly_zero_on_it(tmp_path, field, options):
    shown = field.astype("float32") + np.random.default_rng(1).standard_normal(field.shape)
    shown[:, LAND] = np.nan
    if options.get("missing"):
        shown[0, 0] = np.nan
    turned = options.get("transpose", False)
    flat = shown.reshape(len(shown), -1)
    np.save(tmp_path / "sst.npy", flat.T if turned else flat)
    args = {"path": str(tmp_path / "sst.npy"), "empty_columns": "leave-out", **options}
    ooc.run(
        {
            "kind": "svd", "pairs_tolerance": 0.1, "round_width": 4, "recovery": {"rank": 2},
            "operator": {"factory": "stored", "args": args},
        },
        tmp_path / "run",
    )  # fmt: skip
    made = ooc.recover(ooc.open_run(tmp_path / "run")).to_xarray()
    assert (np.isnan(made.pattern.values[0]) == LAND.ravel()).all()


class TestOfArraysOfXarrayWithOptions:
    @pytest.fixture(params=[None, 10])
    def data(self, request, field):
        """The field, with land, in memory and in chunks of Dask."""
        shown = xarray.DataArray(
            np.where(LAND, np.nan, field), dims=("time", "lat", "lon"),
            coords={"lat": np.linspace(-75, 75, 6)}, attrs={"units": "degC"},
        ).stack(place=("lat", "lon"))  # fmt: skip
        return shown if request.param is None else shown.chunk(time=request.param)

    def modes(self, data, folder, weights):
        options = {"empty_columns": "leave-out", "subtract": "column-mean"}
        found = ooc.svd(
            data, measurements=15, rank=3, run_dir=folder / "run", column_weights=weights, **options
        )
        return found.to_xarray(data)

    def test_weights_are_divided_out_of_patterns_and_land_is_missing(self, tmp_path, data, field):
        made = self.modes(data, tmp_path, "cos-latitude")
        back = (made.U * made.pattern).sum("mode", skipna=False).transpose("time", "place")
        expected = anomalies(field).reshape(len(field), -1)
        np.testing.assert_allclose(back.values, expected, atol=1e-6)
        assert made.pattern.attrs["units"] == "degC"

    def test_weights_that_are_not_known_any_more_are_said_to_be_in_patterns(self, tmp_path, data):
        weights = np.linspace(1, 2, data.shape[1])
        made = self.modes(data, tmp_path, weights)
        np.testing.assert_allclose(made.pattern.values, made.V.values * made.S.values[:, None])
        assert "with the roots of weights in them" in made.pattern.attrs["long_name"]
        assert "units" not in made.pattern.attrs


def test_an_array_of_another_shape_is_refused(sea):
    usv = ooc.recover(ooc.open_run(sea / "run"))
    with pytest.raises(UsageError, match=r"like has shape \(2, 2\), the decomposition has \(40, 3"):
        usv.to_xarray(xarray.DataArray(np.eye(2)))


def test_a_file_that_is_another_by_now_is_refused(tmp_path, field):
    a = field.reshape(40, -1)
    np.save(tmp_path / "a.npy", a)
    spec = {
        "kind": "svd", "measurements": 10, "recovery": {"rank": 3},
        "operator": {"factory": "stored", "args": {"path": str(tmp_path / "a.npy")}},
    }  # fmt: skip
    usv = ooc.run(spec, tmp_path / "run")
    np.save(tmp_path / "a.npy", a[::-1])
    with pytest.raises(DriftError, match="have changed since the run was planned"):
        usv.to_xarray()


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("name", ["run", "pca"])
class TestTables:
    def test_scores_are_listed_by_date(self, sea, tmp_path, name):
        out = tmp_path / "s.csv"
        assert run_command_line(["scores", str(sea / name), "--out", str(out)]) == 0
        head, first, *_ = rows_of(out)
        assert head == ["time", "pca0", "pca1", "pca2"]
        assert first[0] == "2000-01-01"

    def test_loadings_are_listed_by_place_and_empty_on_land(self, sea, tmp_path, name):
        out = tmp_path / "l.csv"
        assert run_command_line(["loadings", str(sea / name), "--out", str(out)]) == 0
        head, *rows = rows_of(out)
        assert head == ["lat (degrees_north)", "lon", "pca0", "pca1", "pca2"]
        assert [row[2] == "" for row in rows] == LAND.ravel().tolist()
        assert rows[7][:2] == ["-45.0", "144.0"]

    def test_a_grid_is_no_matter_of_anndata(self, sea, tmp_path, name, capsys):
        out = tmp_path / "a.h5ad"
        assert run_command_line(["export", str(sea / name), "--out", str(out)]) == 2
        assert "columns are lat x lon, which AnnData cannot say" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", params=["dense", "csc"])
def cells(request, tmp_path_factory):
    """A folder with components of cells in a file of AnnData."""
    folder = tmp_path_factory.mktemp("cells")
    x = np.random.default_rng(1).standard_normal((30, 8)) * np.arange(1, 9)
    with h5py.File(folder / "c.h5ad", "w") as file:
        file["dense"] = x
        if request.param == "dense":
            file["X"] = x
        else:
            thin = scipy.sparse.csc_array(x)
            file.create_group("X").attrs.update({"encoding-type": "csc_matrix", "shape": x.shape})
            for part in ("data", "indices", "indptr"):
                file[f"X/{part}"] = getattr(thin, part)
        for name, size in (("obs", 30), ("var", 8)):
            names = [f"{name}{i}" for i in range(size)]
            file.create_dataset(f"{name}/_index", data=names, dtype=h5py.string_dtype())
    ooc.PCA(4, run_dir=folder / "pca").fit(folder / "c.h5ad")
    return folder


class TestAnnData:
    def test_scores_and_loadings_are_where_scanpy_has_them(self, cells, tmp_path):
        out = tmp_path / "p.h5ad"
        assert run_command_line(["export", str(cells / "pca"), "--out", str(out)]) == 0
        kept = ooc.PCA.load(cells / "pca")
        with h5py.File(out) as file, h5py.File(cells / "c.h5ad") as source:
            x = source["dense"][:]
            np.testing.assert_allclose(file["obsm/X_pca"][:], kept.transform(x), atol=1e-9)
            np.testing.assert_allclose(file["varm/PCs"][:], kept.components_.T)
            ratios = file["uns/pca/variance_ratio"][:]
            np.testing.assert_allclose(ratios, kept.explained_variance_ratio_)
            variances = file["uns/pca/variance"][:]
            np.testing.assert_allclose(variances, kept.explained_variance_)

    def test_cells_and_genes_have_their_names(self, cells, tmp_path):
        out = tmp_path / "p.h5ad"
        assert run_command_line(["export", str(cells / "pca"), "--out", str(out)]) == 0
        with h5py.File(out) as file:
            for name, size in (("obs", 30), ("var", 8)):
                table = file[name]
                assert table.attrs["encoding-type"] == "dataframe"
                found = table[table.attrs["_index"]].asstr()[:].tolist()
                assert found == [f"{name}{i}" for i in range(size)]

    def test_tables_name_them(self, cells, tmp_path):
        out = tmp_path / "s.csv"
        assert run_command_line(["scores", str(cells / "pca"), "--out", str(out)]) == 0
        assert [row[0] for row in rows_of(out)[:3]] == ["obs", "obs0", "obs1"]

    def test_tables_of_new_samples_name_them_too(self, cells, tmp_path):
        out = tmp_path / "s.csv"
        ooc.PCA.load(cells / "pca").transform(cells / "c.h5ad", out=out)
        assert [row[0] for row in rows_of(out)[:3]] == ["obs", "obs0", "obs1"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("verb", "out", "says"),
        [
            ("export", "a.csv", "ends in .nc, .h5ad; for tables there are the verbs scores and"),
            ("loadings", "a.h5", "ends in .csv, .parquet; for other files there is the verb exp"),
        ],
    )
    def test_other_formats(self, cells, tmp_path, capsys, verb, out, says):
        assert run_command_line([verb, str(cells / "pca"), "--out", str(tmp_path / out)]) == 2
        assert says in capsys.readouterr().err

    @pytest.mark.parametrize(("verb", "out"), [("export", "a.nc"), ("loadings", "a.csv")])
    def test_files_that_are_there(self, cells, tmp_path, capsys, verb, out):
        (tmp_path / out).write_text("mine")
        assert run_command_line([verb, str(cells / "pca"), "--out", str(tmp_path / out)]) == 2
        assert "is there already" in capsys.readouterr().err
        assert (tmp_path / out).read_text() == "mine"

    @pytest.mark.parametrize("verb", ["export", "loadings", "scores"])
    @pytest.mark.parametrize("name", ["", "spec.toml"])
    def test_what_holds_no_result(self, tmp_path, capsys, verb, name):
        (tmp_path / "spec.toml").touch()
        out = tmp_path / ("a.nc" if verb == "export" else "a.csv")
        assert run_command_line([verb, str(tmp_path / name), "--out", str(out)]) == 2
        assert "holds neither a run nor components" in capsys.readouterr().err


def test_scores_of_a_matrix_that_is_gone_have_no_names(tmp_path, field, capsys):
    np.save(tmp_path / "a.npy", field.reshape(40, -1))
    spec = {
        "kind": "svd", "measurements": 10, "recovery": {"rank": 3},
        "operator": {"factory": "stored", "args": {"path": str(tmp_path / "a.npy")}},
    }  # fmt: skip
    ooc.run(spec, tmp_path / "run")
    (tmp_path / "a.npy").unlink()
    out = tmp_path / "s.csv"
    assert run_command_line(["scores", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert "names of rows are left out" in capsys.readouterr().err
    assert rows_of(out)[0] == ["pca0", "pca1", "pca2"]


@pytest.mark.parametrize("sizes", [(24,), (4, 6), (2, 3, 4), (24, 1), (1, 1, 24)])
@pytest.mark.parametrize("start", [0, 1, 5, 11])
def test_rectangles_cover_places_once_and_in_order(sizes, start):
    grid = np.arange(24).reshape(sizes)
    inside = Range(start, 23)
    found = []
    for index, places in rectangles(sizes, inside):
        assert grid[index].ravel().tolist() == list(range(places.start, places.stop))
        found += list(range(places.start, places.stop))
    assert found == list(range(start, 23))


def test_signs_are_those_of_the_largest_entry_of_all_blocks():
    v = np.array([[1.0, -1.0, 0.0], [-2.0, 1.0, 0.0], [2.0, -3.0, 0.0]])
    blocks = ((Range(i, i + 1), v[i : i + 1]) for i in range(3))
    assert signs_of(blocks).tolist() == [-1, -1, 1]
