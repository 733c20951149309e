"""Widths of the sketches: defaults, and what fits into a storage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sketches import KINDS

from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.sizes import default_inner, default_left, sizes_for_storage

kinds = pytest.mark.parametrize("kind", KINDS)
methods = pytest.mark.parametrize("method", METHODS)


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
