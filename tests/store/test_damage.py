"""Damaged, missing, foreign, swapped shards: named, never a number."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from specs import FACTORIES, write_spec


@pytest.fixture(scope="module")
def finished(tmp_path_factory, forked_in):
    """Finished, measured and foreign runs of both kinds, to be copied by each test."""
    folder = tmp_path_factory.mktemp("finished")
    command = forked_in(folder)
    for kind in ("eigh", "svd"):
        spec = write_spec(
            folder, "matrix", 40, name=f"{kind}.toml", kind=kind,
            sketch={"test_measurements": 12, "block": 16},
        )  # fmt: skip
        assert command("run", spec, "--run", f"finished-{kind}").returncode == 0
        command("plan", spec, "--run", f"measured-{kind}")
        command("measure", f"measured-{kind}")
        command("plan", spec, "--run", f"foreign-{kind}", "--set", "seed=9")
        command("measure", f"foreign-{kind}")
    return folder


def copy_of_measured(finished, folder, kind):
    shutil.copytree(finished / f"measured-{kind}", folder / "run")
    (folder / "foreign").symlink_to(finished / f"foreign-{kind}")
    return folder / "run"


@pytest.fixture
def measured(finished, forked_command):
    """A fresh copy of the measured run of a Hermitian operator."""
    return copy_of_measured(finished, forked_command.cwd, "eigh")


def shards(run, role="right"):
    return sorted((run / "shards").glob(f"{role}.*.h5"))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def foreign(run, role):
    path = shards(run, role)[1]
    shutil.copy(run.parent / "foreign/shards" / path.name, path)


def swapped(run, role):
    a, b = shards(run, role)[:2]
    os.rename(a, run / "x")
    os.rename(b, a)
    os.rename(run / "x", b)


def linked(run, role):
    path = shards(run, role)[1]
    os.rename(path, run / "moved.h5")
    path.symlink_to(run / "moved.h5")


DAMAGE = {
    "seal altered": (lambda run, role: flip(shards(run, role)[1], 30), 5),
    "metadata altered": (lambda run, role: flip(shards(run, role)[1], 700), 5),
    "data altered": (lambda run, role: flip(shards(run, role)[1], 6000), 5),
    "last byte altered": (lambda run, role: flip(shards(run, role)[1], -1), 5),
    "truncated": (lambda run, role: os.truncate(shards(run, role)[1], 5000), 5),
    "emptied": (lambda run, role: os.truncate(shards(run, role)[1], 0), 5),
    "foreign": (foreign, 5),
    "swapped": (swapped, 5),
    "symbolic link": (linked, 5),
    "deleted": (lambda run, role: os.unlink(shards(run, role)[1]), 4),
}
of_both_sides = pytest.mark.parametrize(
    ("kind", "role"), [("eigh", "right"), ("svd", "right"), ("svd", "left")]
)


@pytest.mark.sampled(3)
@of_both_sides
@pytest.mark.parametrize("damage", DAMAGE)
def test_merge_names_the_shard(inside, tmp_path, finished, damage, kind, role):
    run = copy_of_measured(finished, tmp_path, kind)
    first, second = shards(run, role)[:2]
    columns = second.name.split(".")[2].removeprefix("c")
    harm, code = DAMAGE[damage]
    harm(run, role)
    done = inside("merge", "run")
    assert done.returncode == code
    named = {second.name, first.name} if damage == "swapped" else {second.name, f"{role} {columns}"}
    assert any(text in done.stderr for text in named)
    assert not list((run / "sketch").glob("*/*total.h5"))


@of_both_sides
@pytest.mark.parametrize("damage", [damage for damage, (_, code) in DAMAGE.items() if code == 5])
def test_verify_names_the_shard(inside, tmp_path, finished, damage, kind, role):
    run = copy_of_measured(finished, tmp_path, kind)
    name = shards(run, role)[1].name
    DAMAGE[damage][0](run, role)
    done = inside("verify", "run")
    assert (done.returncode, name in done.stderr) == (5, True)


@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_intact_run_verifies(inside, finished, kind):
    assert inside("verify", finished / f"finished-{kind}").returncode == 0


@pytest.mark.sampled(1)
@of_both_sides
def test_deleted_shard_is_measured_again_and_nothing_else(
    forked_command, call_log, finished, kind, role
):
    lost = shards(copy_of_measured(finished, forked_command.cwd, kind), role)[1]
    before = lost.read_bytes()
    lost.unlink()
    assert forked_command("measure", "run").returncode == 0
    # One product to compare with the fingerprint, 16 for the shard.
    assert [call["width"] for call in call_log()] == [1, 16]
    with_provenance = lost.read_bytes()
    assert with_provenance[4096:12000] == before[4096:12000]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("verb", ["merge", "verify"])
@of_both_sides
def test_advice_for_a_corrupt_shard_mends_it(forked_command, finished, kind, role, verb):
    run = copy_of_measured(finished, forked_command.cwd, kind)
    flip(shards(run, role)[1], 6000)
    message = forked_command(verb, "run").stderr
    assert message.endswith(" && skerch-ooc measure run\n")
    remove = message.split("To make it anew: rm ")[1].split(" && ")[0]
    (forked_command.cwd / remove).unlink()
    assert forked_command("measure", "run").returncode == 0
    forked_command("recover", "run")
    forked_command("assess", "run")
    mended = json.loads((run / "results/default/assessment.json").read_text())
    undisturbed = finished / f"finished-{kind}/results/default/assessment.json"
    assert mended["error"] == json.loads(undisturbed.read_text())["error"]


def test_stranger_among_the_shards_is_left_alone_but_shown(forked_command, measured):
    (measured / "shards/notes.txt").write_text("mine")
    assert "notes.txt" in forked_command("status", "run").stdout
    assert forked_command("merge", "run").returncode == 0


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("eigh", "results/default/eigh.h5"),
        ("eigh", "sketch/*/total.h5"),
        ("svd", "results/default/svd.h5"),
        ("svd", "sketch/*/total.h5"),
        ("svd", "sketch/*/corange.total.h5"),
    ],
)
def test_altered_output_is_named(inside, tmp_path, finished, kind, pattern):
    shutil.copytree(finished / f"finished-{kind}", tmp_path / "run")
    path = next((tmp_path / "run").glob(pattern))
    flip(path, path.stat().st_size // 2)
    done = inside("verify", "run")
    assert (done.returncode, path.name in done.stderr) == (5, True)


def exchanged(one, other):
    between = one.with_name("between")
    os.rename(one, between)
    os.rename(other, one)
    os.rename(between, other)


def test_sums_that_were_exchanged_are_named(inside, tmp_path, finished):
    shutil.copytree(finished / "finished-svd", tmp_path / "run")
    total = next((tmp_path / "run/sketch").glob("*/total.h5"))
    exchanged(total, total.with_name("corange.total.h5"))
    done = inside("verify", "run")
    assert (done.returncode, done.stderr.count("another file by what it says")) == (5, 2)


def test_file_in_the_folder_of_another_sketch_is_named(inside, tmp_path, finished):
    shutil.copytree(finished / "finished-eigh", tmp_path / "run")
    folder = next((tmp_path / "run/sketch").iterdir())
    folder.rename(folder.with_name("0" * 16))
    done = inside("verify", "run")
    assert (done.returncode, f"of run/sketch/{folder.name};" in done.stderr) == (5, True)


@pytest.mark.parametrize(
    "name", ["plan.json", "plan.d/0001.json", "fingerprint.json", "results/default/assessment.json"]
)
def test_white_space_that_was_added_is_damage(inside, tmp_path, finished, name):
    shutil.copytree(finished / "finished-eigh", tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(path.read_text() + " ")
    done = inside("verify", "run")
    assert (done.returncode, path.name in done.stderr) == (5, True)


def test_assessment_that_was_altered_is_written_anew_by_assess(inside, tmp_path, finished):
    shutil.copytree(finished / "finished-eigh", tmp_path / "run")
    path = tmp_path / "run/results/default/assessment.json"
    path.write_text(path.read_text() + " ")
    assert inside("assess", "run").returncode == 0
    assert inside("verify", "run").returncode == 0


@pytest.mark.parametrize("name", ["plan.json", "plan.d/0001.json", "fingerprint.json"])
def test_altered_plan_is_refused(forked_command, measured, name):
    path = measured / name
    text = path.read_text()
    path.write_text(text.replace("1", "2", 1))
    done = forked_command("measure", "run")
    if name == "fingerprint.json":
        shards(measured)[0].unlink()
        done = forked_command("measure", "run")
    assert done.returncode in (2, 5)
    assert path.name in done.stderr


def test_changed_operator_is_refused_before_any_product_is_wasted(forked_command, call_log):
    factory = forked_command.cwd / "mine.py"
    factory.write_text("import torch\n\ndef make():\n    return torch.eye(64) * 1.0\n")
    spec = write_spec(forked_command.cwd, "", 20, operator={"factory": "mine.py:make"})
    forked_command("plan", spec, "--run", "run")
    factory.write_text("import torch\n\ndef make():\n    return torch.eye(64) * 1.0001\n")
    done = forked_command("measure", "run")
    assert done.returncode == 5
    assert "not the one that the run started with" in done.stderr
    assert not list((forked_command.cwd / "run/shards").iterdir())


def test_factory_with_other_text_but_the_same_products_goes_on_with_a_warning(forked_command):
    factory = forked_command.cwd / "mine.py"
    factory.write_text("import torch\n\ndef make():\n    return torch.eye(64)\n")
    spec = write_spec(forked_command.cwd, "", 20, operator={"factory": "mine.py:make"})
    forked_command("plan", spec, "--run", "run")
    factory.write_text("import torch  # a remark\n\ndef make():\n    return torch.eye(64)\n")
    done = forked_command("measure", "run")
    assert done.returncode == 0
    assert "has changed since the run was planned" in done.stderr


def test_weights_that_change_while_measuring_are_found_at_merge(forked_command):
    # Three calls of the probe, then nine blocks; the last three shards are of another operator.
    spec = write_spec(
        forked_command.cwd, "matrix", 144, operator={"args": {"n": 400, "drift_after": 9}},
        sketch={"test_measurements": 16, "block": 16},
    )  # fmt: skip
    done = forked_command("run", spec, "--run", "run")
    assert done.returncode == 5
    named = {name for name in os.listdir(forked_command.cwd / "run/shards") if name in done.stderr}
    assert named == {
        "right.p0.c96-112.r0-400.h5", "right.p0.c112-128.r0-400.h5",
        "right.p0.c128-144.r0-400.h5", "test.p0.c0-16.r0-400.h5",
    }  # fmt: skip


@pytest.mark.thorough
def test_weights_changed_between_two_jobs_are_found(forked_command):
    factory = forked_command.cwd / "mine.py"
    text = (
        "import sys\nsys.path.insert(0, {tests!r})\nfrom factories import Matrix, dense\n\n"
        "def make():\n    return Matrix(dense(400, dtype='float32') * {scale})\n"
    )
    tests = str(FACTORIES.parent)
    factory.write_text(text.format(tests=tests, scale=1.0))
    spec = write_spec(
        forked_command.cwd, "", 64, operator={"factory": "mine.py:make"},
        sketch={"test_measurements": 16, "block": 16},
    )  # fmt: skip
    forked_command("plan", spec, "--run", "run")
    forked_command("measure", "run")
    lost = forked_command.cwd / "run/shards/right.p0.c16-32.r0-400.h5"
    lost.unlink()
    factory.write_text(text.format(tests=tests, scale=1.0001))
    # Somebody silences the fingerprint, to get on with it.
    (forked_command.cwd / "run/fingerprint.json").unlink()
    assert forked_command("measure", "run").returncode == 0
    done = forked_command("merge", "run")
    assert (done.returncode, lost.name in done.stderr) == (5, True)
