"""Rounds of krylov that start with the vectors of an earlier result.

Dense decompositions in double precision are the truth.
"""

from __future__ import annotations

import shutil
from functools import cache

import pytest
import torch
from contents import answer, run_contents
from killing import killed_while_writing
from operators import Operator, dense, exact_values, triple
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError
from skerch_ooc.executors.share import Share
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.share import perform_share
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning.spec import DTYPES, KINDS

pytestmark = pytest.mark.usefixtures("no_late_files", "one_thread")

N = 400
RANK = 6
OPTIONS = {"rank": RANK, "pairs_tolerance": 1e-4}


def matrix_of(kind="eigh", dtype="float64", spectrum="slow", n=N):
    shape = (n, n) if kind == "eigh" else (n + 50, n)
    return dense(shape, spectrum, dtype, hermitian=kind == "eigh")


def moved(a, kind, size=1e-4):
    """An operator that differs from another by so much of its norm."""
    more = torch.randn(a.shape, dtype=a.dtype)
    if kind == "eigh":
        more = (more + more.mH) / 2
    return a + size * torch.linalg.matrix_norm(a, 2) / torch.linalg.matrix_norm(more, 2) * more


def decompose(kind, a, run_dir, **more):
    return getattr(ooc, kind)(Operator(a), run_dir=run_dir, **OPTIONS | more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders with a finished run ``earlier`` and, if wanted, one ``run`` that started with it."""

    @cache
    def made(kind, started):
        folder = tmp_path_factory.mktemp("finished")
        if started:
            shutil.copytree(made(kind, False), folder, dirs_exist_ok=True)
            decompose(kind, matrix_of(kind), folder / "run", start=folder / "earlier")
        else:
            decompose(kind, matrix_of(kind), folder / "earlier")
        return folder

    return made


@pytest.fixture
def begin(finished, tmp_path):
    """Copies such runs, which are the same in many tests, into the test's own folder."""

    def copied(kind="eigh", *, started=False):
        shutil.copytree(finished(kind, started), tmp_path, dirs_exist_ok=True)

    return copied


class TestPairs:
    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("n", [30, pytest.param(N, marks=pytest.mark.thorough)])
    def test_are_within_their_bounds(self, tmp_path, kind, dtype, n):
        a = matrix_of(kind, dtype, n=n)
        decompose(kind, a, tmp_path / "earlier")
        b = moved(a, kind)
        result = decompose(kind, b, tmp_path / "run", start=tmp_path / "earlier")
        exact = exact_values(b, kind)
        errors = (triple(result)[1] - exact[:RANK]).abs()
        rounding = 8 * torch.finfo(b.dtype).eps * float(exact.abs().max())
        assert torch.all(errors <= torch.as_tensor(result.bounds) + rounding)
        assert torch.all(errors <= 1e-4 * exact[:RANK].abs())

    def test_of_a_similar_operator_take_fewer_rounds(self, tmp_path):
        a = matrix_of(n=150)
        decompose("eigh", a, tmp_path / "earlier", rank=10, round_width=10)
        b = moved(a, "eigh")
        for name, more in (("cold", {}), ("warm", {"start": tmp_path / "earlier"})):
            decompose("eigh", b, tmp_path / name, round_width=10, **more)
        cold, warm = (ooc.assess(tmp_path / name) for name in ("cold", "warm"))
        assert warm.pairs.rounds < cold.pairs.rounds
        assert warm.products["done"] < cold.products["done"]

    def test_that_have_nothing_to_do_with_the_start_are_found_too(self, tmp_path, begin):
        begin()
        other = matrix_of(spectrum="rank 30")
        result = decompose("eigh", other, tmp_path / "run", start=tmp_path / "earlier")
        exact = exact_values(other, "eigh")[:RANK]
        torch.testing.assert_close(result.eigenvalues, exact, rtol=1e-4, atol=0)

    def test_follow_implicit_vectors_of_any_method(self, tmp_path):
        a = matrix_of()
        ooc.eigh(
            Operator(a), run_dir=tmp_path / "earlier", measurements=60, vectors="implicit"
        )  # fmt: skip
        result = decompose("eigh", a, tmp_path / "run", start=tmp_path / "earlier")
        exact = exact_values(a, "eigh")[:RANK]
        torch.testing.assert_close(result.eigenvalues, exact, rtol=1e-4, atol=0)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("which", ["LA", "SA"])
    def test_of_another_end_start_with_the_vectors_of_that_end(self, tmp_path, which):
        a = matrix_of(n=60)
        decompose("eigh", a, tmp_path / "earlier", rank=12)
        result = decompose("eigh", a, tmp_path / "run", which=which, start=tmp_path / "earlier")
        exact = exact_values(a, "eigh")
        exact = exact[(exact if which == "SA" else -exact).argsort()][:RANK]
        torch.testing.assert_close(result.eigenvalues, exact, rtol=1e-4, atol=0)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS[::-1])
    def test_leave_the_error_figure_of_the_whole_true(self, tmp_path, begin, kind):
        a = matrix_of(kind)
        begin(kind)
        decompose(kind, moved(a, kind), tmp_path / "run", start=tmp_path / "earlier")
        exact = exact_values(moved(a, kind), kind)
        left_out = torch.linalg.norm(exact[RANK:]) / torch.linalg.norm(exact)
        assert ooc.assess(tmp_path / "run").relative_error == pytest.approx(
            float(left_out), rel=0.3
        )

    @pytest.mark.thorough
    def test_leave_traces_to_the_random_columns(self, tmp_path):
        a = matrix_of()
        decompose("eigh", a, tmp_path / "earlier", round_width=16)
        decompose("eigh", a, tmp_path / "run", round_width=16, start=tmp_path / "earlier")
        cold, warm = (ooc.density(tmp_path / name) for name in ("earlier", "run"))
        # Both have the same random columns, and of these the quadratures of x are exact.
        expected = cold.trace(lambda x: x)
        found = warm.trace(lambda x: x)
        assert found.value == pytest.approx(expected.value, rel=1e-9)
        assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-9)


class TestPlan:
    def test_has_rounds_that_hold_the_pairs_that_are_looked_for(self, tmp_path):
        ooc.eigh(
            Operator(matrix_of()), run_dir=tmp_path / "earlier", rank=24, round_width=24, rounds=2
        )
        operator, start = Operator(matrix_of()), tmp_path / "earlier"
        for rank, width in ((4, 16), (24, 24), (80, 64)):
            spec = {"start": str(start), "recovery": {"rank": rank}}
            plan = ooc.plan(spec, tmp_path / f"run{rank}", operator=operator).plan
            assert (plan.krylov.width, plan.start_columns) == (width, min(24, width))

    def test_of_another_start_is_another_run(self, tmp_path, begin):
        operator = Operator(matrix_of())
        begin()
        starts = {"none": None, "all": "earlier", "few": "earlier/results/few"}
        ooc.recover(ooc.open_run(tmp_path / "earlier"), rank=3, name="few")
        ids = {
            name: ooc.plan(
                ooc.Spec(recovery={"method": "krylov"}, start=start, folder=tmp_path),
                tmp_path / name, operator=operator,
            ).plan.run_id
            for name, start in starts.items()
        }  # fmt: skip
        assert len(set(ids.values())) == 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dtype": "float32"}, r"dtype is 'float64' there, and 'float32' here"),
            ({"kind": "svd"}, r"kind is 'eigh' there, and 'svd' here"),
            ({"recovery": {"method": "hmt"}, "measurements": 9}, r'is of method = "krylov"'),
            ({"start": "nothing"}, "nothing"),
        ],
        ids=["dtype", "kind", "method", "no run"],
    )
    def test_is_refused_where_the_start_does_not_fit(self, tmp_path, begin, change, message):
        begin()
        operator = Operator(matrix_of())
        asked = {"start": "earlier"} | change
        with pytest.raises(UsageError, match=message):
            ooc.plan(ooc.Spec(**asked, folder=tmp_path), tmp_path / "run", operator=operator)
        assert operator.products == 0

    def test_is_refused_for_another_size(self, tmp_path, begin):
        begin()
        with pytest.raises(UsageError, match=r"shape is \(400, 400\) there, and \(90, 90\) here"):
            decompose("eigh", matrix_of(n=90), tmp_path / "run", start=tmp_path / "earlier")

    def test_is_refused_for_other_parameters(self, tmp_path):
        def laid_out(*names):
            operator = Operator(matrix_of(n=60))
            operator.layout = ooc.ParameterLayout.of([(name, (30,)) for name in names])
            return operator

        earlier = tmp_path / "earlier"
        ooc.eigh(laid_out("a", "b"), run_dir=earlier, **OPTIONS)
        with pytest.raises(UsageError, match="made of other parameters, or in another order"):
            ooc.eigh(laid_out("b", "a"), run_dir=tmp_path / "run", start=earlier, **OPTIONS)

    def test_is_refused_where_there_is_no_run(self, tmp_path):
        with pytest.raises(UsageError, match="nowhere is no run directory; name a run that is"):
            decompose("eigh", matrix_of(), tmp_path / "run", start=tmp_path / "nowhere")

    def test_is_refused_for_a_run_without_a_result(self, tmp_path):
        operator = Operator(matrix_of())
        ooc.plan({"measurements": 20}, tmp_path / "earlier", operator=operator)
        with pytest.raises(IncompleteError, match="finish that run with: skerch-ooc run --run"):
            decompose("eigh", matrix_of(), tmp_path / "run", start=tmp_path / "earlier")


class TestAgain:
    @pytest.fixture
    def done(self, tmp_path, begin):
        begin(started=True)
        return tmp_path / "run"

    def test_goes_on_where_the_earlier_run_is_gone(self, tmp_path, done):
        before = run_contents(done)
        shutil.rmtree(tmp_path / "earlier")
        decompose("eigh", matrix_of(), done, start=tmp_path / "earlier")
        decompose("eigh", matrix_of(), done)
        assert run_contents(done) == before

    def test_with_another_start_is_refused(self, tmp_path, done):
        ooc.recover(ooc.open_run(tmp_path / "earlier"), rank=3, name="few")
        with pytest.raises(UsageError, match="was planned with other vectors"):
            decompose("eigh", matrix_of(), done, start=tmp_path / "earlier/results/few")

    def test_with_a_start_where_there_was_none_is_refused(self, tmp_path, done):
        with pytest.raises(UsageError, match="was planned with no vectors"):
            decompose("eigh", matrix_of(), tmp_path / "earlier", start=done)

    def test_copies_vectors_again_that_were_lost(self, done, tmp_path):
        before = run_contents(done)
        (done / "start.h5").unlink()
        decompose("eigh", matrix_of(), done, start=tmp_path / "earlier")
        assert run_contents(done) == before

    @pytest.fixture
    def begun(self, tmp_path, begin):
        """A run whose first round is measured and not merged."""
        begin()
        spec = ooc.Spec(start="earlier", recovery={"rank": RANK}, folder=tmp_path)
        run = ooc.plan(spec, tmp_path / "run", operator=Operator(matrix_of()))
        ooc.measure(run, operator=Operator(matrix_of()))
        return run

    def test_names_vectors_that_are_lost(self, begun):
        (begun.directory / "start.h5").unlink()
        with pytest.raises(IncompleteError, match=r"start.h5 is gone"):
            ooc.merge(begun)

    def test_names_vectors_that_were_altered(self, begun):
        path = begun.directory / "start.h5"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptError, match=r"start.h5.*To copy it anew: rm .*start.h5"):
            ooc.merge(begun)


SMALL = 9_000
"""Rows of three tiles."""


def spec_of(folder, kind="eigh", dtype="float32", **more):
    args = {"n": SMALL, "dtype": dtype}
    settings = {"round_width": 4, "pairs_tolerance": 0.01} | more.pop("ending", {})
    return write_spec(
        folder, "diagonal", 400, kind=kind, operator={"args": args},
        sketch={"test_measurements": 6, "block": 2} | more.pop("sketch", {}),
        recovery={"rank": 2}, **settings, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Finished runs, by kind and dtype."""

    @cache
    def made(kind="eigh", dtype="float32"):
        folder = tmp_path_factory.mktemp("earlier")
        return whole_run(spec_of(folder, kind, dtype), folder / "run")

    return made


class TestBits:
    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("block", [1, 4])
    def test_do_not_depend_on_the_width_of_blocks(self, tmp_path, earlier, kind, block):
        runs = [
            whole_run(
                spec_of(
                    tmp_path, kind, name=f"{width}.toml", sketch={"block": width},
                    start=str(earlier(kind)),
                ),
                tmp_path / str(width),
            )
            for width in (2, block)
        ]  # fmt: skip
        assert answer(runs[0]) == answer(runs[1])

    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_those_of_shares_of_tasks(self, tmp_path, earlier, kind):
        spec = spec_of(tmp_path, kind, "float64", start=str(earlier(kind, "float64")))
        run = ooc.plan(spec, tmp_path / "shares", threads=1)
        while left := State(run).left:
            for index in (1, 0):
                perform_share(run, left[0].stage, Work.of(Share(index, 2), threads=1))
        assert run_contents(tmp_path / "shares") == run_contents(whole_run(spec, tmp_path / "run"))

    @pytest.mark.thorough
    def test_are_those_of_workers_of_dask(self, tmp_path, earlier, quick_workers):
        spec = spec_of(tmp_path, start=str(earlier()))
        spread = whole_run(spec, tmp_path / "dask", ooc.Dask(workers=2))
        assert run_contents(spread) == run_contents(whole_run(spec, tmp_path / "run"))

    @pytest.mark.thorough
    def test_are_those_of_a_run_that_was_never_killed(self, tmp_path, earlier, forked_command):
        shutil.copytree(earlier(), tmp_path / "earlier")
        spec, folder = spec_of(tmp_path, start="earlier"), forked_command.cwd
        expected = run_contents(whole_run(spec, tmp_path / "undisturbed"))
        arguments = ("run", spec, "--run", folder / "run", "--threads", 1)
        for target, count in (("start", 2), ("basis", 2), ("round2-", 1), ("round3-", 1)):
            killed_while_writing(forked_command, target, count, *arguments)
        assert forked_command(*arguments).returncode == 0
        assert run_contents(folder / "run") == expected

    def test_are_verified(self, tmp_path, earlier, inside):
        spec = spec_of(tmp_path, start=str(earlier()))
        run = whole_run(spec, tmp_path / "run")
        assert inside("verify", run).returncode == 0
        data = bytearray((run / "start.h5").read_bytes())
        data[len(data) // 2] ^= 1
        (run / "start.h5").write_bytes(data)
        found = inside("verify", run)
        assert (found.returncode, "start.h5" in found.stderr + found.stdout) == (5, True)
