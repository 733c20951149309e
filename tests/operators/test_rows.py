"""Matrices on disk: one reading makes the sketches of both sides, in however many parts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import scipy.sparse
import torch
from contents import answer

import skerch_ooc as ooc
from skerch_ooc.algebra.noise import draw, draw_entries
from skerch_ooc.base.errors import IncompleteError, OperatorError, UsageError
from skerch_ooc.base.noise_kinds import SPARSE
from skerch_ooc.base.partition import Range
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.matrices.npy import NpySource
from skerch_ooc.operators.matrix import stored
from skerch_ooc.pipeline.readings import sizes_for_rows
from skerch_ooc.pipeline.run import run_all
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.sizes import sizes_of
from skerch_ooc.planning.spec import Spec
from skerch_ooc.results.lowrank import open_result

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 13000, 30


def entries(dtype="float32", height=HEIGHT, width=WIDTH, mean=0.0, seed=5):
    """A matrix of rank 8 with noise."""
    generator = np.random.default_rng(seed)

    def normal(*shape):
        real = generator.standard_normal(shape)
        is_complex = np.dtype(dtype).kind == "c"
        return real + 1j * generator.standard_normal(shape) if is_complex else real

    low = normal(height, 8) * 0.6 ** np.arange(8) @ normal(8, width)
    return (mean + low + 1e-3 * normal(height, width)).astype(dtype)


@pytest.fixture(autouse=True)
def terms_of_4096_rows(monkeypatch):
    monkeypatch.setattr("skerch_ooc.operators.matrix.TERM_BYTES", 1)
    monkeypatch.setattr("skerch_ooc.operators.matrix.SLAB_BYTES", 1000 * WIDTH * 4)


@pytest.fixture
def rows_read(monkeypatch):
    """How often each row of a .npy file is read, those of the sample left out."""
    counts, read = {}, NpySource.read

    def counted(self, rows, out=None):
        if len(rows) > 1:
            for row in range(rows.start, rows.stop):
                counts[row] = counts.get(row, 0) + 1
        return read(self, rows, out)

    monkeypatch.setattr(NpySource, "read", counted)
    return counts


def on_disk(folder, a, **options):
    np.save(folder / "a.npy", a)
    return stored("a.npy", folder=str(folder), **options)


def spec(dtype="float32", kind="svd", parts="auto", measurements=16, **tables):
    return {
        "kind": kind, "measurements": measurements, "dtype": dtype, "operator": {"parts": parts},
    } | tables  # fmt: skip


def decomposed(matrix, run_dir, **more):
    asked, work = Spec.from_table(spec(**more)), Work.of(memory="4GiB", threads=1)
    planned = make_plan(asked, run_dir, work, operator=matrix)
    assessment = run_all(planned, work, operator=matrix)
    return planned.run, ooc.recover(planned.run), assessment


def dense(usv):
    return (usv.U[:] * usv.S) @ usv.Vh[:]


METHODS = {"nystrom": 1, "singlepass": 1, "oversampled": 1, "hmt": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the matrix in the file ``a.npy`` beside it, made once."""
    folder = tmp_path_factory.mktemp("finished")
    decomposed(on_disk(folder, entries()), folder / "run")
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run."""
    return ooc.open_run(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_each_round_reads_each_row_once(tmp_path, rows_read, method, parts):
    matrix = on_disk(tmp_path, entries())
    decomposed(matrix, tmp_path / "run", parts=parts, recovery={"method": method})
    assert set(rows_read) == set(range(HEIGHT))
    assert set(rows_read.values()) == {METHODS[method]}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("method", METHODS)
def test_decomposition_is_that_of_the_matrix(tmp_path, method, dtype):
    a = entries(dtype)
    _, usv, assessment = decomposed(
        on_disk(tmp_path, a), tmp_path / "run", dtype=dtype, recovery={"method": method}
    )
    error = float(torch.linalg.norm(torch.from_numpy(a) - dense(usv)) / np.linalg.norm(a))
    assert error < 4e-3
    assert assessment.relative_error == pytest.approx(error, rel=0.5)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("parts", "dtype"), [(2, "float32"), (4, "complex128")])
@pytest.mark.parametrize("method", METHODS)
def test_answer_is_the_same_bit_for_bit_in_however_many_parts(tmp_path, method, parts, dtype):
    a = entries(dtype)
    for name, count in (("one", 1), ("several", parts)):
        decomposed(
            on_disk(tmp_path, a), tmp_path / name, parts=count, dtype=dtype,
            recovery={"method": method},
        )  # fmt: skip
    assert answer(tmp_path / "several") == answer(tmp_path / "one")


def test_blocks_that_fit_into_memory_are_measured_together_and_others_in_turn(
    tmp_path, rows_read, finished
):
    matrix = on_disk(tmp_path, entries())
    run, usv, _ = decomposed(matrix, tmp_path / "run", sketch={"block": 10})
    assert set(rows_read.values()) == {len(run.plan.blocks("left"))}
    whole = ooc.recover(ooc.open_run(finished / "run"))
    torch.testing.assert_close(usv.S[:8], whole.S[:8], rtol=1e-4, atol=0)


class TestLeftSketch:
    def test_is_wide_and_sparse_where_the_matrix_is_tall(self, tmp_path):
        run = ooc.plan(spec(), tmp_path / "run", operator=on_disk(tmp_path, entries()))
        assert run.plan.reach("left") == 8 * run.plan.reach("right")
        assert run.plan.identity.noise["left"] in SPARSE
        assert run.plan.identity.noise["right"] == "rademacher"

    @pytest.mark.parametrize(("width", "factor"), [(10_000, 8), (15_000, 5), (80_000, 4)])
    def test_has_fewer_columns_where_the_matrix_is_wide(self, width, factor):
        asked = Spec.from_table(spec())
        sizes, _ = sizes_for_rows(asked, (100_000, width), sizes_of(asked, (100_000, width)))
        assert sizes.left == factor * sizes.right

    @pytest.mark.parametrize(
        "more",
        [{"sketch": {"left_measurements": 30}}, {"recovery": {"method": "singlepass"}}],
        ids=["asked for", "another method"],
    )
    def test_is_as_ever_where(self, tmp_path, more):
        run = ooc.plan(spec(**more), tmp_path / "run", operator=on_disk(tmp_path, entries()))
        assert run.plan.reach("left") <= 30
        assert run.plan.identity.noise["left"] == "rademacher"

    def test_is_as_ever_where_the_matrix_is_not_tall(self, tmp_path):
        matrix = on_disk(tmp_path, entries(height=300))
        run = ooc.plan(spec(recovery={"method": "nystrom"}), tmp_path / "run", operator=matrix)
        assert run.plan.reach("left") == 24

    def test_the_same_spec_goes_on_with_a_run_that_has_it(self, tmp_path):
        matrix = on_disk(tmp_path, entries())
        run = ooc.plan(spec(), tmp_path / "run", operator=matrix)
        assert ooc.plan(spec(), tmp_path / "run", operator=matrix).plan == run.plan

    def test_grows_in_proportion(self, tmp_path, copied):
        matrix = on_disk(tmp_path, entries())
        run = ooc.extend(copied, 20)
        assert run.plan.reach("left") == 160
        ooc.measure(run, operator=matrix)
        grown = ooc.recover(run)
        _, at_once, _ = decomposed(matrix, tmp_path / "at once", measurements=20)
        torch.testing.assert_close(grown.S[:8], at_once.S[:8], rtol=1e-5, atol=0)


@pytest.mark.parametrize("noise", SPARSE)
class TestSparseNoise:
    @pytest.mark.parametrize("columns", [Range(0, 700), Range(3, 600), Range(255, 258)])
    def test_entries_are_those_of_the_matrix(self, noise, columns):
        rows = Range(5, 90)
        found = draw_entries(noise, 7, "left", rows, columns)
        whole = np.zeros((len(rows), len(columns)))
        whole[found.rows, found.columns] = found.values
        drawn = draw(noise, 7, "left", Range(0, 100), Range(0, 1500), "float64")
        np.testing.assert_array_equal(whole, drawn[rows.slice, columns.slice])

    def test_each_row_has_one_entry_in_each_unit_of_columns(self, noise):
        unit = SPARSE[noise]
        drawn = draw(noise, 7, "left", Range(0, 500), Range(0, 4 * unit), "float32")
        counts = np.count_nonzero(drawn.reshape(500, 4, unit), axis=2)
        assert (counts == 1).all()
        assert set(np.abs(drawn[drawn != 0])) == {unit**0.5}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("parts", [1, 4])
def test_transposed_matrix_is_that_of_its_file_in_however_many_parts(tmp_path, kind, parts):
    a = entries(mean=2.0)
    a = a * (np.random.default_rng(1).random(a.shape) < 0.3) if kind == "sparse" else a
    path = tmp_path / ("a.npz" if kind == "sparse" else "a.npy")
    if kind == "sparse":
        scipy.sparse.save_npz(path, scipy.sparse.csr_array(a))
    else:
        np.save(path, a)
    matrix = stored(str(path), transpose=True, subtract="row-mean")
    run, usv, assessment = decomposed(
        matrix, tmp_path / "run", parts=parts, recovery={"method": "hmt"}, measurements=30
    )
    assert len(run.plan.parts) == parts
    wide = torch.from_numpy(a).double().mT
    wide -= wide.mean(dim=1, keepdim=True)
    torch.testing.assert_close(
        usv.S[:8].double(), torch.linalg.svdvals(wide)[:8], rtol=1e-5, atol=0
    )
    assert assessment.relative_error < 1e-4


class TestCentring:
    """Principal components, from one reading."""

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("mean", [0.0, 1e3])
    @pytest.mark.parametrize("method", METHODS)
    def test_components_are_those_of_the_centred_matrix(self, tmp_path, rows_read, method, mean):
        a = entries(mean=mean)
        matrix = on_disk(tmp_path, a, subtract="column-mean")
        _, usv, assessment = decomposed(
            matrix, tmp_path / "run", parts=1, recovery={"method": method}
        )
        assert set(rows_read.values()) == {METHODS[method]}
        wide = torch.from_numpy(a).double()
        centred = wide - wide.mean(dim=0)
        error = float(torch.linalg.norm(centred - dense(usv)) / torch.linalg.norm(centred))
        assert error < 4e-3
        assert assessment.relative_error == pytest.approx(error, rel=0.5)

    def test_in_parts_the_means_are_read_first(self, tmp_path, rows_read):
        matrix = on_disk(tmp_path, entries(mean=5.0), subtract="column-mean")
        _, in_parts, _ = decomposed(matrix, tmp_path / "parts", parts=4)
        assert set(rows_read.values()) == {2}
        again = on_disk(tmp_path, entries(mean=5.0), subtract="column-mean")
        _, in_one, _ = decomposed(again, tmp_path / "one", parts=1)
        torch.testing.assert_close(in_parts.S[:8], in_one.S[:8], rtol=1e-5, atol=0)

    @pytest.mark.parametrize("subtract", ["row-mean", "both"])
    def test_means_of_rows_may_be_a_million_times_the_spread(self, tmp_path, subtract):
        a = entries(height=200, mean=1e6)
        centred = a.astype(np.float64)
        for axis in (1, 0)[: 2 if subtract == "both" else 1]:
            centred -= centred.mean(axis=axis, keepdims=True)
        found = on_disk(tmp_path, a, subtract=subtract).as_product("float32", "cpu")
        np.testing.assert_allclose(found(np.eye(WIDTH, dtype=np.float32)), centred, atol=1e-5)

    def test_what_is_missing_in_rows_that_are_columns_is_zero_without_their_mean(self, tmp_path):
        a = entries(height=200, mean=1e6)
        a[::3, ::2] = np.nan
        centred = np.nan_to_num(a - np.nanmean(a.astype(np.float64), axis=0))
        matrix = on_disk(
            tmp_path, a.T, transpose=True, subtract="column-mean", missing="column-mean"
        )
        found = matrix.as_product("float32", "cpu")
        np.testing.assert_allclose(found(np.eye(WIDTH, dtype=np.float32)), centred, atol=1e-5)


class TestFaults:
    def test_missing_entry_among_the_first_looked_at_is_named_when_it_is_planned(self, tmp_path):
        a = entries()
        a[0, 3] = np.nan
        with pytest.raises(OperatorError, match="row 0 of the matrix holds nan in column 3"):
            ooc.plan(spec(), tmp_path / "run", operator=on_disk(tmp_path, a))

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("row", [1, 4095, 12999])
    def test_missing_entry_is_named_by_its_row_and_nothing_is_published(self, tmp_path, row):
        a = entries()
        matrix = on_disk(tmp_path, a)
        run = ooc.plan(spec(parts=1), tmp_path / "run", operator=matrix)
        a[row, 3] = np.nan
        np.save(tmp_path / "a.npy", a)
        with pytest.raises(OperatorError, match=f"row {row} of the matrix holds nan in column 3"):
            ooc.measure(run, operator=on_disk(tmp_path, a))
        assert list(run.shards.iterdir()) == []

    def test_missing_entry_of_a_sparse_matrix_is_named_when_it_is_planned(self, tmp_path):
        links = scipy.sparse.eye_array(50, format="csr")
        links.data[7] = np.nan
        scipy.sparse.save_npz(tmp_path / "a.npz", links)
        with pytest.raises(OperatorError, match="row 7 of the matrix holds nan in column 7"):
            ooc.plan(
                spec("float64"), tmp_path / "run", operator=stored("a.npz", folder=str(tmp_path))
            )

    @pytest.mark.parametrize("scale", [1e-200, 1e200])
    def test_matrix_whose_squares_are_out_of_range_is_refused(self, tmp_path, scale):
        matrix = on_disk(tmp_path, entries("float64", height=50) * scale)
        with pytest.raises(OperatorError, match="square is out of the range"):
            ooc.plan(spec("float64"), tmp_path / "run", operator=matrix)

    def test_single_entry_whose_square_is_out_of_range_is_refused(self, tmp_path):
        a = entries("float64", height=200)
        a[101, 3] = 1e300
        with pytest.raises(OperatorError, match="look for a wrong entry"):
            decomposed(on_disk(tmp_path, a), tmp_path / "run", dtype="float64")

    def test_zero_matrix_is_nothing_to_decompose(self, tmp_path):
        matrix = on_disk(tmp_path, np.zeros((HEIGHT, WIDTH), np.float32))
        with pytest.raises(UsageError, match="there is nothing to decompose"):
            decomposed(matrix, tmp_path / "run")

    def test_matrix_of_other_rows_is_found_by_its_fingerprint(self, tmp_path):
        run = ooc.plan(spec(), tmp_path / "run", operator=on_disk(tmp_path, entries()))
        with pytest.raises(ooc.DriftError, match="not the one that the run started with"):
            ooc.measure(run, operator=on_disk(tmp_path, entries(seed=6)))

    def test_memory_that_holds_not_all_rows_of_a_part_makes_more_parts(self, tmp_path, monkeypatch):
        from skerch_ooc.pipeline import readings

        matrix = on_disk(tmp_path, entries())
        monkeypatch.setattr(readings, "parts_that_fit", lambda *_: 3)
        run = ooc.plan(spec(), tmp_path / "run", operator=matrix)
        assert len(run.plan.parts) == 2


def test_wide_matrix_is_decomposed(tmp_path):
    a = np.ascontiguousarray(entries(height=5000).T)
    _, usv, _ = decomposed(on_disk(tmp_path, a), tmp_path / "run")
    error = float(torch.linalg.norm(torch.from_numpy(a) - dense(usv)) / np.linalg.norm(a))
    assert error < 4e-3


def test_sparse_matrix_with_empty_rows_is_decomposed(tmp_path):
    generator = np.random.default_rng(1)
    full = scipy.sparse.random_array((1100, 200), density=0.01, rng=generator, dtype="float64")
    empty = scipy.sparse.csr_array((3900, 200))
    a = scipy.sparse.vstack([full, empty]).tocsr()
    usv = ooc.svd(a, measurements=200, run_dir=tmp_path / "run")
    expected = torch.linalg.svdvals(torch.from_numpy(a.toarray()))
    torch.testing.assert_close(usv.S[:50], expected[:50], rtol=1e-6, atol=0)


class TestUpdate:
    """``A <- b A + a B``, by the sketch of ``B`` alone."""

    def sum_of(self, *scaled):
        return sum(scale * entries("float64", seed=seed) for scale, seed in scaled)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("method", [name for name in METHODS if name != "hmt"])
    def test_result_and_error_are_those_of_the_sum(self, tmp_path, rows_read, method):
        base, more = entries("float64"), entries("float64", seed=6)
        options = {"dtype": "float64", "recovery": {"method": method}, "measurements": 20}
        run, *_ = decomposed(on_disk(tmp_path, base), tmp_path / "run", **options)
        rows_read.clear()
        run = ooc.update(run, on_disk(tmp_path, more), scale=-0.5, forget=0.9)
        assert set(rows_read.values()) == {1}
        usv, assessment = ooc.recover(run), ooc.assess(run)
        a = 0.9 * base - 0.5 * more
        _, at_once, expected = decomposed(on_disk(tmp_path, a), tmp_path / "sum", **options)
        torch.testing.assert_close(usv.S[:16], at_once.S[:16], rtol=1e-6, atol=0)
        assert assessment.relative_error == pytest.approx(expected.relative_error, rel=1e-3)
        error = float(torch.linalg.norm(torch.from_numpy(a) - dense(usv)) / np.linalg.norm(a))
        assert assessment.relative_error == pytest.approx(error, rel=0.6)

    @pytest.mark.thorough
    def test_several_updates_add_up(self, tmp_path):
        first, second, third = (entries("float64", seed=seed) for seed in (5, 6, 7))
        run, *_ = decomposed(
            on_disk(tmp_path, first), tmp_path / "run", dtype="float64", measurements=28
        )
        run = ooc.update(run, second, forget=0.5)
        run = ooc.update(run, on_disk(tmp_path, third), scale=2, forget=0.5)
        assert [part.scale for part in run.plan.parts] == [0.25, 0.5, 2.0]
        usv = ooc.recover(run)
        expected = torch.linalg.svdvals(torch.from_numpy(0.25 * first + 0.5 * second + 2 * third))
        torch.testing.assert_close(usv.S[:5], expected[:5], rtol=1e-3, atol=0)

    def test_products_of_the_first_summand_are_not_repeated(self, copied):
        run = copied
        before = {path.name: path.stat().st_mtime_ns for path in run.shards.iterdir()}
        run = ooc.update(run, entries(seed=6))
        after = {path.name: path.stat().st_mtime_ns for path in run.shards.iterdir()}
        assert before.items() <= after.items()
        assert ooc.recover(run) is not None
        assert run.plan.products == 2 * (16 + 128 + 30 + 10)

    def test_columns_can_be_added_afterwards(self, tmp_path):
        base, more = entries("float64"), entries("float64", seed=6)
        np.save(tmp_path / "base.npy", base)
        np.save(tmp_path / "more.npy", more)
        asked = spec("float64")
        asked["operator"] |= {"factory": "stored", "args": {"path": str(tmp_path / "base.npy")}}
        run = ooc.plan(asked, tmp_path / "run")
        ooc.measure(run)
        run = ooc.update(run, ooc.OperatorSpec("stored", {"path": str(tmp_path / "more.npy")}))
        run = ooc.extend(run, 24)
        ooc.measure(run)
        _, at_once, _ = decomposed(
            on_disk(tmp_path, base + more), tmp_path / "sum", dtype="float64", measurements=24
        )
        torch.testing.assert_close(ooc.recover(run).S[:16], at_once.S[:16], rtol=1e-6, atol=0)

    def test_method_that_is_not_linear_is_refused_by_name(self, tmp_path):
        a = entries()
        run, *_ = decomposed(on_disk(tmp_path, a), tmp_path / "run", recovery={"method": "hmt"})
        with pytest.raises(UsageError, match='method = "hmt" cannot be updated'):
            ooc.update(run, a)

    def test_run_that_is_not_measured_is_refused(self, tmp_path):
        run = ooc.plan(spec(), tmp_path / "run", operator=on_disk(tmp_path, entries()))
        with pytest.raises(IncompleteError, match="is not measured to its end"):
            ooc.update(run, entries())

    def test_summand_of_another_shape_is_refused(self, copied):
        with pytest.raises(UsageError, match=r"has shape \(5, 30\)"):
            ooc.update(copied, entries(height=5))

    @pytest.mark.parametrize(
        "factors", [{"scale": 0}, {"forget": 0}, {"scale": float("nan")}], ids=str
    )
    def test_factor_that_is_none_is_refused(self, copied, factors):
        with pytest.raises(UsageError, match="must be a finite number, and not 0"):
            ooc.update(copied, entries(), **factors)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder with a finished run of a matrix that a factory names, made once."""
    folder = tmp_path_factory.mktemp("named")
    np.save(folder / "a.npy", entries())
    np.save(folder / "b.npy", entries(seed=6))
    (folder / "spec.toml").write_text(
        'kind = "svd"\nmeasurements = 16\n[operator]\nfactory = "stored"\n'
        '[operator.args]\npath = "a.npy"\n'
    )
    ooc.run(folder / "spec.toml", folder / "run")
    return folder


class TestUpdateCommand:
    @pytest.fixture
    def run_dir(self, named, tmp_path):
        return shutil.copytree(named, tmp_path, dirs_exist_ok=True) / "run"

    UPDATE = ("update", "run", "--factory", "stored", "--arg", "path=b.npy", "--scale", "1/2")

    def test_result_is_that_of_the_sum(self, run_dir, inside):
        done = inside(*self.UPDATE)
        assert done.returncode == 0, done.stderr
        usv = open_result(run_dir / "results/default/svd.h5")
        expected = torch.linalg.svdvals(torch.from_numpy(entries() + 0.5 * entries(seed=6)))
        torch.testing.assert_close(usv.S[:4], expected[:4], rtol=1e-2, atol=0)

    def test_what_was_added_is_not_added_again_unless_that_is_said(self, run_dir, inside):
        assert inside(*self.UPDATE).returncode == 0
        again = inside(*self.UPDATE)
        assert again.returncode == 2
        assert "was added" in again.stderr
        assert "--again" in again.stderr
        assert inside(*self.UPDATE, "--again").returncode == 0
        assert len(ooc.open_run(run_dir).plan.parts) == 3

    def test_interrupted_update_is_finished_by_the_same_command(self, run_dir, inside):
        assert inside(*self.UPDATE, "--plan-only").returncode == 0
        assert inside(*self.UPDATE).returncode == 0
        assert len(ooc.open_run(run_dir).plan.parts) == 2

    def test_planned_update_is_finished_by_run(self, run_dir, inside):
        assert inside(*self.UPDATE, "--plan-only").returncode == 0
        assert inside("run", "--run", "run").returncode == 0
        assert inside("status", "run").returncode == 0

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (("--arg", "path"), "must have the form key=value"),
            (("--scale", 0), "not 0"),
            (("--forget", "a/b"), "no fraction such as 3/11"),
        ],
        ids=["argument", "scale", "fraction"],
    )
    def test_mistakes_are_named(self, run_dir, inside, options, reason):
        del run_dir
        done = inside(*self.UPDATE, *options)
        assert done.returncode == 2
        assert reason in done.stderr


@pytest.mark.sampled(1)
@pytest.mark.parametrize("method", METHODS)
def test_hermitian_matrix_on_disk_is_decomposed(tmp_path, method):
    low = entries("complex128", height=600)
    a = (low @ low.conj().T) / 1e3
    run, eig, _ = decomposed(
        on_disk(tmp_path, a), tmp_path / "run", dtype="complex128", kind="eigh",
        recovery={"method": method},
    )  # fmt: skip
    assert run.plan.parts[0].together
    expected = torch.linalg.eigvalsh(torch.from_numpy(a)).flip(0)
    torch.testing.assert_close(eig.eigenvalues[:8], expected[:8], rtol=1e-4, atol=0)
