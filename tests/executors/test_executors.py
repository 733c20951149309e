"""Whatever the executor, the memory, the threads or the cut: equal bits."""

from __future__ import annotations

import json
import os
from functools import cache

import pytest
from contents import answer, run_contents
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.resources import parse_bytes, resident_memory

pytestmark = pytest.mark.usefixtures("quick_workers")

EXECUTORS = {
    "serial": ooc.Serial,
    "one worker": lambda: ooc.Dask(workers=1),
    "two workers": lambda: ooc.Dask(workers=2),
}


CASES = {
    "eigh": {},
    "svd": {"kind": "svd"},
    "svd in double precision": {
        "kind": "svd",
        "dtype": "float64",
        "recovery": {"method": "singlepass"},
    },
    "inner sketch": {"kind": "svd", "recovery": {"method": "oversampled"}},
}
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A spec, and the contents of all files that it leads to."""

    @cache
    def reference_of(case):
        folder = tmp_path_factory.mktemp("reference")
        more = CASES[case]
        spec = write_spec(
            folder, "synthetic", 48,
            operator={"args": {"n": 20000, "dtype": more.get("dtype", "float32")}},
            sketch={"test_measurements": 12, "block": 16}, **more,
        )  # fmt: skip
        return spec, run_contents(whole_run(spec, folder / "run"))

    return reference_of


@pytest.mark.sampled(2)
@cases
@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_executor_makes_the_same_files(tmp_path, reference, executor, case):
    spec, expected = reference(case)
    assert run_contents(whole_run(spec, tmp_path / "run", EXECUTORS[executor]())) == expected


@pytest.mark.sampled(1)
@cases
@pytest.mark.parametrize("memory", ["256MiB", "4GiB"])
def test_memory_does_not_change_a_bit(tmp_path, reference, memory, case):
    spec, expected = reference(case)
    # Beyond what this process has come to hold by tests before this one.
    held = resident_memory() + parse_bytes(memory)
    assert run_contents(whole_run(spec, tmp_path / "run", memory=held)) == expected


@pytest.mark.sampled(1)
@cases
def test_tiles_in_flight_do_not_change_a_bit_of_the_sums(tmp_path, reference, case):
    spec, _ = reference(case)
    run_dir = whole_run(spec, tmp_path / "run")
    expected = answer(run_dir)
    for path in run_dir.glob("sketch/*/*.h5"):
        path.unlink()
    ooc.merge(ooc.open_run(run_dir), memory="4GiB", threads=4)
    assert answer(run_dir) == expected


@pytest.mark.sampled(1)
@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("kind", ["eigh", "svd"])
@pytest.mark.parametrize(
    ("factory", "tests"),
    # Products of integers with signs are exact; with Gaussian test vectors they are rounded, and
    # do not depend on the block only if they are formed column by column.
    [("matrix", 0), ("columnwise", 12)],
)
def test_blocks_do_not_change_a_bit_where_products_do_not_depend_on_them(
    tmp_path, block, factory, tests, kind
):
    spec = write_spec(
        tmp_path, factory, 160, dtype="float64", kind=kind,
        operator={"args": {"n": 300, "kind": "integers", "dtype": "float64"}},
        sketch={"test_measurements": tests, "block": 240},
    )  # fmt: skip
    expected = answer(whole_run(spec, tmp_path / "whole"))
    cut = whole_run(spec, tmp_path / "cut", overrides=[f"sketch.block={block}"])
    assert answer(cut) == expected


@pytest.mark.sampled(1)
@cases
def test_row_shards_do_not_change_a_bit_of_the_answer(tmp_path, reference, case):
    spec, _ = reference(case)
    direct = whole_run(spec, tmp_path / "direct")
    run = ooc.plan(spec, tmp_path / "rechunked", memory="4GiB", threads=1)
    ooc.measure(run, threads=1)
    ooc.merge(run, threads=1, rechunk=True)
    ooc.recover(run, threads=1)
    assert answer(tmp_path / "rechunked") == answer(direct)


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("eigh", ["right.p0.c0-48.r0-20000.h5", "test.p0.c0-12.r0-20000.h5"]),
        ("svd", ["left.p0.c0-48.r0-20000.h5", "right.p0.c0-48.r0-20000.h5",
                 "test.p0.c0-12.r0-20000.h5"]),
    ],
)  # fmt: skip
def test_row_shards_are_of_all_columns_of_each_role(tmp_path, reference, case, names):
    spec, _ = reference(case)
    run = ooc.plan(spec, tmp_path / "run", memory="4GiB", threads=1)
    ooc.measure(run, threads=1)
    ooc.merge(run, threads=1, rechunk=True)
    assert sorted(path.name for path in run.sketch.glob("*/*.p0.*")) == names


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("case", "role"), [("eigh", "right"), ("svd", "right"), ("svd", "left")])
def test_recovery_reads_row_shards_where_there_are_any(tmp_path, reference, case, role):
    spec, _ = reference(case)
    run = ooc.plan(spec, tmp_path / "run", memory="4GiB", threads=1)
    ooc.measure(run, threads=1)
    ooc.merge(run, threads=1, rechunk=True)
    row_shard = next((tmp_path / "run").glob(f"sketch/*/{role}.p0*"))
    data = bytearray(row_shard.read_bytes())
    data[len(data) // 2] ^= 1
    row_shard.write_bytes(data)
    with pytest.raises(ooc.CorruptError, match="skerch-ooc merge"):
        ooc.recover(run)


def test_operator_is_built_once_in_each_worker(tmp_path, call_log):
    spec = write_spec(tmp_path, "matrix", 64, sketch={"test_measurements": 12, "block": 4})
    whole_run(spec, tmp_path / "run", ooc.Dask(workers=2))
    workers = [call for call in call_log() if call["pid"] != os.getpid()]
    single = [call["pid"] for call in workers if call["width"] == 1]
    assert sorted(single) == sorted({call["pid"] for call in workers})


def test_workers_use_the_threads_they_are_given(tmp_path):
    spec = write_spec(tmp_path, "matrix", 32, sketch={"test_measurements": 4, "block": 16})
    run_dir = whole_run(spec, tmp_path / "run", ooc.Dask(workers=1), threads=1)
    receipts = [
        json.loads(line) for line in (run_dir / "logs/receipts.jsonl").read_text().splitlines()
    ]
    assert {r["threads"] for r in receipts if r["stage"] == "measure"} == {1}


def test_python_object_cannot_go_to_other_processes(tmp_path):
    import torch

    run = ooc.plan({"measurements": 10}, tmp_path / "run", operator=torch.eye(50))
    with pytest.raises(ooc.UsageError, match="a factory names"):
        ooc.measure(run, ooc.Dask(workers=1))


def test_failing_task_ends_the_run_with_its_message(tmp_path):
    spec = write_spec(
        tmp_path, "matrix", 32, operator={"args": {"fail_after": 4}}, sketch={"block": 4}
    )
    with pytest.raises(ooc.OperatorError, match="no more products today"):
        whole_run(spec, tmp_path / "run", ooc.Dask(workers=1))


@pytest.mark.thorough
def test_one_command_measures_on_two_workers(ooc_command):
    """And starts its workers as it does for everybody; those of other tests are forked."""
    spec = write_spec(ooc_command.cwd, "matrix", 40, sketch={"block": 8})
    done = ooc_command(
        "run", spec, "--run", "run", "--executor", "dask", "--workers", 2, "--memory", "600MiB"
    )
    assert done.returncode == 0, done.stderr
    assert "relative error" in done.stdout
    assert "600.0 MiB for each of 2 workers, 1.2 GiB in all" in done.stderr


@pytest.mark.thorough
def test_four_processes_on_one_run_leave_one_valid_set_of_shards(forked_command):
    spec = write_spec(
        forked_command.cwd, "matrix", 32, operator={"args": {"delay": 0.02}},
        sketch={"test_measurements": 4, "block": 8},
    )  # fmt: skip
    forked_command("plan", spec, "--run", "run")
    processes = [forked_command.start("measure", "run") for _ in range(4)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    assert forked_command("verify", "run").returncode == 0
    assert forked_command("recover", "run").returncode == 0
