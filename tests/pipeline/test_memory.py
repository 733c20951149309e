"""Memory is promised, then kept: peak resident memory of a process, imports included."""

from __future__ import annotations

import json
import sys
from functools import cache

import h5py
import numpy as np
import pytest
import scipy.sparse
from peaks import run_with_peak
from specs import write_spec

from skerch_ooc.base.resources import parse_bytes


def peak_of(folder, *arguments) -> int:
    """The peak resident memory of a command that succeeds, in bytes."""
    done, peak = run_with_peak(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return peak


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory, forked_in):
    """The folder of a measured run, and how large its sketch is."""

    @cache
    def measured(kind, method, rows):
        folder = tmp_path_factory.mktemp(f"{kind}-{method}")
        spec = write_spec(
            folder, "", 128, kind=kind,
            operator={"factory": "skerch_ooc.operators.synthetic:decaying",
                      "args": {"n": rows, "rank": 50}},
            sketch={"test_measurements": 8, "block": 16},
            recovery={"rank": 32, "method": method},
        )  # fmt: skip
        command = forked_in(folder)
        assert command("plan", spec, "--run", "run").returncode == 0
        assert command("measure", "run").returncode == 0
        return folder, sum(path.stat().st_size for path in (folder / "run/shards").iterdir())

    return measured


# The decompositions of recovery are torch's, which alone takes some 240 MiB.
CASES = [
    pytest.param(kind, method, rows, verb, memory, ratio, id=f"{kind} {method} {verb}{size}",
                 marks=marks)
    for kind, method, rows, verb, memory, ratio, size, marks in [
        ("svd", "nystrom", 130_000, "merge", "136MiB", 1.15, ", smallest", ()),
        ("eigh", "nystrom", 1_020_000, "merge", "124MiB", 3.6, "", pytest.mark.thorough),
        ("eigh", "nystrom", 1_020_000, "recover", "370MiB", 1.4, "", pytest.mark.thorough),
        ("svd", "nystrom", 420_000, "merge", "136MiB", 3.3, "", pytest.mark.thorough),
        ("svd", "nystrom", 420_000, "recover", "370MiB", 1.4, "", pytest.mark.thorough),
        ("svd", "hmt", 900_000, "merge", "330MiB", 1.4, ", basis", pytest.mark.soak),
        ("eigh", "nystrom", 2_500_000, "merge", "124MiB", 9, ", 10 times", pytest.mark.soak),
        ("eigh", "nystrom", 2_500_000, "recover", "330MiB", 3.9, ", 4 times", pytest.mark.soak),
        ("svd", "nystrom", 1_050_000, "recover", "330MiB", 3.9, ", 4 times", pytest.mark.soak),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("kind", "method", "rows", "verb", "memory", "ratio"), CASES)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_sketch_larger_than_memory_is_merged_and_recovered_within_it(
    measured_run, kind, method, rows, verb, memory, ratio
):
    folder, size = measured_run(kind, method, rows)
    assert size > ratio * parse_bytes(memory)
    assert peak_of(folder, verb, "run", "--memory", memory) <= parse_bytes(memory)


@pytest.mark.parametrize(
    ("kind", "rows", "memory"),
    [
        ("eigh", 100_000, "600MiB"),
        pytest.param("eigh", 200_000, "900MiB", marks=pytest.mark.thorough),
        pytest.param("svd", 200_000, "900MiB", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_measuring_stays_within_its_memory(tmp_path, kind, rows, memory):
    spec = write_spec(tmp_path, "synthetic", 128, kind=kind, operator={"args": {"n": rows}})
    limit = parse_bytes(memory)
    assert peak_of(tmp_path, "run", spec, "--run", "run", "--memory", memory) <= limit


HEIGHT, WIDTH, SPARSE_WIDTH, ENTRIES = 120_000, 1200, 20_000, 400


def small_numbers(height, width):
    """Slabs of a matrix of small whole numbers, quickly made and compressed."""
    slab = np.random.default_rng(1).integers(0, 4, (4000, width)).astype("float32")
    for start in range(0, height, len(slab)):
        yield slice(start, start + len(slab)), slab


def write_sparse(folder):
    rows, columns = np.arange(HEIGHT)[:, None] % 50, np.arange(ENTRIES) * 50
    starts = np.arange(HEIGHT + 1) * ENTRIES
    values = np.concatenate([slab for _, slab in small_numbers(HEIGHT, ENTRIES)])
    entries = (values.ravel(), (columns + rows).astype("int32").ravel(), starts)
    matrix = scipy.sparse.csr_array(entries, (HEIGHT, SPARSE_WIDTH))
    scipy.sparse.save_npz(folder / "a.npz", matrix, compressed=False)
    return "a.npz"


def write_fortran(folder):
    shape = (HEIGHT, WIDTH)
    out = np.lib.format.open_memmap(folder / "a.npy", "w+", "float32", shape, fortran_order=True)
    for rows, slab in small_numbers(*shape):
        out[rows] = slab
    return "a.npy"


def write_hdf5(folder, **how):
    with h5py.File(folder / "a.h5", "w", rdcc_nbytes=1 << 28) as file:
        data = file.create_dataset("a", (HEIGHT, WIDTH), "float32", **how)
        for rows, slab in small_numbers(HEIGHT, WIDTH):
            data[rows] = slab
    return "a.h5"


MATRICES = [
    ("sparse", write_sparse, "800MiB", {}),
    ("Fortran order", write_fortran, "800MiB", {}),
    ("gzip", write_hdf5, "800MiB", {"chunks": (1000, 50), "compression": 1, "shuffle": True}),
    ("chunks of columns", write_hdf5, "800MiB", {"chunks": (20_000, 1)}),
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("write", "memory", "how"), [case[1:] for case in MATRICES], ids=[case[0] for case in MATRICES]
)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_matrix_on_disk_is_decomposed_within_memory(tmp_path, write, memory, how):
    path = write(tmp_path, **how)
    spec = write_spec(
        tmp_path, "", 60, kind="svd", operator={"factory": "stored", "args": {"path": path}}
    )
    assert peak_of(tmp_path, "run", spec, "--run", "run", "--memory", memory) <= parse_bytes(memory)


def test_less_memory_than_the_plan_asked_for_is_refused_before_measuring(forked_command):
    spec = write_spec(forked_command.cwd, "synthetic", 128, operator={"args": {"n": 400_000}})
    assert forked_command("plan", spec, "--run", "run", "--memory", "4GiB").returncode == 0
    for command in (["run", "--run", "run"], ["measure", "run"]):
        done = forked_command(*command, "--memory", "450MiB")
        assert done.returncode == 2
        assert "a block of 128 columns needs about" in done.stderr
    assert not list((forked_command.cwd / "run/shards").iterdir())


def test_too_little_memory_is_refused_with_what_is_needed(forked_command):
    spec = write_spec(forked_command.cwd, "matrix", 20)
    forked_command("plan", spec, "--run", "run")
    forked_command("measure", "run")
    done = forked_command("merge", "run", "--memory", "60MiB")
    assert done.returncode == 2
    needed = done.stderr.split("at least --memory ")[1].split()[0]
    assert forked_command("merge", "run", "--memory", needed).returncode == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("2GiB", 2**31), ("1.5 kB", 1500), ("500MB", 500_000_000), ("1 TiB", 2**40)],
)
def test_amounts_of_memory_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("said", [3, [], None, {"peak_bytes": 3}, {"peak_bytes": {"measure": "x"}}])
def test_log_that_says_nothing_of_memory_is_no_reason_to_stop(inside, tmp_path, said):
    spec = write_spec(tmp_path, "matrix", 20)
    assert inside("plan", spec, "--run", "run").returncode == 0
    (tmp_path / "run/logs/plan.jsonl").write_text(json.dumps({"estimate": said}) + "\n")
    assert inside("measure", "run").returncode == 0
