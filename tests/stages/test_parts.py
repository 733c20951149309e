"""Operators made of terms: measured in parts, and the same whatever the cut."""

from __future__ import annotations

import shutil
from functools import cache

import numpy as np
import pytest
import torch
from contents import answer
from hypothesis import given
from hypothesis import strategies as st
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.errors import (
    CorruptError,
    DriftError,
    IncompleteError,
    OperatorError,
    UsageError,
)
from skerch_ooc.base.partition import Range
from skerch_ooc.base.progress import Progress
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.adapters import product_of
from skerch_ooc.pipeline.run import run_all
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning import values
from skerch_ooc.planning.parts import (
    OperatorSource,
    Part,
    require_numbered,
    runs_of,
)
from skerch_ooc.planning.spec import Spec
from skerch_ooc.stages.measure.task import missing_tasks
from skerch_ooc.store.sketch import Round

pytestmark = pytest.mark.usefixtures("one_thread", "no_late_files")

TERMS = 8
HEIGHTS = (700, 5000, 1, 300, 4096, 900, 20, 60)
"""Rows of the terms of a stack: neither those of tiles, nor alike."""

WIDTH = 50


def random(shape, dtype="float64", seed=0):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * generator.standard_normal(shape)
    return values.astype(dtype)


def low_rank(height, dtype, seed):
    """A matrix of rank 12 with noise."""
    left, right = random((height, 12), dtype, seed), random((12, WIDTH), dtype, 99)
    return left @ (right * 0.7 ** np.arange(12)[:, None]) + 1e-3 * random(
        (height, WIDTH), dtype, seed + 50
    )


def hermitian(dtype, seed):
    a = low_rank(WIDTH, dtype, seed)
    return (a + a.conj().T) / 2


@cache
def operator(form, kind, dtype):
    if form == "stack":
        return ooc.Stack([low_rank(h, dtype, i).astype(dtype) for i, h in enumerate(HEIGHTS)])
    make = hermitian if kind == "eigh" else lambda dtype, seed: low_rank(9000, dtype, seed)
    terms = [make(dtype, seed).astype(dtype) for seed in range(TERMS)]
    return ooc.Sum(terms, scales=[1.0, -0.5, 2.0, 1.0, 0.25, 1.0, 3.0, 0.125])


def dense(form, kind, dtype):
    whole = operator(form, kind, dtype)
    return whole @ np.eye(WIDTH, dtype=dtype)


CASES = {
    "sum": ("sum", "svd", "float32", "nystrom"),
    "Hermitian sum": ("sum", "eigh", "float32", "nystrom"),
    "complex Hermitian sum": ("sum", "eigh", "complex64", "nystrom"),
    "Hermitian sum, two rounds": ("sum", "eigh", "float32", "hmt"),
    "stack": ("stack", "svd", "float32", "nystrom"),
    "complex stack": ("stack", "svd", "complex128", "nystrom"),
    "stack, inner sketch": ("stack", "svd", "float32", "oversampled"),
    "sum, inner sketch": ("sum", "svd", "float64", "oversampled"),
    "stack, two rounds": ("stack", "svd", "float32", "hmt"),
    "stack, one-pass": ("stack", "svd", "float64", "singlepass"),
}


def run_in_parts(case, parts, run_dir, **more):
    form, kind, dtype, method = CASES[case]
    spec = Spec.from_table(
        {
            "kind": kind, "measurements": 24, "dtype": dtype, "operator": {"parts": parts},
            "sketch": {"block": 16, "test_measurements": 10},
            "recovery": {"method": method, "core": "auto"},
        }
        | more
    )  # fmt: skip
    a = operator(form, kind, dtype)
    work = Work.of(memory="4GiB", threads=1)
    planned = make_plan(spec, run_dir, work, operator=a)
    return planned.run, run_all(planned, work, operator=a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run in four parts of some form, made once."""

    @cache
    def of(form):
        run_dir = tmp_path_factory.mktemp("finished") / "run"
        run_in_parts(form, 4, run_dir)
        return run_dir

    return of


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a finished run in four parts."""
    return lambda form: ooc.open_run(shutil.copytree(finished(form), tmp_path / "run"))


@pytest.fixture(scope="module")
def in_one(tmp_path_factory):
    """What a case gives in one part."""

    @cache
    def of(case):
        run_dir = tmp_path_factory.mktemp("one") / "run"
        run_in_parts(case, 1, run_dir)
        return answer(run_dir)

    return of


@pytest.mark.sampled(1)
@pytest.mark.parametrize("parts", [3, 8])
@pytest.mark.parametrize("case", [case for case in CASES if "inner" not in case])
def test_answer_is_the_same_bit_for_bit_in_however_many_parts(tmp_path, in_one, case, parts):
    run_in_parts(case, parts, tmp_path / "run")
    assert answer(tmp_path / "run") == in_one(case)


@pytest.mark.thorough
@pytest.mark.parametrize("case", [case for case in CASES if "inner" in case])
def test_singular_values_from_an_inner_sketch_are_the_same_to_rounding(tmp_path, case):
    found = []
    for parts in (1, 4):
        run, _ = run_in_parts(case, parts, tmp_path / str(parts))
        found.append(ooc.recover(run).S[:12])
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CASES)
def test_answer_is_that_of_the_dense_matrix(tmp_path, case):
    form, kind, dtype, _ = CASES[case]
    run, assessment = run_in_parts(case, 4, tmp_path / "run")
    a = torch.from_numpy(dense(form, kind, dtype))
    result = ooc.recover(run)
    found = (
        result.eigenvectors[:] * result.eigenvalues @ result.eigenvectors[:].mH
        if kind == "eigh"
        else result.U[:] * result.S @ result.Vh[:]
    )
    error = float(torch.linalg.norm(a - found) / torch.linalg.norm(a))
    assert error < 0.02
    assert assessment.relative_error == pytest.approx(error, rel=0.6)


def test_tasks_are_parts_times_columns(tmp_path):
    spec = {
        "kind": "svd", "measurements": 24, "operator": {"parts": 4}, "sketch": {"block": 10},
        "recovery": {"method": "nystrom"},
    }  # fmt: skip
    run = ooc.plan(spec, tmp_path / "run", operator=operator("stack", "svd", "float32"))
    tasks = list(missing_tasks(Round(run), "cpu", 1))
    assert {task.part for task in tasks} == {0, 1, 2, 3}
    blocks = [task.blocks for task in tasks if task.part == 2]
    # 24 right columns, 36 left ones and 30 of the test.
    assert len(blocks) == 3 + 4 + 3
    assert [task.blocks for task in tasks if task.part == 0] == blocks
    assert [task.number for task in tasks] == list(range(len(tasks)))


def test_products_of_parts_are_counted_as_one(tmp_path):
    run, assessment = run_in_parts("stack", 8, tmp_path / "run")
    assert run.plan.products == 24 + 36 + 10
    assert assessment.products["done"] == assessment.products["planned"] == 70


def test_columns_are_added_to_all_parts(tmp_path, copied):
    run = ooc.extend(copied("sum"), 30)
    ooc.measure(run, operator=operator("sum", "svd", "float32"), threads=1)
    ooc.recover(run, threads=1)
    run_in_parts("sum", 2, tmp_path / "at once", measurements=30)
    assert answer(run.directory)["svd.h5"] == answer(tmp_path / "at once")["svd.h5"]


def test_missing_shard_of_one_part_is_named_with_its_part(copied):
    run = copied("stack")
    next(run.shards.glob("left.p2.c0-16.*")).unlink()
    with pytest.raises(IncompleteError, match="part 2: left 0-16"):
        ooc.merge(run)


def test_only_the_part_whose_shard_is_gone_is_measured_again(copied):
    run = copied("stack")
    next(run.shards.glob("left.p2.c0-16.*")).unlink()
    tasks = missing_tasks(Round(run), "cpu", 1)
    assert [(task.part, task.blocks) for task in tasks] == [(2, (("left", 0, 16),))]


class TestDrift:
    def test_each_part_has_its_fingerprint(self, copied):
        run = copied("stack")
        names = {path.name for path in run.directory.glob("fingerprint*.json")}
        assert names == {"fingerprint.json"} | {f"fingerprint.p{i}.json" for i in (1, 2, 3)}

    def test_fingerprint_in_the_place_of_another_part_is_named(self, copied):
        run = copied("stack")
        shutil.copy(run.fingerprint_path(2), run.fingerprint_path(1))
        with pytest.raises(
            CorruptError, match=r"fingerprint\.p1\.json is the fingerprint of part 2"
        ):
            run.fingerprint(1)

    def test_changed_part_is_found_before_it_is_measured(self, copied):
        run = copied("stack")
        next(run.shards.glob("left.p2.c0-16.*")).unlink()
        terms = [low_rank(h, "float32", i).astype("float32") for i, h in enumerate(HEIGHTS)]
        terms[5] = terms[5] + 0.1
        with pytest.raises(DriftError, match="not the one that the run started with"):
            ooc.measure(run, operator=ooc.Stack(terms))

    def test_other_number_of_terms_is_refused(self, copied):
        run = copied("sum")
        next(run.shards.glob("left.p2.c0-16.*")).unlink()
        other = ooc.Sum([low_rank(9000, "float32", 0).astype("float32")] * 3)
        with pytest.raises(OperatorError, match="3 terms, the run was planned for 8"):
            ooc.measure(run, operator=other)

    def test_operator_without_terms_is_refused_where_they_are_planned(self, copied):
        run = copied("sum")
        next(run.shards.glob("left.p2.c0-16.*")).unlink()
        with pytest.raises(OperatorError, match="1 terms, the run was planned for 8"):
            ooc.measure(run, operator=dense("sum", "svd", "float32"))


class TestTerms:
    """The operators themselves."""

    @pytest.mark.parametrize("adjoint", [False, True], ids=["A X", "A^H X"])
    @pytest.mark.parametrize("form", ["sum", "stack"])
    def test_product_is_that_of_the_dense_matrix(self, form, adjoint):
        a = operator(form, "svd", "complex128")
        whole = dense(form, "svd", "complex128")
        x = random((whole.shape[0 if adjoint else 1], 3), "complex128")
        found = product_of(a, "complex128", "cpu")(x, adjoint=adjoint)
        np.testing.assert_allclose(found, (whole.conj().T if adjoint else whole) @ x, rtol=1e-10)

    @pytest.mark.parametrize("form", ["sum", "stack"])
    def test_torch_operators_are_terms_too(self, form):
        terms = [torch.from_numpy(low_rank(300, "float64", i)) for i in range(3)]
        a = (ooc.Sum if form == "sum" else ooc.Stack)(terms)
        x = torch.from_numpy(random((WIDTH, 2)))
        whole = sum(terms) if form == "sum" else torch.cat(terms)
        torch.testing.assert_close(a @ x, whole @ x)
        y = torch.from_numpy(random((whole.shape[0], 2)))
        torch.testing.assert_close(a.rmatmat(y), whole.mH @ y)

    def test_terms_that_are_functions_are_built_one_at_a_time(self):
        alive, most = [], []

        class Term:
            shape, dtype = (300, WIDTH), "float64"

            def __init__(self, seed):
                self.matrix = low_rank(300, "float64", seed)
                alive.append(self)

            def __matmul__(self, x):
                most.append(len(alive))
                alive.clear()
                return torch.from_numpy(self.matrix) @ x

        terms = [lambda seed=seed: Term(seed) for seed in range(5)]
        a = ooc.Sum(terms, shape=(300, WIDTH), dtype="float64")
        product_of(a, "float64", "cpu")(random((WIDTH, 2)))
        assert most == [1] * 5

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: ooc.Sum([]), "at least one term"),
            (lambda: ooc.Sum(np.eye(3)), "is made of a list of operators, not"),
            (lambda: ooc.Sum([np.eye(3), "x"]), "term 1 of a Sum must be an operator"),
            (lambda: ooc.Sum([np.eye(3)], scales=[1, 2]), "1 terms has 2 scales"),
            (lambda: ooc.Sum([np.eye(3)], scales=[1j]), "finite real number, not 1j"),
            (lambda: ooc.Sum([np.eye(3)], scales=[float("nan")]), "finite real number, not nan"),
            (lambda: ooc.Sum([np.eye(3)], dtype="float99"), "dtype = 'float99': must be one of"),
            (lambda: ooc.Stack([np.eye(3), np.eye(4)]), r"widths \[3, 4\]"),
            (lambda: ooc.Stack([np.eye(3)], heights=[3, 4], width=3), "1 terms has 2 heights"),
        ],
        ids=[
            "none",
            "no list",
            "no operator",
            "scales",
            "complex scale",
            "NaN as a scale",
            "dtype",
            "widths",
            "heights",
        ],
    )
    def test_what_makes_no_operator_is_refused(self, make, reason):
        with pytest.raises(OperatorError, match=reason):
            make()

    def test_dtype_holds_the_products_of_all_terms(self):
        a = ooc.Sum(iter([np.eye(3, dtype="float32"), np.eye(3), 1j * np.eye(3)]))
        assert a.dtype == "complex128"

    def test_term_of_another_shape_is_named(self):
        a = ooc.Sum([np.eye(3), np.eye(4)])
        with pytest.raises(OperatorError, match=r"term 1 .* shape \(4, 4\)"):
            product_of(a, "float64", "cpu")(np.eye(3))


class TestPlanning:
    @given(st.integers(1, 400), st.integers(1, 50))
    def test_runs_hold_each_term_once_and_are_no_more_than_wanted(self, terms, parts):
        runs = runs_of(terms, parts)
        assert len(runs) <= parts
        if runs != [None]:
            assert [i for run in runs for i in range(run.start, run.stop)] == list(range(terms))
            width = len(runs[0])
            assert width & (width - 1) == 0
            assert all(len(run) == width for run in runs[:-1])

    def test_sum_is_measured_in_one_part_unless_products_take_too_long(self, tmp_path):
        spec = {"measurements": 20, "kind": "eigh"}
        run = ooc.plan(spec, tmp_path / "a", operator=operator("sum", "eigh", "float32"))
        assert len(run.plan.parts) == 1
        hasty = spec | {"sketch": {"task_seconds": 1e-5}}
        run = ooc.plan(hasty, tmp_path / "b", operator=operator("sum", "eigh", "float32"))
        assert len(run.plan.parts) > 1

    def test_operator_is_looked_at_where_parts_are_asked_for(self, tmp_path):
        args = {"args": {"terms": 6, "n": 400}, "shape": [400, 400], "parts": 3}
        spec = write_spec(tmp_path, "sum_of_terms", 24, sketch={"block": 12}, operator=args)
        assert len(ooc.plan(spec, tmp_path / "run").plan.parts) == 3

    @pytest.mark.parametrize(
        "part",
        [
            Part(),
            Part(
                3,
                -0.5,
                1,
                Range(4, 8),
                11,
                None,
                source=OperatorSource("a.py:f", {"k": [1]}, 32 * "ab", "."),
            ),
            Part(1, 1.0, 0, Range(4, 8), 11, Range(100, 170), together=True),
            Part(columns_at_once=16),
        ],
        ids=["whole", "of a later summand", "rows", "told how many columns at once"],
    )
    def test_part_is_read_back_from_json(self, part):
        assert Part.from_json(part.as_json()) == part

    def test_part_of_a_run_in_one_part_is_spelt_as_ever(self):
        assert Part().as_json() == {"number": 0, "scale": 1.0}

    @pytest.mark.parametrize("value", [{}, None, {"number": 0, "scale": 0}, {"scale": 1.0}])
    def test_what_is_no_part_is_refused(self, value):
        with pytest.raises(UsageError):
            Part.from_json(value)

    @pytest.mark.parametrize("value", [0, float("nan"), float("inf"), "a", True, None])
    def test_what_is_no_factor_is_refused(self, value):
        with pytest.raises(UsageError, match="must be a finite number, and not 0"):
            values.factor("--scale", value)

    @pytest.mark.parametrize(
        "parts", [(), (Part(1),), (Part(0, summand=1),), (Part(0), Part(1, summand=1), Part(2))]
    )
    def test_parts_out_of_order_are_refused(self, parts):
        with pytest.raises(UsageError, match="not numbered in order"):
            require_numbered(parts)


def test_shares_of_parts_make_the_same_run(tmp_path, inside):
    spec = write_spec(tmp_path, "sum_of_terms", 24, sketch={"block": 12}, **SUM)
    assert inside("run", spec, "--run", "whole", "--threads", 1).returncode == 0
    parts = ("--set", "operator.parts=3")
    assert inside("plan", spec, "--run", "run", *parts).returncode == 0
    for index in (1, 0):
        done = inside("task", "run", "measure", "--index", index, "--of", 2, "--threads", 1)
        assert done.returncode == 0, done.stderr
    assert inside("run", "--run", "run", "--threads", 1).returncode == 0
    assert answer(tmp_path / "run") == answer(tmp_path / "whole")


SUM = {"operator": {"args": {"terms": 6, "n": 400}}}


@pytest.mark.thorough
def test_parts_are_measured_by_workers_too(tmp_path, inside):
    spec = write_spec(tmp_path, "sum_of_terms", 24, sketch={"block": 12}, **SUM)
    assert inside("run", spec, "--run", "serial", "--threads", 1).returncode == 0
    workers = ("--executor", "dask", "--workers", 2, "--threads", 1)
    done = inside("run", spec, "--run", "dask", *workers, "--set", "operator.parts=3")
    assert done.returncode == 0, done.stderr
    assert len(ooc.open_run(tmp_path / "dask").plan.parts) == 3
    assert answer(tmp_path / "dask") == answer(tmp_path / "serial")


@pytest.fixture(scope="module")
def updated(finished, tmp_path_factory):
    """A run in four parts to which a matrix was added, made once."""
    run_dir = tmp_path_factory.mktemp("updated") / "run"
    run = ooc.open_run(shutil.copytree(finished("stack"), run_dir))
    more = low_rank(run.plan.identity.shape[0], "float32", 70).astype("float32")
    ooc.update(run, more, scale=0.5)
    return run_dir


class TestWhatFollows:
    """Stages that read the sketches of parts, and of several summands."""

    @pytest.fixture
    def run(self, updated, tmp_path):
        return ooc.open_run(shutil.copytree(updated, tmp_path / "run"))

    @pytest.fixture
    def whole(self):
        a = dense("stack", "svd", "float32")
        return torch.from_numpy(a + 0.5 * low_rank(len(a), "float32", 70))

    def test_implicit_vectors_are_those_that_are_stored(self, run):
        stored = ooc.recover(run)
        implicit = ooc.recover(run, vectors="implicit")
        torch.testing.assert_close(implicit.U[:], stored.U[:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(implicit.Vh[:], stored.Vh[:], rtol=1e-4, atol=1e-5)

    def test_norm_is_estimated_for_the_sum(self, run, whole):
        ooc.recover(run)
        assert ooc.assess(run).norm == pytest.approx(float(torch.linalg.norm(whole)), rel=0.3)

    def test_row_shards_hold_the_sum(self, run):
        from skerch_ooc.stages.merge.task import Merge

        column_shards = Merge(Round(run)).readers()["range"]
        ooc.merge(run, rechunk=True)
        row_shards = Merge(Round(run)).readers()["range"]
        assert row_shards is not column_shards
        for number in range(len(run.plan.tiles())):
            space = np.empty((2, 4096, row_shards.side.columns))
            np.testing.assert_array_equal(
                row_shards.read_row(number, space[0]), column_shards.read_row(number, space[1])
            )

    def test_every_byte_is_verified(self, run):
        from skerch_ooc.pipeline.verify import verify_run

        assert verify_run(run, Progress()) == []
        path = next(run.shards.glob("left.p3.*"))
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        assert len(verify_run(run, Progress())) == 1
