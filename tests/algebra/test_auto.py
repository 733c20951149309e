"""The better of two methods on the same sketch: which one is taken, and what that is worth."""

from __future__ import annotations

import numpy as np
import pytest
from sketches import KINDS, SINGLE, case, dense, sketch_of
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.methods.auto import COMPARED

kinds = pytest.mark.parametrize("kind", KINDS)
SPECTRA = ["poly .5", "poly 1", "poly 2", "exp .02", "exp .1", "outliers on a flat bulk",
           "clustered"]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def solved(found, **settings):
    """The core that is taken, and those of the methods that are compared."""
    cores = {name: type(found)(**{**vars(found), "method": name}).solve(**settings)
             for name in COMPARED}  # fmt: skip
    return found.solve(**settings), cores


@kinds
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_one_with_the_smaller_error_held_out_is_taken(kind, spectrum):
    taken, cores = solved(case("auto", kind, spectrum, "float32"))
    errors = {name: min(error for _, error in core.tested) for name, core in cores.items()}
    assert taken.method == min(errors, key=errors.get)
    assert np.array_equal(taken.middle, cores[taken.method].middle)


@kinds
@pytest.mark.parametrize(("q", "core"), [(2, None), (30, 12)], ids=["few tests", "core given"])
def test_it_is_nystrom_where_nothing_is_chosen(kind, q, core):
    taken, cores = solved(case("auto", kind, "poly 1", "float32", q=q), core_size=core)
    assert (taken.method, taken.choosing) == ("nystrom", 0)
    assert np.array_equal(taken.middle, cores["nystrom"].middle)


@pytest.mark.parametrize("m", [20, 40])
def test_it_is_not_always_the_same(m):
    taken = {
        case("auto", "svd", spectrum, "float32", m, left=m, seed=seed).solve().method
        for spectrum in SPECTRA
        for seed in range(3)
    }
    assert taken == set(COMPARED)


@pytest.mark.covered(1)
@pytest.mark.parametrize("dtype", SINGLE)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_its_error_is_about_that_of_the_better_one(spectrum, dtype):
    errors = {"auto": [], **{name: [] for name in COMPARED}}
    for seed in range(5):
        a = dense("svd", spectrum, (240, 240), dtype, seed)
        found = sketch_of(a, "auto", "svd", dtype, 60, left=60, seed=seed)
        taken, cores = solved(found)
        for name, core in {"auto": taken, **cores}.items():
            errors[name].append(found.error_by(core))
    auto, *others = (np.median(errors[name]) for name in errors)
    assert auto <= 1.05 * min(others)
