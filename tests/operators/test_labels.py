"""What rows and columns are called, read from the files that matrices lie in."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.sparse
import zarr

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.dates import dates_of
from skerch_ooc.operators.matrix import stored
from skerch_ooc.results.scores import names_along

DAYS = {"units": "days since 1990-01-01"}
TEXT = h5py.string_dtype()


def as_text(values):
    return [one.decode() for one in values.ravel()]


def cube(path, *, start=0, units="days since 1990-01-01", lat=(10.0, 20.0, 30.0)):
    """A file of netCDF with three named dimensions."""
    axes = {"time": np.arange(4.0) + start, "lat": np.array(lat), "lon": np.array([0.0, 90.0])}
    with h5py.File(path, "w") as file:
        for name, values in axes.items():
            file[name] = values
            file[name].make_scale(name)
        file["time"].attrs["units"] = units
        file["t2m"] = np.random.default_rng(start).standard_normal((4, 3, 2))
        file["t2m"].attrs["units"] = "K"
        for axis, name in enumerate(axes):
            file["t2m"].dims[axis].attach_scale(file[name])


def found_in(labels):
    return {one.name: one for one in labels.coordinates}


class TestOfNetcdf:
    def test_dimensions_are_those_of_rows_and_columns(self, tmp_path):
        cube(tmp_path / "a.nc")
        labels = stored(str(tmp_path / "a.nc"), "t2m", rows=["time"]).labels()
        assert (labels.rows.names, labels.rows.sizes) == (("time",), (4,))
        assert (labels.columns.names, labels.columns.sizes) == (("lat", "lon"), (3, 2))
        assert labels.attributes == {"units": "K"}
        assert found_in(labels)["lat"].values.tolist() == [10, 20, 30]

    def test_the_transpose_has_them_the_other_way_round(self, tmp_path):
        cube(tmp_path / "a.nc")
        labels = stored(str(tmp_path / "a.nc"), "t2m", rows=["time"], transpose=True).labels()
        assert (labels.rows.names, labels.columns.names) == (("lat", "lon"), ("time",))

    def test_coordinates_of_two_dimensions_are_taken(self, tmp_path):
        cube(tmp_path / "a.nc")
        with h5py.File(tmp_path / "a.nc", "a") as file:
            file["place"] = np.arange(6.0).reshape(3, 2)
            for axis, name in enumerate(("lat", "lon")):
                file["place"].dims[axis].attach_scale(file[name])
            file["t2m"].attrs["coordinates"] = "place"
        labels = stored(str(tmp_path / "a.nc"), "t2m", rows=["time"]).labels()
        assert found_in(labels)["place"].dims == ("lat", "lon")

    def test_attributes_that_other_libraries_write_are_text(self, tmp_path):
        cube(tmp_path / "a.nc")
        with h5py.File(tmp_path / "a.nc", "a") as file:
            file["time"].attrs["units"] = np.bytes_(b"days since 1990-01-01")
            file["lat"].attrs["units"] = np.array(["degrees_north"], object)
            file["t2m"].attrs["units"] = np.bytes_(b"K")
        labels = stored(str(tmp_path / "a.nc"), "t2m", rows=["time"]).labels()
        assert labels.attributes == {"units": "K"}
        assert found_in(labels)["lat"].attributes == {"units": "degrees_north"}
        assert found_in(labels)["time"].attributes == DAYS
        first = names_along(labels, labels.rows)(Range(0, 1))
        assert first["time"].astype(str).tolist() == ["1990-01-01"]

    def test_packed_coordinates_are_unpacked(self, tmp_path):
        cube(tmp_path / "a.nc", lat=(1, 2, 3))
        with h5py.File(tmp_path / "a.nc", "a") as file:
            file["lat"].attrs.update(scale_factor=10.0, add_offset=-5.0)
        matrix = stored(str(tmp_path / "a.nc"), "t2m", rows=["time"], column_weights="cos-latitude")
        assert found_in(matrix.labels())["lat"].values.tolist() == [5, 15, 25]
        expected = np.sqrt(np.cos(np.deg2rad(np.repeat([5.0, 15.0, 25.0], 2))))
        np.testing.assert_allclose(matrix.roots[1], expected)

    def test_latitudes_in_radians_are_weighted_as_such(self, tmp_path):
        cube(tmp_path / "a.nc", lat=(0.1, 0.2, 0.3))
        with h5py.File(tmp_path / "a.nc", "a") as file:
            file["lat"].attrs["units"] = "radian"
        matrix = stored(str(tmp_path / "a.nc"), "t2m", rows=["time"], column_weights="cos-latitude")
        np.testing.assert_allclose(matrix.roots[1] ** 2, np.cos(np.repeat([0.1, 0.2, 0.3], 2)))

    def test_files_below_each_other_have_one_time(self, tmp_path):
        cube(tmp_path / "0.nc")
        cube(tmp_path / "1.nc", units="hours since 1990-01-05")
        labels = stored(str(tmp_path), "t2m", rows=["time"]).labels()
        time = found_in(labels)["time"]
        days = dates_of(time.values, time.attributes)
        expected = ["1990-01-01", "1990-01-02", "1990-01-03", "1990-01-04", *["1990-01-05"] * 4]
        assert days.astype("datetime64[D]").astype(str).tolist() == expected
        assert labels.rows.sizes == (8,)

    def test_time_of_calendars_that_do_not_fit_is_dropped(self, tmp_path):
        cube(tmp_path / "0.nc")
        cube(tmp_path / "1.nc", units="months since 1990-01-05")
        labels = stored(str(tmp_path), "t2m", rows=["time"]).labels()
        assert found_in(labels).keys() == {"lat", "lon"}


class TestOfAnnData:
    CELLS, GENES = [f"cell{i}" for i in range(5)], ["a", "b", "ß"]

    def table(self, group, names, index="_index"):
        group.attrs["_index"] = index
        if isinstance(group, h5py.Group):
            group.create_dataset(index, data=names, dtype=h5py.string_dtype())
        else:
            group.create_array(index, shape=(len(names),), dtype=str)[:] = np.array(names)

    def sparse(self, group, matrix, kind):
        group.attrs.update({"encoding-type": f"{kind}_matrix", "shape": list(matrix.shape)})
        for part in ("data", "indices", "indptr"):
            values = getattr(matrix, part)
            if isinstance(group, h5py.Group):
                group[part] = values
            else:
                group.create_array(part, data=values)

    def names(self, labels):
        return [as_text(found_in(labels)[name].values) for name in ("obs", "var")]

    @pytest.mark.parametrize("kind", ["csr", "csc"])
    @pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
    def test_names_of_cells_and_genes_are_found(self, tmp_path, kind, suffix):
        path = tmp_path / f"a.{suffix}"
        matrix = scipy.sparse.random(5, 3, 0.5, kind, random_state=0)
        root = h5py.File(path, "w") if suffix == "h5ad" else zarr.create_group(str(path))
        root.attrs["encoding-type"] = "anndata"
        self.sparse(root.create_group("X"), matrix, kind)
        self.table(root.create_group("obs"), self.CELLS)
        self.table(root.create_group("var"), self.GENES, "name")
        if suffix == "h5ad":
            root.close()
        found = stored(str(path))
        assert self.names(found.labels()) == [self.CELLS, self.GENES]
        assert self.names(stored(str(path), transpose=True).labels()) == [self.CELLS, self.GENES]
        assert stored(str(path), transpose=True).labels().rows.names == ("var",)

    @pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
    def test_weights_of_cells_are_found_beside_a_sparse_matrix(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        matrix = scipy.sparse.random(5, 3, 0.5, "csr", random_state=0)
        root = h5py.File(path, "w") if suffix == "h5ad" else zarr.create_group(str(path))
        self.sparse(root.create_group("X"), matrix, "csr")
        weights = np.arange(5.0)
        if suffix == "h5ad":
            root["obs/weight"] = weights
            root.close()
        else:
            root.create_group("obs").create_array("weight", data=weights)
        found = stored(str(path), row_weights="obs/weight").as_product("float64", "cpu")
        np.testing.assert_allclose(
            found(np.eye(3)), np.sqrt(weights)[:, None] * matrix.toarray(), rtol=1e-14
        )

    @pytest.mark.parametrize("way", ["categories", "records", "nullable"])
    def test_older_and_newer_ways_to_keep_names_are_read(self, tmp_path, way):
        with h5py.File(tmp_path / "a.h5ad", "w") as file:
            file["X"] = np.eye(5, 3)
            self.table(file.create_group("var"), self.GENES)
            if way == "records":
                file["obs"] = np.array([(one.encode(),) for one in self.CELLS], [("index", "S9")])
            else:
                inside = file.create_group("obs/_index")
                inside["values" if way == "nullable" else "categories"] = np.array(self.CELLS, "S")
                inside["codes"] = np.arange(5)
        assert self.names(stored(str(tmp_path / "a.h5ad")).labels()) == [self.CELLS, self.GENES]

    @pytest.mark.parametrize("kind", ["csr", "csc"])
    def test_cells_of_several_files_have_the_names_of_all(self, tmp_path, kind):
        for start in (0, 3):
            matrix = scipy.sparse.random(3, 3, 0.5, kind, random_state=0)
            with h5py.File(tmp_path / f"{start}.h5ad", "w") as file:
                self.sparse(file.create_group("X"), matrix, kind)
                names = [f"cell{i}" for i in range(start, start + 3)]
                self.table(file.create_group("obs"), names)
                self.table(file.create_group("var"), self.GENES)
        labels = stored(str(tmp_path)).labels()
        assert self.names(labels) == [[f"cell{i}" for i in range(6)], self.GENES]

    def test_names_that_do_not_fit_are_left_out(self, tmp_path):
        with h5py.File(tmp_path / "a.h5ad", "w") as file:
            file["X"] = np.eye(5, 3)
            self.table(file.create_group("obs"), self.CELLS[:4])
            self.table(file.create_group("var"), self.GENES)
        assert found_in(stored(str(tmp_path / "a.h5ad")).labels()).keys() == {"var"}

    def test_barcodes_and_genes_of_10x_are_found(self, tmp_path):
        matrix = scipy.sparse.random(3, 5, 0.5, "csc", random_state=0)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for part in ("data", "indices", "indptr"):
                file[f"matrix/{part}"] = getattr(matrix, part)
            file["matrix/shape"] = np.array([3, 5])
            file["matrix/barcodes"] = np.array(self.CELLS, "S")
            file["matrix/features/name"] = np.array(self.GENES, object)
            file["matrix/features/id"] = np.array(["E1", "E2", "E3"], "S")
        labels = stored(str(tmp_path / "a.h5")).labels()
        assert self.names(labels) == [self.CELLS, self.GENES]
        names = names_along(labels, labels.columns)
        assert [*names(Range(0, 3))] == ["var", "gene_ids"]


def test_zarr_of_xarray_has_its_coordinates(tmp_path):
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    dims = ("time", "lat")
    group.create_array("a", data=np.random.default_rng(0).random((4, 3)), dimension_names=dims)
    group.create_array("lat", data=np.array([1.0, 2.0, 3.0]), dimension_names=("lat",))
    labels = stored(str(tmp_path / "a.zarr"), "a").labels()
    assert (labels.rows.names, labels.columns.names) == (("time",), ("lat",))
    assert found_in(labels)["lat"].values.tolist() == [1, 2, 3]


def test_what_has_no_names_has_rows_and_columns(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(4, 3))
    labels = stored(str(tmp_path / "a.npy")).labels()
    assert (labels.rows.names, labels.columns.names) == (("row",), ("column",))


def test_dimensions_of_one_name_are_told_apart(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["mode"] = np.arange(3.0)
        file["mode"].make_scale("mode")
        file["a"] = np.eye(3)
        for axis in range(2):
            file["a"].dims[axis].attach_scale(file["mode"])
    labels = stored(str(tmp_path / "a.h5"), "a").labels()
    assert (labels.rows.names, labels.columns.names) == (("mode_",), ("mode__",))
    assert found_in(labels)["mode_"].values.tolist() == [0, 1, 2]


class TestDates:
    @pytest.mark.parametrize(
        ("units", "value", "date"),
        [
            ("days since 1950-1-1", 1.5, "1950-01-02T12:00:00"),
            ("hours since 1900-01-01 00:00:0.0", 24, "1900-01-02T00:00:00"),
            ("seconds since 1970-01-01T06:00:00Z", 1, "1970-01-01T06:00:01"),
            ("Minutes since 2000-01-01 12:30", 1, "2000-01-01T12:31:00"),
        ],
    )
    def test_units_since_a_day_are_dates(self, units, value, date):
        assert str(dates_of(np.array([value]), {"units": units})[0]) == date

    @pytest.mark.parametrize(
        "attributes",
        [
            {},
            {"units": "K"},
            {"units": "months since 2000-01-01"},
            {"units": "days since yesterday"},
            {"units": "days since 2000-13-01"},
            {**DAYS, "calendar": "noleap"},
            {"units": "days since 0001-01-01"},
        ],
    )
    def test_what_is_none_stays_a_number(self, attributes):
        assert dates_of(np.array([1.0]), attributes) is None

    def test_missing_ones_are_no_dates(self):
        assert np.isnat(dates_of(np.array([1.0, np.nan]), DAYS)).tolist() == [False, True]


class TestOfFilesThatArePutTogether:
    def stack(self, tmp_path, **other):
        cube(tmp_path / "a.nc")
        cube(tmp_path / "b.nc", start=4, **other)
        return stored(["a.nc", "b.nc"], "t2m", rows=["time"], folder=str(tmp_path))

    def test_grids_in_another_order_are_refused(self, tmp_path):
        said = r"b\.nc has lat = 30 at 0, where .*a\.nc has 10; .* the same columns"
        with pytest.raises(OperatorError, match=said):
            self.stack(tmp_path, lat=(30.0, 20.0, 10.0))

    def test_coordinates_that_were_rounded_are_the_same(self, tmp_path):
        assert self.stack(tmp_path, lat=np.float32([10.00001, 20, 30])).shape == (8, 6)

    def test_a_matrix_on_another_grid_is_not_subtracted(self, tmp_path):
        cube(tmp_path / "a.nc")
        cube(tmp_path / "b.nc", lat=(10.0, 20.0, 40.0))
        with pytest.raises(OperatorError, match="lat = 40 at 2"):
            stored("a.nc", "t2m", rows=["time"], minus="b.nc", folder=str(tmp_path))

    def test_dates_along_columns_may_be_others(self, tmp_path):
        for number in (0, 4):
            cube(tmp_path / f"{number}.nc", start=number)
        matrix = stored(["0.nc", "4.nc"], "t2m", rows=["lat"], folder=str(tmp_path))
        assert matrix.shape == (6, 8)

    def test_dimensions_in_another_order_are_refused(self, tmp_path):
        for name, dims in (("a", "yx"), ("b", "xy")):
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                file["z"] = np.zeros((2, 3, 3))
                for axis, dim in enumerate(f"t{dims}"):
                    file["z"].dims[axis].label = dim
        with pytest.raises(OperatorError, match=r"b\.h5 has columns of x x y"):
            stored(["a.h5", "b.h5"], "z", rows=["t"], folder=str(tmp_path))

    def test_latitudes_of_two_dimensions_are_compared(self, tmp_path):
        for number, name in enumerate(("a", "b")):
            cube(tmp_path / f"{name}.nc")
            with h5py.File(tmp_path / f"{name}.nc", "a") as file:
                file["nav_lat"] = np.arange(6.0).reshape(3, 2) + 10 * number
                for axis, dim in enumerate(("lat", "lon")):
                    file["nav_lat"].dims[axis].attach_scale(file[dim])
        with pytest.raises(OperatorError, match=r"nav_lat = 10 at 0, where .* has 0;"):
            stored(["a.nc", "b.nc"], "t2m", rows=["time"], folder=str(tmp_path))

    def test_units_that_differ_are_said(self, tmp_path):
        for name, unit in (("a", "K"), ("b", "degC")):
            cube(tmp_path / f"{name}.nc")
            with h5py.File(tmp_path / f"{name}.nc", "a") as file:
                file["t2m"].attrs["units"] = unit
        matrix = stored(["a.nc", "b.nc"], "t2m", rows=["time"], folder=str(tmp_path))
        assert "units differ (K in " in matrix.remarks[-2]

    def test_dates_that_come_twice_are_said(self, tmp_path):
        for number in (0, 3):
            cube(tmp_path / f"{number}.nc", start=number)
        matrix = stored(["0.nc", "3.nc"], "t2m", rows=["time"], folder=str(tmp_path))
        assert "1 of 8 rows have a time that another row has too" in matrix.remarks

    def test_genes_in_another_order_are_refused(self, tmp_path):
        for name, genes in (("a", ["x", "y"]), ("b", ["y", "x"])):
            with h5py.File(tmp_path / f"{name}.h5ad", "w") as file:
                file["X"] = np.ones((3, 2))
                file.create_dataset("obs/_index", data=["1", "2", "3"], dtype=TEXT)
                file.create_dataset("var/_index", data=genes, dtype=TEXT)
        with pytest.raises(OperatorError, match=r"b\.h5ad has var = y at 0, where .* has x"):
            stored(["a.h5ad", "b.h5ad"], folder=str(tmp_path))


@pytest.mark.parametrize(
    ("rows", "weights", "said"),
    [
        (["lat"], "cos-latitude", "latitudes of .* lie along its rows, 3 of them; give rows"),
        (["time"], "cos_lat", 'no such dataset beside it; .* or "cos-latitude"'),
        (["time"], "lat", 'latitudes are no weights, .* "cos-latitude"'),
    ],
)
def test_weights_of_latitudes_that_are_meant_otherwise_are_refused(tmp_path, rows, weights, said):
    cube(tmp_path / "a.nc", lat=(-10.0, 0.0, 10.0))
    with pytest.raises(OperatorError, match=said):
        stored("a.nc", "t2m", rows=rows, column_weights=weights, folder=str(tmp_path))
