"""The Python interface against dense answers.

What each kind, method, type and noise gives is asserted in test_decompositions.py; here it is what
people may hand over, ask for and do again.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from factories import Matrix, dense
from specs import write_spec

import skerch_ooc as ooc

pytestmark = pytest.mark.usefixtures("one_thread")


def approximation(eig: ooc.Eigh) -> torch.Tensor:
    wide = torch.complex128 if eig.eigenvectors.dtype.is_complex else torch.float64
    u = eig.eigenvectors[:].to(wide)
    return (u * eig.eigenvalues.double()) @ u.mH


def relative_error(eig: ooc.Eigh, a: torch.Tensor) -> float:
    wide = a.to(torch.complex128 if a.is_complex() else torch.float64)
    return float(torch.linalg.norm(approximation(eig) - wide) / torch.linalg.norm(wide))


def low_rank(n: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    q = torch.linalg.qr(torch.randn(n, rank, dtype=wide, generator=torch.manual_seed(3)))[0]
    values = torch.tensor([(-1) ** i * 10 ** (-0.05 * i) for i in range(rank)], dtype=wide)
    return ((q * values) @ q.mH).to(dtype)


DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_low_rank_operator_is_recovered_in_every_dtype(tmp_path, dtype, noise):
    a = low_rank(400, 30, dtype)
    eig = ooc.eigh(a, measurements=80, run_dir=tmp_path / "run", noise=noise)
    limit = 1e-6 if dtype in (torch.float32, torch.complex64) else 1e-7
    assert relative_error(eig, a) < limit


def test_leading_eigenvalues_are_those_of_torch(tmp_path):
    a = low_rank(400, 30, torch.float64)
    eig = ooc.eigh(a, measurements=80, run_dir=tmp_path / "run")
    exact = torch.linalg.eigvalsh(a)
    exact = exact[exact.abs().argsort(descending=True)][:20]
    torch.testing.assert_close(eig.eigenvalues[:20], exact, rtol=1e-7, atol=0)


def test_eigenvalues_come_in_descending_magnitude(tmp_path):
    eig = ooc.eigh(dense(300, "poly"), measurements=60, run_dir=tmp_path / "run")
    assert (eig.eigenvalues.abs().diff() <= 0).all()


def test_eigenvectors_are_orthonormal(tmp_path):
    eig = ooc.eigh(low_rank(400, 30, torch.float32), measurements=80, run_dir=tmp_path / "run")
    u = eig.eigenvectors[:].double()
    assert torch.linalg.matrix_norm(u.T @ u - torch.eye(eig.rank), 2) < 1e-6


def test_estimated_error_is_near_the_true_one(tmp_path):
    a = dense(500, "poly", "float32")
    eig = ooc.eigh(a, measurements=100, run_dir=tmp_path / "run", test_measurements=300)
    err = ooc.assess(ooc.open_run(tmp_path / "run"))
    assert err.relative_error == pytest.approx(relative_error(eig, a), rel=0.1)


def test_estimated_norm_is_near_the_true_one(tmp_path):
    a = dense(500, "flat", "float32")
    ooc.eigh(a, measurements=50, run_dir=tmp_path / "run", test_measurements=300)
    err = ooc.assess(ooc.open_run(tmp_path / "run"))
    assert err.norm == pytest.approx(float(torch.linalg.norm(a)), rel=0.05)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("spectrum", ["poly", "decay", "flat"])
def test_leave_one_out_agrees_with_the_true_error(tmp_path, spectrum):
    a = dense(500, spectrum, "float64")
    eig = ooc.eigh(a, measurements=100, run_dir=tmp_path / "run")
    err = ooc.assess(ooc.open_run(tmp_path / "run"))
    true = float(torch.linalg.norm(approximation(eig) - a))
    assert err.leave_one_out == pytest.approx(true, rel=0.3)


def test_as_many_measurements_as_rows_are_exact(tmp_path):
    a = dense(64, "poly", "float64")
    eig = ooc.eigh(a, measurements=64, run_dir=tmp_path / "run")
    assert relative_error(eig, a) < 1e-6


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_operators_are_decomposed(tmp_path, n):
    a = torch.eye(n, dtype=torch.float64) * 2
    eig = ooc.eigh(a, measurements=n, run_dir=tmp_path / "run", noise="gaussian")
    torch.testing.assert_close(approximation(eig), a, rtol=1e-9, atol=1e-9)


def test_zero_operator_is_refused(tmp_path):
    with pytest.raises(ooc.UsageError, match="nothing to decompose"):
        ooc.eigh(torch.zeros(50, 50), measurements=10, run_dir=tmp_path / "run")


def test_more_measurements_than_columns_are_refused(tmp_path):
    with pytest.raises(ooc.UsageError, match="only 50 columns"):
        ooc.eigh(torch.eye(50), measurements=51, run_dir=tmp_path / "run")


def test_rows_beyond_one_tile_are_decomposed(tmp_path):
    from skerch_ooc.operators.synthetic import decaying

    a = decaying(9000, 20)
    eig = ooc.eigh(a, measurements=40, run_dir=tmp_path / "run")
    expected = a.eigenvalues[a.eigenvalues.abs().argsort(descending=True)][:20]
    torch.testing.assert_close(eig.eigenvalues[:20], expected, rtol=1e-5, atol=1e-6)


OPERATORS = {
    "torch tensor": lambda a: a,
    "numpy array": lambda a: a.numpy(),
    "scipy sparse": lambda a: scipy.sparse.csr_array(a.numpy()),
    "scipy LinearOperator": lambda a: scipy.sparse.linalg.aslinearoperator(a.numpy()),
    "plain class": Matrix,
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_anything_with_shape_and_matmul_will_do(tmp_path, kind):
    a = low_rank(300, 20, torch.float64)
    eig = ooc.eigh(OPERATORS[kind](a), measurements=50, run_dir=tmp_path / "run", dtype="float64")
    assert relative_error(eig, a) < 1e-7


def test_same_call_goes_on_with_one_product_that_compares_the_operators(tmp_path):
    a = Matrix(dense(200, dtype="float32"))
    first = ooc.eigh(a, measurements=40, run_dir=tmp_path / "run")
    calls = a.calls
    second = ooc.eigh(a, measurements=40, run_dir=tmp_path / "run")
    assert a.calls == calls + 1
    assert torch.equal(first.eigenvectors[:], second.eigenvectors[:])


def test_another_operator_is_never_given_the_old_answer(tmp_path):
    a = dense(200, dtype="float32")
    ooc.eigh(a, measurements=40, run_dir=tmp_path / "run")
    with pytest.raises(ooc.DriftError, match="not the one that the run started with"):
        ooc.eigh(1.001 * a, measurements=40, run_dir=tmp_path / "run")


@pytest.mark.parametrize("scale", [1e200, 1e-200], ids=str)
def test_operator_out_of_range_is_refused_with_the_remedy(tmp_path, scale):
    with pytest.raises(ooc.OperatorError, match="scale the operator"):
        ooc.eigh(scale * dense(50), measurements=20, run_dir=tmp_path / "run")


def test_core_beyond_the_measurements_is_refused(tmp_path):
    with pytest.raises(ooc.UsageError, match="only 20 measurements"):
        ooc.eigh(dense(50), measurements=20, run_dir=tmp_path / "run", core=21)


def test_other_arguments_are_refused_with_the_difference(tmp_path):
    a = dense(200, dtype="float32")
    ooc.eigh(a, measurements=40, run_dir=tmp_path / "run")
    with pytest.raises(ooc.UsageError, match="measurements: 40 in the run, 41 now"):
        ooc.eigh(a, measurements=41, run_dir=tmp_path / "run")


def test_other_core_is_another_result_at_no_product(tmp_path):
    a = Matrix(dense(200, dtype="float32"))
    ooc.eigh(a, measurements=40, run_dir=tmp_path / "run")
    calls = a.calls
    eig = ooc.recover(ooc.open_run(tmp_path / "run"), core=15)
    assert (eig.rank, eig.path.parent.name, a.calls) == (15, "nystrom-core-15-rank-all", calls)


def test_rank_cuts_values_and_vectors(tmp_path):
    eig = ooc.eigh(dense(200), measurements=40, run_dir=tmp_path / "run", rank=7)
    assert (tuple(eig.eigenvectors.shape), len(eig.eigenvalues)) == ((200, 7), 7)


def test_vectors_are_read_where_they_are_indexed(tmp_path):
    eig = ooc.eigh(dense(300, "poly"), measurements=90, run_dir=tmp_path / "run")
    whole = eig.eigenvectors[:]
    assert torch.equal(eig.eigenvectors[5:40, 3], whole[5:40, 3])
    assert torch.equal(eig.eigenvectors[-1], whole[-1])
    assert torch.equal(eig.eigenvectors[::7, 60:80:3], whole[::7, 60:80:3])


def test_index_out_of_range_is_an_index_error(tmp_path):
    eig = ooc.eigh(dense(100), measurements=20, run_dir=tmp_path / "run")
    with pytest.raises(IndexError, match="out of range"):
        eig.eigenvectors[100]


def test_assessment_file_holds_what_the_contract_names(tmp_path):
    ooc.eigh(dense(200), measurements=40, run_dir=tmp_path / "run")
    ooc.assess(ooc.open_run(tmp_path / "run"))
    stored = json.loads((tmp_path / "run/results/default/assessment.json").read_text())
    contract = {
        "relative_error", "error", "norm", "test_measurements", "bounds", "leave_one_out",
        "scree", "orthogonality", "products",
    }  # fmt: skip
    assert contract <= stored.keys()
    assert stored["products"].keys() == {"planned", "done", "probe"}


def test_without_test_columns_there_is_no_error_estimate(tmp_path):
    ooc.eigh(dense(200), measurements=40, run_dir=tmp_path / "run", test_measurements=0)
    err = ooc.assess(ooc.open_run(tmp_path / "run"))
    assert (err.relative_error, err.test_measurements, err.bounds(2.0)) == (None, 0, 0.0)


def test_numpy_operators_get_numpy(tmp_path):
    class Spy(np.ndarray):
        def __matmul__(self, x):
            assert type(x) is np.ndarray
            return np.asarray(self) @ x

    a = dense(100, dtype="float32").numpy().view(Spy)
    eig = ooc.eigh(a, measurements=30, run_dir=tmp_path / "run")
    assert eig.rank > 0


RUNS = {
    "nystrom": {},
    "hmt": {"recovery": {"method": "hmt", "power_iterations": 1}},
    "tolerance": {"tolerance": 0.3},
    "svd": {"kind": "svd"},
}


class TestRun:
    @pytest.mark.parametrize("case", RUNS)
    def test_does_all_stages_and_is_resumed_at_no_product(self, tmp_path, call_log, case):
        spec = write_spec(tmp_path, "matrix", 60, **RUNS[case])
        first = ooc.run(spec, tmp_path / "run", threads=1)
        products = len(call_log())
        again = ooc.run(spec, tmp_path / "run", threads=1)
        assert len(call_log()) == products
        name = "S" if case == "svd" else "eigenvalues"
        assert torch.equal(getattr(again, name), getattr(first, name))
        assert ooc.assess(tmp_path / "run").relative_error < 0.3

    def test_is_that_of_the_stages_one_by_one(self, tmp_path):
        spec = write_spec(tmp_path, "matrix", 60, recovery={"method": "hmt"})
        at_once = ooc.run(spec, tmp_path / "a", threads=1)
        run = ooc.plan(spec, tmp_path / "b", threads=1)
        for _ in range(2):
            ooc.measure(run, threads=1)
            ooc.merge(run, threads=1)
        assert torch.equal(at_once.eigenvectors[:], ooc.recover(run, threads=1).eigenvectors[:])

    def test_tolerance_that_is_not_reached_is_an_error_and_the_result_is_there(self, tmp_path):
        spec = write_spec(tmp_path, "matrix", 40, tolerance=1e-9)
        with pytest.raises(ooc.QualityError, match="tolerance"):
            ooc.run(spec, tmp_path / "run", threads=1)
        assert ooc.assess(tmp_path / "run").relative_error > 1e-9

    def test_another_object_under_the_name_of_a_run_is_refused(self, tmp_path):
        a = dense(60, "poly")
        wanted = {"measurements": 30, "dtype": "float64"}
        ooc.run(wanted, tmp_path / "run", operator=a)
        with pytest.raises(ooc.DriftError, match="not the one that the run started with"):
            ooc.run(wanted, tmp_path / "run", operator=2 * a)


def test_object_in_the_place_of_a_factory_is_not_called_a_changed_factory(tmp_path, caplog):
    (tmp_path / "mine.py").write_text("import torch\n\ndef make():\n    return torch.eye(64)\n")
    spec = write_spec(tmp_path, "", 20, operator={"factory": "mine.py:make"})
    ooc.plan(spec, tmp_path / "run")
    with pytest.raises(ooc.UsageError, match="was planned with another spec"):
        ooc.eigh(torch.eye(64), measurements=20, run_dir=tmp_path / "run")
    assert "has changed" not in caplog.text


class TestPartsThatAreAskedFor:
    IGNORED = "operator.parts = 3 changes nothing, as the operator has no terms to be cut by"

    @pytest.mark.parametrize("verb", [("plan", "--run", "run"), ("probe",)])
    def test_of_an_operator_without_terms_are_said_to_change_nothing(self, tmp_path, inside, verb):
        name, *more = verb
        spec = write_spec(tmp_path, "matrix", 40, operator={"parts": 3})
        done = inside(name, spec, *more)
        assert (done.returncode, done.stderr.count(self.IGNORED)) == (0, 1)
        assert "or leave operator.parts out" in done.stderr

    def test_of_a_small_matrix_on_disk_are_said_to_change_nothing(self, tmp_path, caplog):
        np.save(tmp_path / "a.npy", np.eye(30))
        operator = {"factory": "stored", "args": {"path": "a.npy"}, "parts": 3}
        ooc.plan(write_spec(tmp_path, "", 9, kind="svd", operator=operator), tmp_path / "run")
        assert "as the matrix is so small" in caplog.text

    def test_of_an_operator_with_terms_are_made(self, tmp_path, caplog):
        a = dense(60, dtype="float32")
        whole = ooc.Sum([a, a, a, a])
        run = ooc.plan({"measurements": 20, "operator": {"parts": 2}}, tmp_path / "run",
                       operator=whole)  # fmt: skip
        assert (len(run.plan.parts), caplog.text) == (2, "")

    def test_of_one_are_silent(self, tmp_path, caplog):
        ooc.plan(write_spec(tmp_path, "matrix", 40, operator={"parts": 1}), tmp_path / "run")
        assert caplog.text == ""
