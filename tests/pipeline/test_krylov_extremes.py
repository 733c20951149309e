"""Krylov rounds of operators far from tame: shifted, with outliers; without test columns; refused.

Dense decompositions in double precision are the truth.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from operators import Operator

import skerch_ooc as ooc
from skerch_ooc.base.errors import UsageError
from skerch_ooc.planning.spec import KINDS

pytestmark = pytest.mark.usefixtures("no_late_files", "one_thread")

N = 200


def with_values(values, dtype=torch.float64):
    q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    a = (q * values) @ q.mH
    return ((a + a.mH) / 2).to(dtype)


def decaying():
    return (-1.0) ** torch.arange(N) / (1 + torch.arange(N, dtype=torch.float64))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_error_of_an_operator_near_a_multiple_of_the_identity_is_about_the_true_one(tmp_path, kind):
    a = with_values(decaying()) + 100 * torch.eye(N, dtype=torch.float64)
    # Further test columns show ever more of values that are nearly equal: that is no matter here.
    with contextlib.suppress(ooc.QualityError):
        getattr(ooc, kind)(Operator(a), run_dir=tmp_path / "run", rank=3, pairs_tolerance=1e-4)
    # Of 200 values that are all about 100, all but three are left out.
    assert ooc.assess(tmp_path / "run").relative_error == pytest.approx((197 / 200) ** 0.5, rel=0.1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("outlier", [3e3, 1e4, 1e5])
def test_bulk_far_below_an_outlier_is_no_drift(tmp_path, outlier):
    values = decaying()
    values[0] = outlier
    eig = ooc.eigh(
        Operator(with_values(values, torch.float32)),
        run_dir=tmp_path / "run", rank=3, rounds=5, round_width=8,
    )  # fmt: skip
    off = (eig.eigenvalues.double() - values[:3]).abs()
    assert (off <= torch.as_tensor(eig.bounds)).all()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_need_no_test_columns(tmp_path, kind):
    values = decaying()
    result = getattr(ooc, kind)(
        Operator(with_values(values)),
        run_dir=tmp_path / "run", rank=3, pairs_tolerance=1e-6, test_measurements=0,
    )  # fmt: skip
    found = result.eigenvalues if kind == "eigh" else result.S
    torch.testing.assert_close(found.abs(), values[:3].abs(), rtol=1e-6, atol=0)


def test_half_a_step_of_svd_has_no_triplets_and_is_refused(tmp_path):
    with pytest.raises(UsageError, match="give at most 0 pairs"):
        ooc.svd(Operator(with_values(decaying())), run_dir=tmp_path / "run", rank=3, rounds=1)


def test_implicit_vectors_of_rounds_are_refused_at_recovery(tmp_path):
    ooc.eigh(Operator(with_values(decaying())), run_dir=tmp_path / "run", rank=3, rounds=2)
    with pytest.raises(UsageError, match=r"^recovery.vectors = 'implicit': .* always stored"):
        ooc.recover(ooc.open_run(tmp_path / "run"), vectors="implicit", name="other")


def test_extension_to_no_rounds_is_refused(tmp_path):
    ooc.eigh(Operator(with_values(decaying())), run_dir=tmp_path / "run", rank=3, rounds=2)
    with pytest.raises(UsageError, match="rounds = 0"):
        ooc.extend(ooc.open_run(tmp_path / "run"), rounds=0)
