"""The sums of a row tile against dense oracles; two ways of multiplying that give equal bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # noqa: F401 (8-bit integer units are looked for only where torch is loaded)

from skerch_ooc.algebra.linalg import mirrored
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.noise_kinds import COMPLEX_ONLY, SIGN_SCALE, WHOLE_COLUMNS
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.plan import Amendment, Cut, Identity, Plan
from skerch_ooc.planning.sides import CORANGE, RANGE, first_round
from skerch_ooc.planning.spec import DTYPES, NOISES, RecoverySpec
from skerch_ooc.stages.merge import accumulate
from skerch_ooc.stages.merge.accumulate import Accumulator, Sums, Workspace
from skerch_ooc.stages.merge.testmatrices import NoiseReader

SINGLE = ["float32", "complex64"]
DOUBLE = ["float64", "complex128"]
INTEGER_UNITS = accumulate._has_integer_units()

DRAWN = [noise for noise in NOISES if noise not in WHOLE_COLUMNS]

all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
single_dtypes = pytest.mark.parametrize("dtype", SINGLE)
double_dtypes = pytest.mark.parametrize("dtype", DOUBLE)
all_noises = pytest.mark.parametrize(
    ("noise", "dtype"),
    [
        (noise, dtype)
        for noise in DRAWN
        for dtype in DTYPES
        if noise not in COMPLEX_ONLY or dtype.startswith("complex")
    ],
)
# Tiles of 16 columns: fewer than one, just as many, and ragged ends in one role or both.
all_widths = pytest.mark.parametrize("widths", [(5, 3), (16, 16), (37, 9), (34, 0)], ids=str)


@pytest.fixture(params=["doubles", "integer units"])
def way(request, monkeypatch):
    """The two ways of multiplying by signs."""
    if request.param == "integer units" and not INTEGER_UNITS:
        pytest.skip("torch finds no 8-bit integer units in this processor")
    monkeypatch.setattr(accumulate, "_has_integer_units", lambda: request.param != "doubles")
    return request.param


def plan_of(dtype, noise, columns, *, shape=(100, 100), tile=(64, 16), kind="eigh", method=None):
    """A plan with so many columns of each role; those of right and test may be given as a pair."""
    if not isinstance(columns, dict):
        columns = dict(zip(("right", "test"), columns, strict=True))
    names = ("right", "left", "inner-left", "inner-right")
    identity = Identity(
        kind=kind,
        factory=None,
        args={},
        factory_sha256=None,
        shape=shape,
        dtype=dtype,
        seed=3,
        noise=dict.fromkeys(names, noise) | {"test": "gaussian"},
        tile=tile,
    )
    # The first columns of a Hermitian operator's inner sketch are those of the right one.
    first = {"inner": columns["right"]} if kind == "eigh" else {}
    blocks = {
        role: Cut(first.get(role, 0), width, width) for role, width in columns.items() if width
    }
    recovery = RecoverySpec(method=method or "nystrom")
    return Plan(identity, (Amendment(identity.run_id, 1, blocks, recovery, "cpu", "."),))


def side_of(plan, name=RANGE):
    return next(side for side in first_round(plan) if side.name == name)


def normals(shape, dtype, seed=0):
    generator = np.random.default_rng(seed)
    z = generator.standard_normal(shape)
    if dtype.startswith("complex"):
        z = z + 1j * generator.standard_normal(shape)
    return z.astype(dtype)


def sums_of(plan, rows, z, side=None):
    """The sums of the tile whose content is ``z``; what is not written stays NaN."""
    side = side or side_of(plan)
    space, out = Workspace.of(plan, side), Sums.zeros(plan, side)
    out.squares[...] = out.cross[...] = np.nan
    tile = space.z[: len(rows)]
    tile[...] = z
    Accumulator(plan, side, NoiseReader(plan, {})).form(rows, tile, space, out)
    return out


def noise_of(plan, rows, dtype=None, side=None):
    """The test matrices of a side, next to each other."""
    identity = plan.identity
    return np.hstack(
        [
            draw(
                identity.noise[name],
                identity.seed,
                name,
                rows,
                Range(0, len(place)),
                dtype or plan.identity.wide_dtype,
            )
            for name, place in (side or side_of(plan)).noise.items()
        ]
    )


def exact_product(left, right):
    """``L^H R`` with the digits to spare of the widest numbers that numpy has."""
    wide = np.clongdouble if np.iscomplexobj(left) or np.iscomplexobj(right) else np.longdouble
    return left.conj().T.astype(wide) @ right.astype(wide)


def rounding(left, right):
    """What a product in double precision may be off by, entry by entry."""
    return 2 * len(left) * np.finfo(np.float64).eps * (np.abs(left).T @ np.abs(right))


def factor_rounding(z):
    """What a triangular factor may change of the inner products of the columns of ``z``."""
    norms = np.linalg.norm(z, axis=0)
    return 8 * z.shape[1] * np.finfo(np.float64).eps * np.outer(norms, norms)


def integer_rounding(z):
    """What rounding the columns of ``z`` to 30 bits may add to sums over them, column by column."""
    return 2 * len(z) * np.abs(z).max(axis=0).astype(np.float64) * 2.0**-30


ROWS = Range(64, 100)


def signs_of_single(dtype, noise="rademacher"):
    """Whether products with these signs are formed of integers."""
    return noise in SIGN_SCALE and dtype in SINGLE


SIDES = {
    "eigh": (RANGE, {"kind": "eigh", "columns": {"right": 37, "test": 9}}),
    "eigh with an inner sketch": (
        RANGE,
        {
            "kind": "eigh",
            "method": "oversampled",
            "columns": {"right": 20, "test": 9, "inner": 41},
        },
    ),
    "range": (RANGE, {"kind": "svd", "columns": {"right": 20, "test": 9, "left": 30}}),
    "corange": (CORANGE, {"kind": "svd", "columns": {"right": 20, "test": 9, "left": 30}}),
    "range with an inner sketch": (
        RANGE,
        {
            "kind": "svd",
            "method": "oversampled",
            "columns": {"right": 20, "test": 9, "left": 20, "inner": 41},
        },
    ),
    "corange with an inner sketch": (
        CORANGE,
        {
            "kind": "svd",
            "method": "oversampled",
            "columns": {"right": 20, "test": 9, "left": 20, "inner": 41},
        },
    ),
    "range without test matrices": (
        RANGE,
        {"kind": "svd", "method": "hmt", "columns": {"right": 20, "test": 9}},
    ),
}
all_sides = pytest.mark.parametrize("which", SIDES)


def plan_and_side(which, dtype, noise="rademacher"):
    name, more = SIDES[which]
    shape = (100, 100) if more["kind"] == "eigh" else (100, 130)
    plan = plan_of(dtype, noise, shape=shape, **more)
    return plan, side_of(plan, name)


class TestOneTile:
    @single_dtypes
    @all_widths
    def test_the_gram_matrix_is_that_of_the_dense_tile(self, dtype, widths):
        plan = plan_of(dtype, "rademacher", widths)
        z = normals((len(ROWS), plan.products), dtype)
        error = np.abs(np.triu(sums_of(plan, ROWS, z).squares - exact_product(z, z)))
        assert (error <= rounding(z, z)).all()

    @pytest.mark.usefixtures("way")
    @all_noises
    @all_widths
    def test_the_cross_products_are_those_with_the_dense_test_matrices(self, dtype, noise, widths):
        plan = plan_of(dtype, noise, widths)
        z, n = normals((len(ROWS), plan.products), dtype), noise_of(plan, ROWS)
        error = np.abs(sums_of(plan, ROWS, z).cross - exact_product(n, z))
        of_integers = np.abs(n).max() * integer_rounding(z) if signs_of_single(dtype, noise) else 0
        assert (error <= rounding(n, z) + of_integers).all()

    @all_dtypes
    def test_a_side_without_test_matrices_has_no_cross_products(self, dtype):
        plan, side = plan_and_side("range without test matrices", dtype)
        assert sums_of(plan, ROWS, normals((36, 29), dtype), side).cross.shape == (0, 29)

    @pytest.mark.usefixtures("way")
    @all_dtypes
    @pytest.mark.parametrize("which", [which for which in SIDES if "without" not in which])
    def test_the_cross_products_are_those_of_each_side(self, which, dtype):
        plan, side = plan_and_side(which, dtype)
        z, n = normals((36, side.columns), dtype), noise_of(plan, ROWS, side=side)
        error = np.abs(sums_of(plan, ROWS, z, side).cross - exact_product(n, z))
        assert (error <= rounding(n, z) + integer_rounding(z)).all()

    @single_dtypes
    @all_widths
    def test_the_mirrored_gram_matrix_is_hermitian_to_the_bit(self, dtype, widths):
        plan = plan_of(dtype, "rademacher", widths)
        z = normals((len(ROWS), plan.products), dtype)
        gram = mirrored(sums_of(plan, ROWS, z).squares)
        assert np.array_equal(gram, gram.conj().T)

    @single_dtypes
    @all_widths
    def test_the_mirrored_gram_matrix_is_that_of_the_dense_tile(self, dtype, widths):
        plan = plan_of(dtype, "rademacher", widths)
        z = normals((len(ROWS), plan.products), dtype)
        error = np.abs(mirrored(sums_of(plan, ROWS, z).squares) - exact_product(z, z))
        assert (error <= rounding(z, z)).all()

    def test_below_the_diagonal_blocks_the_gram_matrix_is_left_as_it_is(self):
        plan = plan_of("float32", "rademacher", (37, 9))
        written = np.isfinite(sums_of(plan, ROWS, normals((len(ROWS), 46), "float32")).squares)
        block = np.arange(46) // 16
        assert np.array_equal(written, block[:, None] <= block)

    @double_dtypes
    @all_widths
    @pytest.mark.parametrize("rows", [Range(64, 100), Range(0, 64), Range(64, 67)], ids=str)
    def test_the_triangle_has_the_gram_matrix_of_the_dense_tile(self, dtype, widths, rows):
        plan = plan_of(dtype, "rademacher", widths)
        z = normals((len(rows), plan.products), dtype)
        found = sums_of(plan, rows, z)
        error = np.abs(found.squares.conj().T @ found.squares - exact_product(z, z))
        assert (error <= factor_rounding(z)).all()

    @double_dtypes
    @all_widths
    def test_the_triangle_is_one(self, dtype, widths):
        plan = plan_of(dtype, "rademacher", widths)
        found = sums_of(plan, ROWS, normals((len(ROWS), plan.products), dtype)).squares
        assert np.array_equal(found, np.triu(found))

    @all_dtypes
    def test_the_sums_say_which_of_the_two_they_hold(self, dtype):
        plan = plan_of(dtype, "rademacher", (5, 3))
        found = sums_of(plan, ROWS, normals((len(ROWS), 8), dtype))
        assert found.triangular == (dtype in DOUBLE)

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
        plan = plan_of(dtype, "rademacher", (18, 0), shape=(rows.stop, rows.stop))
        z, n = normals((count, 18), dtype), noise_of(plan, rows)
        error = np.abs(sums_of(plan, rows, z).cross - exact_product(n, z))
        assert (error <= rounding(n, z) + integer_rounding(z)).all()


class TestManyTiles:
    @staticmethod
    def added(plan, z, side=None):
        rows = plan.tiles((side or side_of(plan)).rows)
        first, *others = [sums_of(plan, tile, z[tile.slice], side) for tile in rows]
        for sums in others:
            first.add(sums)
        return first

    @single_dtypes
    def test_gram_matrices_add_up_to_that_of_the_whole(self, dtype):
        plan, z = plan_of(dtype, "rademacher", (37, 9), shape=(150, 150)), normals((150, 46), dtype)
        error = np.abs(mirrored(self.added(plan, z).squares) - exact_product(z, z))
        assert (error <= rounding(z, z)).all()

    @double_dtypes
    @pytest.mark.parametrize("height", [20, 64, 150])
    def test_triangles_add_up_to_one_with_the_gram_matrix_of_the_whole(self, dtype, height):
        plan = plan_of(dtype, "rademacher", (37, 9), shape=(height, height))
        z = normals((height, 46), dtype)
        found = self.added(plan, z).squares
        error = np.abs(found.conj().T @ found - exact_product(z, z))
        assert (error <= 3 * factor_rounding(z)).all()

    @double_dtypes
    def test_triangles_keep_singular_values_that_a_gram_matrix_would_lose(self, dtype):
        plan = plan_of(dtype, "rademacher", (12, 0), shape=(150, 150))
        u, v = (np.linalg.qr(normals((n, 12), dtype, seed=n))[0] for n in (150, 12))
        z = (u * 10.0 ** -np.arange(12)) @ v.conj().T
        found = np.linalg.svd(self.added(plan, z).squares, compute_uv=False)
        np.testing.assert_allclose(found, 10.0 ** -np.arange(12), rtol=1e-3)

    @all_noises
    def test_cross_products_add_up_to_those_of_the_whole(self, dtype, noise):
        plan, z = plan_of(dtype, noise, (37, 9), shape=(150, 150)), normals((150, 46), dtype)
        n = noise_of(plan, Range(0, 150))
        error = np.abs(self.added(plan, z).cross - exact_product(n, z))
        of_integers = np.abs(n).max() * integer_rounding(z) if signs_of_single(dtype, noise) else 0
        assert (error <= rounding(n, z) + of_integers).all()

    @all_dtypes
    @all_sides
    def test_empty_sums_add_nothing(self, which, dtype):
        plan, side = plan_and_side(which, dtype)
        found = sums_of(plan, ROWS, normals((36, side.columns), dtype), side)
        found.squares = np.triu(np.nan_to_num(found.squares))
        total = Sums.zeros(plan, side).add(found)
        norms = [np.linalg.norm(sums.squares, axis=0) for sums in (total, found)]
        np.testing.assert_allclose(*norms, rtol=1e-12)


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
    plan = plan_of(dtype, "rademacher", (40, 0), shape=(4096, 4096), tile=(4096, 512))
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
    def cross(z, monkeypatch, integer_units, noise="rademacher"):
        plan = plan_of(z.dtype.name, noise, (40, 0), shape=(len(z), len(z)), tile=(4096, 512))
        monkeypatch.setattr(accumulate, "_has_integer_units", lambda: integer_units)
        return sums_of(plan, Range(0, len(z)), z).cross

    @pytest.mark.skipif(
        not INTEGER_UNITS, reason="torch finds no 8-bit integer units in this processor"
    )
    @pytest.mark.parametrize("noise", SIGN_SCALE)
    @single_dtypes
    @all_contents
    def test_both_ways_give_identical_bits(self, dtype, content, noise, monkeypatch):
        z = content(dtype)
        one, other = (self.cross(z, monkeypatch, units, noise) for units in (True, False))
        assert one.tobytes() == other.tobytes()

    @pytest.mark.covered(1)
    @single_dtypes
    @all_contents
    def test_errors_stay_below_the_bound_in_each_column(self, dtype, content, monkeypatch):
        z = content(dtype)
        plan = plan_of(dtype, "rademacher", (40, 0), shape=(4096, 4096), tile=(4096, 512))
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
        plan = plan_of("float32", "rademacher", (40, 0), shape=(4096, 4096), tile=(4096, 512))
        signs = noise_of(plan, Range(0, 4096)).astype(np.int64)
        cross = self.cross(integers.astype(np.float32), monkeypatch, way != "doubles")
        assert np.array_equal(cross, signs.T @ integers)

    def test_rounding_to_integers_is_lost_in_the_rounding_to_single_precision(self, monkeypatch):
        double = normals((4096, 40), "float64")
        single = double.astype(np.float32)
        plan = plan_of("float32", "rademacher", (40, 0), shape=(4096, 4096), tile=(4096, 512))
        signs = noise_of(plan, Range(0, 4096))
        of_integers = self.cross(single, monkeypatch, False) - exact_product(signs, single)
        of_single = exact_product(signs, single - double)
        assert 50 * np.sqrt((of_integers**2).mean()) < np.sqrt((of_single**2).mean())
