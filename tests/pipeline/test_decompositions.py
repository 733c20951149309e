"""Kinds, methods, types and noises through the whole pipeline, against torch.

That the methods are right is asserted on arrays in tests/algebra/test_methods.py. Only here is it
seen that what they need is planned, measured, merged and kept for each combination. By default each
two values of two of the four meet; all combinations are thorough.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from operators import (
    DTYPES,
    SINGLE,
    Operator,
    best_error,
    dense,
    exact_values,
    make,
    orthogonality,
    relative_error,
    triple,
)

import skerch_ooc as ooc
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range

KINDS = ("eigh", "svd")
METHODS = ("nystrom", "singlepass", "oversampled", "hmt")
ONE_PASS = METHODS[:3]
NOISES = ("rademacher", "gaussian", "phase", "ssrft", "sparse-sign")
PROBE = {"eigh": 18, "svd": 34}


@dataclass(frozen=True)
class Outcome:
    """What came of a run, kept after its directory is gone."""

    a: torch.Tensor
    u: torch.Tensor
    values: torch.Tensor
    v: torch.Tensor
    error: float
    assessment: ooc.Assessment
    planned: int
    measured: int
    identity: Any

    @property
    def orthogonality(self) -> float:
        return max(orthogonality(self.u), orthogonality(self.v))


@cache
def outcome(
    kind: str,
    method: str,
    dtype: str = "float64",
    noise: str = "rademacher",
    measurements: int = 80,
    spectrum: str = "rank 30",
    shape: Any = "square",
    definite: bool = False,
    **options: Any,
) -> Outcome:
    # What was kept of other tests is not to be gone through by each collection of this one.
    gc.freeze()
    operator = make(
        shape, dtype=dtype, spectrum=spectrum, hermitian=kind == "eigh", definite=definite
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # Threads of small products cost more than they are worth.
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        result = getattr(ooc, kind)(
            operator,
            measurements=measurements,
            run_dir=folder + "/run",
            method=method,
            noise=noise,
            **{"block": 200} | options,
        )
        run = ooc.open_run(folder + "/run")
        assessment = ooc.assess(run)
        return Outcome(
            operator.matrix,
            *triple(result),
            relative_error(result, operator.matrix),
            assessment,
            run.plan.products,
            operator.products,
            run.plan.identity,
        )


def error_limit(method: str, dtype: str) -> float:
    if dtype in SINGLE:
        return 2e-6 if method == "oversampled" else 1e-6
    return 1e-12


def orthogonality_limit(dtype: str) -> float:
    return 1e-6 if dtype in SINGLE else 1e-11


def combinations(test):
    """All that can be; by default any two values of two parameters are in one."""
    cases = [
        (kind, method, dtype, noise)
        for kind, method, dtype, noise in product(KINDS, METHODS, DTYPES, NOISES)
        if noise != "phase" or dtype.startswith("complex")
    ]
    names = ("kind", "method", "dtype", "noise")
    return pytest.mark.covered(2)(pytest.mark.parametrize(names, cases)(test))


def once(names, *axes):
    """All combinations; by default each value is in one."""

    def mark(test):
        return pytest.mark.covered(1)(pytest.mark.parametrize(names, [*product(*axes)])(test))

    return mark


every_method = once(("kind", "method"), KINDS, METHODS)
every_dtype = once(("kind", "method", "dtype"), KINDS, METHODS, DTYPES)


@combinations
def test_operator_of_low_rank_is_recovered_to_the_precision_of_its_products(
    kind, method, dtype, noise
):
    assert outcome(kind, method, dtype, noise).error <= error_limit(method, dtype)


@combinations
def test_all_vectors_are_orthonormal(kind, method, dtype, noise):
    assert outcome(kind, method, dtype, noise).orthogonality <= orthogonality_limit(dtype)


@combinations
def test_values_are_those_of_torch(kind, method, dtype, noise):
    found = outcome(kind, method, dtype, noise)
    exact = exact_values(found.a, kind)
    allowed = error_limit(method, dtype) * float(torch.linalg.norm(exact))
    torch.testing.assert_close(
        found.values[:30], exact[: len(found.values)][:30], rtol=0, atol=allowed
    )


@combinations
def test_values_come_in_descending_magnitude(kind, method, dtype, noise):
    assert (outcome(kind, method, dtype, noise).values.abs().diff() <= 0).all()


@combinations
def test_error_is_never_told_to_be_less_than_half_of_the_true_one(kind, method, dtype, noise):
    found = outcome(kind, method, dtype, noise)
    assert found.assessment.relative_error > found.error / 2


@combinations
def test_products_are_those_that_were_planned(kind, method, dtype, noise):
    found = outcome(kind, method, dtype, noise)
    counted = found.assessment.products
    assert (counted["probe"], counted["done"]) == (PROBE[kind], counted["planned"])
    assert found.measured == counted["done"] + PROBE[kind]
    # The basis of hmt has as many columns as the sketch has independent ones.
    assert counted["planned"] <= found.planned
    assert counted["planned"] == found.planned or method == "hmt"


@combinations
def test_first_test_vector_is_at_an_acute_angle_to_each_vector(kind, method, dtype, noise):
    found = outcome(kind, method, dtype, noise)
    rows = Range(0, len(found.v))
    omega = draw(noise, found.identity.seed, "right", rows, Range(0, 1), found.v.numpy().dtype.name)
    angles = (torch.from_numpy(omega).mH @ found.v)[0] / torch.linalg.norm(torch.from_numpy(omega))
    assert angles.real.min() > 0
    if angles.is_complex():
        # At right angles within rounding it has no sign to speak of.
        assert angles.imag.abs().max() < 100 * orthogonality_limit(dtype)


@pytest.mark.sampled(1)
@once(("kind", "dtype", "method"), KINDS, DTYPES, METHODS[1:])
def test_methods_agree_on_the_vectors_and_their_signs(kind, dtype, method):
    found, other = outcome(kind, "nystrom", dtype), outcome(kind, method, dtype)
    allowed = 1e-4 if dtype in SINGLE else 1e-10
    torch.testing.assert_close(found.v[:, :20], other.v[:, :20], rtol=0, atol=allowed)
    torch.testing.assert_close(found.u[:, :20], other.u[:, :20], rtol=0, atol=allowed)


@every_dtype
def test_estimated_error_is_within_a_factor_of_two_of_the_true_one(kind, method, dtype):
    found = outcome(kind, method, dtype, measurements=40, spectrum="decay")
    assert found.error / 2 < found.assessment.relative_error < found.error * 2


@pytest.mark.sampled(2)
@once(("kind", "method", "noise"), KINDS, METHODS, NOISES[2:])
def test_estimated_error_is_near_the_true_one_whatever_the_noise(kind, method, noise):
    found = outcome(kind, method, "complex64", noise, measurements=64, spectrum="slow")
    assert found.error / 2 < found.assessment.relative_error < found.error * 2


@pytest.mark.sampled(2)
@once(("shape", "method", "dtype"), ["tall", "wide"], METHODS, ["float32", "complex128"])
def test_operators_that_are_not_square_are_decomposed(shape, method, dtype):
    found = outcome("svd", method, dtype, shape=shape)
    assert (len(found.u), len(found.v)) == tuple(found.a.shape)
    assert found.error <= error_limit(method, dtype)
    assert found.orthogonality <= orthogonality_limit(dtype)


@pytest.mark.sampled(1)
@once(("kind", "powers"), KINDS, [1, 2])
def test_power_iterations_sharpen_the_range(kind, powers):
    found = outcome(kind, "hmt", spectrum="slow", measurements=40, power_iterations=powers)
    fewer = outcome(kind, "hmt", spectrum="slow", measurements=40, power_iterations=powers - 1)
    best = best_error(found.a, 40)
    assert found.error - best < 0.7 * (fewer.error - best)
    assert found.orthogonality <= 1e-11


@once(("kind", "powers"), KINDS, [0, 1, 2])
def test_each_power_iteration_of_a_general_operator_takes_two_rounds(kind, powers):
    found = outcome(kind, "hmt", spectrum="slow", measurements=40, power_iterations=powers)
    rounds = 2 + powers * (1 if kind == "eigh" else 2)
    assert found.planned == 40 * rounds + 30
    assert found.measured == found.planned + PROBE[kind]


@pytest.mark.sampled(1)
@once(("kind", "dtype"), KINDS, ["float32", "complex128"])
def test_power_iterations_in_every_dtype(kind, dtype):
    found = outcome(kind, "hmt", dtype, power_iterations=2)
    assert found.error <= error_limit("hmt", dtype)
    assert found.orthogonality <= orthogonality_limit(dtype)


@every_dtype
def test_spectrum_that_decays_to_the_rounding_errors_is_recovered(kind, method, dtype):
    found = outcome(kind, method, dtype, spectrum="steep")
    assert found.error <= error_limit(method, dtype)
    assert found.orthogonality <= orthogonality_limit(dtype)


@pytest.mark.sampled(2)
@every_method
def test_clustered_values_are_recovered(kind, method):
    found = outcome(kind, method, spectrum="clustered")
    assert found.error <= 1e-12
    assert found.orthogonality <= 1e-11


@pytest.mark.sampled(2)
@once(("kind", "method", "dtype"), KINDS, METHODS, ["float32", "float64"])
def test_flat_spectrum_is_told_to_be_approximated_badly(kind, method, dtype):
    found = outcome(kind, method, dtype, spectrum="flat", measurements=60)
    assert 0.5 < found.error < 1.5
    assert found.assessment.relative_error == pytest.approx(found.error, rel=0.3)
    assert found.orthogonality <= orthogonality_limit(dtype)


@pytest.mark.sampled(2)
@once(("definite", "method"), [True, False], METHODS)
def test_eigenvalues_have_their_signs(method, definite):
    found = outcome("eigh", method, definite=definite)
    exact = exact_values(found.a, "eigh")[:30]
    assert (exact > 0).all() == definite
    assert torch.equal(found.values[:30].sign(), exact.sign())


@pytest.mark.sampled(1)
@every_method
def test_rank_cuts_off_all_but_the_leading_values_and_vectors(kind, method):
    whole, cut = outcome(kind, method), outcome(kind, method, rank=7)
    assert cut.u.shape[1] == cut.v.shape[1] == len(cut.values) == cut.assessment.rank == 7
    torch.testing.assert_close(cut.values, whole.values[:7], rtol=1e-12, atol=0)
    torch.testing.assert_close(cut.v, whole.v[:, :7], rtol=0, atol=1e-10)
    assert cut.error == pytest.approx(best_error(cut.a, 7), rel=1e-6)


@pytest.mark.sampled(2)
@every_method
def test_estimated_error_holds_what_rank_cut_off(kind, method):
    found = outcome(kind, method, rank=7)
    assert found.error / 2 < found.assessment.relative_error < found.error * 2


@pytest.mark.sampled(2)
@once(("kind", "method"), KINDS, ONE_PASS)
def test_core_is_as_large_as_was_asked_for(kind, method):
    found = outcome(kind, method, core=12, spectrum="slow")
    assert found.assessment.core == 12
    assert len(found.values) >= 12


@pytest.mark.parametrize("kind", KINDS)
def test_core_of_a_method_without_one_is_refused(tmp_path, kind):
    with pytest.raises(ooc.UsageError, match="takes no size of a core"):
        getattr(ooc, kind)(make(), measurements=20, run_dir=tmp_path / "run", method="hmt", core=10)


@pytest.mark.sampled(2)
@once(("kind", "method", "dtype"), KINDS, METHODS, ["float32", "complex128"])
def test_as_many_measurements_as_columns_recover_everything(kind, method, dtype):
    found = outcome(kind, method, dtype, measurements=60, shape=(60, 60), spectrum="slow")
    assert found.error < (1e-4 if dtype in SINGLE else 1e-11)
    assert found.orthogonality <= orthogonality_limit(dtype)


@pytest.mark.sampled(3)
@once(("shape", "method"), [(1, 1), (1, 90), (90, 1), (2, 90), (90, 2)], METHODS)
def test_operators_of_one_or_two_rows_or_columns_are_decomposed(method, shape):
    found = outcome("svd", method, noise="gaussian", measurements=min(shape), shape=shape,
                    spectrum="slow")  # fmt: skip
    assert found.error < 1e-11
    torch.testing.assert_close(found.values, exact_values(found.a, "svd"), rtol=1e-11, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_operator_of_one_number_has_this_eigenvalue(tmp_path, method):
    a = torch.full((1, 1), -3.0, dtype=torch.float64)
    eig = ooc.eigh(a, measurements=1, run_dir=tmp_path / "run", method=method)
    torch.testing.assert_close(eig.eigenvalues, a[0], rtol=1e-14, atol=0)


@pytest.mark.sampled(2)
@every_method
def test_operator_of_rank_one_has_one_value(kind, method):
    found = outcome(kind, method, measurements=20, spectrum="rank 1")
    assert found.values[0] == pytest.approx(2.0, rel=1e-12)
    assert found.error < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_operator_is_refused_by_the_probe(tmp_path, kind, method, dtype):
    a = torch.zeros(50, 50, dtype=getattr(torch, dtype))
    with pytest.raises(ooc.OocError, match="nothing to decompose"):
        getattr(ooc, kind)(a, measurements=10, run_dir=tmp_path / "run", method=method)


class LateZero(Operator):
    """Zero, as soon as it was probed."""

    def apply(self, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return super().apply(matrix, x) * (self.products <= PROBE["svd"])


@pytest.mark.sampled(2)
@every_method
def test_zero_sketch_is_refused_by_the_recovery(tmp_path, kind, method):
    a = LateZero(dense((50, 50)))
    a.products = PROBE["svd"] - PROBE[kind]
    with pytest.raises(ooc.UsageError, match="nothing to decompose"):
        getattr(ooc, kind)(a, measurements=10, run_dir=tmp_path / "run", method=method)


@pytest.mark.sampled(2)
@every_method
def test_decomposition_without_test_columns_has_no_estimate_but_is_as_good(kind, method):
    found = outcome(kind, method, test_measurements=0)
    assert found.assessment.relative_error is None
    assert found.error < 1e-12


@pytest.mark.sampled(2)
@once(("method", "left"), ONE_PASS, [100, 80])
def test_left_sketch_is_as_wide_as_was_asked_for(method, left):
    found = outcome("svd", method, left_measurements=left)
    inner = 150 if method == "oversampled" else 0
    assert found.planned == 80 + 30 + left + inner
    assert found.error < 1e-10


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_inner_sketch_is_as_wide_as_was_asked_for(kind):
    found = outcome(kind, "oversampled", inner_measurements=100)
    assert found.planned == (100 + 30 if kind == "eigh" else 80 + 80 + 100 + 30)
    assert found.error < 1e-11


@pytest.mark.sampled(1)
@once(("kind", "method", "block"), KINDS, ["oversampled", "hmt"], [1, 7])
def test_blocks_may_be_narrow(kind, method, block):
    found = outcome(
        kind, method, shape=(40, 40), measurements=36, test_measurements=6, block=block
    )  # fmt: skip
    assert found.error <= 1e-12
