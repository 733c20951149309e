"""The norm, and how far each eigenvalue is off: estimated from the test sketch, at no product."""

from __future__ import annotations

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from reports import parsed

import skerch_ooc as ooc
from skerch_ooc.cli.tables import result_table
from skerch_ooc.planning.tasks import measure_tasks
from skerch_ooc.results.advice import Found, advise
from skerch_ooc.results.assess import norm_of
from skerch_ooc.results.report.facts import gather
from skerch_ooc.results.report.spectrum import linear_spectrum
from skerch_ooc.stages.recover.vectors import TileFigures

pytestmark = pytest.mark.usefixtures("one_thread")

N, SPIKES = 300, (14.0, 9.0, -6.0, 4.0)
METHODS = ("nystrom", "singlepass", "oversampled", "hmt")


def spiked(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A few large eigenvalues of both signs, and a bulk that falls slowly."""
    generator = torch.Generator().manual_seed(7)
    bulk = 0.3 * torch.exp(-torch.arange(N - len(SPIKES), dtype=torch.float64) / 80)
    values = torch.cat([torch.tensor(SPIKES, dtype=torch.float64), bulk])
    basis = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=dtype))[0]
    return (basis * values) @ basis.mH


class Diagonal:
    """One eigenvalue above a bulk of small ones, which make up a tenth of the norm."""

    shape, dtype = (20_000, 20_000), torch.float64

    def __init__(self):
        self.values = 0.0014 * torch.linspace(1, -1, self.shape[0], dtype=self.dtype)
        self.values[0] = 1.0

    def __matmul__(self, x):
        return self.values[:, None] * x


def decomposed(folder, operator=None, *, kind=ooc.eigh, **options):
    chosen = {"measurements": 60, "test_measurements": 20} | options
    return kind(spiked() if operator is None else operator, run_dir=folder / "run", **chosen)


@pytest.fixture(scope="module")
def of(tmp_path_factory):
    """The decomposition of the spiked operator by a method, made once; only to be read."""

    @cache
    def made(method="nystrom", vectors="stored"):
        folder = tmp_path_factory.mktemp("of")
        return decomposed(folder, method=method, vectors=vectors)

    return made


def run_of(found):
    return ooc.open_run(found.path.parents[2])


def true_residuals(operator, found):
    vectors, values = found.eigenvectors[:], found.eigenvalues
    return torch.linalg.norm(operator @ vectors - vectors * values, dim=0)


SVD_METHODS = ("nystrom", "singlepass", "auto", "oversampled")


def tall(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A general matrix of the same values, with more rows than columns."""
    generator = torch.Generator().manual_seed(8)
    wide = torch.promote_types(dtype, torch.float64)
    left = torch.linalg.qr(torch.randn(2 * N, N, generator=generator, dtype=wide))[0]
    return (left @ spiked(wide)).to(dtype)


def residuals_of_both_sides(operator, found):
    u, v, values = found.U[:], found.V[:], found.S
    forward = torch.linalg.norm(operator @ v - u * values, dim=0)
    back = torch.linalg.norm(operator.mH @ u - v * values, dim=0)
    return forward, back


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    """The singular value decomposition of a tall matrix, made once; only to be read."""

    @cache
    def made(method="nystrom", vectors="stored", dtype=torch.float64, tests=20):
        folder = tmp_path_factory.mktemp("triplets")
        options = {"method": method, "vectors": vectors, "left_test_measurements": tests}
        return decomposed(folder, tall(dtype), kind=ooc.svd, **options)

    return made


class TestResidualsOfSingularValues:
    @pytest.mark.covered(1)
    @pytest.mark.parametrize("vectors", ["stored", "implicit"])
    @pytest.mark.parametrize("method", SVD_METHODS)
    def test_are_those_of_the_dense_operator(self, triplets, method, vectors):
        found = triplets(method, vectors)
        forward, back = residuals_of_both_sides(tall(), found)
        ratio = found.residuals / ((forward**2 + back**2) / 2).sqrt()
        assert float(ratio.log().abs().max()) < math.log(3)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_are_unbiased_on_each_side(self, triplets, side):
        found = triplets()
        forward, back = residuals_of_both_sides(tall(), found)
        true = back if side == "left" else forward
        ratio = (torch.from_numpy(found._file.arrays[f"{side}_residuals"]) / true) ** 2
        assert float(ratio.mean()) == pytest.approx(1, abs=0.2)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
    def test_of_other_dtypes_too(self, triplets, dtype):
        found = triplets(dtype=dtype)
        forward, back = residuals_of_both_sides(tall(dtype), found)
        ratio = found.residuals / ((forward**2 + back**2) / 2).sqrt()
        assert float(ratio.log().abs().max()) < math.log(3)

    def test_bound_how_far_each_value_is_off(self, triplets):
        found = triplets()
        run = run_of(found)
        bounds = ooc.assess(run).bounds_of(found._file.arrays["residuals"])
        there = torch.linalg.svdvals(tall())
        off = (found.S[:, None] - there[None]).abs().min(dim=1).values.numpy()
        assert (off <= bounds).all()

    def test_have_bounds_by_the_fewer_test_vectors(self, triplets):
        few, many = (triplets(tests=count) for count in (10, 20))
        residuals = np.ones(few.rank)
        (less, *_), (more, *_) = (
            ooc.assess(run_of(found)).bounds_of(residuals) for found in (few, many)
        )
        assert less > more

    def test_are_shown_with_the_result(self, triplets):
        found = triplets()
        text = result_table(found.path, ooc.assess(run_of(found)))
        assert re.search(
            rf"each value +at least \d+ of {found.rank} within 1 % of a singular value", text
        )

    def test_go_on_as_the_run_grows(self, tmp_path):
        found = decomposed(tmp_path, tall(), kind=ooc.svd, left_test_measurements=20,
                           measurements=30)  # fmt: skip
        run = run_of(found)
        ooc.measure(ooc.extend(run, measurements=60), operator=tall())
        grown = ooc.recover(ooc.open_run(run.directory))
        forward, back = residuals_of_both_sides(tall(), grown)
        ratio = grown.residuals / ((forward**2 + back**2) / 2).sqrt()
        assert (grown._file.arrays["left_tests"], float(ratio.log().abs().max()) < math.log(3)) == (
            20,
            True,
        )

    def test_of_a_matrix_on_disk_are_taken_in_the_reading_of_the_sketches(self, tmp_path):
        np.save(tmp_path / "matrix.npy", tall().numpy())
        table = {
            "kind": "svd",
            "measurements": 60,
            "operator": {"factory": "stored", "args": {"path": str(tmp_path / "matrix.npy")}},
        }
        found = ooc.run(table, tmp_path / "run")
        forward, back = residuals_of_both_sides(tall(), found)
        ratio = found.residuals / ((forward**2 + back**2) / 2).sqrt()
        assert float(ratio.log().abs().max()) < math.log(4)
        assert measure_tasks(ooc.open_run(tmp_path / "run").plan) == 1


class TestResiduals:
    @pytest.mark.covered(1)
    @pytest.mark.parametrize("vectors", ["stored", "implicit"])
    @pytest.mark.parametrize("method", METHODS)
    def test_they_are_those_of_the_dense_operator(self, of, method, vectors):
        operator, found = spiked(), of(method, vectors)
        # Each from at least 13 columns: within a factor of 3 but for one in 10^5.
        ratio = found.residuals / true_residuals(operator, found)
        assert float(ratio.log().abs().max()) < math.log(3)

    @pytest.mark.parametrize("method", METHODS)
    def test_together_they_are_unbiased(self, of, method):
        operator, found = spiked(), of(method)
        ratio = (found.residuals / true_residuals(operator, found)) ** 2
        assert float(ratio.mean()) == pytest.approx(1, abs=0.2)

    def test_those_of_complex_operators_too(self, tmp_path):
        operator = spiked(torch.complex128)
        found = decomposed(tmp_path, operator)
        ratio = found.residuals / true_residuals(operator, found)
        assert float(ratio.log().abs().max()) < math.log(3)

    def test_there_is_an_eigenvalue_within_twice_the_residual(self, of):
        operator, found = spiked(), of()
        there = torch.linalg.eigvalsh(operator)
        distance = (found.eigenvalues[:, None] - there[None]).abs().min(dim=1).values
        assert bool((distance <= 2 * found.residuals).all())

    def test_columns_that_chose_the_core_have_no_part_in_them(self, of):
        found = of("oversampled")
        squares = found._file.arrays["residual_squares"][found._file.identity["choosing"] :]
        # The rows of U^H R are part of R.
        assert float((found.residuals**2).sum()) <= float(squares.mean()) * (1 + 1e-9)

    def test_without_test_vectors_there_are_none(self, tmp_path):
        assert decomposed(tmp_path, test_measurements=0).residuals is None

    def test_singular_values_have_none_without_test_vectors_of_the_adjoint(self, tmp_path):
        found = decomposed(tmp_path, kind=ooc.svd)
        assert "residuals" not in found._file.arrays

    def test_of_pieces_of_two_versions_there_are_none(self):
        def figures(**more):
            arrays = {"probed": np.ones((5, 8)), "residual": np.ones(3), "test": np.ones(3),
                      "test_products": np.zeros((0, 3))}  # fmt: skip
            return TileFigures.from_arrays(arrays | more)

        new = figures(residual_products=np.ones((5, 3)))
        assert new.add(figures()).residual_products.shape == (0, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose error is large, and one of whose values is known."""
    folder = tmp_path_factory.mktemp("diagonal")
    return run_of(decomposed(folder, Diagonal(), method="hmt", power_iterations=1))


class TestSaid:
    """What people are told of it, who look for outliers above a bulk."""

    def test_a_large_error_is_not_held_against_values_that_are_known(self, run):
        assessment = ooc.assess(run)
        verdict = advise(Found.of(run, "default", assessment)).verdict
        assert assessment.relative_error > 0.1
        assert re.search(r"large, but .* 1 of \d+ eigenvalues are known to 1 %", verdict)

    def test_of_values_that_nothing_tells_about_nothing_is_said(self, tmp_path):
        run = run_of(decomposed(tmp_path, torch.diag(torch.ones(400)), kind=ooc.svd, method="hmt"))
        verdict = advise(Found.of(run, "default", ooc.assess(run))).verdict
        assert "how well each single singular value is known, this run does not tell" in verdict

    def test_table_counts_values_by_how_good_they_are(self, run):
        table = result_table(run.results / "default/eigh.h5", ooc.assess(run))
        assert re.search(r"each value +at least 1 of \d+ within 1 % of an eigenvalue", table)

    def test_page_draws_what_each_value_may_be(self, run):
        values = gather(run, "default").values
        assert "what each may be, with 95 % probability" in linear_spectrum(values).html()

    def test_page_counts_values_that_stand_out_of_what_they_may_be_off_by(self, tmp_path):
        run = run_of(decomposed(tmp_path, Diagonal()))
        ooc.assess(run)
        assert "1 of them stands out of what they may be off by" in parsed(ooc.report(run)).text


class TestNorm:
    @pytest.mark.parametrize("method", METHODS)
    def test_few_test_vectors_tell_the_norm_of_a_spiked_operator(self, of, method):
        found = ooc.assess(run_of(of(method)))
        assert found.norm == pytest.approx(float(torch.linalg.norm(spiked())), rel=0.02)

    def test_it_is_that_of_the_estimates(self, of):
        run = run_of(of())
        assert ooc.assess(run).norm == pytest.approx(ooc.estimates(run).frobenius_norm.value)

    def test_results_of_the_first_versions_have_that_of_the_test_columns(self):
        assert norm_of(np.ones(3), np.array([4.0, 5.0]), None) == math.sqrt(4.5)

    def test_it_is_that_of_the_test_columns_where_the_approximation_is_far_too_large(self):
        assert norm_of(np.ones(3), np.array([4.0, 5.0]), np.array([9.0, 9.0])) == math.sqrt(4.5)

    def test_without_test_vectors_it_is_unknown(self):
        assert norm_of(np.ones(3), np.empty(0), None) is None
