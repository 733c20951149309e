"""Files of factories that travel with tasks: what is sent, what is checked, what is said."""

from __future__ import annotations

import pickle
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

import skerch_ooc as ooc
from skerch_ooc.stages.measure import operands, shipping, task
from skerch_ooc.stages.measure.missing import missing_tasks
from skerch_ooc.store.sketch import Round

FACTORY = """
    import torch

    def make(n, scale=1.0):
        return torch.diag(scale * 0.9 ** torch.arange(n, dtype=torch.float64))
"""
SPEC = """
    kind = "eigh"
    measurements = 12
    [operator]
    factory = "factory.py:make"
    args = {n = 60}
    [sketch]
    test_measurements = 4
    block = 4
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "factory.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "spec.toml").write_text(textwrap.dedent(SPEC))
    return tmp_path / "spec.toml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """The current folder is another one, and no operator is known from an earlier test."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    operands.forget_operator()


def tasks_of(run):
    """The tasks as a worker gets them."""
    return [pickle.loads(pickle.dumps(one)) for one in _sent(run)]


def _sent(run):
    return missing_tasks(Round(run), "cpu", 1).with_factories()


def rewrite(spec, text):
    (spec.parent / "factory.py").write_text(textwrap.dedent(text))


def perform(one):
    return task.perform(one)()


def test_process_without_the_file_builds_the_operator_of_what_came_with_the_task(spec, bucket):
    first, *_ = tasks_of(ooc.plan(spec, bucket))
    (spec.parent / "factory.py").unlink()
    assert perform(first)["published"]


def test_file_is_not_written_to_the_bucket(spec, bucket):
    run = ooc.plan(spec, bucket)
    ooc.measure(run)
    store, key = run.directory.store, run.directory.key
    assert not [one for one in store.keys(key) if b"torch.diag" in store.read(f"{key}/{one}")]


def test_nothing_is_sent_of_a_run_in_a_folder(spec, tmp_path):
    assert not any(one.shipped for one in tasks_of(ooc.plan(spec, tmp_path / "run")))


def test_nothing_is_sent_of_a_factory_in_a_package(bucket):
    run = ooc.plan(
        {
            "kind": "eigh",
            "measurements": 4,
            "operator": {"factory": "decaying", "args": {"n": 9, "rank": 2}},
        },
        bucket,
    )
    assert not any(one.shipped for one in tasks_of(run))


def test_each_part_gets_the_file_of_its_own_factory(spec, bucket, tmp_path, monkeypatch):
    run = ooc.plan(spec, bucket)
    ooc.measure(run)
    ooc.merge(run)
    ooc.recover(run)
    other = tmp_path / "other"
    other.mkdir()
    (other / "added.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.chdir(other)
    grown = ooc.update(run, ooc.OperatorSpec(factory="added.py:make", args={"n": 60}))
    ooc.recover(grown)
    monkeypatch.undo()
    more = ooc.extend(grown, 20)
    names = {one.part: one.shipped.name for one in tasks_of(more)}
    assert names == {0: "factory.py", 1: "added.py"}
    for path in (other / "added.py", spec.parent / "factory.py"):
        content = path.read_bytes()
        path.unlink()
        path.with_suffix(".kept").write_bytes(content)
    assert all(perform(one)["published"] for one in tasks_made(more, other, spec.parent))


def tasks_made(run, *folders):
    """The tasks, with files that are there only while these are made."""
    for folder in folders:
        for path in folder.glob("*.kept"):
            path.rename(path.with_suffix(".py"))
    made = tasks_of(run)
    for folder in folders:
        for path in [*folder.glob("factory.py"), *folder.glob("added.py")]:
            path.unlink()
    return made


def test_altered_file_is_refused(spec, bucket):
    first, *_ = tasks_of(ooc.plan(spec, bucket))
    shipped = replace(first.shipped, content=first.shipped.content + b" ")
    with pytest.raises(ooc.CorruptError, match=r"factory\.py was altered on its way"):
        perform(replace(first, shipped=shipped))


def test_file_that_has_changed_since_is_sent_with_a_warning(spec, bucket, caplog):
    run = ooc.plan(spec, bucket)
    rewrite(spec, textwrap.dedent(FACTORY) + "# a remark\n")
    first, *_ = tasks_of(run)
    assert perform(first)["published"]
    assert caplog.text.count("has changed since the run was planned") == 2


def test_operator_of_a_changed_file_is_compared_with_the_fingerprint(spec, bucket):
    run = ooc.plan(spec, bucket)
    rewrite(spec, FACTORY.replace("0.9", "0.8"))
    first, *_ = tasks_of(run)
    with pytest.raises(ooc.DriftError):
        perform(first)


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("import helper_beside", "No module named 'helper_beside'"),
        ("def make(n): open('values.npy')", "No such file or directory: 'values.npy'"),
    ],
)
def test_what_lies_beside_the_file_is_named_where_it_is_lacking(spec, bucket, text, lacks):
    run = ooc.plan(spec, bucket)
    rewrite(spec, text)
    first, *_ = tasks_of(run)
    with pytest.raises(ooc.OperatorError) as told:
        perform(first)
    assert lacks in str(told.value)
    assert "only its own file was sent" in str(told.value)
    assert "install what it imports" in str(told.value)


def test_large_file_is_refused(spec, bucket, monkeypatch):
    run = ooc.plan(spec, bucket)
    monkeypatch.setattr(shipping, "MOST_BYTES", 100)
    with pytest.raises(ooc.UsageError, match=r"factory\.py has 1\d\d B;.*at most 100 B do"):
        tasks_of(run)


def test_same_spec_goes_on_from_another_folder(spec, bucket, tmp_path):
    run = ooc.plan(spec, bucket)
    other = tmp_path / "other"
    other.mkdir()
    for path in (spec, spec.parent / "factory.py"):
        path.rename(other / path.name)
    again = ooc.plan(other / "spec.toml", bucket)
    assert again.plan == run.plan
    assert all(one.shipped for one in tasks_of(again))


def test_task_is_small(spec, bucket):
    first, *_ = _sent(ooc.plan(spec, bucket))
    assert len(pickle.dumps(first)) < 1000 + Path(spec.parent / "factory.py").stat().st_size
    assert "torch.diag" not in repr(first)


def test_folders_in_which_the_file_was_looked_for_are_named_once(spec, bucket):
    run = ooc.plan(spec, bucket)
    (spec.parent / "factory.py").unlink()
    with pytest.raises(ooc.OperatorError, match="is in none of") as told:
        tasks_of(run)
    assert str(told.value).count(str(spec.parent)) == 1


def test_clients_that_plan_at_once_from_different_folders_make_one_run(spec, bucket, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in (spec, spec.parent / "factory.py"):
        (other / path.name).write_bytes(path.read_bytes())
    run = ooc.plan(spec, bucket)
    (
        run.directory / "plan.d" / "0001.json"
    ).unlink()  # The other was faster with the identity alone.
    assert ooc.plan(other / "spec.toml", bucket).plan.run_id == run.plan.run_id
