"""Clean: what each option removes, what it keeps, when it refuses, and what works afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from contents import file_contents, run_contents
from killing import killed_while_removing
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.errors import CorruptError, IncompleteError, OocError, UsageError
from skerch_ooc.base.files import canonical_json, digest
from skerch_ooc.base.partition import Range
from skerch_ooc.base.progress import Progress
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline import needs
from skerch_ooc.pipeline.verify import verify_run
from skerch_ooc.planning import tasks
from skerch_ooc.stages.merge.task import Merge
from skerch_ooc.store.inventory import take_inventory
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.leftovers import DAY, MOMENT, may_be_at_work, seconds_of
from skerch_ooc.store.rundir import open_run
from skerch_ooc.store.sealed import sealed_writer
from skerch_ooc.store.shards import Rectangle, list_shards, publish_shard
from skerch_ooc.store.sketch import Round, known_rounds

pytestmark = pytest.mark.usefixtures("one_thread", "no_late_files")

HOST = socket.gethostname()
N = 200
PIECED_ROWS = 9_000
"""Three tiles: two pieces, two partial sums, as tasks are cut here."""

CASES = {
    "eigh": {},
    "svd": {"kind": "svd"},
    "hmt": {"recovery": {"method": "hmt"}},
    "hmt svd": {"kind": "svd", "recovery": {"method": "hmt", "power_iterations": 1}},
    "ssrft": {"sketch": {"noise": "ssrft"}},
    "tolerance": {"tolerance": 0.9},
    "krylov": {
        "pairs_tolerance": 1e-3,
        "round_width": 8,
        "recovery": {"method": "krylov", "rank": 4},
    },
}
PIECED = {"pieces": {}, "pieces hmt": {"recovery": {"method": "hmt"}}}
GROWN = ("extended", "extended hmt", "updated")
ALL = [*CASES, *PIECED, *GROWN]
OFTEN = ["eigh", "hmt svd", "pieces hmt", "extended hmt", "updated"]


def finish(run):
    for _ in range(run.plan.rounds):
        ooc.measure(run, threads=1)
        ooc.merge(run, threads=1)
    ooc.recover(run, threads=1)
    ooc.assess(run)
    return run


def spec_of(folder, case):
    sketch = {"test_measurements": 12, "block": 8}
    if case in PIECED:
        args = {"n": PIECED_ROWS, "rank": 6}
        return write_spec(folder, "synthetic", 12, operator={"args": args},
                          sketch=sketch | {"test_measurements": 4}, **PIECED[case])  # fmt: skip
    more = dict(CASES.get(case) or CASES["hmt" if case == "extended hmt" else "eigh"])
    return write_spec(folder, "matrix", 40, sketch=sketch | more.pop("sketch", {}), **more)


def make(folder, case):
    spec = spec_of(folder, case)
    if case == "tolerance":
        # Which alone grows the plan on the way.
        from skerch_ooc.cli.main import run_command_line

        assert run_command_line(["run", str(spec), "--run", str(folder / "run")]) == 0
        return
    run = finish(ooc.plan(spec, folder / "run", threads=1))
    if case.startswith("extended"):
        finish(ooc.extend(run, 50, repeat_rounds=True))
    elif case == "updated":
        added = ooc.OperatorSpec("decaying", {"n": N, "rank": 5})
        run = ooc.update(run, added, scale=0.5)
        ooc.recover(run, threads=1)
        ooc.assess(run)


@pytest.fixture(scope="module", autouse=True)
def tasks_of_two_tiles():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "SMALLEST_RUN", 1)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs that are finished, made once each."""

    @cache
    def finished_run(case):
        folder = tmp_path_factory.mktemp("finished")
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("SKERCH_OOC_TEST_LOG", raising=False)
            make(folder, case)
        return folder / "run"

    return finished_run


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a finished run, as the folder ``run`` of the test."""

    def copy(case="eigh"):
        shutil.copytree(finished(case), tmp_path / "run", symlinks=True)
        return ooc.open_run(tmp_path / "run")

    return copy


def files_of(directory):
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}


def results_of(run):
    """The bits of all results."""
    return {name: bits for name, bits in run_contents(run.directory).items() if "results" in name}


def freed(done, kind=None):
    return sorted(one.path for one in done.freed if kind in (None, one.kind))


def private(folder, host=HOST, pid=1, age=0.0, size=10):
    """A private file as a process leaves it, so many seconds ago."""
    path = folder / f".tmp-{host}-{pid}-0123abcd"
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def shard_file(run, position=0):
    return run.shards / list_shards(run.shards)[position].name


# Leftovers


@pytest.mark.parametrize("place", [".", "plan.d", "shards", "sketch/*", "results/*", "logs"])
def test_leftovers_of_dead_processes_go(copied, dead, place):
    run = copied()
    (folder,) = run.directory.glob(place) if place != "." else [run.directory]
    left = private(folder, pid=dead, age=2 * MOMENT)
    done = ooc.clean(run)
    assert (freed(done), left.exists()) == ([str(left.relative_to(run.directory))], False)


@pytest.mark.parametrize(
    ("owner", "age", "older_than", "stays"),
    [
        ("living", 0, DAY, True),
        ("living", 1000, DAY, True),
        ("living", 1000, 0, True),
        ("reused", 10 * DAY, DAY, False),
        ("dead", MOMENT / 2, DAY, True),
        ("dead", MOMENT / 2, 0, False),
        ("dead", 2 * MOMENT, DAY, False),
        ("other host", DAY / 2, DAY, True),
        ("other host", DAY / 2, DAY / 4, False),
        ("other host", 2 * DAY, DAY, False),
        ("nobody", DAY / 2, DAY, True),
        ("nobody", 2 * DAY, DAY, False),
    ],
)
def test_private_file_stays_while_its_process_may_be_at_work(dead, owner, age, older_than, stays):
    names = {
        "living": f".tmp-{HOST}-{os.getpid()}-0123abcd",
        # This process began after the file was written.
        "reused": f".tmp-{HOST}-{os.getpid()}-0123abcd",
        "dead": f".tmp-{HOST}-{dead}-0123abcd",
        "other host": f".tmp-node-17-{os.getpid()}-0123abcd",
        "nobody": ".tmp-somebody",
    }
    assert may_be_at_work(names[owner], time.time() - age, older_than) == stays


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", DAY), (7, 7)]
)
def test_times_have_units(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1w", "soon", "nan"])
def test_what_is_no_time_is_refused(inside, copied, text):
    copied()
    done = inside("clean", "run", f"--older-than={text}")
    assert (done.returncode, "12h" in done.stderr) == (2, True)


def test_leftovers_go_from_a_run_that_is_not_finished_and_nothing_else(copied, dead):
    run = copied("extended hmt")
    shard_file(run).unlink()
    before = files_of(run.directory)
    private(run.shards, pid=dead, age=2 * MOMENT)
    done = ooc.clean(run)
    assert freed(done, "leftovers") == freed(done)
    assert files_of(run.directory) == before
    assert "measure" in done.kept[0]


def test_while_a_process_is_at_work_only_leftovers_go(copied):
    run = copied("extended")
    left = private(run.sketch, pid=os.getpid())
    done = ooc.clean(run)
    assert (freed(done), left.exists()) == ([], True)
    assert f"process {os.getpid()} of {HOST}" in done.kept[0]


# Without options


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", ["eigh", "svd", "hmt", "hmt svd"])
def test_finished_run_has_nothing_to_be_removed(copied, case):
    assert freed(ooc.clean(copied(case))) == []


def test_sums_of_earlier_looks_at_the_error_go(copied):
    done = ooc.clean(copied("tolerance"))
    assert all(path.startswith("sketch/") for path in freed(done))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", ALL)
def test_after_cleaning_results_are_the_same_and_nothing_is_left_to_do(
    copied, case, call_log, inside
):
    run = copied(case)
    results, shards = results_of(run), set(run_contents(run.shards))
    ooc.clean(run)
    assert results_of(run).items() <= results.items()
    done = inside("run", "--run", "run", "--threads", 1)
    assert (done.returncode, call_log()) == (0, [])
    assert {name: b for name, b in results_of(run).items() if "recipe" not in name} == {
        name: b for name, b in results.items() if "recipe" not in name
    }
    assert verify_run(run, Progress()) == []
    unused = {name for name in shards if name.startswith("round")} if "extended" in case else set()
    assert shards - set(run_contents(run.shards)) <= unused


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", GROWN)
def test_sketches_that_the_run_has_outgrown_go(copied, case):
    run = copied(case)
    ooc.clean(run)
    used = {known.sketch.folder.name for known in known_rounds(run)}
    assert {path.name for path in run.sketch.iterdir()} == used


def test_shards_of_a_basis_that_was_replaced_go_and_no_others(copied):
    run = copied("extended hmt")
    *_, last = known_rounds(run)
    done = ooc.clean(run)
    gone = [path for path in freed(done) if path.startswith("shards/")]
    assert gone
    assert all(path.startswith("shards/round2-") and last.role not in path for path in gone)


def test_implicit_result_keeps_what_it_was_made_of_before_the_run_has_grown(finished, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SKERCH_OOC_TEST_LOG", raising=False)
        run = finish(ooc.plan(spec_of(tmp_path, "hmt"), tmp_path / "run", threads=1))
        implicit = ooc.recover(run, vectors="implicit", threads=1)
        before = implicit.eigenvectors[:]
        run = finish(ooc.extend(run, 50, repeat_rounds=True))
    done = ooc.clean(run)
    assert [path for path in freed(done) if path.endswith(("basis.h5", "r0-200.h5"))] == []
    assert (type(implicit)(implicit.path).eigenvectors[:] == before).all()


def test_partial_sums_go_where_the_total_is_there(copied):
    run = copied("pieces")
    (total,) = run.sketch.glob("*/total.h5")
    partial = [str(path.relative_to(run.directory)) for path in run.sketch.glob("*/sums.t*.h5")]
    assert (freed(ooc.clean(run)), total.exists()) == (sorted(partial), True)


def test_partial_sums_stay_while_there_is_no_total(copied):
    run = copied("pieces")
    next(run.sketch.glob("*/total.h5")).unlink()
    assert freed(ooc.clean(run)) == []


def test_test_matrix_that_was_kept_for_the_sums_goes(copied):
    names = [Path(path).name for path in freed(ooc.clean(copied("ssrft")))]
    assert names == ["noise-right.h5"]


def test_pieces_that_no_result_names_go_and_those_that_it_names_stay(copied):
    run = copied("pieces")
    folder = run.results / "default"
    shutil.copy(folder / "eigenvectors.t2-3.h5", folder / "eigenvectors.t3-4.h5")
    shutil.copy(folder / "recipe.h5", folder / "draft.eigenvectors.h5")
    gone = [Path(path).name for path in freed(ooc.clean(run)) if "results" in path]
    assert gone == ["draft.eigenvectors.h5", "eigenvectors.t3-4.h5"]


def test_pieces_of_a_result_in_the_making_stay(copied):
    run = copied("pieces")
    shutil.copytree(run.results / "default", run.results / "other")
    (run.results / "other/eigh.h5").unlink()
    assert [path for path in freed(ooc.clean(run)) if "results" in path] == []


@pytest.fixture
def duplicated(copied):
    """A finished run, with a shard of which others hold all columns, and the one that comes first.

    Of the columns 8-16, 8-24 and 16-24 the first are used up before the second, and after these the
    third are of no use.
    """
    run = copied()
    first, *_ = known_rounds(run)
    columns = first.sketch.readers["range"].read_row(0, np.empty((N, 52), np.float32))[:, 8:24]
    rectangle = Rectangle("right", 0, Range(8, 24), Range(0, N))
    assert publish_shard(run.shards, run.plan, rectangle, columns.copy(), {})
    return finish(run), run.shards / rectangle.name


def test_shard_whose_columns_others_hold_goes(duplicated, call_log):
    run, used = duplicated
    results = results_of(run)
    done = ooc.clean(run)
    assert freed(done, "duplicates") == ["shards/right.p0.c16-24.r0-200.h5"]
    assert used.exists()
    finish(run)
    assert (results_of(run), call_log()) == (results, [])


def test_duplicate_stays_while_the_shard_that_is_read_is_damaged(duplicated):
    run, used = duplicated
    data = bytearray(used.read_bytes())
    data[4000] ^= 1
    used.write_bytes(data)
    done = ooc.clean(run)
    assert (freed(done), "altered" in done.kept[0]) == ([], True)


# --sketch


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", OFTEN)
def test_what_merge_made_goes_and_is_made_again_with_the_same_bits(copied, case, call_log, inside):
    run = copied(case)
    ooc.clean(run)
    before = run_contents(run.directory)
    gone = freed(ooc.clean(run, sketch=True))
    assert gone
    assert not any("basis" in path for path in gone)
    assert "nothing: all stages are done" in inside("status", "run").stdout
    assert inside("run", "--run", "run", "--threads", 1).returncode == 0
    assert not list(run.sketch.glob("*/*total.h5"))
    ooc.recover(run, rank=3, threads=1)
    after = run_contents(run.directory)
    assert {name: after[name] for name in before if name in after} == {
        name: before[name] for name in before if name in after
    }
    assert any(name.endswith("total.h5") for name in after)
    assert call_log() == []


def test_sums_of_rounds_stay_as_they_tell_how_far_these_are(copied, inside):
    run = copied("krylov")
    before = run_contents(run.directory)
    ooc.clean(run, sketch=True)
    assert run_contents(run.directory) == before
    assert "nothing: all stages are done" in inside("status", "run").stdout


@pytest.mark.parametrize("lost", ["total.h5", "start.total.h5"])
def test_lost_sums_of_an_earlier_round_are_made_again_by_merge(copied, lost, call_log):
    run = copied("krylov")
    before = run_contents(run.directory)
    for path in run.sketch.glob(f"*/{lost}"):
        path.unlink()
    with pytest.raises(IncompleteError, match="skerch-ooc merge"):
        ooc.density(run)
    ooc.merge(run, threads=1)
    assert run_contents(run.directory) == before
    assert call_log() == []


def test_row_shards_go_and_implicit_vectors_are_read_from_the_column_shards(copied):
    run = copied()
    shutil.rmtree(run.sketch / next(run.sketch.iterdir()).name)
    ooc.merge(run, rechunk=True)
    implicit = ooc.recover(run, vectors="implicit", threads=1)
    before = implicit.eigenvectors[:]
    done = ooc.clean(run, sketch=True)
    assert any("r0-200" in path for path in freed(done, "sketch"))
    assert (type(implicit)(implicit.path).eigenvectors[:] == before).all()


def test_sketch_stays_while_there_is_no_result(copied):
    run = copied()
    shutil.rmtree(run.results / "default")
    before = files_of(run.directory)
    with pytest.raises(IncompleteError, match="skerch-ooc recover"):
        ooc.clean(run, sketch=True)
    assert files_of(run.directory) == before


# --shards


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", ALL)
def test_only_results_stay_and_everything_that_needs_no_more_works(copied, case, inside, call_log):
    run = copied(case)
    results = {name: bits for name, bits in results_of(run).items() if "recipe" not in name}
    assessed = ooc.assess(run)
    ooc.clean(run, shards=True)
    assert run_contents(run.directory) == results
    assert ooc.assess(run) == assessed
    assert verify_run(run, Progress()) == []
    assert inside("run", "--run", "run", "--max-relative-error", 2).returncode == 0
    assert ooc.recover(run).rank == assessed.rank
    assert call_log() == []


@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    "command",
    [
        ["measure", "run"],
        ["merge", "run"],
        ["extend", "run", "--measurements", "60"],
        ["recover", "run", "--rank", "3"],
        ["recover", "run", "--name", "other"],
        ["estimates", "run"],
        ["submit", "run", "--dry-run"],
        ["task", "run", "measure", "--index", "0", "--of", "1"],
        ["task", "run", "vectors", "--index", "0", "--of", "1"],
        ["update", "run", "--factory", "decaying", "--arg", f"n={N}", "--arg", "rank=5"],
    ],
    ids=" ".join,
)
def test_what_needs_shards_is_refused_once_they_are_removed(copied, inside, command, call_log):
    run = copied()
    ooc.clean(run, shards=True)
    before = files_of(run.directory)
    done = inside(*command)
    assert (done.returncode, call_log()) == (4, [])
    assert "were removed by clean --shards on" in done.stderr
    assert files_of(run.directory) == before


def test_same_spec_gives_the_result_without_a_product(copied, inside, call_log, tmp_path):
    ooc.clean(copied(), shards=True)
    done = inside("run", spec_of(tmp_path, "eigh"), "--run", "run")
    assert (done.returncode, call_log()) == (0, [])


def test_status_says_that_shards_were_removed_and_offers_nothing(copied, inside):
    ooc.clean(copied(), shards=True)
    state = json.loads(inside("status", "run", "--json").stdout)
    assert (state["next"], state["shards"], state["cleaned"]["shards"]) == (None, 0, 7)
    assert state["products"]["done"] == 52
    assert "of 7 shards" in inside("status", "run").stdout


def unassessed(run):
    (run.results / "default/assessment.json").unlink()


def stale_assessment(run):
    path = run.results / "default/assessment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rank": 1}))


def implicit(run):
    ooc.recover(run, vectors="implicit", threads=1)


def half_made(run):
    (run.results / "other").mkdir()
    shutil.copy(run.results / "default/eigh.h5", run.results / "other/recipe.h5")


def damaged(run):
    path = run.results / "default/eigh.h5"
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)


REFUSALS = {
    "no result": (lambda run: shutil.rmtree(run.results / "default"), "skerch-ooc recover"),
    "no assessment": (unassessed, "skerch-ooc assess"),
    "another assessment": (stale_assessment, "skerch-ooc assess"),
    "implicit result": (implicit, "is implicit"),
    "result in the making": (half_made, "rm -r .*other"),
    "missing shard": (lambda run: shard_file(run).unlink(), "skerch-ooc measure"),
    "grown": (lambda run: ooc.extend(run, 60), "skerch-ooc measure"),
    "process at work": (lambda run: private(run.results, pid=os.getpid()), "wait until"),
    "another host at work": (lambda run: private(run.shards, host="node"), "--older-than 0"),
    "damaged result": (damaged, "altered"),
}


@pytest.mark.covered(1)
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("case", REFUSALS)
def test_shards_stay_while_anything_needs_them(copied, case, dry_run):
    run = copied()
    spoil, message = REFUSALS[case]
    spoil(run)
    before = files_of(run.directory)
    with pytest.raises((IncompleteError, CorruptError), match=message):
        ooc.clean(ooc.open_run(run.directory), shards=True, dry_run=dry_run)
    assert files_of(run.directory) == before


def test_shards_stay_while_the_tolerance_is_not_met(copied):
    run = copied("tolerance")
    assert run.plan.reach("right") < run.plan.amendments[-1].most
    path = run.directory / "plan.d/0001.json"
    value = json.loads(path.read_text()) | {"tolerance": 1e-6}
    value.pop("sha256")
    path.write_bytes(canonical_json(value | {"sha256": digest(value)}) + b"\n")
    with pytest.raises(IncompleteError, match="tolerance"):
        ooc.clean(ooc.open_run(run.directory), shards=True)


def test_shards_stay_while_jobs_are_in_the_queue(copied, tmp_path, monkeypatch):
    run = copied()
    folder = run.logs / "slurm/0001"
    folder.mkdir(parents=True)
    squeue = tmp_path / "bin/squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\necho '101_0|RUNNING|None||{folder}/measure.sh'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:/usr/bin:/bin")
    with pytest.raises(UsageError, match="scancel 101"):
        ooc.clean(run, shards=True)


def test_run_that_grows_at_the_moment_keeps_its_shards(copied, monkeypatch):
    run = copied()
    verify_kept, before = needs.verify_kept, set(run_contents(run.shards))

    def verify_while_another_extends(*args):
        verify_kept(*args)
        ooc.extend(run, 60)

    monkeypatch.setattr("skerch_ooc.pipeline.clean.verify_kept", verify_while_another_extends)
    with pytest.raises(UsageError, match="extended or updated at this moment"):
        ooc.clean(run, shards=True)
    assert set(run_contents(run.shards)) == before
    assert open_run(run.directory).cleaned() is None


# Interruptions


@pytest.mark.parametrize("count", [1, 4, pytest.param(8, marks=pytest.mark.soak)])
def test_killed_clean_leaves_a_run_that_says_so_and_the_same_command_completes_it(
    copied, forked_command, inside, count, call_log
):
    run = copied()
    results = results_of(run)
    killed_while_removing(forked_command, count, "clean", "run", "--shards")
    assert results_of(run) == results
    assert inside("measure", "run").returncode == 4
    assert inside("status", "run").stdout.endswith("skerch-ooc clean run --shards\n")
    assert inside("run", "--run", "run").returncode == 0
    assert inside("clean", "run", "--shards").returncode == 0
    assert run_contents(run.directory) == results
    assert call_log() == []


@pytest.mark.soak
@pytest.mark.parametrize("option", [(), ("--sketch",)], ids=["", "--sketch"])
@pytest.mark.parametrize("case", ["pieces hmt", "extended hmt"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_killed_clean_leaves_a_run_that_makes_the_same(
    copied, forked_command, case, option, count, inside, call_log
):
    run = copied(case)
    results = {name: bits for name, bits in results_of(run).items() if "recipe" not in name}
    killed_while_removing(forked_command, count, "clean", "run", *option)
    assert inside("verify", "run").returncode == 0
    shutil.rmtree(run.results / "default")
    assert inside("run", "--run", "run", "--threads", 1).returncode == 0
    again = {name: bits for name, bits in results_of(run).items() if "recipe" not in name}
    assert (again, call_log()) == (results, [])


def test_process_that_finds_its_input_gone_ends_with_an_error(copied):
    run = copied()
    next(run.sketch.glob("*/total.h5")).unlink()
    merge = Merge(Round(run))
    ooc.clean(run, shards=True)
    with pytest.raises(OocError, match=r"right\.p0.*(gone|cannot be opened any more)"):
        merge.run(Work.of(threads=1))


def test_process_whose_private_file_is_gone_publishes_nothing(tmp_path):
    def write():
        with sealed_writer(tmp_path / "file.h5", Layout("m", (4, 4), "float32", (4, 4))) as writer:
            writer.write_rows(0, np.ones((4, 4), np.float32))
            writer.private.unlink()
            writer.publish({})

    with pytest.raises(IncompleteError, match="cannot write"):
        write()
    assert files_of(tmp_path) == set()


def test_shards_that_were_put_back_serve_again_without_the_mark(copied, tmp_path, call_log):
    run = copied()
    before = run_contents(run.directory)
    shutil.copytree(run.shards, tmp_path / "copy")
    ooc.clean(run, shards=True)
    shutil.copytree(tmp_path / "copy", run.shards, dirs_exist_ok=True)
    (run.directory / "cleaned.json").unlink()
    ooc.merge(run, threads=1)
    assert (run_contents(run.directory), call_log()) == (before, [])


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"type": "cleaned"}'], ids=["empty", "object", "list", "stub"]
)
def test_damaged_mark_stops_everything_rather_than_measuring_anew(
    copied, inside, content, call_log
):
    run = copied()
    ooc.clean(run, shards=True)
    (run.directory / "cleaned.json").write_text(content)
    for command in (["measure", "run"], ["run", "--run", "run"], ["clean", "run", "--shards"]):
        done = inside(*command)
        assert (done.returncode, "cleaned.json" in done.stderr) == (5, True)
    assert call_log() == []


def test_mark_of_another_run_is_refused(copied, finished, tmp_path):
    run = copied()
    ooc.clean(run, shards=True)
    shutil.copytree(finished("svd"), tmp_path / "other")
    shutil.copy(run.directory / "cleaned.json", tmp_path / "other")
    with pytest.raises(CorruptError, match="another run"):
        ooc.measure(ooc.open_run(tmp_path / "other"))


def test_result_that_is_lost_after_cleaning_is_named(copied):
    run = copied()
    ooc.clean(run, shards=True)
    (run.results / "default/eigh.h5").unlink()
    (wrong,) = verify_run(run, Progress())
    assert "restore it from a copy" in wrong
    with pytest.raises(IncompleteError, match=r"removed by clean.* what is gone: default"):
        ooc.recover(run)


@pytest.mark.parametrize("command", [("status", "run"), ("run", "--run", "run")])
def test_mark_is_not_believed_once_the_result_is_gone(copied, inside, command, call_log):
    run = copied()
    ooc.clean(run, shards=True)
    (run.results / "default/eigh.h5").unlink()
    done = inside(*command)
    assert (done.returncode, call_log()) == (4, [])
    assert "none of its results is there; restore from a copy what is gone: default" in done.stderr


# Strangers


@pytest.mark.parametrize("place", ["sketch/0123456789abcdef", "results/other", "logs/slurm"])
def test_nothing_behind_a_link_is_removed(copied, tmp_path, dead, place):
    run = copied("extended")
    treasure = tmp_path / "elsewhere"
    treasure.mkdir()
    (treasure / "total.h5").write_bytes(b"precious")
    private(treasure, pid=dead, age=10 * DAY)
    before = files_of(treasure)
    (run.directory / place).symlink_to(treasure)
    done = ooc.clean(run, sketch=True)
    assert files_of(treasure) == before
    assert place in done.strangers


@pytest.mark.parametrize("name", ["shards", "sketch"])
def test_folder_that_is_a_link_is_refused(copied, tmp_path, name):
    run = copied()
    shutil.move(run.directory / name, tmp_path / "elsewhere")
    (run.directory / name).symlink_to(tmp_path / "elsewhere")
    before = files_of(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        ooc.clean(run, shards=True)
    assert files_of(tmp_path / "elsewhere") == before


def test_link_in_the_place_of_a_shard_stays(copied, tmp_path):
    run = copied("extended hmt")
    *_, last = known_rounds(run)
    (old, *_) = sorted(p for p in run.shards.glob("round2-*") if last.role not in p.name)
    shutil.move(old, tmp_path / "elsewhere")
    old.symlink_to(tmp_path / "elsewhere")
    done = ooc.clean(run)
    assert (tmp_path / "elsewhere").exists()
    assert f"shards/{old.name}" in done.strangers


def test_names_of_others_stay_and_are_told_of(copied):
    run = copied("extended")
    old = next(p for p in run.sketch.iterdir() if p != known_rounds(run).__next__().sketch.folder)
    for path in (run.shards / "notes.txt", run.sketch / "mine", old / "plot.png"):
        path.write_text("mine")
    done = ooc.clean(run, shards=True)
    assert done.strangers == [
        "shards/notes.txt", f"sketch/{old.name}/plot.png", "sketch/mine"
    ]  # fmt: skip
    assert (old / "plot.png").read_text() == "mine"


def test_nothing_that_the_run_names_is_imported(copied, inside, tmp_path):
    run = copied("extended")
    path = run.logs / "places.json"
    path.write_text(json.dumps({"folder": str(tmp_path)}))
    modules = set(sys.modules)
    assert inside("clean", "run", "--shards").returncode == 0
    assert not any(name.endswith("factories") for name in set(sys.modules) - modules)


# What is shown


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", [[], ["--sketch"], ["--shards"]], ids=" ".join)
@pytest.mark.parametrize("case", OFTEN)
def test_dry_run_lists_what_is_then_removed(copied, inside, case, options):
    run = copied(case)
    before = files_of(run.directory)
    listed = json.loads(inside("clean", "run", "--dry-run", "--json", *options).stdout)
    assert files_of(run.directory) == before
    done = json.loads(inside("clean", "run", "--json", *options).stdout)
    assert listed | {"dry_run": False} == done
    gone = before - files_of(run.directory)
    assert gone == {file["path"] for file in done["files"]}
    assert done["bytes"] == sum(file["bytes"] for file in done["files"])


def test_figures_are_told_by_kind_with_what_more_would_free(copied, inside):
    copied("extended")
    out = inside("clean", "run").stdout
    assert "superseded  1 file, " in out
    assert "--sketch" in out
    assert "--shards" in out


def test_second_cleaning_has_nothing_to_remove(copied, inside):
    copied("extended")
    inside("clean", "run")
    assert "nothing to remove" in inside("clean", "run").stdout


def test_contents_of_results_are_read_after_cleaning(copied):
    run = copied("pieces")
    before = file_contents(run.results / "default/eigh.h5")
    vectors = ooc.recover(run).eigenvectors[100:200]
    ooc.clean(run, shards=True)
    assert file_contents(run.results / "default/eigh.h5") == before
    assert (ooc.recover(run).eigenvectors[100:200] == vectors).all()


def test_folder_that_cannot_be_listed_is_named_by_its_path(tmp_path, monkeypatch):
    open_ = os.open

    def refuse(name, flags, *, dir_fd=None):
        if name == "shards" and dir_fd is not None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return open_(name, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError) as caught:
        take_inventory(tmp_path)
    assert caught.value.filename == str(tmp_path / "shards")
