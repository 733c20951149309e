"""Matrices that lead arithmetic astray: each is decomposed rightly, or refused with its reason."""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import skerch_ooc as ooc
from skerch_ooc.algebra.linalg import spectral_norm
from skerch_ooc.base.arrays import tolerance
from skerch_ooc.base.resources import resident_memory
from skerch_ooc.results.assess import factor_for

SINGLE = ("float32", "complex64")
DTYPES = ("float32", "float64", "complex64", "complex128")
KINDS = ("eigh", "svd", "svd tall", "svd wide")
METHODS = ("nystrom", "singlepass", "oversampled", "hmt", "hmt 1", "hmt 2")
NOISES = ("rademacher", "gaussian", "phase", "ssrft", "sparse-sign")
SIZE, LARGER = 24, 80

REASONS = (
    "there is nothing to decompose",
    "holds NaN or infinity",
    "hold NaN or infinity",
    "out of the range of",
    "has fewer digits than elsewhere",
)
"""Of refusals; what is to be done about it stands beside them."""


def spread(values, kind, shape, dtype, seed=0):
    """A matrix of these eigenvalues, or singular values, with random vectors."""
    generator = np.random.default_rng(seed)

    def vectors(n, columns):
        sample = generator.standard_normal((n, columns))
        if dtype.startswith("complex"):
            sample = sample + 1j * generator.standard_normal((n, columns))
        return np.linalg.qr(sample)[0]

    values = np.asarray(values, np.float64)
    u = vectors(shape[0], len(values))
    if kind == "eigh":
        a = (u * values) @ u.conj().T
        return (a + a.conj().T) / 2
    return (u * values) @ vectors(shape[1], len(values)).conj().T


def noise_matrix(kind, shape, dtype, seed=0):
    generator = np.random.default_rng(seed)
    a = generator.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * generator.standard_normal(shape)
    return (a + a.conj().T) / 2 if kind == "eigh" else a


def signs(n):
    return np.where(np.arange(n) % 2, -1.0, 1.0)


def entry(value):
    """A decent matrix with one entry that is none."""

    def make(kind, shape, dtype):
        a = noise_matrix(kind, shape, dtype)
        a[3, 3] = value
        return a

    return make


def scaled(scale, rank=None):
    def make(kind, shape, dtype):
        n = min(shape)
        values = 10 ** (-0.2 * np.arange(rank or n)) * signs(rank or n)
        return spread(values, kind, shape, dtype) * scale

    return make


def diagonal(*values):
    def make(kind, shape, dtype):
        a = np.zeros(shape)
        for i, value in zip(range(min(shape)), itertools.cycle(values), strict=False):
            a[i, i] = value
        return a

    return make


def valued(values_of):
    def make(kind, shape, dtype):
        return spread(values_of(min(shape)), kind, shape, dtype)

    return make


def spanning(kind, shape, dtype):
    """Entries from 1e-30 to 1e30."""
    a = noise_matrix(kind, shape, dtype)
    exponents = np.random.default_rng(1).uniform(-30, 30, shape)
    if kind == "eigh":
        exponents = np.maximum(exponents, exponents.T)
    return a * 10**exponents


def graded(kind, shape, dtype):
    """Rows and columns of ever smaller scale."""
    powers = [10.0 ** (-np.arange(n)) for n in shape]
    return powers[0][:, None] * noise_matrix(kind, shape, dtype) * powers[1]


def integers(kind, shape, dtype):
    a = np.random.default_rng(0).integers(-4, 5, shape).astype(float)
    return a + a.T if kind == "eigh" else a


def complex_of_reals(kind, shape, dtype):
    return noise_matrix(kind, shape, "float64") + 0j


def one_large_entry(kind, shape, dtype):
    a = noise_matrix(kind, shape, dtype) * 1e-9
    a[2, 2] = 1.0
    return a


def one_entry(kind, shape, dtype):
    a = np.zeros(shape)
    a[2, 2] = 5.0
    return a


def ones(kind, shape, dtype):
    return np.ones(shape)


def far_entry(kind, shape, dtype):
    """Nilpotent, or of eigenvalues of both signs: two entries in opposite corners."""
    a = np.zeros(shape)
    a[0, -1] = a[-1, 0] = 1.0
    return a


TRAPS = {
    "infinity": entry(math.inf),
    "NaN": entry(math.nan),
    "zero": diagonal(0.0),
    "identity": diagonal(1.0),
    "minus identity": diagonal(-1.0),
    "three times the identity": diagonal(3.0),
    "signs": diagonal(1.0, -1.0),
    "pairs of values": valued(lambda n: np.repeat(2.0 ** -np.arange(n), 2)[:n] * signs(n)),
    "rank 1": valued(lambda n: [2.0]),
    "rank 2, almost one": valued(lambda n: [1.0, 1e-5]),
    "one entry": one_entry,
    "opposite corners": far_entry,
    "all ones": ones,
    "integers": integers,
    "steep": valued(lambda n: 10.0 ** (-np.arange(n)) * signs(n)),
    "flat with a gap": valued(lambda n: np.where(np.arange(n) < 3, 1.0, 1e-3)),
    "flat": valued(lambda n: np.ones(n) * signs(n)),
    "near the largest float32": scaled(1e38),
    "identity near the largest float32": diagonal(3e38),
    "above the square root of the largest": scaled(1e20),
    "near the smallest float32": scaled(1e-34),
    "subnormal": scaled(1e-42),
    "smallest subnormal": diagonal(1e-45),
    "near the limits of float64": scaled(1e90),
    "too large": scaled(1e160),
    "too small": scaled(1e-160),
    "tiny": scaled(1e-90),
    "entries of all scales": spanning,
    "graded": graded,
    "real numbers in complex ones": complex_of_reals,
    "one large entry": one_large_entry,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A matrix, and how it is decomposed."""

    trap: str
    kind: str
    method: str
    dtype: str
    noise: str
    vectors: str
    full: bool

    @property
    def size(self):
        return LARGER if self.noise == "sparse-sign" else SIZE

    @property
    def shape(self):
        n = self.size
        return {"svd tall": (n + 9, n), "svd wide": (n, n + 9)}.get(self.kind, (n, n))

    @property
    def measurements(self):
        return self.size if self.full else (64 if self.noise == "sparse-sign" else 12)

    @property
    def matrix(self):
        a = TRAPS[self.trap](self.kind, self.shape, self.dtype)
        with np.errstate(all="ignore"):
            return (a if self.dtype.startswith("complex") else a.real).astype(self.dtype)

    @property
    def settings(self):
        method, _, iterations = self.method.partition(" ")
        more = {"power_iterations": int(iterations)} if iterations else {}
        return more | {"method": method, "noise": self.noise, "vectors": self.vectors}

    def __str__(self):
        full = "full" if self.full else "part"
        how = (self.kind, self.method, self.dtype, self.noise, self.vectors, full)
        return "-".join((self.trap, *how))


def rolled(trap, kind, method, dtype):
    """The other choices, by a hash: each of them meets each trap."""
    roll = zlib.crc32(f"{trap} {kind} {method} {dtype}".encode())
    noises = [noise for noise in NOISES if noise != "phase" or dtype.startswith("complex")]
    noise = noises[roll % len(noises)]
    vectors = ("stored", "implicit")[roll // 8 % 2]
    return Case(trap, kind, method, dtype, noise, vectors, full=roll // 16 % 3 == 0)


ALL = [rolled(*choice) for choice in itertools.product(TRAPS, KINDS, METHODS, DTYPES)]
_OFTEN = 37


def cases():
    marks = [[] if number % _OFTEN == 0 else pytest.mark.soak for number in range(len(ALL))]
    return [pytest.param(c, id=str(c), marks=m) for c, m in zip(ALL, marks, strict=True)]


def decomposed(a, kind, run_dir, measurements, **more):
    """The result and its assessment; ``None`` and the reason if it is refused."""
    function = ooc.eigh if kind == "eigh" else ooc.svd
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = function(a, measurements=measurements, run_dir=run_dir, **more)
            assessment = ooc.assess(ooc.open_run(run_dir))
    except (ooc.UsageError, ooc.OperatorError, ooc.QualityError) as refusal:
        return None, str(refusal)
    return found, assessment


def finite_json(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def factors(found):
    """``U``, the values and ``V``, in double precision."""
    if isinstance(found, ooc.Eigh):
        u = found.eigenvectors[:].numpy()
        return u.astype(np.result_type(u, np.float64)), found.eigenvalues.numpy(), u
    u, v = (vectors[:].numpy() for vectors in (found.U, found.V))
    wide = np.result_type(u, np.float64)
    return u.astype(wide), found.S.numpy(), v.astype(wide)


def norm_of(a):
    """The Frobenius norm, without squares that overflow."""
    largest = float(np.abs(a).max(initial=0.0))
    return largest * float(np.linalg.norm(a / largest)) if largest else 0.0


def true_values(a, kind):
    if kind == "eigh":
        values = np.linalg.eigvalsh(a)
        return values[np.argsort(-np.abs(values), kind="stable")]
    return np.linalg.svd(a, compute_uv=False)


def require_right(a, kind, found, assessment, *, exact=False):
    """Values, vectors, reconstruction and error figures are what they say they are."""
    dtype = str(a.dtype)
    floor = tolerance(dtype)
    u, values, v = factors(found)
    for array in (u, values, v):
        assert np.isfinite(array).all()
    a = a.astype(np.result_type(a, np.float64))
    size = norm_of(a)
    identity = np.eye(len(values))
    for vectors in (u, v):
        deviation = np.linalg.norm(vectors.conj().T @ vectors - identity, 2)
        assert deviation <= (1e-5 if dtype in SINGLE else 1e-10)
    magnitudes = np.abs(values)
    assert (np.diff(magnitudes) <= 1e-12 * magnitudes[0]).all()
    assert kind == "eigh" or (values >= 0).all()
    error = norm_of(a - (u * values) @ v.conj().T)
    # By Weyl, of any approximation.
    truth = true_values(a, kind)[: len(values)]
    assert np.abs(np.abs(truth) - magnitudes).max() <= error + floor * size
    require_honest(assessment, error / size, floor)
    if exact:
        assert error <= 30 * floor * size
    return error / size


def require_honest(assessment, error, floor):
    """The relative error is within its own bounds of the true one, but for rounding."""
    finite_json(json.dumps(assessment.as_json(), allow_nan=False))
    if assessment.relative_error is None:
        assert assessment.test_measurements == 0
        return
    estimate, count = assessment.relative_error, assessment.test_measurements
    # Once in a million; it relates to the estimated norm, which errs likewise.
    factor = factor_for(1 - 1e-6, count, assessment.is_complex) ** 2
    assert error <= factor * estimate + floor
    assert estimate <= factor * error + floor


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", cases())
def test_trap_is_decomposed_rightly_or_refused(case, tmp_path, tally):
    with tally.fault("a numerical trap", case.trap) as attempt:
        a = case.matrix
        found, assessment = decomposed(
            a, case.kind, tmp_path / "run", case.measurements, **case.settings
        )
        if found is None:
            assert any(reason in assessment for reason in REASONS), assessment
            attempt.ended("refused")
            return
        finite_json((tmp_path / "run/results/default/assessment.json").read_text())
        require_right(a, case.kind, found, assessment)
        attempt.ended("same")


@pytest.mark.parametrize("scale", [1e90, 1e-90])
def test_spectral_norm_is_right_where_fourth_powers_leave_the_range(scale):
    assert spectral_norm(scale * np.diag([1.0, -3.0, 2.0])) == pytest.approx(3 * scale, rel=0.01)


@pytest.mark.covered(1)
@pytest.mark.parametrize("trap", ["near the limits of float64", "tiny"])
@pytest.mark.parametrize("method", ["nystrom", "hmt 1"])
def test_square_of_the_square_of_the_scale_is_of_no_account(method, trap, tmp_path, tally):
    with tally.fault("a numerical trap", trap) as attempt:
        case = Case(trap, "svd", method, "float64", "rademacher", "stored", full=False)
        found, assessment = decomposed(case.matrix, "svd", tmp_path / "run", 12, **case.settings)
        require_right(case.matrix, "svd", found, assessment)
        attempt.ended("same")


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_too_few_digits_are_refused_for_that(kind, tmp_path, tally):
    """Not for being of another operator, as their rounding errors would have it."""
    with tally.fault("a numerical trap", "subnormal") as attempt:
        case = Case("subnormal", kind, "singlepass", "float32", "rademacher", "stored", full=False)
        found, reason = decomposed(case.matrix, kind, tmp_path / "run", 12, **case.settings)
        assert found is None
        assert "has fewer digits than elsewhere; multiply the operator" in reason
        attempt.ended("refused")


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_overflowing_array_is_refused_for_what_its_product_holds(dtype, tmp_path, tally):
    """Numpy's warning would come first, and is an error here."""
    with tally.fault("a numerical trap", "identity near the largest float32") as attempt:
        a = (3e38 * np.eye(SIZE)).astype(dtype)
        found, reason = decomposed(a, "eigh", tmp_path / "run", 12, noise="gaussian")
        assert found is None
        assert "NaN or infinity" in reason
        attempt.ended("refused")


def test_inner_sketch_that_overflows_is_refused_without_a_warning(tmp_path, tally):
    """Its entries are sums of products, in double precision until they are stored."""
    with tally.fault("a numerical trap", "near the largest float32") as attempt:
        a, how = 1e38 * np.eye(SIZE, dtype="f4"), {"method": "oversampled", "test_measurements": 0}
        found, reason = decomposed(a, "svd", tmp_path / "run", 4, **how)
        assert found is None
        assert "of the inner sketch" in reason
        attempt.ended("refused")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["nystrom", "singlepass", "oversampled", "hmt"])
@pytest.mark.parametrize("kind", ["eigh", "svd"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_matrix_is_honest_about_what_it_missed(kind, method, n, dtype, tmp_path, tally):
    """Of few random signs columns may be equal: then a value is missed, and the error says so."""
    with tally.fault("a numerical trap", "one, two or three dimensions") as attempt:
        a = noise_matrix(kind, (n, n), dtype, seed=n).astype(dtype)
        found, assessment = decomposed(a, kind, tmp_path / "run", n, method=method)
        require_right(a, kind, found, assessment)
        attempt.ended("same")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", ["nystrom", "singlepass", "hmt"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_gaussian_measurements_as_dimensions_find_all_values(kind, method, tmp_path, tally):
    with tally.fault("a numerical trap", "as many measurements as dimensions") as attempt:
        shape = {"svd tall": (20, 12), "svd wide": (12, 20)}.get(kind, (12, 12))
        a = noise_matrix(kind, shape, "float64")
        found, assessment = decomposed(
            a, kind, tmp_path / "run", 12, method=method, noise="gaussian"
        )
        require_right(a, kind, found, assessment, exact=True)
        assert len(factors(found)[1]) == 12
        attempt.ended("same")


@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_more_measurements_than_dimensions_are_refused(kind, tmp_path, tally):
    with tally.fault("a numerical trap", "more measurements than dimensions") as attempt:
        _, reason = decomposed(noise_matrix(kind, (9, 9), "float64"), kind, tmp_path / "run", 10)
        assert "at most 9 measurements make sense" in reason
        attempt.ended("refused")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", ["nystrom", "singlepass", "hmt"])
@pytest.mark.parametrize("trap", ["rank 1", "steep", "identity", "pairs of values"])
def test_error_of_a_cut_result_is_that_of_the_cut(trap, method, tmp_path, tally):
    """Large errors too are within their bounds."""
    with tally.fault("a numerical trap", f"{trap}, cut to rank 1") as attempt:
        a = TRAPS[trap]("eigh", (SIZE, SIZE), "float64")
        found, assessment = decomposed(
            a, "eigh", tmp_path / "run", SIZE, method=method, noise="gaussian", rank=1
        )
        u, values, v = factors(found)
        assert len(values) == 1
        error = norm_of(a - (u * values) @ v.conj().T) / norm_of(a)
        require_honest(assessment, error, tolerance("float64"))
        attempt.ended("same")


class Tall:
    """A column of ten million rows, or its adjoint, at no memory of its own."""

    def __init__(self, column, adjoint=False):
        self.column = column
        self.shape = (1, len(column)) if adjoint else (len(column), 1)

    def __matmul__(self, x):
        # A sum of ten million numbers in single precision would be off by 1e-4.
        a = self.column.mH if self.shape[0] == 1 else self.column
        return (a.double() @ x.double()).float()

    def adjoint(self):
        return Tall(self.column, adjoint=self.shape[0] > 1)


@pytest.mark.soak
@pytest.mark.parametrize("wide", [False, True], ids=["a column", "a row"])
@pytest.mark.parametrize("method", ["nystrom", "hmt"])
def test_ten_million_rows_and_one_column(method, wide, tmp_path, tally):
    """In memory of a few columns, of which each has 40 MB."""
    with tally.fault("a numerical trap", "ten million rows, one column") as attempt:
        column = torch.linspace(-1, 1, 10**7).reshape(-1, 1)
        found, assessment = decomposed(
            Tall(column, adjoint=wide), "svd", tmp_path / "run", 1,
            method=method, test_measurements=10, memory=resident_memory() + (3 << 29), block=4,
        )  # fmt: skip
        size = float(column.double().norm())
        assert found.S.numpy() == pytest.approx([size], rel=1e-6)
        assert assessment.relative_error < 1e-6
        long = (found.V if wide else found.U)[:].double()
        assert float(torch.abs((column.double() / size).mH @ long)) == pytest.approx(1, abs=1e-6)
        attempt.ended("same")


class TestUpdates:
    """Sums that cancel, vanish or overflow."""

    FIRST, SECOND = (
        spread([3.0, -2.0, 1.0], "eigh", (SIZE, SIZE), "float64", seed) for seed in (1, 2)
    )

    def updated(self, folder, dtype, *updates):
        """A run of the first matrix, to which others are added; and what the sum is."""
        ooc.eigh(self.FIRST.astype(dtype), measurements=16, run_dir=folder / "run")
        run, total = ooc.open_run(folder / "run"), self.FIRST
        for matrix, factors_ in updates:
            run = ooc.update(run, matrix.astype(dtype), **factors_)
            total = factors_.get("forget", 1.0) * total + factors_.get("scale", 1.0) * matrix
            if np.abs(total).max() > 0:
                ooc.recover(run)
        return run, total

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(
        "factor", [{"scale": -1.0}, {"scale": 1e-300}, {"forget": 1e-300}, {"scale": 1e30}], ids=str
    )
    def test_that_stay_in_range_are_right(self, factor, dtype, tmp_path, tally):
        with tally.fault("a numerical trap", "factors of an update") as attempt:
            run, total = self.updated(tmp_path, dtype, (self.SECOND, factor))
            found, floor = ooc.recover(run), tolerance(dtype)
            assert ooc.assess(run).relative_error < floor
            u, values, v = factors(found)
            assert norm_of(total - (u * values) @ v.T) <= floor * norm_of(total)
            trace = ooc.estimates(run).trace
            assert trace.value == pytest.approx(np.trace(total), abs=floor * norm_of(total))
            attempt.ended("same")

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(
        "factor",
        [
            {"scale": 1e300}, {"forget": 1e300}, {"scale": 1e-300, "forget": 1e-300},
            {"scale": math.nan}, {"scale": math.inf}, {"scale": 0}, {"forget": 0},
        ],
        ids=str,
    )  # fmt: skip
    def test_that_leave_the_range_are_refused_and_change_nothing(
        self, factor, dtype, tmp_path, tally
    ):
        with tally.fault("a numerical trap", "factors of an update") as attempt:
            with pytest.raises(ooc.UsageError, match=r"out of the range|must be a finite number"):
                self.updated(tmp_path, dtype, (self.SECOND, factor))
            assert ooc.open_run(tmp_path / "run").plan.summands == 1
            attempt.ended("refused")

    def test_by_what_is_not_finite_are_refused_and_change_nothing(self, tmp_path, tally):
        with tally.fault("a numerical trap", "updates that are not finite") as attempt:
            with pytest.raises(ooc.OperatorError, match="NaN or infinity"):
                self.updated(tmp_path, "float64", (self.SECOND * math.nan, {}))
            assert ooc.open_run(tmp_path / "run").plan.summands == 1
            attempt.ended("refused")

    def test_that_cancel_exactly_are_refused_until_more_is_added(self, tmp_path, tally):
        with tally.fault("a numerical trap", "a sum that is zero", 2) as attempt:
            run, total = self.updated(tmp_path, "float32", (self.FIRST, {"scale": -1.0}))
            assert not total.any()
            with pytest.raises(ooc.UsageError, match="there is nothing to decompose"):
                ooc.recover(run)
            run = ooc.update(run, self.SECOND.astype("float32"))
            u, values, v = factors(ooc.recover(run))
            assert norm_of(self.SECOND - (u * values) @ v.T) < 1e-5
            attempt.ended("refused")

    def test_that_overflow_though_no_summand_does_are_refused(self, tmp_path, tally):
        with tally.fault("a numerical trap", "factors of an update") as attempt:
            ooc.eigh(1.2e37 * np.eye(9, dtype="f4"), measurements=8, run_dir=tmp_path / "run")
            run = ooc.open_run(tmp_path / "run")
            with pytest.raises(ooc.UsageError, match="out of the range of float32"):
                ooc.update(run, 1.2e37 * np.eye(9, dtype="f4"))
            attempt.ended("refused")


def test_parts_whose_sum_overflows_are_named(tmp_path, tally):
    """Test vectors are larger than those of the probe."""
    with tally.fault("a numerical trap", "a sum that overflows") as attempt:
        spec = {
            "measurements": 8, "operator": {"parts": 2},
            "sketch": {"noise": "gaussian", "test_measurements": 30},
        }  # fmt: skip
        half = np.zeros((SIZE, SIZE), np.float32)
        half[0, 0] = 0.9e38
        operator = ooc.Sum([half, half])
        run = ooc.plan(spec, tmp_path / "run", operator=operator)
        ooc.measure(run, operator=operator)
        with pytest.raises(ooc.OocError, match="exceeds float32 in rows 0-24 of its sketch"):
            ooc.merge(run)
        attempt.ended("refused")


@pytest.mark.parametrize("scales", [[1.0, -1.0], [1e200, -1e200]], ids=str)
def test_sum_whose_terms_cancel_is_refused(scales, tmp_path, tally):
    with tally.fault("a numerical trap", "a sum that is zero") as attempt:
        a = noise_matrix("eigh", (SIZE, SIZE), "float64")
        found, reason = decomposed(ooc.Sum([a, a], scales), "eigh", tmp_path / "run", 12)
        assert found is None
        assert "there is nothing to decompose" in reason
        attempt.ended("refused")


def test_sum_that_overflows_is_refused(tmp_path, tally):
    with tally.fault("a numerical trap", "a sum that overflows") as attempt:
        a = noise_matrix("eigh", (SIZE, SIZE), "float32").astype(np.float32)
        found, reason = decomposed(ooc.Sum([a, a], [3e38, 3e38]), "eigh", tmp_path / "run", 12)
        assert found is None
        assert "NaN or infinity" in reason
        attempt.ended("refused")


class TurnsZero:
    """What the probe sees of it is no zero, but all that comes later."""

    shape, dtype = (60, 60), "float64"

    def __init__(self):
        self.calls = 0

    def __matmul__(self, x):
        self.calls += 1
        return x if self.calls <= 3 else 0 * x


@pytest.mark.parametrize("operator", [np.zeros((60, 60)), TurnsZero()], ids=["zero", "turns zero"])
@pytest.mark.parametrize("tolerance_", [None, 1e-3])
def test_zero_operator_is_refused_with_and_without_a_tolerance(
    operator, tolerance_, tmp_path, tally
):
    with tally.fault("a numerical trap", "zero") as attempt:
        if isinstance(operator, TurnsZero):
            operator.calls = 0
        found, reason = decomposed(operator, "eigh", tmp_path / "run", 40, tolerance=tolerance_)
        assert found is None
        assert "there is nothing to decompose" in reason
        attempt.ended("refused")


def test_tolerance_that_cannot_be_met_is_refused_with_an_honest_error(tmp_path, tally):
    with tally.fault("a numerical trap", "a tolerance for the identity") as attempt:
        found, reason = decomposed(np.eye(60), "eigh", tmp_path / "run", 40, tolerance=1e-3)
        assert found is None
        assert "is not met with all 40 measurements" in reason
        attempt.ended("refused")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "trap", ["rank 1", "identity", "steep", "signs", "near the smallest float32"]
)
@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_extended_run_of_a_trap_is_right(kind, trap, tmp_path, tally):
    with tally.fault("a numerical trap", "extended runs") as attempt:
        a = TRAPS[trap](kind, (SIZE, SIZE), "float32").astype(np.float32)
        decomposed(a, kind, tmp_path / "run", 8)
        run = ooc.extend(ooc.open_run(tmp_path / "run"), SIZE)
        ooc.measure(run, operator=a)
        require_right(a, kind, ooc.recover(run), ooc.assess(run))
        attempt.ended("same")


@pytest.mark.parametrize("trap", ["rank 1", "minus identity", "signs", "tiny", "one large entry"])
def test_estimates_of_a_trap_are_right(trap, tmp_path, tally):
    with tally.fault("a numerical trap", "estimates") as attempt:
        a = TRAPS[trap]("eigh", (SIZE, SIZE), "float64")
        decomposed(a, "eigh", tmp_path / "run", SIZE, noise="gaussian")
        found = ooc.estimates(ooc.open_run(tmp_path / "run"))
        size = norm_of(a)
        assert found.trace.value == pytest.approx(np.trace(a), abs=1e-9 * size)
        assert found.frobenius_norm.value == pytest.approx(size)
        values, errors = found.diagonal()
        assert np.isfinite(errors.numpy()).all()
        np.testing.assert_allclose(values.numpy(), np.diagonal(a), atol=1e-9 * size)
        attempt.ended("same")


@pytest.mark.parametrize("factory", ["zero", "identity", "tiny"])
def test_command_line_prints_json_or_a_reason(factory, inside, tmp_path, tally):
    with tally.fault("a numerical trap", "the command line") as attempt:
        matrix = TRAPS[factory]("eigh", (SIZE, SIZE), "float64")
        np.save(tmp_path / "a.npy", matrix)
        (tmp_path / "spec.toml").write_text(
            'measurements = 24\ndtype = "float64"\n[operator]\nfactory = "stored"\n'
            '[operator.args]\npath = "a.npy"\n'
        )
        done = inside("run", "spec.toml", "--run", "run", "--json")
        if factory == "zero":
            assert (done.returncode, "nothing to decompose" in done.stderr) == (2, True)
            attempt.ended("refused")
            return
        assert done.returncode == 0, done.stderr
        for verb in ("assess", "estimates", "status"):
            finite_json(inside(verb, "run", "--json").stdout)
        attempt.ended("same")


_EXAMPLES = int(os.environ.get("SKERCH_OOC_TRAP_EXAMPLES", 20))
"""More of them find more."""


@pytest.mark.thorough
@settings(
    max_examples=_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(KINDS),
    method=st.sampled_from(METHODS),
    dtype=st.sampled_from(DTYPES),
    noise=st.sampled_from(["rademacher", "gaussian", "ssrft"]),
    n=st.integers(1, 12),
    measurements=st.integers(1, 12),
    exponents=st.lists(st.integers(-12, 0), min_size=1, max_size=12),
    scale=st.integers(-44, 37),
    seed=st.integers(0, 50),
)
def test_any_spectrum_at_any_scale_is_right_or_refused(
    kind, method, dtype, noise, n, measurements, exponents, scale, seed, tmp_path_factory, tally
):  # fmt: skip
    with tally.fault("a numerical trap", "spectra at random") as attempt:
        shape = {"svd tall": (n + 5, n), "svd wide": (n, n + 5)}.get(kind, (n, n))
        values = 10.0 ** np.array(exponents[:n]) * signs(len(exponents[:n]))
        with np.errstate(all="ignore"):
            a = (spread(values, kind, shape, dtype, seed) * 10.0**scale).astype(dtype)
        how = Case("", kind, method, dtype, noise, "stored", False).settings
        run_dir = tmp_path_factory.mktemp("spectra") / "run"
        found, assessment = decomposed(a, kind, run_dir, min(n, measurements), seed=seed, **how)
        if found is None:
            assert any(reason in assessment for reason in REASONS), assessment
            attempt.ended("refused")
            return
        require_right(a, kind, found, assessment)
        attempt.ended("same")
