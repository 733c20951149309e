"""Vectors and bases in pieces: read as one matrix, made again one by one, never mistaken."""

from __future__ import annotations

import os
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from contents import file_contents, run_contents
from killing import killed_while_writing
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.partition import Range
from skerch_ooc.base.progress import Progress
from skerch_ooc.pipeline.verify import verify_run
from skerch_ooc.store.pieces import open_matrix
from skerch_ooc.store.sealed import SealedFile

ROWS = 140_000
"""35 tiles: two pieces."""

CASES = {
    "eigh": {},
    "svd": {"kind": "svd"},
    "complex svd": {"kind": "svd", "dtype": "complex64"},
    "hmt": {"recovery": {"method": "hmt"}},
}
PIECES = {
    "eigh": ["eigenvectors.t0-32.h5", "eigenvectors.t32-35.h5"],
    "svd": ["U.t0-32.h5", "U.t32-35.h5", "V.t0-32.h5", "V.t32-35.h5"],
}
PIECES |= {"complex svd": PIECES["svd"], "hmt": PIECES["eigh"]}


def spec_of(folder, case, measurements=12, **operator):
    more = CASES[case]
    return write_spec(
        folder, "synthetic", measurements,
        operator={"args": {"n": ROWS, "rank": 6, "dtype": more.get("dtype", "float32")} | operator},
        sketch={"test_measurements": 4, "block": 8}, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and the contents of its files."""

    @cache
    def finished_run(case):
        folder = tmp_path_factory.mktemp("finished")
        run_dir = whole_run(spec_of(folder, case), folder / "run")
        return run_dir, run_contents(run_dir)

    return finished_run


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a finished run."""

    def copy(case):
        run_dir, contents = finished(case)
        shutil.copytree(run_dir, tmp_path / "run")
        return tmp_path / "run", contents

    return copy


def vectors_of(result):
    return [result.eigenvectors] if hasattr(result, "eigenvectors") else [result.U, result.V]


def inodes(folder, pattern):
    return {path.name: path.stat().st_ino for path in folder.glob(pattern)}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CASES)
def test_vectors_of_many_tiles_lie_in_pieces(finished, case):
    run_dir, _ = finished(case)
    assert sorted(path.name for path in run_dir.glob("results/default/*.t*.h5")) == PIECES[case]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CASES)
def test_pieces_are_orthonormal_as_a_whole(finished, case):
    for vectors in vectors_of(ooc.recover(ooc.open_run(finished(case)[0]))):
        u = vectors[:].to(torch.complex128)
        assert (u.mH @ u - torch.eye(u.shape[1])).abs().max() < 1e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES)
def test_pieces_are_the_vectors_that_are_made_when_they_are_read(copied, case):
    run = ooc.open_run(copied(case)[0])
    implicit = ooc.recover(run, vectors="implicit", name="implicit", threads=1)
    for stored, made in zip(vectors_of(ooc.recover(run)), vectors_of(implicit), strict=True):
        assert torch.allclose(stored[:], made[:], atol=1e-6)


@pytest.mark.parametrize("rows", [slice(131_000, 131_100), slice(131_072, 131_073), slice(3, None)])
def test_rows_are_read_across_pieces(finished, rows):
    vectors = ooc.recover(ooc.open_run(finished("eigh")[0])).eigenvectors
    assert torch.equal(vectors[rows], vectors[:][rows])


def test_product_goes_through_all_pieces(finished):
    eig = ooc.recover(ooc.open_run(finished("eigh")[0]))
    v, x = eig.eigenvectors[:].double(), torch.randn(ROWS, 2, dtype=torch.float64)
    assert torch.allclose(eig @ x, (v * eig.eigenvalues.double()) @ (v.T @ x), atol=1e-9)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CASES)
def test_piece_that_was_deleted_is_made_again_and_no_other(copied, case):
    run_dir, contents = copied(case)
    folder = run_dir / "results/default"
    (folder / PIECES[case][0]).unlink()
    kept = inodes(folder, "*.t*.h5")
    ooc.recover(ooc.open_run(run_dir), threads=1)
    assert run_contents(run_dir) == contents
    assert kept.items() <= inodes(folder, "*.t*.h5").items()


def test_solution_is_published_once_and_serves_again(copied):
    run_dir, contents = copied("eigh")
    folder = run_dir / "results/default"
    before = inodes(folder, "recipe.h5")
    (folder / "eigh.h5").unlink()
    ooc.recover(ooc.open_run(run_dir), threads=1)
    assert (inodes(folder, "recipe.h5"), run_contents(run_dir)) == (before, contents)


def test_piece_that_is_gone_is_named_when_it_is_read(copied):
    run_dir, _ = copied("eigh")
    eig = ooc.recover(ooc.open_run(run_dir))
    (run_dir / "results/default/eigenvectors.t32-35.h5").unlink()
    with pytest.raises(ooc.IncompleteError, match=r"eigenvectors\.t32-35\.h5 is gone"):
        eig.eigenvectors[-1]


def test_piece_that_was_altered_is_named_when_it_is_read(copied):
    run_dir, _ = copied("eigh")
    path = run_dir / "results/default/eigenvectors.t0-32.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    eig = ooc.recover(ooc.open_run(run_dir))
    with pytest.raises(ooc.CorruptError, match=r"eigenvectors\.t0-32\.h5 was altered"):
        eig.eigenvectors[:]


def test_piece_of_another_result_is_refused(copied):
    run_dir, _ = copied("eigh")
    run = ooc.open_run(run_dir)
    ooc.recover(run, rank=4, name="four", threads=1)
    name = "eigenvectors.t32-35.h5"
    shutil.copy(run_dir / "results/four" / name, run_dir / "results/default" / name)
    with pytest.raises(ooc.CorruptError, match="is not the piece that"):
        ooc.recover(run).eigenvectors[-1]


@pytest.mark.parametrize("what", ["gone", "of another result"])
def test_verify_names_a_piece_that_is(copied, what):
    run_dir, _ = copied("eigh")
    run = ooc.open_run(run_dir)
    path = run_dir / "results/default/eigenvectors.t32-35.h5"
    path.unlink()
    if what != "gone":
        ooc.recover(run, rank=4, name="four", threads=1)
        shutil.copy(run_dir / "results/four" / path.name, path)
    (wrong,) = verify_run(run, Progress())
    assert str(path) in wrong


def test_verify_finds_a_run_in_pieces_good(finished):
    assert verify_run(ooc.open_run(finished("hmt")[0]), Progress()) == []


def test_basis_in_pieces_is_read_as_one_matrix(finished):
    run_dir, _ = finished("hmt")
    (path,) = run_dir.glob("sketch/*/basis.h5")
    matrix = open_matrix(SealedFile(path), "basis")
    q = matrix.read(Range(0, ROWS), Range(0, matrix.layout.shape[1])).astype("float64")
    assert abs(q.T @ q - torch.eye(q.shape[1]).numpy()).max() < 1e-6


def test_piece_of_a_basis_that_was_deleted_is_made_again(copied):
    run_dir, contents = copied("hmt")
    next(run_dir.glob("sketch/*/basis.t0-32.h5")).unlink()
    ooc.merge(ooc.open_run(run_dir), threads=1)
    assert run_contents(run_dir) == contents


@pytest.mark.thorough
@pytest.mark.parametrize(("matrix", "kept"), [("U", []), ("V", PIECES["svd"][:2])])
def test_recovery_that_was_killed_goes_on_with_its_pieces(forked_command, copied, matrix, kept):
    run_dir, contents = copied("svd")
    folder = run_dir / "results/default"
    shutil.rmtree(folder)
    arguments = ("recover", run_dir, "--threads", 1)
    killed_while_writing(forked_command, matrix, 20, *arguments)
    before = inodes(folder, "*.t*.h5") | inodes(folder, "recipe.h5")
    assert sorted(before) == sorted([*kept, "recipe.h5"])
    assert forked_command(*arguments).returncode == 0
    assert run_contents(run_dir) == contents
    assert before.items() <= inodes(folder, "*.h5").items()


@pytest.mark.thorough
def test_pieces_of_a_sketch_that_has_grown_are_made_anew(copied, tmp_path):
    run_dir, before = copied("eigh")
    run = ooc.extend(ooc.open_run(run_dir), 16)
    ooc.measure(run, threads=1)
    ooc.recover(run, threads=1)
    other = whole_run(spec_of(tmp_path, "eigh", 16), tmp_path / "other")
    for name in ("eigh.h5", *PIECES["eigh"]):
        found, expected = (file_contents(folder / "results/default" / name, identity=False)
                           for folder in (run_dir, other))  # fmt: skip
        assert found == expected
        assert found != {k: v for k, v in before[f"results/default/{name}"].items()
                         if k != "identity"}  # fmt: skip
    assert verify_run(run, Progress()) == []


def test_recovery_beside_one_of_the_same_name_with_other_settings_is_refused(copied):
    run_dir, _ = copied("eigh")
    # As another process has it when it has solved, and not written yet.
    (run_dir / "results/default/eigh.h5").unlink()
    with pytest.raises(ooc.UsageError, match="give another --name"):
        ooc.recover(ooc.open_run(run_dir), rank=3, name="default")


def damaged_piece(run_dir):
    path = run_dir / "results/default/eigenvectors.t0-32.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def test_piece_that_was_left_over_is_verified_before_it_is_used(copied):
    run_dir, contents = copied("eigh")
    path = damaged_piece(run_dir)
    (run_dir / "results/default/eigh.h5").unlink()
    with pytest.raises(ooc.CorruptError, match=f"rm {path}"):
        ooc.recover(ooc.open_run(run_dir))
    path.unlink()
    ooc.recover(ooc.open_run(run_dir), threads=1)
    assert run_contents(run_dir) == contents


def test_advice_of_verify_mends_a_damaged_piece(copied, forked_command):
    run_dir, contents = copied("eigh")
    damaged_piece(run_dir)
    (wrong,) = verify_run(ooc.open_run(run_dir), Progress())
    advice = re.search(r"rm (\S+) && skerch-ooc recover (\S+)$", wrong)
    Path(advice[1]).unlink()
    assert forked_command("recover", advice[2], "--threads", 1).returncode == 0
    assert run_contents(run_dir) == contents


def test_status_sends_to_recover_for_a_piece_that_is_gone(copied, forked_command):
    run_dir, _ = copied("eigh")
    (run_dir / "results/default/eigenvectors.t0-32.h5").unlink()
    state = forked_command("status", run_dir).stdout
    assert f"skerch-ooc recover {run_dir}" in state


@pytest.mark.parametrize("verb", ["assess", "recover"])
def test_truncated_piece_is_noticed_by(copied, forked_command, verb):
    run_dir, _ = copied("eigh")
    path = run_dir / "results/default/eigenvectors.t0-32.h5"
    os.truncate(path, 10_000)
    done = forked_command(verb, run_dir)
    assert (done.returncode, str(path) in done.stderr) == (5, True)


def test_recipe_that_was_altered_is_named(copied):
    run_dir, _ = copied("eigh")
    folder = run_dir / "results/default"
    (folder / "eigh.h5").unlink()
    data = bytearray((folder / "recipe.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "recipe.h5").write_bytes(data)
    with pytest.raises(ooc.CorruptError, match=r"rm .*recipe\.h5"):
        ooc.recover(ooc.open_run(run_dir))
