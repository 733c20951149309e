"""Two results side by side: values, spaces, errors and costs, whatever they were made by."""

from __future__ import annotations

import json

import numpy as np
import pytest

import skerch_ooc as ooc

N = 60


def operator(dtype="float64"):
    """A Hermitian matrix whose leading values decay, with signs."""
    rng = np.random.default_rng(0)
    entries = rng.standard_normal((N, N)) + 1j * rng.standard_normal((N, N))
    basis = np.linalg.qr(entries if np.dtype(dtype).kind == "c" else entries.real)[0]
    values = 0.6 ** np.arange(N) * (-1) ** np.arange(N)
    return ((basis * values) @ basis.conj().T).astype(dtype)


MADE = {
    "nystrom": lambda folder: ooc.eigh(operator(), measurements=30, run_dir=folder),
    "krylov": lambda folder: ooc.eigh(
        operator(), rank=5, pairs_tolerance=1e-8, run_dir=folder, round_width=4
    ),
    "svd": lambda folder: ooc.svd(
        operator(), measurements=30, run_dir=folder, vectors="implicit", left_test_measurements=10
    ),
    "complex": lambda folder: ooc.eigh(operator("complex128"), measurements=30, run_dir=folder),
    "small": lambda folder: ooc.eigh(np.eye(8), measurements=8, run_dir=folder),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of finished runs, made when they are asked for."""
    folder, results = tmp_path_factory.mktemp("compare"), {}

    def made(name):
        if name not in results:
            results[name] = MADE[name](folder / name)
        return folder / name

    made.results = results
    return made


def leading(result, count):
    """Values by magnitude and left vectors of a result, in memory."""
    values = (result.eigenvalues if isinstance(result, ooc.Eigh) else result.S).numpy()
    vectors = (result.eigenvectors if isinstance(result, ooc.Eigh) else result.U)[:].numpy()
    order = np.argsort(-np.abs(values))[:count]
    return values[order], vectors[:, order]


@pytest.mark.parametrize("one", ["nystrom", "krylov", "svd", "complex"])
@pytest.mark.parametrize("other", ["nystrom", "krylov", "svd", "complex"])
def test_figures_are_those_of_the_results_in_memory(runs, one, other):
    found = ooc.compare(runs(one), runs(other))
    a, b = runs.results[one], runs.results[other]
    size = min(a.rank, b.rank)
    (first, u), (second, v) = leading(a, size), leading(b, size)
    if "svd" in (one, other) and one != other:
        first, second = np.abs(first), np.abs(second)
    assert np.array_equal(found.values, [first, second])
    assert found.left_overlaps[-1].cosines == pytest.approx(
        np.linalg.svd(u.conj().T @ v, compute_uv=False).clip(max=1), abs=1e-9
    )
    assert [one.dimensions[0] for one in found.left_overlaps][:3] == [1, 2, 5]


def test_results_of_one_operator_agree_within_their_uncertainties(runs):
    found = ooc.compare(runs("nystrom"), runs("krylov"))
    assert found.differences.max() < 1e-4
    assert found.agreeing == 5
    assert found.left_overlaps[-1].value == pytest.approx(1)
    assert (found.a.method, found.b.method) == ("nystrom", "krylov")


def test_each_side_says_how_good_it_is_and_what_it_cost(runs):
    found = ooc.compare(runs("nystrom"), runs("svd"))
    for side, directory in ((found.a, runs("nystrom")), (found.b, runs("svd"))):
        assessment = ooc.assess(directory)
        assert side.relative_error == assessment.relative_error
        assert side.products == assessment.products
        assert side.disk_bytes > 0
        assert side.measuring_seconds > 0


def test_results_of_one_run_are_compared_by_their_folders(runs):
    again = ooc.recover(ooc.open_run(runs("nystrom")), rank=3, name="few")
    found = ooc.compare(runs("nystrom"), again.path.parent)
    assert (found.b.path, found.b.rank, found.values.shape) == (str(again.path), 3, (2, 3))
    assert found.b.relative_error is None


def test_uncertainties_are_unknown_where_one_side_has_none(runs, tmp_path):
    ooc.eigh(operator(), measurements=30, run_dir=tmp_path / "run", test_measurements=0)
    found = ooc.compare(tmp_path / "run", runs("nystrom"), rank=4)
    assert (found.uncertainties, found.agreeing) == (None, None)
    assert found.values.shape == (2, 4)


def test_other_shapes_are_refused_with_both(runs):
    with pytest.raises(ooc.UsageError, match=r"shape \(60, 60\).*one of \(8, 8\)"):
        ooc.compare(runs("nystrom"), runs("small"))


def test_a_result_that_is_not_there_is_told_with_what_makes_it(runs):
    missing = runs("nystrom") / "results" / "gone"
    with pytest.raises(ooc.IncompleteError, match=r"gone.*eigh.h5 to compare; make it with"):
        ooc.compare(missing, runs("svd"))


def test_rank_must_leave_something_to_compare(runs):
    with pytest.raises(ooc.UsageError, match="rank = 0: both results have"):
        ooc.compare(runs("nystrom"), runs("svd"), rank=0)


def test_command_prints_the_same_figures(runs, inside):
    folders = runs("nystrom"), runs("svd")
    shown = inside("compare", *folders, "--json")
    assert json.loads(shown.stdout) == json.loads(json.dumps(ooc.compare(*folders).as_json()))
    table = inside("compare", *folders).stdout
    assert "right spaces, leading 5" in table
    assert "nystrom" in table
