"""Overlap of leading vectors with those of another result, and with coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import skerch_ooc as ooc

N, K = 300, 4


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two results with different leading vectors, which are read into memory as well."""
    folder = tmp_path_factory.mktemp("overlap")
    found = []
    for seed in range(2):
        basis = torch.linalg.qr(
            torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ).Q
        values = torch.cat([torch.arange(K, 0, -1.0), torch.full((N - K,), 1e-3)])
        matrix = (basis * values) @ basis.T
        found.append(ooc.eigh(matrix, rank=K, pairs_tolerance=1e-8, run_dir=folder / str(seed)))
    return found


def cosines(a, b):
    return np.linalg.svd(a.T @ b, compute_uv=False)


def test_of_two_results_is_that_of_their_vectors(results):
    a, b = (result.eigenvectors[:].numpy() for result in results)
    found = ooc.overlap(*results)
    assert found.cosines == pytest.approx(cosines(a, b), abs=1e-12)
    assert found.value == pytest.approx(np.mean(cosines(a, b) ** 2))


def test_of_a_result_with_itself_is_one(results):
    assert ooc.overlap(results[0], results[0]).value == pytest.approx(1)


def test_of_fewer_vectors_takes_the_leading_ones(results):
    a, b = (result.eigenvectors[:, :2].numpy() for result in results)
    assert ooc.overlap(*results, rank=2).cosines == pytest.approx(cosines(a, b), abs=1e-12)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_with_coordinates_is_that_with_their_unit_vectors(results, kind):
    rows = [3, 280, 17, 5, 120]
    a = results[0].eigenvectors[:].numpy()
    found = ooc.overlap(results[0], kind(rows))
    assert found.cosines == pytest.approx(cosines(a, np.eye(N)[:, rows]), abs=1e-7)
    assert found.dimensions == (K, 5)


def test_with_a_mask_is_that_with_its_coordinates(results):
    mask = torch.zeros(N, dtype=torch.bool)
    mask[[3, 5, 17]] = True
    masked, listed = ooc.overlap(results[0], mask), ooc.overlap(results[0], [17, 3, 5])
    assert masked.value == listed.value


def test_with_all_coordinates_is_one(results):
    assert ooc.overlap(results[0], list(range(N))).value == pytest.approx(1)


def test_of_random_subspaces_is_what_is_said(results):
    random = np.random.default_rng(0)
    values = [ooc.overlap(results[0], random.permutation(N)[:30]).value for _ in range(40)]
    assert np.mean(values) == pytest.approx(
        ooc.overlap(results[0], range(30)[:]).at_random, rel=0.3
    )


def test_of_results_of_other_heights_is_refused(results, tmp_path):
    other = ooc.eigh(torch.eye(20), rank=2, rounds=2, run_dir=tmp_path / "run")
    with pytest.raises(ooc.UsageError, match="have 300 rows, those of b 20"):
        ooc.overlap(results[0], other)


def test_with_no_coordinates_is_refused(results):
    with pytest.raises(ooc.UsageError, match="names no coordinates"):
        ooc.overlap(results[0], torch.zeros(N, dtype=torch.bool))


def test_of_no_vectors_is_refused(results):
    with pytest.raises(ooc.UsageError, match=r"rank = 0: .* has 4 vectors"):
        ooc.overlap(*results, rank=0)
