"""The density of the whole spectrum, and traces of functions, from rounds of krylov."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

import skerch_ooc as ooc

N, ROUNDS, WIDTH = 400, 10, 8


def values_of(name):
    steps = np.arange(N)
    return {
        "mixed": (-1.0) ** steps / (1 + steps),
        "two ends": np.concatenate([np.linspace(-2, -1, N // 2), np.linspace(3, 4, N // 2)]),
        "positive": 0.1 + np.linspace(0, 1, N) ** 2,
        "with outliers": np.concatenate([[9, 7, -6], np.full(N - 3, 0.5)]),
    }[name]


def matrix_of(values):
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=random)).Q
    return (basis * torch.from_numpy(np.array(values))) @ basis.T


def run_of(values, folder, seed=1, rounds=ROUNDS, width=WIDTH):
    ooc.eigh(matrix_of(values), rank=3, rounds=rounds, round_width=width, seed=seed, run_dir=folder)
    return ooc.open_run(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of ``positive``, which tests only read."""
    return run_of(values_of("positive"), tmp_path_factory.mktemp("density") / "run")


def lanczos(matrix, start, steps):
    """Nodes and weights of one Lanczos run with full orthogonalisation."""
    q, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        y = matrix @ q[-1]
        alphas.append(q[-1] @ y)
        for _ in range(2):
            y -= np.array(q).T @ (np.array(q) @ y)
        betas.append(np.linalg.norm(y))
        q.append(y / betas[-1])
    small = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    nodes, vectors = np.linalg.eigh(small)
    return nodes, vectors[0] ** 2


class TestNodes:
    def test_ascend_and_their_weights_sum_to_one(self, finished):
        found = ooc.density(finished)
        assert (np.diff(found.nodes) >= 0).all()
        assert found.weights.sum() == pytest.approx(1)
        assert (found.weights >= 0).all()

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("name", ["mixed", "two ends", "positive", "with outliers"])
    def test_are_nearer_to_the_spectrum_than_as_many_separate_lanczos_runs(self, tmp_path, name):
        values = values_of(name)
        found = ooc.density(run_of(values, tmp_path / "run"))
        starts = ooc.draw(
            "rademacher", 1, "right", ooc.Range(0, N), ooc.Range(0, WIDTH), np.float64
        )
        matrix = matrix_of(values).numpy()
        apart = [lanczos(matrix, start, ROUNDS) for start in starts.T]
        nodes, weights = (np.concatenate(part) for part in zip(*apart, strict=True))
        ours = wasserstein_distance(found.nodes, values, found.weights)
        theirs = wasserstein_distance(nodes, values, weights)
        # Where both are exact, rounding decides.
        assert ours <= theirs + 1e-12


class TestCurves:
    def test_smoothed_density_integrates_to_one(self, finished):
        found = ooc.density(finished)
        x = np.linspace(-1, 2, 4001)
        assert np.trapezoid(found.pdf(x), x) == pytest.approx(1, abs=1e-6)

    def test_cumulative_spectrum_goes_from_zero_to_one(self, finished):
        found = ooc.density(finished)
        at = found.cdf([found.nodes[0] - 1, found.nodes[-1]])
        assert at == pytest.approx([0, 1])

    def test_cumulative_spectrum_is_that_of_the_values(self, finished):
        x = np.linspace(0.1, 1.1, 50)
        true = np.searchsorted(np.sort(values_of("positive")), x, side="right") / N
        assert np.abs(ooc.density(finished).cdf(x) - true).max() < 0.06

    def test_even_spectrum_has_no_gaps_between_its_nodes(self, tmp_path):
        run = run_of(torch.linspace(1, 2, N).double().numpy(), tmp_path / "run")
        inside = ooc.density(run).pdf(np.linspace(1.2, 1.8, 50))
        assert np.abs(inside - 1).max() < 0.3

    def test_width_must_be_positive(self, finished):
        with pytest.raises(ooc.UsageError, match=r"width = 0: must be positive"):
            ooc.density(finished).pdf(0.0, 0)


class TestKnownPairs:
    """Eigenvalues that are known, and confirmed, are counted; only the others are estimated."""

    VALUES = np.concatenate([[9.0, 7.0, 7.0, -6.0], np.linspace(-0.5, 0.5, N - 4)])

    @pytest.fixture(scope="class")
    @classmethod
    def known(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("known") / "run"
        ooc.eigh(matrix_of(cls.VALUES), rank=4, pairs_tolerance=1e-4, round_width=WIDTH,
                 run_dir=folder)  # fmt: skip
        return ooc.density(folder)

    def test_are_whole_numbers(self, known):
        found = known.count(2, 10)
        assert (found.value, found.standard_error) == (3, 0)

    def test_and_others_are_all(self, known):
        assert known.count(-10, 10).value == pytest.approx(N)

    def test_leave_the_trace_an_error_of_the_others(self, known):
        found = known.trace(lambda x: x)
        assert found.standard_error < 3 * np.linspace(-0.5, 0.5, N - 4).std() * math.sqrt(N / WIDTH)
        assert found.value == pytest.approx(self.VALUES.sum(), abs=6 * found.standard_error)


class TestCounts:
    def test_of_separate_values_are_exact(self, tmp_path):
        found = ooc.density(run_of(values_of("with outliers"), tmp_path / "run"))
        # Outliers are found one by one; each random column sees them with a weight of its own.
        inside = found.count(-7, -5)
        assert abs(inside.value - 1) <= 4 * inside.standard_error + 1e-9

    def test_by_sign_are_within_their_errors(self, tmp_path):
        counts = ooc.density(run_of(values_of("two ends"), tmp_path / "run")).counts()
        negative = counts["negative"]
        assert abs(negative.value - N / 2) <= 3 * negative.standard_error + negative.bias
        assert counts["near zero"].value == 0

    @pytest.mark.parametrize("rounds", [1, 3])
    def test_within_a_bulk_are_within_their_errors(self, tmp_path, rounds):
        # What the last round changes is less than the error here: the rounds come from one side.
        values = np.concatenate([[10.0, 6, 3], np.linspace(0, 0.3, N - 43) ** 2, -np.ones(40) / 9])
        found = ooc.density(run_of(values, tmp_path / "run", rounds=rounds))
        for end in (0.0, -0.01, 0.02, 1.0):
            below = found.count(-math.inf, end)
            off = abs(below.value - (values <= end).sum())
            assert off <= 3 * math.hypot(below.standard_error, below.bias) + 1e-6

    def test_of_one_round_are_called_a_guess(self, tmp_path, finished):
        run = run_of(values_of("positive"), tmp_path / "run", rounds=1)
        assert ooc.density(run).is_guessed
        assert not ooc.density(finished).is_guessed

    def test_ends_must_ascend(self, finished):
        with pytest.raises(ooc.UsageError, match=r"low = 2 is above high = 1"):
            ooc.density(finished).count(2, 1)


FUNCTIONS = {
    "logarithm": lambda x: np.log(x + 1),
    "exponential": np.exp,
    "square": lambda x: x**2,
    "identity": lambda x: x,
}


class TestTraces:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_are_within_their_errors(self, finished, name):
        function = FUNCTIONS[name]
        found, true = ooc.trace(finished, function), function(values_of("positive")).sum()
        assert abs(found.value - true) <= 3 * (found.standard_error + found.bias)

    def test_of_one_is_the_number_of_values_exactly(self, finished):
        # Columns of signs all have the norm sqrt(n).
        found = ooc.trace(finished, np.ones_like)
        assert found.value == pytest.approx(N, rel=1e-12)

    @pytest.mark.thorough
    def test_of_logarithms_are_within_three_errors_in_most_seeds(self, tmp_path):
        within = 0
        true = np.log(values_of("positive") + 0.1).sum()
        for seed in range(60):
            run = run_of(values_of("positive"), tmp_path / str(seed), seed=seed)
            found = ooc.trace(run, lambda x: np.log(x + 0.1))
            within += abs(found.value - true) <= 3 * (found.standard_error + found.bias)
        assert within >= 57

    def test_of_a_single_round_have_no_bias_to_show(self, tmp_path):
        run = run_of(values_of("positive"), tmp_path / "run", rounds=1)
        assert ooc.trace(run, np.exp).bias is None

    def test_of_a_single_column_have_no_error_to_show(self, tmp_path):
        run = run_of(values_of("positive"), tmp_path / "run", rounds=3, width=1)
        assert ooc.trace(run, np.exp).standard_error is None

    def test_of_functions_that_are_not_finite_name_the_node(self, tmp_path):
        run = run_of(values_of("mixed"), tmp_path / "run", rounds=2)
        with pytest.raises(ooc.UsageError, match=r"the function is nan at the node -0\."):
            ooc.trace(run, np.log)

    @pytest.mark.parametrize("function", [np.sum, lambda x: x * 1j, lambda x: "text"])
    def test_of_what_is_no_function_of_numbers_are_refused(self, finished, function):
        with pytest.raises(ooc.UsageError, match="it must return a real number for each"):
            ooc.trace(finished, function)


class TestRuns:
    def test_of_another_method_are_refused_with_what_adds_rounds(self, tmp_path):
        ooc.eigh(torch.eye(50), measurements=5, run_dir=tmp_path / "run")
        with pytest.raises(ooc.UsageError, match=r"skerch-ooc extend .* --rounds 8"):
            ooc.density(tmp_path / "run")

    def test_that_followed_a_sketch_of_one_pass_have_a_density(self, tmp_path):
        values = torch.linspace(1, 2, 300, dtype=torch.float64)
        ooc.eigh(torch.diag(values), measurements=40, run_dir=tmp_path / "run")
        run = ooc.extend(ooc.open_run(tmp_path / "run"), rounds=6)
        ooc.eigh(torch.diag(values), rank=20, rounds=6, run_dir=run.directory)
        found = ooc.density(run.directory)
        assert wasserstein_distance(found.nodes, values.numpy(), found.weights) < 0.04

    def test_figures_are_plain_json(self, finished):
        figures = json.loads(json.dumps(ooc.density(finished).as_json()))
        assert figures["n"] == N
        assert all(map(math.isfinite, figures["pdf"]))
