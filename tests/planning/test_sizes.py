"""Widths of the sketches: defaults, what fits into a storage, and what is refused by name."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from operators import Operator, dense

import skerch_ooc as ooc
from skerch_ooc.base.errors import UsageError
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.sizes import (
    Sizes,
    default_inner,
    default_left,
    require_recoverable,
    require_sense,
    sizes_for_storage,
    sizes_of,
)
from skerch_ooc.planning.spec import (
    DTYPES,
    KINDS,
    NOISES,
    RecoverySpec,
    Spec,
)

SHAPE = (150, 100)
kinds = pytest.mark.parametrize("kind", KINDS)
methods = pytest.mark.parametrize("method", METHODS)
by_measurements = pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if not method.orthogonal]
)


def spec_of(**more):
    """A spec; a key ``section__name`` stands for ``section.name``."""
    by_pairs = more.keys() & {"rounds", "pairs_tolerance"}
    table = {} if "storage" in more or by_pairs else {"measurements": 20}
    for key, value in more.items():
        section, _, name = key.rpartition("__")
        (table.setdefault(section, {}) if section else table)[name] = value
    return Spec.from_table(table)


def shape_of(kind):
    return (SHAPE[1], SHAPE[1]) if kind == "eigh" else SHAPE


SENSELESS = {
    "complex entries of a real operator": (
        {"sketch__noise": "phase", "dtype": "float32"},
        "sketch.noise = 'phase' is complex, but dtype = 'float32' is real",
    ),
    "power iterations of one pass": (
        {"recovery__power_iterations": 1},
        "recovery.power_iterations = 1 are rounds of method = \"hmt\"; method = 'nystrom'",
    ),
    "a core of hmt": (
        {"recovery__method": "hmt", "recovery__core": 5},
        'recovery.core = 5: method = "hmt" takes no size of a core; to cut its result, use rank',
    ),
    "a left sketch of a Hermitian operator": (
        {"sketch__left_measurements": 30},
        'sketch.left_measurements = 30: there is no left sketch for kind = "eigh"',
    ),
    "test columns of the adjoint of a Hermitian operator": (
        {"sketch__left_test_measurements": 10},
        "sketch.left_test_measurements = 10: there is no test sketch of the adjoint for kind = "
        '"eigh"',
    ),
    "test columns of the adjoint for hmt": (
        {"kind": "svd", "sketch__left_test_measurements": 9, "recovery__method": "hmt"},
        "sketch.left_test_measurements = 9: there is no test sketch of the adjoint in method = "
        '"hmt"',
    ),
    "a left sketch of hmt": (
        {"kind": "svd", "sketch__left_measurements": 30, "recovery__method": "hmt"},
        'sketch.left_measurements = 30: there is no left sketch in method = "hmt"',
    ),
    **{
        f"an inner sketch of {method}": (
            {"sketch__inner_measurements": 41, "recovery__method": method},
            'sketch.inner_measurements = 41: only method = "oversampled" has an inner sketch, '
            f"not {method!r}",
        )
        for method in METHODS
        if method != "oversampled"
    },
    **{
        f"a tolerance of {method}": (
            {"tolerance": 0.1, "recovery__method": method},
            f"tolerance = 0.1: the columns of method = {method!r} do not nest",
        )
        for method in METHODS
        if not METHODS[method].nests
    },
    "a width of the rounds of one pass": (
        {"round_width": 8},
        'round_width = 8 is of method = "krylov", not of "nystrom"; leave it out',
    ),
    "a tolerance of the pairs of hmt": (
        {"pairs_tolerance": 1e-3, "measurements": 20, "recovery__method": "hmt"},
        'pairs_tolerance = 0.001 is of method = "krylov", not of "hmt"',
    ),
    "rounds of singlepass": (
        {"rounds": 3, "measurements": 20, "recovery__method": "singlepass"},
        'rounds = 3 is of method = "krylov", not of "singlepass"',
    ),
    "an order of the pairs of one pass": (
        {"recovery__which": "LA"},
        'recovery.which = "LA": only method = "krylov" looks for one end of the spectrum',
    ),
    "an order of singular values": (
        {"kind": "svd", "recovery__which": "SA", "recovery__method": "krylov"},
        'recovery.which = "SA": singular values have no sign',
    ),
    "a storage of krylov": (
        {"storage": "1 GiB", "recovery__method": "krylov"},
        "storage = '1 GiB': the pairs decide how much krylov measures; give measurements",
    ),
    "implicit vectors of krylov": (
        {"recovery__method": "krylov", "recovery__vectors": "implicit"},
        "recovery.vectors = 'implicit': the vectors of krylov are made of all rounds",
    ),
    **{
        f"{noise} noise of krylov": (
            {"recovery__method": "krylov", "sketch__noise": noise},
            f"sketch.noise = {noise!r}: the first block of krylov is narrow",
        )
        for noise in ("ssrft", "sparse-sign")
    },
    **{
        f"a tolerance that pairs in {dtype} cannot meet": (
            {"pairs_tolerance": least / 2, "dtype": dtype},
            f"pairs_tolerance = {least / 2:g} is below what products in {dtype} can tell, {least}",
        )
        for dtype, least in [("float32", 4.8e-7), ("float64", 8.9e-16), ("complex64", 4.8e-7)]
    },
    "a tolerance without test columns": (
        {"tolerance": 0.1, "sketch__test_measurements": 0},
        "tolerance = 0.1 needs sketch.test_measurements of at least 10, not 0",
    ),
    "a tolerance with few test columns": (
        {"tolerance": 0.1, "sketch__test_measurements": 9},
        "tolerance = 0.1 needs sketch.test_measurements of at least 10, not 9",
    ),
}

TOO_MUCH = {
    "an operator for eigh that is not square": (
        {"kind": "eigh"},
        (150, 100),
        'kind = "eigh" needs a square operator, this one is 150 x 100; kind = "svd" takes any',
    ),
    "more measurements than columns": (
        {"kind": "svd", "measurements": 101},
        (150, 100),
        "measurements = 101: the operator has only 100 columns",
    ),
    "more measurements than rows": (
        {"kind": "svd", "measurements": 101},
        (100, 150),
        "measurements = 101: the operator has only 100 rows",
    ),
    "fewer left columns than measurements": (
        {"kind": "svd", "sketch__left_measurements": 19},
        (150, 100),
        "sketch.left_measurements = 19: must be from 20 (the measurements) to 150",
    ),
    "more left columns than rows": (
        {"kind": "svd", "sketch__left_measurements": 151},
        (150, 100),
        "sketch.left_measurements = 151: must be from 20 (the measurements) to 150",
    ),
    "a smaller inner sketch than measurements": (
        {"kind": "svd", "sketch__inner_measurements": 19, "recovery__method": "oversampled"},
        (150, 100),
        "sketch.inner_measurements = 19: must be from 20 (the measurements) to 100",
    ),
    "a larger inner sketch than the operator": (
        {"kind": "svd", "sketch__inner_measurements": 101, "recovery__method": "oversampled"},
        (150, 100),
        "sketch.inner_measurements = 101: must be from 20 (the measurements) to 100",
    ),
    "a core beyond the measurements": (
        {"kind": "svd", "recovery__core": 21},
        (150, 100),
        "recovery.core = 21: there are only 20 measurements",
    ),
    "a rank beyond the measurements": (
        {"kind": "svd", "recovery__rank": 21},
        (150, 100),
        "recovery.rank = 21: there are only 20 measurements",
    ),
    "more pairs than the rounds of krylov give": (
        {"rounds": 3, "round_width": 4, "recovery__rank": 13},
        (100, 100),
        "recovery.rank = 13: 3 rounds of 4 columns for an operator of 100 x 100 give at most 12",
    ),
    "more pairs than both sides of krylov have": (
        {"kind": "svd", "rounds": 5, "round_width": 4, "recovery__rank": 9},
        (150, 100),
        "recovery.rank = 9: 5 rounds of 4 columns for an operator of 150 x 100 give at most 8",
    ),
    "more pairs than the operator has": (
        {"pairs_tolerance": 0.1, "recovery__rank": 101},
        (100, 100),
        "recovery.rank = 101: 137 rounds of 16 columns for an operator of 100 x 100 give at most "
        "100",
    ),
    "fewer measurements than a round of krylov": (
        {"pairs_tolerance": 0.1, "recovery__rank": 5, "measurements": 15},
        (100, 100),
        "measurements = 15 is less than a round, round_width = 16; give more, or a narrower round",
    ),
    "few sparse columns": (
        {"kind": "svd", "measurements": 63, "sketch__noise": "sparse-sign"},
        (150, 100),
        "sketch.noise = 'sparse-sign' with measurements = 63",
    ),
    "whole columns of too great a height": (
        {"kind": "svd", "sketch__noise": "ssrft"},
        (2**31 + 1, 100),
        "sketch.noise = 'ssrft' has at most 2147483648 rows, the operator 2147483649",
    ),
    "whole columns of too great a width": (
        {"kind": "svd", "sketch__noise": "ssrft"},
        (100, 2**31 + 1),
        "sketch.noise = 'ssrft' has at most 2147483648 rows, the operator 2147483649",
    ),
    "a storage below one column": (
        {"kind": "svd", "storage": "100 B", "sketch__test_measurements": 0},
        (150, 100),
        "storage = '100 B' is too little: a right and a left column alone take 1000 bytes",
    ),
    "a storage that the test columns fill": (
        {"kind": "svd", "storage": "18 kB"},
        (150, 100),
        "storage = '18 kB' is too little: a right and a left column alone take 1000 bytes, "
        "the 30 test columns 18000",
    ),
    "a storage that is no amount": (
        {"kind": "svd", "storage": "much"},
        (150, 100),
        "storage = 'much': must be an amount such as",
    ),
}


class TestSense:
    @pytest.mark.parametrize("case", SENSELESS)
    def test_what_makes_none_is_refused_by_name(self, case):
        more, message = SENSELESS[case]
        with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
            require_sense(spec_of(**more))

    @pytest.mark.parametrize("case", SENSELESS)
    def test_what_makes_none_is_refused_before_there_is_a_run(self, case, tmp_path):
        more, _ = SENSELESS[case]
        with pytest.raises(UsageError):
            ooc.plan(spec_of(**more), tmp_path / "run", operator=Operator(dense((50, 50))))
        assert not (tmp_path / "run").exists()

    @kinds
    @pytest.mark.parametrize(
        ("method", "noise", "dtype"),
        [
            (method, noise, dtype)
            for method, noise, dtype in itertools.product(METHODS, NOISES, DTYPES)
            if noise != "phase" or dtype.startswith("complex")
            # Its few columns are drawn by rows.
            if method != "krylov" or noise not in ("ssrft", "sparse-sign")
        ],
    )
    def test_every_method_of_every_kind_takes_every_noise(self, kind, method, noise, dtype):
        spec = spec_of(kind=kind, recovery__method=method, sketch__noise=noise, dtype=dtype)
        require_sense(spec)
        assert spec.recovery.method == method

    @pytest.mark.parametrize(
        "more",
        [
            {"recovery__method": "hmt", "recovery__power_iterations": 2},
            {"recovery__method": "hmt", "recovery__rank": 5},
            {"kind": "svd", "sketch__left_measurements": 30},
            {"kind": "svd", "sketch__left_test_measurements": 12},
            {"recovery__method": "oversampled", "sketch__inner_measurements": 30},
            {"tolerance": 0.1, "sketch__test_measurements": 10},
            {"tolerance": 0.1, "storage": "1 GiB"},
            {"pairs_tolerance": 4.8e-7, "dtype": "float32"},
            {"rounds": 4, "recovery__which": "SA"},
            {"tolerance": 0.1, "kind": "svd", "recovery__method": "singlepass"},
        ],
        ids=str,
    )
    def test_what_makes_some_is_accepted(self, more):
        assert require_sense(spec_of(**more)) is None


class TestSizes:
    @pytest.mark.parametrize("case", TOO_MUCH)
    def test_that_do_not_fit_are_refused_by_name(self, case):
        more, shape, message = TOO_MUCH[case]
        with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
            sizes_of(spec_of(**more), shape)

    @pytest.mark.parametrize("case", [case for case in TOO_MUCH if "great" not in case])
    def test_that_do_not_fit_are_refused_before_there_is_a_run(self, case, tmp_path):
        more, shape, _ = TOO_MUCH[case]
        operator = Operator(dense(shape, dtype="float32", hermitian=False))
        with pytest.raises(UsageError):
            ooc.plan(spec_of(**more), tmp_path / "run", operator=operator)
        assert not (tmp_path / "run").exists()

    @kinds
    @by_measurements
    @pytest.mark.parametrize("dtype", ["float32", "complex64"])
    def test_follow_from_the_measurements(self, kind, method, dtype):
        sizes = sizes_of(spec_of(kind=kind, recovery__method=method, dtype=dtype), shape_of(kind))
        inner = default_inner(20, dtype == "complex64") if method == "oversampled" else 0
        assert sizes == Sizes(20, default_left(method, kind, 20), inner, 30)

    @kinds
    @pytest.mark.parametrize(("asked", "right"), [(None, 16), (7, 7), (400, 100)])
    def test_of_krylov_are_those_of_a_round(self, kind, asked, right):
        spec = spec_of(kind=kind, pairs_tolerance=0.1, round_width=asked)
        assert sizes_of(spec, shape_of(kind)) == Sizes(right, 0, 0, 30)

    @pytest.mark.parametrize(
        ("shape", "sizes"),
        [((150, 100), Sizes(100, 150, 0, 30)), ((100, 150), Sizes(100, 100, 0, 30))],
        ids=str,
    )
    def test_of_the_left_sketch_end_with_the_operators_rows(self, shape, sizes):
        spec = spec_of(kind="svd", measurements=100, recovery__method="nystrom")
        assert sizes_of(spec, shape) == sizes

    def test_of_the_inner_sketch_end_with_the_operators_columns(self):
        spec = spec_of(kind="svd", measurements=60, recovery__method="oversampled")
        assert sizes_of(spec, (150, 100)).inner == 100

    @pytest.mark.parametrize("left", [20, 31, 150])
    def test_of_the_left_sketch_may_be_given(self, left):
        assert sizes_of(spec_of(kind="svd", sketch__left_measurements=left), SHAPE).left == left

    @kinds
    @pytest.mark.parametrize("inner", [20, 31, 100])
    def test_of_the_inner_sketch_may_be_given(self, kind, inner):
        spec = spec_of(
            kind=kind, recovery__method="oversampled", sketch__inner_measurements=inner
        )  # fmt: skip
        assert sizes_of(spec, shape_of(kind)).inner == inner

    @given(
        st.sampled_from(KINDS),
        st.sampled_from(sorted(METHODS)),
        st.sampled_from(DTYPES),
        st.integers(2, 200),
        st.integers(2, 200),
        st.integers(1, 10**6),
    )
    def test_that_a_storage_allows_are_as_good_as_if_they_were_asked_for(
        self, kind, method, dtype, height, width, count
    ):
        shape = (height, height) if kind == "eigh" else (height, width)
        spec = spec_of(
            kind=kind, recovery__method=method, dtype=dtype, storage=f"{count} B",
            sketch__test_measurements=1,
        )  # fmt: skip
        try:
            sizes = sizes_of(spec, shape)
        except UsageError:
            reject()
        asked = dataclasses.replace(spec, storage=None, measurements=sizes.right)
        require_sense(asked)
        assert sizes_of(asked, shape).right == sizes.right

    @pytest.mark.parametrize("noise", [noise for noise in NOISES if noise != "sparse-sign"])
    def test_of_a_single_column_do_for_dense_noise(self, noise):
        spec = spec_of(measurements=1, sketch__noise=noise, dtype="complex64")
        assert sizes_of(spec, (100, 100)).right == 1

    def test_of_many_columns_do_for_sparse_noise(self):
        spec = spec_of(measurements=64, sketch__noise="sparse-sign")
        assert sizes_of(spec, (100, 100)).right == 64

    def test_of_the_greatest_height_do_for_whole_columns(self):
        spec = spec_of(kind="svd", sketch__noise="ssrft")
        assert sizes_of(spec, (2**31, 2**31)).right == 20


class TestRecovery:
    @pytest.mark.parametrize("key", ["core", "rank"])
    def test_of_more_than_was_measured_is_refused(self, key):
        with pytest.raises(UsageError, match=f"^recovery.{key} = 21: there are only 20 meas"):
            require_recoverable(RecoverySpec(**{key: 21}), 20)

    @pytest.mark.parametrize(
        "settings", [RecoverySpec(), RecoverySpec(core=20), RecoverySpec(rank=20)], ids=str
    )
    def test_of_as_much_as_was_measured_is_accepted(self, settings):
        assert require_recoverable(settings, 20) is None


class TestDefaults:
    @pytest.mark.parametrize(("measurements", "left"), [(1, 2), (2, 3), (3, 5), (100, 150)])
    def test_nystrom_has_half_as_many_left_columns_more(self, measurements, left):
        assert default_left("nystrom", "svd", measurements) == left

    @pytest.mark.parametrize(
        ("method", "left"), [("singlepass", 100), ("oversampled", 100), ("hmt", 0)]
    )
    def test_others_have_as_many_left_columns_or_none(self, method, left):
        assert default_left(method, "svd", 100) == left

    @methods
    def test_a_hermitian_operator_has_one_side(self, method):
        assert default_left(method, "eigh", 100) == 0

    @pytest.mark.parametrize(("is_complex", "inner"), [(False, 41), (True, 40)])
    def test_the_core_is_oversampled_twice(self, is_complex, inner):
        assert default_inner(20, is_complex) == inner


def stored(method, kind, shape, sizes):
    """How many numbers a run of these sizes keeps."""
    h, w = shape
    m, left, inner = sizes
    if method == "hmt":
        return m * (3 * h if kind == "eigh" else 2 * h + w)
    if kind == "eigh":
        return m * h + inner * max(0, inner - m)
    return m * h + left * w + inner**2


class TestStorage:
    @pytest.mark.parametrize(
        ("budget", "k", "s"), [(23, 22, 44), (46, 42, 89), (92, 79, 161), (184, 143, 286)]
    )
    def test_natural_sizes_are_those_of_the_paper(self, budget, k, s):
        found = sizes_for_storage("oversampled", "svd", True, (1000, 1000), budget * 2000)
        assert found == (k, k, s)

    @given(
        method=st.sampled_from(sorted(METHODS)),
        kind=st.sampled_from(KINDS),
        is_complex=st.booleans(),
        height=st.integers(1, 3000),
        width=st.integers(1, 3000),
        share=st.floats(0, 2),
    )
    def test_is_kept_and_used(self, method, kind, is_complex, height, width, share):
        shape = (height, height) if kind == "eigh" else (height, width)
        entries = int(share * height * shape[1])
        try:
            sizes = sizes_for_storage(method, kind, is_complex, shape, entries)
        except ValueError:
            sizes = (0, 0, 0)
        assert stored(method, kind, shape, sizes) <= entries
        more = sizes[0] + 1
        wider = (
            more,
            default_left(method, kind, more),
            default_inner(more, is_complex) if method == "oversampled" else 0,
        )
        assert more > min(shape) or stored(method, kind, shape, wider) > entries

    @given(
        kind=st.sampled_from(KINDS),
        is_complex=st.booleans(),
        size=st.integers(10, 3000),
        entries=st.integers(10_000, 10_000_000),
    )
    def test_leaves_the_core_oversampled(self, kind, is_complex, size, entries):
        try:
            k, _, s = sizes_for_storage("oversampled", kind, is_complex, (size, size), entries)
        except ValueError:
            return
        assert s >= min(default_inner(k, is_complex), size)

    @methods
    @kinds
    def test_too_little_is_refused(self, method, kind):
        with pytest.raises(ValueError, match="too little for one measurement"):
            sizes_for_storage(method, kind, False, (1000, 1000), 900)

    @methods
    @kinds
    def test_beyond_need_is_not_used(self, method, kind):
        assert sizes_for_storage(method, kind, False, (50, 50), 10**9)[0] == 50
