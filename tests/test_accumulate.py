"""The sums of a row tile against dense oracles; two ways of multiplying that give equal bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # noqa: F401 (8-bit integer units are looked for only where torch is loaded)

from skerch_ooc.linalg import mirrored
from skerch_ooc.noise import draw
from skerch_ooc.partition import Range
from skerch_ooc.spec import DTYPES, NOISES, Amendment, Cut, Identity, Plan, RecoverySpec
from skerch_ooc.stages import accumulate
from skerch_ooc.stages.accumulate import Sums, Workspace, accumulate_tile

SINGLE = ["float32", "complex64"]
INTEGER_UNITS = accumulate._has_integer_units.__wrapped__()

all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
all_noises = pytest.mark.parametrize("noise", NOISES)
# Tiles of 16 columns: fewer than one, just as many, and ragged ends in one role or both.
all_widths = pytest.mark.parametrize("widths", [(5, 3), (16, 16), (37, 9), (34, 0)], ids=str)


@pytest.fixture(params=["doubles", "integer units"])
def way(request, monkeypatch):
    """The two ways of multiplying by signs."""
    if request.param == "integer units" and not INTEGER_UNITS:
        pytest.skip("torch finds no 8-bit integer units in this processor")
    monkeypatch.setattr(accumulate, "_has_integer_units", lambda: request.param != "doubles")
    return request.param


def plan_of(dtype, noise, widths, *, rows=100, tile=(64, 16)):
    identity = Identity(
        kind="eigh",
        factory=None,
        args={},
        factory_sha256=None,
        shape=(rows, rows),
        dtype=dtype,
        seed=3,
        noise={"right": noise, "test": "gaussian"},
        tile=tile,
    )
    blocks = {
        role: Cut(0, width, width)
        for role, width in zip(("right", "test"), widths, strict=True)
        if width
    }
    return Plan(identity, (Amendment(identity.run_id, 1, blocks, RecoverySpec(), "cpu", "."),))


def normals(shape, dtype, seed=0):
    generator = np.random.default_rng(seed)
    z = generator.standard_normal(shape)
    if dtype.startswith("complex"):
        z = z + 1j * generator.standard_normal(shape)
    return z.astype(dtype)


def sums_of(plan, rows, z):
    """The sums of the tile whose content is ``z``; what is not written stays NaN."""
    space, out = Workspace.of(plan), Sums.zeros(plan)
    out.gram[...] = out.cross[...] = np.nan
    tile = space.z[: len(rows)]
    tile[...] = z
    accumulate_tile(plan, rows, tile, space, out)
    return out


def noise_of(plan, rows, dtype=None):
    """The test matrices of all roles, side by side."""
    identity = plan.identity
    return np.hstack(
        [
            draw(
                identity.noise[role],
                identity.seed,
                role,
                rows,
                Range(0, len(place)),
                dtype or accumulate.wide_dtype(plan),
            )
            for role, place in plan.columns.items()
        ]
    )


def exact_product(left, right):
    """``L^H R`` with the digits to spare of the widest numbers that numpy has."""
    wide = np.clongdouble if np.iscomplexobj(left) or np.iscomplexobj(right) else np.longdouble
    return left.conj().T.astype(wide) @ right.astype(wide)


def rounding(left, right):
    """What a product in double precision may be off by, entry by entry."""
    return 2 * len(left) * np.finfo(np.float64).eps * (np.abs(left).T @ np.abs(right))


def integer_rounding(z):
    """What rounding the columns of ``z`` to 30 bits may add to sums over them, column by column."""
    return 2 * len(z) * np.abs(z).max(axis=0).astype(np.float64) * 2.0**-30


ROWS = Range(64, 100)


class TestOneTile:
    @all_dtypes
    @all_noises
    @all_widths
    def test_the_gram_matrix_is_that_of_the_dense_tile(self, dtype, noise, widths):
        plan = plan_of(dtype, noise, widths)
        z = normals((len(ROWS), plan.products), dtype)
        error = np.abs(np.triu(sums_of(plan, ROWS, z).gram - exact_product(z, z)))
        assert (error <= rounding(z, z)).all()

    @pytest.mark.usefixtures("way")
    @all_dtypes
    @all_noises
    @all_widths
    def test_the_cross_products_are_those_with_the_dense_test_matrices(self, dtype, noise, widths):
        plan = plan_of(dtype, noise, widths)
        z, n = normals((len(ROWS), plan.products), dtype), noise_of(plan, ROWS)
        error = np.abs(sums_of(plan, ROWS, z).cross - exact_product(n, z))
        signs_of_single = noise == "rademacher" and dtype in SINGLE
        assert (error <= rounding(n, z) + (integer_rounding(z) if signs_of_single else 0)).all()

    @all_dtypes
    @all_widths
    def test_the_mirrored_gram_matrix_is_hermitian_to_the_bit(self, dtype, widths):
        plan = plan_of(dtype, "rademacher", widths)
        z = normals((len(ROWS), plan.products), dtype)
        gram = mirrored(sums_of(plan, ROWS, z).gram)
        assert np.array_equal(gram, gram.conj().T)

    @all_dtypes
    @all_widths
    def test_the_mirrored_gram_matrix_is_that_of_the_dense_tile(self, dtype, widths):
        plan = plan_of(dtype, "rademacher", widths)
        z = normals((len(ROWS), plan.products), dtype)
        error = np.abs(mirrored(sums_of(plan, ROWS, z).gram) - exact_product(z, z))
        assert (error <= rounding(z, z)).all()

    def test_below_the_diagonal_blocks_the_gram_matrix_is_left_as_it_is(self):
        plan = plan_of("float32", "rademacher", (37, 9))
        written = np.isfinite(sums_of(plan, ROWS, normals((len(ROWS), 46), "float32")).gram)
        block = np.arange(46) // 16
        assert np.array_equal(written, block[:, None] <= block)

    @pytest.mark.usefixtures("way")
    @all_dtypes
    @pytest.mark.parametrize("width", [1, 17, 33])
    def test_a_last_piece_of_a_single_column_is_multiplied_rightly(self, dtype, width):
        plan = plan_of(dtype, "rademacher", (width, 0))
        z, n = normals((len(ROWS), width), dtype), noise_of(plan, ROWS)
        error = np.abs(sums_of(plan, ROWS, z).cross - exact_product(n, z))
        assert (error <= rounding(n, z) + integer_rounding(z)).all()

    @pytest.mark.usefixtures("way")
    @all_dtypes
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_a_tile_of_few_rows_is_multiplied_rightly(self, dtype, count):
        rows = Range(64, 64 + count)
        plan = plan_of(dtype, "rademacher", (18, 0), rows=rows.stop)
        z, n = normals((count, 18), dtype), noise_of(plan, rows)
        error = np.abs(sums_of(plan, rows, z).cross - exact_product(n, z))
        assert (error <= rounding(n, z) + integer_rounding(z)).all()


class TestManyTiles:
    @pytest.fixture
    def tiles(self, dtype, noise):
        plan = plan_of(dtype, noise, (37, 9), rows=150)
        z = normals((150, 46), dtype)
        first, *others = [sums_of(plan, rows, z[rows.slice]) for rows in plan.tiles()]
        for sums in others:
            first.add(sums)
        return plan, z, first

    @all_dtypes
    @all_noises
    def test_gram_matrices_add_up_to_that_of_the_whole(self, tiles):
        _, z, sums = tiles
        error = np.abs(mirrored(sums.gram) - exact_product(z, z))
        assert (error <= rounding(z, z)).all()

    @all_dtypes
    @all_noises
    def test_cross_products_add_up_to_those_of_the_whole(self, tiles):
        plan, z, sums = tiles
        n = noise_of(plan, Range(0, 150))
        error = np.abs(sums.cross - exact_product(n, z))
        assert (error <= rounding(n, z) + integer_rounding(z)).all()


def scaled(dtype):
    """Columns from 1e-30 to 1e30."""
    z = normals((4096, 40), dtype)
    return (z * np.logspace(-30, 30, 40)).astype(dtype)


def scaled_within(dtype):
    """Entries from 1e-30 to 1e30 in one and the same column."""
    z = normals((4096, 40), dtype)
    return (z * np.logspace(-30, 30, 4096)[:, None]).astype(dtype)


def with_zero_columns(dtype):
    z = normals((4096, 40), dtype)
    z[:, 1::3] = 0
    return z


def subnormal(dtype):
    return np.full((4096, 40), -np.finfo(dtype).smallest_subnormal, dtype)


def negative_powers_of_two(dtype):
    return np.full((4096, 40), -1.0, dtype)


def largest_with_the_signs(dtype):
    """The largest sums there are: entries just below a power of two, with the noise's signs."""
    plan = plan_of(dtype, "rademacher", (40, 0), rows=4096, tile=(4096, 512))
    below_one = np.nextafter(np.float32(1), np.float32(0))
    return noise_of(plan, Range(0, 4096), dtype) * -below_one


def largest_numbers(dtype):
    return np.full((4096, 40), np.finfo(dtype).min, dtype)


CONTENTS = [
    scaled,
    scaled_within,
    with_zero_columns,
    subnormal,
    negative_powers_of_two,
    largest_with_the_signs,
    largest_numbers,
]
all_contents = pytest.mark.parametrize("content", CONTENTS, ids=lambda f: f.__name__)


class TestSignsTimesSinglePrecision:
    """In tiles of their true size, where sums are longest."""

    @staticmethod
    def cross(z, monkeypatch, integer_units, widths=(40, 0)):
        plan = plan_of(z.dtype.name, "rademacher", widths, rows=len(z), tile=(4096, 512))
        monkeypatch.setattr(accumulate, "_has_integer_units", lambda: integer_units)
        return sums_of(plan, Range(0, len(z)), z).cross

    @pytest.mark.skipif(
        not INTEGER_UNITS, reason="torch finds no 8-bit integer units in this processor"
    )
    @pytest.mark.parametrize("dtype", SINGLE)
    @all_contents
    def test_both_ways_give_identical_bits(self, dtype, content, monkeypatch):
        one, other = (self.cross(content(dtype), monkeypatch, units) for units in (True, False))
        assert one.tobytes() == other.tobytes()

    @pytest.mark.parametrize("dtype", SINGLE)
    @all_contents
    def test_errors_stay_below_the_bound_in_each_column(self, dtype, content, monkeypatch):
        z = content(dtype)
        plan = plan_of(dtype, "rademacher", (40, 0), rows=4096, tile=(4096, 512))
        error = np.abs(
            self.cross(z, monkeypatch, False)
            - exact_product(noise_of(plan, Range(0, 4096)).real, z)
        )
        assert (error <= integer_rounding(z)).all()

    def test_zero_columns_stay_zero(self, way, monkeypatch):
        cross = self.cross(with_zero_columns("float32"), monkeypatch, way != "doubles")
        assert not cross[:, 1::3].any()

    def test_integers_of_single_precision_are_summed_without_any_rounding(self, way, monkeypatch):
        integers = np.random.default_rng(0).integers(-(2**23), 2**23, (4096, 40), endpoint=True)
        plan = plan_of("float32", "rademacher", (40, 0), rows=4096, tile=(4096, 512))
        signs = noise_of(plan, Range(0, 4096)).astype(np.int64)
        cross = self.cross(integers.astype(np.float32), monkeypatch, way != "doubles")
        assert np.array_equal(cross, signs.T @ integers)

    def test_rounding_to_integers_is_lost_in_the_rounding_to_single_precision(self, monkeypatch):
        double = normals((4096, 40), "float64")
        single = double.astype(np.float32)
        plan = plan_of("float32", "rademacher", (40, 0), rows=4096, tile=(4096, 512))
        signs = noise_of(plan, Range(0, 4096))
        of_integers = self.cross(single, monkeypatch, False) - exact_product(signs, single)
        of_single = exact_product(signs, single - double)
        assert 50 * np.sqrt((of_integers**2).mean()) < np.sqrt((of_single**2).mean())
