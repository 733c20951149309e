"""Krylov rounds as runs: pairs, bits however the work is cut, drift, growth, what is refused.

Dense decompositions in double precision are the truth.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import re
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from contents import answer, run_contents
from killing import killed_while_writing
from krylov_runs import ROWS, SMALL, decompose, in_shares, matrix_of, spec_of
from operators import Operator, exact_values, orthogonality, triple
from runs import whole_run

import skerch_ooc as ooc
from skerch_ooc.algebra.krylov.pairs import pairs_of
from skerch_ooc.algebra.krylov.space import Space
from skerch_ooc.base.errors import DriftError, QualityError, UsageError
from skerch_ooc.base.files import canonical_line
from skerch_ooc.base.streams import Pool
from skerch_ooc.executors.share import Share
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.share import perform_share
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning import tasks
from skerch_ooc.planning.krylov import TILE_COLUMNS
from skerch_ooc.planning.spec import DTYPES, KINDS, Spec
from skerch_ooc.planning.stage_names import RoundStage
from skerch_ooc.results.advice import Found, advise
from skerch_ooc.stages.recover.krylov import search_of
from skerch_ooc.store.sealed import Bulk, SealedFile
from skerch_ooc.store.shards import list_shards
from skerch_ooc.store.sketch import count_products

pytestmark = pytest.mark.usefixtures("no_late_files", "one_thread")

TOLERANCE = {"float32": 1e-4, "complex64": 1e-4, "float64": 1e-9, "complex128": 1e-9}
EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in DTYPES}


def ordered(values, which):
    """Eigenvalues as ``which`` orders them."""
    key = {"LM": -values.abs(), "LA": -values, "SA": values}[which]
    return values[key.argsort()]


class TestPairs:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("width", [4, 16])
    def test_are_within_their_bounds_and_to_the_tolerance(self, tmp_path, kind, dtype, width):
        a = matrix_of(kind, dtype)
        result = decompose(
            kind, Operator(a), tmp_path / "run", round_width=width,
            pairs_tolerance=TOLERANCE[dtype],
        )  # fmt: skip
        u, values, v = triple(result)
        exact = exact_values(a, kind)
        rounding = 8 * EPSILON[dtype] * float(exact.abs().max())
        errors = (values - exact[:4]).abs()
        assert torch.all(errors <= torch.as_tensor(result.bounds) + rounding)
        assert torch.all(errors <= TOLERANCE[dtype] * exact[:4].abs())
        assert max(orthogonality(u), orthogonality(v)) <= 100 * EPSILON[dtype]

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", ["float32", "complex128"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_have_the_residuals_that_are_stated(self, tmp_path, kind, dtype):
        a = matrix_of(kind, dtype)
        result = decompose(kind, Operator(a), tmp_path / "run", rounds=4 if kind == "eigh" else 7)
        u, values, v = triple(result)
        a = a.to(u.dtype)
        forth = torch.linalg.norm(a @ v - u * values, dim=0)
        back = torch.linalg.norm(a.mH @ u - v * values, dim=0)
        # Of the vector [u; v] / sqrt(2) of the Hermitian operator [0, A; A^H, 0].
        residuals = ((forth**2 + back**2) / 2).sqrt()
        torch.testing.assert_close(
            torch.as_tensor(result.residuals).double(),
            residuals,
            rtol=1e-2,
            atol=20 * EPSILON[dtype],
        )

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", ["float32", "complex128"])
    @pytest.mark.parametrize("which", ["LM", "LA", "SA"])
    def test_come_from_the_end_that_is_asked_for(self, tmp_path, which, dtype):
        a = matrix_of("eigh", dtype)
        operator = Operator(a)
        result = decompose("eigh", operator, tmp_path / "run", pairs_tolerance=1e-4, which=which)
        expected = ordered(exact_values(a, "eigh"), which)[:4]
        torch.testing.assert_close(triple(result)[1], expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("which", ["LA", "SA"])
    def test_of_another_end_are_recovered_at_no_product(self, tmp_path, which):
        a = matrix_of("eigh", "float64")
        operator = Operator(a)
        decompose("eigh", operator, tmp_path / "run", pairs_tolerance=1e-4, rounds=40)
        before = operator.products
        run = ooc.open_run(tmp_path / "run")
        other = ooc.recover(run, which=which, rank=3, name="other")
        expected = ordered(exact_values(a, "eigh"), which)[:3]
        assert operator.products == before
        assert torch.all((other.eigenvalues - expected).abs() <= torch.as_tensor(other.bounds))


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Finished runs in one process, by their kind and dtype."""

    @cache
    def made(kind, dtype="float32", n=ROWS):
        folder = tmp_path_factory.mktemp("serial")
        return whole_run(spec_of(folder, kind, n, dtype=dtype), folder / "run")

    return made


class TestWhateverTheCut:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS[::-1])
    @pytest.mark.parametrize("block", [1, 3, 4])
    def test_width_of_blocks_changes_no_bit(self, tmp_path, serial, kind, block):
        spec = spec_of(tmp_path, kind, SMALL, sketch={"block": block})
        assert answer(whole_run(spec, tmp_path / "run")) == answer(serial(kind, n=SMALL))

    @pytest.mark.thorough
    def test_shares_of_few_tiles_make_the_files_of_one_process(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tasks, "SMALLEST_RUN", 1)
        expected = run_contents(whole_run(spec_of(tmp_path, n=SMALL), tmp_path / "serial"))
        run = ooc.plan(spec_of(tmp_path, n=SMALL), tmp_path / "run", threads=1)
        in_shares(run, 2)
        assert run_contents(run.directory) == expected
        files = {path.name for path in run.directory.glob("sketch/*/*.h5")}
        assert {"basis.t0-2.h5", "basis.t2-3.h5"} <= files

    @pytest.mark.thorough
    @pytest.mark.parametrize(
        ("kind", "dtype", "of"),
        [
            ("eigh", "float64", 2),
            ("svd", "float32", 2),
            ("eigh", "float32", 2),
            ("svd", "complex64", 3),
        ],
    )
    def test_shares_of_tasks_make_the_files_of_one_process(self, tmp_path, serial, kind, dtype, of):
        run = ooc.plan(spec_of(tmp_path, kind, dtype=dtype), tmp_path / "run", threads=1)
        in_shares(run, of)
        assert run_contents(run.directory) == run_contents(serial(kind, dtype))

    @pytest.mark.parametrize(
        ("kind", "n"),
        [
            ("eigh", SMALL),
            pytest.param("eigh", ROWS, marks=pytest.mark.thorough),
            pytest.param("svd", ROWS, marks=pytest.mark.thorough),
        ],
    )
    def test_workers_of_dask_make_the_files_of_one_process(
        self, tmp_path, serial, kind, n, quick_workers
    ):
        run = whole_run(spec_of(tmp_path, kind, n), tmp_path / "run", ooc.Dask(workers=2))
        assert run_contents(run) == run_contents(serial(kind, n=n))

    def test_a_column_alone_is_read_with_few_others(self, tmp_path, monkeypatch):
        operator, read, plainly = Operator(matrix_of("eigh", "float32")), [], Bulk.read_tile
        recovery = {"method": "krylov", "rank": 4}
        spec = {"round_width": 32, "rounds": 2, "sketch": {"block": 1}, "recovery": recovery}
        run = ooc.plan(spec, tmp_path / "run", operator=operator)
        ooc.measure(run, operator=operator)
        ooc.merge(run)

        def counted(self, row, column=0, out=None):
            tile = plainly(self, row, column, out)
            read.append(tile.size)
            return tile

        monkeypatch.setattr(Bulk, "read_tile", counted)
        ooc.measure(run, operator=operator)
        # And each shard is read once, to verify it, and the checksums of all from their index.
        assert sum(read) == 32 * TILE_COLUMNS * 90 + 32 * 90 + 32

    def test_plan_of_old_has_wide_tiles(self, tmp_path):
        operator = Operator(matrix_of("eigh", "float32"))
        spec = {"round_width": 40, "rounds": 2, "recovery": {"rank": 4}}
        run = ooc.plan(spec, tmp_path / "run", operator=operator)
        (first,) = run.plan.amendments
        old = dataclasses.replace(first, krylov=dataclasses.replace(first.krylov, tile=None))
        (tmp_path / "run/plan.d/0001.json").write_bytes(canonical_line(old.as_json()))
        assert set(old.as_json()["rounds"]) == {"width", "rounds", "tolerance"}
        ooc.eigh(operator, run_dir=tmp_path / "run", rank=4, rounds=2, round_width=40)
        (basis,) = (tmp_path / "run").glob("sketch/*/basis.h5")
        assert SealedFile(basis).layout.tile == (90, 40)

    @pytest.mark.thorough
    def test_blocks_are_in_pieces_and_merged_in_tasks(self, serial):
        files = {path.name for path in serial("eigh").glob("sketch/*/*.h5")}
        assert {"basis.t0-32.h5", "basis.t32-35.h5"} <= files

    @pytest.mark.thorough
    def test_share_that_is_done_again_applies_nothing(self, tmp_path, call_log):
        run = ooc.plan(spec_of(tmp_path, n=9000), tmp_path / "run", threads=1)
        in_shares(run, 2, again=True)
        blocks = [call["crc"] for call in call_log() if call["width"] > 1]
        assert len(blocks) == len(set(blocks))

    def test_round_that_was_foreseen_and_is_not_needed_is_done_at_once(self, tmp_path, serial):
        shutil.copytree(serial("eigh", n=SMALL), tmp_path / "run")
        run = ooc.open_run(tmp_path / "run")
        before, number = run_contents(run.directory), State(run).last.number + 1
        assert number < run.plan.rounds
        for name in ("measure", "merge", "solve", "vectors"):
            stage = RoundStage(name, number)
            assert perform_share(run, stage, Work.of(Share(0, 1), threads=1)) is None
        assert run_contents(run.directory) == before


class TestEnds:
    """What ends the rounds, and what is said then."""

    def test_too_few_rounds_keep_their_result_and_say_what_is_missing(self, tmp_path):
        operator = Operator(matrix_of("eigh", "float32"))
        with pytest.raises(
            QualityError, match=r"^pairs_tolerance = 1.0e-06: \d of 4 within 1.0e-06"
        ):
            decompose("eigh", operator, tmp_path / "run", pairs_tolerance=1e-6, rounds=3)
        run = ooc.open_run(tmp_path / "run")
        pairs = ooc.assess(run).pairs
        assert (pairs.found, pairs.rounds, pairs.met < 4) == (4, 3, True)
        assert len(ooc.recover(run).eigenvalues) == 4

    def test_too_few_measurements_are_the_most_of_all_rounds(self, tmp_path):
        operator = Operator(matrix_of("eigh", "float32"))
        with pytest.raises(QualityError, match="after 2 rounds"):
            decompose("eigh", operator, tmp_path / "run", pairs_tolerance=1e-6, measurements=17)
        counted = ooc.assess(tmp_path / "run").products
        assert (counted["planned"], counted["done"]) == (2 * 6 + 12, 2 * 6 + 12)

    def test_a_number_of_rounds_is_kept_whatever_the_pairs(self, tmp_path):
        result = decompose("eigh", Operator(matrix_of("eigh", "float32")), tmp_path / "run",
                           rounds=3)  # fmt: skip
        assert (len(result.eigenvalues), ooc.assess(tmp_path / "run").pairs.rounds) == (4, 3)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", ["float32", "complex128"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_operator_of_low_rank_is_exhausted(self, tmp_path, kind, dtype):
        a = matrix_of(kind, dtype, "rank 30")
        result = decompose(kind, Operator(a), tmp_path / "run", round_width=9, rank=30,
                           pairs_tolerance=1e-3)  # fmt: skip
        torch.testing.assert_close(
            triple(result)[1], exact_values(a, kind)[:30], rtol=1e-3, atol=1e-6
        )
        assert ooc.assess(tmp_path / "run").products["done"] < 30 * (2 if kind == "svd" else 1) + 40

    def test_fewer_values_than_are_wanted_are_said(self, tmp_path):
        a = matrix_of("eigh", "float64", "rank 30")
        with pytest.raises(QualityError, match=r"rank = 40: the operator shows 3\d such values"):
            decompose("eigh", Operator(a), tmp_path / "run", round_width=9, rank=40,
                      pairs_tolerance=1e-3)  # fmt: skip

    def test_pairs_of_another_end_are_advised_of_their_own_command(self, tmp_path):
        operator = Operator(torch.diag(torch.cat([torch.tensor([9.0]), torch.linspace(1, 2, 89)])))
        options = {
            "rank": 1,
            "round_width": 4,
            "pairs_tolerance": 1e-3,
            "run_dir": tmp_path / "run",
        }
        ooc.eigh(operator, **options)
        run = ooc.open_run(tmp_path / "run")
        ooc.recover(run, which="SA", name="lowest")
        steps = advise(Found.of(run, "lowest", ooc.assess(run, name="lowest"))).steps
        (command,) = (step.command for step in steps)
        assert re.search(r"extend .* --rounds \d+ .*&& .* --name lowest --which SA$", command)

    def test_copies_of_a_value_are_all_found(self, tmp_path):
        values = torch.cat([torch.ones(12), 0.5 ** torch.arange(1, 79)]).double()
        q = torch.linalg.qr(torch.randn(90, 90, dtype=torch.float64))[0]
        a = ((q * values) @ q.mH).float()
        result = decompose("eigh", Operator((a + a.mH) / 2), tmp_path / "run", rank=14,
                           round_width=4, pairs_tolerance=1e-3)  # fmt: skip
        torch.testing.assert_close(
            result.eigenvalues, values[:14].float(), rtol=1e-3, atol=0, check_dtype=False
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_operator_that_is_zero_has_nothing_to_decompose(self, tmp_path, kind):
        zero = Operator(torch.zeros((90, 90)))
        with pytest.raises(UsageError, match=r"^there is nothing to decompose"):
            decompose(kind, zero, tmp_path / "run", pairs_tolerance=1e-3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_block_as_wide_as_the_operator_ends_in_one_go(self, tmp_path, kind):
        a = matrix_of(kind, "float64", n=20)
        result = decompose(kind, Operator(a), tmp_path / "run", rank=20, round_width=64,
                           pairs_tolerance=1e-6)  # fmt: skip
        torch.testing.assert_close(triple(result)[1], exact_values(a, kind), rtol=1e-6, atol=1e-12)


def columns_of(calls):
    """Columns that blocks had; comparisons with the fingerprint have one."""
    return sum(call["width"] for call in calls if call["width"] > 1)


def kill_often(command, call_log, moments):
    """Kills a run at each of some moments; no process does what was published before it began."""
    spec, run = spec_of(command.cwd, dtype="float64", n=SMALL), command.cwd / "run"
    expected = run_contents(whole_run(spec, command.cwd / "undisturbed"))
    # It is planned here, so that the products of the probe are not counted.
    ooc.plan(spec, run, threads=1)
    arguments = ("run", spec, "--run", "run", "--threads", 1)

    def applied(go):
        """Columns that were applied and not published meanwhile."""
        called, done = len(call_log()), count_products(ooc.open_run(run))["done"]
        go()
        published = count_products(ooc.open_run(run))["done"] - done
        return columns_of(call_log()[called:]) - published

    for target, count in moments:
        # Two blocks are on their way: one is written while the next is applied.
        lost = applied(lambda: killed_while_writing(command, target, count, *arguments))  # noqa: B023
        assert 0 <= lost <= 4
    assert applied(lambda: command(*arguments)) == 0
    assert run_contents(run) == expected


class TestKilled:
    def test_in_several_rounds_makes_the_files_of_an_undisturbed_run(
        self, forked_command, call_log
    ):
        moments = [("round2-", 2), ("basis", 5), ("eigenvectors", 2)]
        kill_often(forked_command, call_log, moments)

    @pytest.mark.thorough
    @pytest.mark.parametrize("seed", range(5))
    def test_ten_times_at_random_makes_the_files_of_an_undisturbed_run(
        self, forked_command, call_log, seed
    ):
        chance = random.Random(seed)
        # Any writing of a tile: of shards, blocks and vectors.
        kill_often(forked_command, call_log, [("", chance.randint(2, 9)) for _ in range(10)])


@pytest.fixture(scope="module")
def once(serial):
    """The spec of a finished run, which lies beside it."""
    return serial("eigh", n=SMALL).parent / "spec.toml"


class TestAgain:
    """The same command, once more or later."""

    @pytest.fixture
    def finished(self, once, tmp_path):
        shutil.copytree(once.parent, tmp_path, dirs_exist_ok=True)
        return tmp_path / once.name

    def test_does_no_work_that_is_done(self, inside, tmp_path, finished, call_log):
        before = run_contents(tmp_path / "run")
        log = (tmp_path / "run/logs/receipts.jsonl").read_bytes()
        assert inside("run", finished, "--run", "run", "--threads", 1).returncode == 0
        for verb in ("measure", "merge", "recover", "assess"):
            assert inside(verb, "run").returncode == 0
        assert columns_of(call_log()) == 0
        assert run_contents(tmp_path / "run") == before
        assert (tmp_path / "run/logs/receipts.jsonl").read_bytes() == log

    def test_with_another_width_of_rounds_is_refused(self, inside, finished):
        done = inside("run", finished, "--run", "run", "--set", "round_width=8")
        assert (done.returncode, "round_width" in done.stderr) == (2, True)

    def test_without_the_width_of_rounds_goes_on_with_the_plan_s(self, inside, tmp_path, finished):
        text = finished.read_text().replace("round_width = 4\n", "")
        finished.write_text(text)
        assert inside("run", finished, "--run", "run").returncode == 0

    def test_is_verified_and_counted(self, inside, tmp_path, finished):
        assert inside("verify", "run").returncode == 0
        status = json.loads(inside("status", "run", "--json").stdout)
        assessment = json.loads(inside("assess", "run", "--json").stdout)
        run = ooc.open_run(tmp_path / "run")
        rounds = State(run).rounds
        taken = sum(round_.products for round_ in rounds)
        assert status["products"]["done"] == assessment["products"]["done"] == taken
        for key in ("met", "wanted", "worst"):
            assert status["pairs"][key] == pytest.approx(assessment["pairs"][key])
        assert assessment["products"]["planned"] == run.plan.products > taken
        assert assessment["pairs"]["rounds"] == len(rounds)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(
        "options", [[], ["--sketch"], ["--shards"]], ids=lambda words: " ".join(words) or "plain"
    )
    def test_is_answered_after_cleaning(self, inside, tmp_path, finished, options):
        before = (tmp_path / "run/results/default/eigh.h5").read_bytes()
        done = inside("clean", "run", *options)
        assert done.returncode == 0, done.stderr
        assert inside("run", finished, "--run", "run", "--threads", 1).returncode == 0
        for verb in (["status", "run"], ["verify", "run"], ["assess", "run"]):
            done = inside(*verb)
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "run/results/default/eigh.h5").read_bytes() == before

    def test_other_pairs_come_after_the_sums_were_removed(
        self, inside, tmp_path, finished, call_log
    ):
        inside("clean", "run", "--sketch")
        done = inside("recover", "run", "--rank", 3, "--which", "SA", "--name", "other")
        assert done.returncode == 0, done.stderr
        assert columns_of(call_log()) == 0


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The spec of a run of which two rounds are done, and a half of the third is measured."""
    folder = tmp_path_factory.mktemp("begun")
    spec = spec_of(folder, n=SMALL)
    run = ooc.plan(spec, folder / "run", threads=1)
    for number in (1, 2):
        for name in ("measure", "merge", "solve", "vectors"):
            perform_share(run, RoundStage(name, number), Work.of(Share(0, 1), threads=1))
    perform_share(run, RoundStage("measure", 3), Work.of(Share(0, 2), threads=1))
    return spec


class TestHalfDone:
    @pytest.fixture
    def half(self, inside, begun, tmp_path):
        shutil.copytree(begun.parent, tmp_path, dirs_exist_ok=True)
        return tmp_path / begun.name

    def test_run_says_its_round_and_the_pairs_so_far(self, inside, half):
        status = inside("status", "run")
        assert status.returncode == 0
        assert re.search("round3 +2 of 4 columns measured", status.stdout)
        assert re.search(
            r"pairs +round 2 of at most \d+; \d of 2 within 0.010, the worst within \d",
            " ".join(status.stdout.split()),
        )

    def test_run_says_the_pairs_so_far_to_scripts(self, inside, tmp_path, half):
        stated = json.loads(inside("status", "run", "--json").stdout)["pairs"]
        plan = ooc.open_run(tmp_path / "run").plan
        space = Space.of(search_of(ooc.open_run(tmp_path / "run")).chain)
        pairs = pairs_of(space).upto(2)
        assert stated == {
            "round": 2, "rounds": plan.rounds, "wanted": 2, "found": 2, "tolerance": 0.01,
            "met": int(pairs.met(0.01).sum()),
            "worst": pytest.approx(float(((pairs.bounds - pairs.rounding) / pairs.sizes).max())),
        }  # fmt: skip

    def test_pairs_so_far_need_no_shard(self, inside, tmp_path, half):
        for shard in list_shards(tmp_path / "run/shards"):
            path = tmp_path / "run/shards" / shard.name
            entry = path.stat()
            path.write_bytes(b"")
            os.truncate(path, entry.st_size)
            os.utime(path, ns=(entry.st_atime_ns, entry.st_mtime_ns))
        assert json.loads(inside("status", "run", "--json").stdout)["pairs"]["round"] == 2

    def test_pairs_are_not_known_before_the_first_round(self, inside, tmp_path):
        ooc.plan(spec_of(tmp_path, n=SMALL), tmp_path / "run", threads=1)
        assert json.loads(inside("status", "run", "--json").stdout)["pairs"] is None

    def test_run_is_verified_and_cleaned_without_loss(self, inside, tmp_path, half, call_log):
        shards = list_shards(tmp_path / "run/shards")
        assert inside("verify", "run").returncode == 0
        assert inside("clean", "run").returncode == 0
        assert inside("clean", "run", "--shards").returncode == 4
        assert list_shards(tmp_path / "run/shards") == shards
        before = columns_of(call_log())
        assert inside("run", half, "--run", "run", "--threads", 1).returncode == 0
        done = count_products(ooc.open_run(tmp_path / "run"))["done"]
        assert columns_of(call_log()) - before == done - sum(len(s.columns) for s in shards)

    def test_stage_of_a_later_round_is_too_early(self, inside, half):
        done = inside("task", "run", "measure.5", "--index", 0, "--of", 1)
        assert (done.returncode, "too early" in done.stderr) == (4, True)

    def test_four_rounds_ahead_are_listed(self, tmp_path, half):
        left = State(ooc.open_run(tmp_path / "run")).left
        assert {one.stage.round for one in left if one.stage.name == "measure"} == {3, 4, 5, 6, 7}
        assert left[-1].stage.name == "assess"

    def test_job_arrays_of_the_rounds_ahead_are_shown(self, inside, half):
        done = inside("submit", "run", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "measure.7" in done.stdout
        assert "measure.8" not in done.stdout


class Drifting(Operator):
    """An operator that is another one from some call on."""

    def __init__(self, matrix, after):
        super().__init__(matrix)
        n, self.after, self.calls = len(matrix), after, 0
        self._more = 0.01 * torch.ones((n, n), dtype=matrix.dtype) / n

    def apply(self, matrix, x):
        self.calls += 1
        return (matrix + self._more if self.calls > self.after else matrix) @ x


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """How many calls four rounds take: three each, those of test columns and the probe first."""
    operator = Drifting(matrix_of("eigh", "float32"), 10**9)
    decompose("eigh", operator, tmp_path_factory.mktemp("calls") / "run", rounds=4, block=2)
    return operator.calls


class TestDrift:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(("number", "from_end"), [(2, 9), (2, 8), (3, 6), (4, 3), (4, 1)])
    def test_between_rounds_and_within_them_is_seen_by_the_round(
        self, tmp_path, calls, number, from_end
    ):
        operator = Drifting(matrix_of("eigh", "float32"), calls - from_end)
        # Within a round its own shards may tell.
        with pytest.raises(DriftError, match=f"round {number} contradicts|shards/round{number}-"):
            decompose("eigh", operator, tmp_path / "run", rounds=4, block=2)

    def test_is_mended_by_measuring_the_round_again(self, tmp_path, calls):
        a = matrix_of("eigh", "float32")
        with pytest.raises(DriftError):
            decompose("eigh", Drifting(a, calls - 5), tmp_path / "run", rounds=4, block=2)
        for shard in list_shards(tmp_path / "run/shards"):
            if shard.role.startswith("round3-"):
                (tmp_path / "run/shards" / shard.name).unlink()
        decompose("eigh", Operator(a), tmp_path / "run", rounds=4, block=2)
        # The sums of the shards that were removed.
        ooc.clean(ooc.open_run(tmp_path / "run"))
        decompose("eigh", Operator(a), tmp_path / "undisturbed", rounds=4, block=2)
        assert run_contents(tmp_path / "run") == run_contents(tmp_path / "undisturbed")

    def test_within_the_first_round_is_seen_by_its_shards(self, tmp_path, calls):
        operator = Drifting(matrix_of("eigh", "float32"), calls - 10)
        with pytest.raises(DriftError, match=r"1 of 9 shards do not fit the others") as caught:
            decompose("eigh", operator, tmp_path / "run", rounds=4, block=2)
        assert "test.p0.c10-12" in str(caught.value)


class TestDefaults:
    """What is looked for, and for how long, where nobody says so."""

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS)
    def test_look_for_all_pairs_of_a_small_operator(self, tmp_path, kind):
        a = matrix_of(kind, "float64", n=12)
        # And once more: the plan states what it looks for.
        for _ in range(2):
            result = getattr(ooc, kind)(Operator(a), run_dir=tmp_path / "run", method="krylov")
            values = triple(result)[1]
            torch.testing.assert_close(values, exact_values(a, kind), rtol=1e-4, atol=1e-9)

    def test_look_for_as_many_pairs_as_the_rounds_have_columns(self, tmp_path):
        operator = Operator(matrix_of("eigh", "float32"))
        assert len(ooc.eigh(operator, run_dir=tmp_path / "run", rounds=1).eigenvalues) == 16

    def test_refuse_a_rank_that_was_asked_for_and_is_too_large(self, tmp_path):
        operator = Operator(matrix_of("eigh", "float64", n=12))
        with pytest.raises(UsageError, match=r"^recovery.rank = 20: .* give at most 12 pairs"):
            ooc.eigh(operator, run_dir=tmp_path / "run", method="krylov", rank=20)

    @pytest.mark.parametrize(("kind", "most"), [("eigh", 35), ("svd", 70)])
    def test_allow_many_rounds_and_foretell_what_is_likely(self, tmp_path, kind, most):
        operator = Operator(matrix_of(kind, "float32", n=400))
        spec = {"kind": kind, "recovery": {"method": "krylov"}}
        planned = make_plan(Spec.from_table(spec), tmp_path / "run", Work.of(), operator=operator)
        costs = planned.costs
        assert planned.run.plan.rounds == most
        assert costs.products == 16 * most + 30
        assert costs.likely.products == 10 * 16 * most // 35 + 30
        for stage, peak in costs.likely.peak_bytes.items():
            assert peak <= costs.peak_bytes[stage]
        assert costs.likely.result_bytes < costs.result_bytes

    def test_let_a_plan_of_old_keep_its_rounds(self, tmp_path):
        operator = Operator(matrix_of("eigh", "float32", n=400))
        spec = {"measurements": 400, "recovery": {"method": "krylov"}}
        run = ooc.plan(spec, tmp_path / "run", operator=operator)
        assert run.plan.rounds == 25
        (first,) = run.plan.amendments
        old = dataclasses.replace(first, krylov=dataclasses.replace(first.krylov, rounds=21))
        (tmp_path / "run/plan.d/0001.json").write_bytes(canonical_line(old.as_json()))
        assert ooc.plan(spec, tmp_path / "run", operator=operator).plan.rounds == 21
        with pytest.raises(UsageError, match="rounds: 21 in the run, 20 now"):
            ooc.plan(spec | {"measurements": 320}, tmp_path / "run", operator=operator)


@pytest.fixture(scope="module")
def four_rounds(tmp_path_factory):
    """A finished run of four rounds."""
    folder = tmp_path_factory.mktemp("four")
    decompose("eigh", Operator(matrix_of("eigh", "float32")), folder / "run", rounds=4)
    return folder / "run"


class TestGrowth:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS[::-1])
    def test_to_more_rounds_makes_the_files_of_a_run_that_was_planned_so(self, tmp_path, kind):
        operator = Operator(matrix_of(kind, "float32"))
        decompose(kind, operator, tmp_path / "whole", rounds=7)
        decompose(kind, operator, tmp_path / "grown", rounds=4)
        before = operator.products
        run = ooc.extend(ooc.open_run(tmp_path / "grown"), rounds=7)
        ooc.measure(run, operator=operator)
        while not State(run).is_last_round:
            ooc.merge(run)
            ooc.measure(run, operator=operator)
        ooc.recover(run)
        # And one in each call to compare with the fingerprint.
        assert operator.products - before == 3 * 6 + 3
        assert answer(tmp_path / "grown") == answer(tmp_path / "whole")

    @pytest.mark.thorough
    def test_to_more_exact_pairs_goes_on_with_the_rounds_there_are(
        self, inside, tmp_path, call_log
    ):
        spec = spec_of(tmp_path, n=SMALL)
        assert inside("run", spec, "--run", "run", "--threads", 1).returncode == 0
        before = columns_of(call_log())
        done = count_products(ooc.open_run(tmp_path / "run"))["done"]
        grown = inside("extend", "run", "--pairs-tolerance", "1e-5", "--threads", 1)
        assert grown.returncode == 0, grown.stderr
        run = ooc.open_run(tmp_path / "run")
        assert columns_of(call_log()) - before == count_products(run)["done"] - done > 0
        assert ooc.assess(run).pairs.worst <= 1e-5

    def test_of_a_finished_sketch_pays_the_first_block_with_it(self, tmp_path):
        a = matrix_of("eigh", "float32")
        operator = Operator(a)
        ooc.eigh(operator, run_dir=tmp_path / "run", measurements=20, test_measurements=12)
        before = (tmp_path / "run/results/default/eigh.h5").read_bytes()
        run, products = ooc.open_run(tmp_path / "run"), operator.products
        run = ooc.extend(run, pairs_tolerance=1e-4)
        ooc.measure(run, operator=operator)
        while not State(run).is_last_round:
            ooc.merge(run)
            ooc.measure(run, operator=operator)
        result = ooc.recover(run)
        pairs = ooc.assess(run).pairs
        assert operator.products - products <= 16 * (pairs.rounds - 1) + pairs.rounds
        torch.testing.assert_close(
            triple(result)[1], exact_values(a, "eigh")[:20], rtol=1e-4, atol=1e-4
        )
        (kept,) = (path for path in (tmp_path / "run/results").iterdir() if path.name != "default")
        assert (kept / "eigh.h5").read_bytes() == before
        assert kept.name.startswith("nystrom")

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"rounds": 2}, "rounds = 2: 4 are known already"),
            ({"measurements": 50}, "grows by rounds of 6, not by measurements"),
            ({"pairs_tolerance": 1e-9}, "pairs_tolerance = 1e-09 is below what products in"),
            ({}, "give measurements alone, or rounds"),
            ({"rounds": 5, "measurements": 50}, "give measurements alone, or rounds"),
        ],
        ids=str,
    )  # fmt: skip
    def test_that_cannot_be_is_refused(self, tmp_path, four_rounds, more, message):
        shutil.copytree(four_rounds, tmp_path / "run")
        run = ooc.open_run(tmp_path / "run")
        with pytest.raises(UsageError, match=message):
            ooc.extend(run, **more)
        assert len(ooc.open_run(tmp_path / "run").plan.amendments) == 1

    @pytest.mark.parametrize(
        "settings",
        [
            {"method": "hmt", "measurements": 20},
            {"method": "oversampled", "measurements": 20},
        ],
        ids=str,
    )
    def test_to_rounds_of_what_cannot_be_their_first_is_refused(self, tmp_path, settings):
        ooc.eigh(Operator(matrix_of("eigh", "float32")), run_dir=tmp_path / "run",
                 test_measurements=12, **settings)  # fmt: skip
        with pytest.raises(UsageError, match="has no rounds to be added"):
            ooc.extend(ooc.open_run(tmp_path / "run"), rounds=5)

    def test_by_an_update_is_refused(self, four_rounds):
        operator = Operator(matrix_of("eigh", "float32"))
        with pytest.raises(UsageError, match='method = "krylov" cannot be updated'):
            ooc.update(ooc.open_run(four_rounds), operator)


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_of_a_round_end_with_it(tmp_path, kind):
    gc.collect()
    gc.disable()
    try:
        decompose(kind, Operator(matrix_of(kind, "float64")), tmp_path / "run", rounds=4)
        kept = [value for value in gc.get_objects() if isinstance(value, Pool)]
    finally:
        gc.enable()
    # Collected with all cycles they would be gone only many rounds later.
    assert not kept
