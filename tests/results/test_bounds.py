"""The probabilities that go with an error estimate, against how often it is off over 500 seeds."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range
from skerch_ooc.results.assess import (
    factor_for,
    overestimate_probability,
    underestimate_probability,
)

N = 64
SEEDS = 500
INDEX = np.arange(N)
RESIDUALS = {
    "decaying": 10.0 ** (-0.1 * INDEX),
    "flat": np.ones(N),
    "clustered": np.where(INDEX < 3, 1.0, 1e-3),
    "of rank one": np.where(INDEX < 1, 1.0, 0.0),
}

spectra = pytest.mark.parametrize("spectrum", RESIDUALS)
fields = pytest.mark.parametrize("dtype", ["float64", "complex128"])
columns = pytest.mark.parametrize("q", [10, 20])
factors = pytest.mark.parametrize("factor", [1.1, 1.25, 1.5, 2.0])


@cache
def squares(dtype, q):
    """The squared norms of the rows of a test matrix, for each seed."""
    drawn = (
        draw("gaussian", seed, "test", Range(0, N), Range(0, q), dtype) for seed in range(SEEDS)
    )
    return np.array([np.sum(np.abs(g) ** 2, axis=1) for g in drawn])


def ratios(spectrum, dtype, q):
    """Estimate over truth for each seed, of a residual with these singular values."""
    values = RESIDUALS[spectrum]
    truth = np.linalg.norm(values)
    # A unitary matrix on the left changes no norm, and one on the right no Gaussian distribution.
    return np.sqrt(squares(dtype, q) @ values**2 / q) / truth


def most(probability):
    """How often an event of this probability may happen in all seeds, by three standard errors."""
    return SEEDS * probability + 3 * math.sqrt(SEEDS * probability * (1 - probability)) + 1


@pytest.mark.covered(1)
@spectra
@fields
@columns
@factors
def test_the_truth_exceeds_the_estimate_no_more_often_than_stated(spectrum, dtype, q, factor):
    missed = int(np.sum(factor * ratios(spectrum, dtype, q) < 1))
    assert missed <= most(underestimate_probability(factor, q, dtype == "complex128"))


@spectra
@fields
@columns
@factors
def test_the_estimate_exceeds_the_truth_no_more_often_than_stated(spectrum, dtype, q, factor):
    missed = int(np.sum(ratios(spectrum, dtype, q) > factor))
    assert missed <= most(overestimate_probability(factor, q, dtype == "complex128"))


@fields
@columns
def test_the_bound_is_not_idle_for_a_residual_of_rank_one(dtype, q):
    # The worst case of the bound: were it ten times too wide, nobody would be told much.
    tail = underestimate_probability(1.5, q, dtype == "complex128")
    assert np.mean(1.5 * ratios("of rank one", dtype, q) < 1) > tail / 20


@spectra
@fields
@columns
def test_the_squared_estimate_is_unbiased(spectrum, dtype, q):
    found = ratios(spectrum, dtype, q) ** 2
    assert abs(found.mean() - 1) < 4 * found.std() / math.sqrt(SEEDS)


@fields
@columns
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_factor_for_a_confidence_has_just_that_probability(dtype, q, confidence):
    is_complex = dtype == "complex128"
    factor = factor_for(confidence, q, is_complex)
    assert underestimate_probability(factor, q, is_complex) == pytest.approx(
        1 - confidence, rel=1e-4
    )


def test_without_columns_no_factor_is_enough():
    assert factor_for(0.95, 0, False) == math.inf
