"""Runs of operators that are Python objects: how they grow, and what results are by then."""

from __future__ import annotations

import pytest
import torch

import skerch_ooc as ooc
from skerch_ooc.cli.main import run_command_line
from skerch_ooc.results.advice import Found, advise
from skerch_ooc.results.pairs import KnownPairs

N = 60


@pytest.fixture
def matrix():
    return torch.diag(1 / torch.arange(1, N + 1, dtype=torch.float64))


@pytest.fixture
def grown(matrix, tmp_path):
    """A result of twenty columns, whose run has forty by now."""
    eig = ooc.eigh(matrix, measurements=20, run_dir=tmp_path / "run")
    ooc.extend(ooc.open_run(tmp_path / "run"), 40)
    ooc.eigh(matrix, measurements=40, run_dir=tmp_path / "run")
    return eig


def test_a_result_that_was_made_anew_is_not_called_altered(grown):
    with pytest.raises(ooc.CorruptError, match=r"was made anew since it was opened; open it again"):
        grown.eigenvectors[:, 0]


def test_a_command_does_not_extend_what_it_cannot_measure(matrix, tmp_path, capsys):
    ooc.eigh(matrix, measurements=20, run_dir=tmp_path / "run")
    code = run_command_line(["extend", str(tmp_path / "run"), "--measurements", "40"])
    assert code == 2
    assert "handed over as a Python object" in capsys.readouterr().err
    assert len(ooc.open_run(tmp_path / "run").plan.amendments) == 1


def test_pairs_that_are_not_known_name_what_goes_on_in_python(matrix, tmp_path):
    options = {"rank": 4, "round_width": 4, "pairs_tolerance": 1e-8, "run_dir": tmp_path / "run"}
    with pytest.raises(ooc.QualityError, match=r"go on with: ooc\.extend\(.*rounds=4, pairs_tol"):
        ooc.eigh(matrix, rounds=2, **options)


@pytest.mark.usefixtures("grown")
def test_a_call_with_fewer_columns_is_told_that_the_run_has_grown(matrix, tmp_path):
    with pytest.raises(ooc.UsageError, match=r"it has grown since: --set measurements=40"):
        ooc.eigh(matrix, measurements=20, run_dir=tmp_path / "run")


def test_a_call_with_a_larger_tolerance_is_told_that_the_run_has_grown(matrix, tmp_path):
    options = {"rank": 2, "run_dir": tmp_path / "run"}
    ooc.eigh(matrix, pairs_tolerance=1e-2, **options)
    ooc.extend(ooc.open_run(tmp_path / "run"), pairs_tolerance=1e-3)
    with pytest.raises(ooc.UsageError, match=r"it has grown since: --set pairs_tolerance=0\.001"):
        ooc.eigh(matrix, pairs_tolerance=1e-2, **options)


def test_smallest_values_on_the_other_side_of_zero_are_an_error(tmp_path):
    # One round spans all that the products show; a value of 0 would not be among it.
    with pytest.raises(ooc.QualityError, match=r"on the other side of zero"):
        ooc.eigh(torch.eye(N), rank=3, which="SA", pairs_tolerance=1e-4, run_dir=tmp_path / "run")


def test_pairs_of_one_round_without_a_tolerance_are_not_said_to_be_known():
    looked = {"confirmed": False, "steady": False, "exhausted": False}
    pairs = KnownPairs(5, 5, 0, tolerance=None, worst=2.8, rounding=0.0, rounds=1, **looked)
    assert pairs.text().startswith("5 of 5 were found after 1 round, the worst within 2.8")


def test_a_result_of_fewer_rounds_is_advised_to_be_recovered_again(matrix, tmp_path):
    eig = ooc.eigh(matrix, rank=2, rounds=3, round_width=4, run_dir=tmp_path / "run")
    run = ooc.open_run(tmp_path / "run")
    ooc.recover(run, which="SA", rank=2, name="lowest")
    run = ooc.extend(run, rounds=4)
    ooc.eigh(matrix, rank=2, rounds=4, round_width=4, run_dir=tmp_path / "run")
    advice = advise(Found.of(run, "lowest", ooc.assess(run, "lowest")))
    assert [step.command.partition("--")[2] for step in advice.steps] == ["name lowest --which SA"]
    assert eig.rank == 2


def test_pairs_of_rounds_that_know_them_badly_are_not_called_done(matrix, tmp_path):
    ooc.eigh(matrix, rank=4, rounds=1, round_width=4, run_dir=tmp_path / "run")
    run = ooc.open_run(tmp_path / "run")
    advice = advise(Found.of(run, "default", ooc.assess(run)))
    assert advice.verdict.startswith("The bound of each pair tells")
    assert advice.steps[0].command.endswith("--plan-only --rounds 2")
