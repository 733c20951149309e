"""Rows of test matrices for the merge: drawn, read from a basis, or kept on disk meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from operators import Operator, dense

import skerch_ooc as ooc
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.noise_kinds import WHOLE_COLUMNS
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.disk import NOISE_TILE_COLUMNS
from skerch_ooc.planning.sides import BASIS, CORANGE, RANGE, height_of_noise
from skerch_ooc.planning.spec import DTYPES, NOISES
from skerch_ooc.stages.merge.testmatrices import (
    NoiseReader,
    gaussian_probes,
    prepare_noise,
)
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.sketch import Round

SHAPE = (150, 100)
drawn_noises = pytest.mark.parametrize(
    ("noise", "dtype"),
    [
        (noise, dtype)
        for noise in NOISES
        for dtype in DTYPES
        if noise not in WHOLE_COLUMNS and (noise != "phase" or dtype.startswith("complex"))
    ],
)


def measured(folder, noise="ssrft", dtype="float32", method="nystrom", rounds=1, columns=20):
    """The last round of a run of a general operator."""
    operator = Operator(dense(SHAPE, "slow", dtype, hermitian=False))
    spec = {
        "kind": "svd",
        "measurements": columns,
        "dtype": dtype,
        "sketch": {"noise": noise, "test_measurements": 5},
        "recovery": {"method": method},
    }
    run = ooc.plan(spec, folder / "run", operator=operator, threads=1)
    ooc.measure(run, operator=operator, threads=1)
    round_ = Round(run)
    for _ in range(1, rounds):
        ooc.merge(run, threads=1)
        ooc.measure(run, operator=operator, threads=1)
        round_ = Round(run).following()
    return round_


def side_of(round_, name):
    return next(side for side in round_.sides if side.name == name)


def kept(round_):
    return sorted(round_.sketch.folder.glob("noise-*.h5"))


class TestDrawn:
    @pytest.mark.covered(1)
    @drawn_noises
    def test_rows_are_those_of_the_noise(self, tmp_path, noise, dtype):
        round_ = measured(tmp_path, noise, dtype, columns=64)
        reader = prepare_noise(round_.sketch, side_of(round_, RANGE))
        rows, columns = Range(64, 101), Range(3, 20)
        found = reader.tile("left", rows, columns, dtype, None)
        np.testing.assert_array_equal(found, draw(noise, 1, "left", rows, columns, dtype))

    @pytest.mark.covered(1)
    @drawn_noises
    def test_are_never_kept(self, tmp_path, noise, dtype):
        round_ = measured(tmp_path, noise, dtype, columns=64)
        prepare_noise(round_.sketch, side_of(round_, RANGE))
        assert kept(round_) == []


class TestKept:
    @pytest.mark.covered(1)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("side", "name", "columns"), [(RANGE, "left", 30), (CORANGE, "right", 20)]
    )
    def test_rows_are_those_of_the_whole_columns(self, tmp_path, side, name, columns, dtype):
        round_ = measured(tmp_path, dtype=dtype)
        reader = prepare_noise(round_.sketch, side_of(round_, side))
        rows, some = Range(64, 91), Range(3, columns)
        height = height_of_noise(round_.run.plan, name)
        whole = draw("ssrft", 1, name, Range(0, height), some, dtype)
        found = reader.tile(name, rows, some, dtype, None)
        np.testing.assert_array_equal(found, whole[rows.slice])

    def test_are_given_in_any_dtype(self, tmp_path):
        round_ = measured(tmp_path)
        reader = prepare_noise(round_.sketch, side_of(round_, RANGE))
        rows, columns = Range(0, 9), Range(0, 30)
        wide = reader.tile("left", rows, columns, "float64", None)
        narrow = reader.tile("left", rows, columns, "float32", None)
        np.testing.assert_array_equal(wide, narrow.astype("float64"))

    def test_are_written_into_the_corner_of_a_buffer(self, tmp_path):
        round_ = measured(tmp_path)
        reader = prepare_noise(round_.sketch, side_of(round_, RANGE))
        buffer = np.full((20, 40), np.nan)
        reader.tile("left", Range(5, 14), Range(2, 30), "float64", buffer)
        assert np.isfinite(buffer).sum() == 9 * 28

    def test_are_not_those_of_the_error_test(self, tmp_path):
        round_ = measured(tmp_path)
        prepare_noise(round_.sketch, side_of(round_, CORANGE))
        assert [path.name for path in kept(round_)] == ["noise-right.h5"]

    def test_lie_in_narrow_tiles(self, tmp_path):
        round_ = measured(tmp_path)
        prepare_noise(round_.sketch, side_of(round_, CORANGE))
        (path,) = kept(round_)
        assert SealedFile(path).layout.tile == (100, NOISE_TILE_COLUMNS)

    def test_are_not_drawn_again(self, tmp_path, monkeypatch):
        round_ = measured(tmp_path)
        prepare_noise(round_.sketch, side_of(round_, RANGE))
        monkeypatch.setattr("skerch_ooc.stages.merge.testmatrices.draw", None)
        reader = prepare_noise(round_.sketch, side_of(round_, RANGE))
        assert reader.tile("left", Range(0, 5), Range(0, 5), "float32", None).shape == (5, 5)

    def test_that_were_removed_are_drawn_again(self, tmp_path):
        round_ = measured(tmp_path)
        prepare_noise(round_.sketch, side_of(round_, RANGE))
        (path,) = kept(round_)
        before = path.read_bytes()[:512]
        path.unlink()
        prepare_noise(round_.sketch, side_of(round_, RANGE))
        assert path.read_bytes()[:512].splitlines()[:2] == before.splitlines()[:2]

    @pytest.mark.parametrize("position", [30, 600, 9000, -1])
    def test_an_altered_byte_is_noticed(self, tmp_path, position):
        round_ = measured(tmp_path)
        prepare_noise(round_.sketch, side_of(round_, RANGE))
        (path,) = kept(round_)
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(
            CorruptError, match=r"noise-left\.h5.* To make it anew: rm .*left.h5 && "
        ):
            ooc.merge(round_.run, threads=1)

    def test_one_under_the_name_of_another_is_refused(self, tmp_path):
        round_ = measured(tmp_path)
        for side in round_.sides:
            prepare_noise(round_.sketch, side)
        left, right = kept(round_)
        left.unlink()
        right.rename(left)
        with pytest.raises(CorruptError, match=r"noise-left\.h5 is not what its name says"):
            prepare_noise(round_.sketch, side_of(round_, RANGE))


class TestBasis:
    def test_rows_are_those_of_the_file(self, tmp_path):
        round_ = measured(tmp_path, "rademacher", method="hmt", rounds=2)
        reader = NoiseReader(round_.run.plan, {"basis": round_.basis.matrix})
        rows, columns = Range(64, 101), Range(3, 20)
        found = reader.tile(BASIS, rows, columns, "float64", None)
        whole = round_.basis.matrix.read(Range(0, 150), Range(0, 20))
        np.testing.assert_array_equal(found, whole[rows.slice, columns.slice])

    def test_is_no_distribution(self, tmp_path):
        round_ = measured(tmp_path, "rademacher", method="hmt", rounds=2)
        reader = NoiseReader(round_.run.plan, {"basis": round_.basis.matrix})
        assert (reader.noise(BASIS), reader.noise("right")) == (BASIS, "rademacher")


class TestProbes:
    @pytest.mark.parametrize(
        ("dtype", "wide"), [("float32", "float64"), ("complex64", "complex128")]
    )
    def test_are_in_double_precision(self, tmp_path, dtype, wide):
        plan = measured(tmp_path, "gaussian", dtype).run.plan
        assert gaussian_probes(plan, 10, 4).dtype == wide

    def test_do_not_depend_on_how_many_there_are(self, tmp_path):
        plan = measured(tmp_path, "gaussian").run.plan
        few, many = gaussian_probes(plan, 10, 4), gaussian_probes(plan, 20, 8)
        np.testing.assert_array_equal(few, many[:10, :4])
