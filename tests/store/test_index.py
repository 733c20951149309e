"""The index of a sketch: read instead of what its shards state, never believed against them."""

from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest

import skerch_ooc as ooc
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.provenance import warn_of_versions
from skerch_ooc.store import index, names, sketch
from skerch_ooc.store.sealed import SealedFile, sealed_writer
from skerch_ooc.store.shards import Rectangle, list_shards, publish_shard
from skerch_ooc.store.sketch import Round, publish_index

pytestmark = pytest.mark.usefixtures("no_late_files")

ROWS, COLUMNS, TEST = 9000, 34, 2


def planned(folder, columns=COLUMNS, rows=ROWS):
    table = {
        "kind": "eigh", "measurements": columns - TEST, "dtype": "float32",
        "operator": {"factory": "none:none", "shape": [rows, rows]},
        "sketch": {"block": 1, "test_measurements": TEST},
    }  # fmt: skip
    return ooc.plan(table, folder, memory="40GiB")


def publish(run, shard, seed=0, version="1"):
    array = np.random.default_rng([seed, shard.columns.start, len(shard.role)])
    content = array.standard_normal((len(shard.rows), len(shard.columns)), np.float32)
    publish_shard(run.shards, run.plan, shard, content, {"versions": {"numpy": version}})


def publish_all(run):
    for strip in Round(run).strips:
        for columns in cut(strip.columns, 1):
            publish(run, Rectangle(strip.role, strip.part, columns, strip.rows))
    return run


@pytest.fixture(scope="module")
def indexed_run(tmp_path_factory):
    """A measured run with an index, and its digest."""
    run = publish_all(planned(tmp_path_factory.mktemp("indexed") / "run"))
    publish_index(Round(run))
    return run.directory


@pytest.fixture
def run(indexed_run, tmp_path):
    """A copy of it, with the same times."""
    shutil.copytree(indexed_run, tmp_path / "run")
    return ooc.open_run(tmp_path / "run")


def index_path(run):
    (path,) = names.INDEX.found_in(run.directory)
    return path


def tiles(opened) -> list[Array]:
    reader = opened.readers["range"]
    return [reader.read_tile(row) for row in range(reader.layout.grid[0])]


def opened_anew(run) -> sketch.Sketch:
    """The sketch as another process opens it."""
    sketch._OPENED.clear()
    return Round(run).sketch


def only_by_index(monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"opened as a whole: {arguments}")

    monkeypatch.setattr(index, "open_shard", refuse)


@pytest.mark.parametrize("window", [2, 4096])
def test_sketch_by_its_index_is_that_of_its_shards(tmp_path, monkeypatch, window):
    monkeypatch.setattr(index, "INDEX_WINDOW", window)
    run = publish_all(planned(tmp_path / "run"))
    first = Round(run).sketch
    publish_index(Round(run))
    digest, expected = first.digest, tiles(first)
    only_by_index(monkeypatch)
    found = opened_anew(run)
    assert found.digest == digest
    assert all(map(np.array_equal, tiles(found), expected))


@pytest.mark.thorough
def test_sketch_in_a_bucket_has_the_index_of_one_in_a_folder(bucket, indexed_run, monkeypatch):
    run = publish_all(planned(bucket))
    publish_index(Round(run))
    only_by_index(monkeypatch)
    found, other = opened_anew(run), Round(ooc.open_run(indexed_run)).sketch
    assert found.digest == other.digest
    assert all(map(np.array_equal, tiles(found), tiles(other)))


def test_index_that_the_last_measuring_process_publishes_is_that_of_a_merging_one(run):
    alone = index_path(run)
    stated = SealedFile(alone)
    alone.unlink()
    publish_index(Round(run))
    found = SealedFile(alone)
    assert found.stated == stated.stated
    assert all(np.array_equal(found.arrays[name], stated.arrays[name]) for name in stated.arrays)


def test_incomplete_round_or_one_of_few_shards_has_no_index(tmp_path):
    few = publish_all(planned(tmp_path / "few", columns=8))
    publish_index(Round(few))
    many = publish_all(planned(tmp_path / "many"))
    (many.shards / list_shards(many.shards)[3].name).unlink()
    publish_index(Round(many))
    for run in (few, many):
        assert names.INDEX.found_in(run.directory) == []


def test_index_is_not_made_of_a_damaged_shard(tmp_path):
    run = publish_all(planned(tmp_path / "run"))
    altered(run.shards / list_shards(run.shards)[3].name, 700)
    publish_index(Round(run))
    assert names.INDEX.found_in(run.directory) == []
    assert [path.name for path in run.sketch.iterdir()] == []


def test_shard_with_another_time_is_opened_as_a_whole(run):
    path = run.shards / list_shards(run.shards)[3].name
    altered(path, 700)
    with pytest.raises(CorruptError, match="SHA-256 of its metadata"):
        Round(run).sketch  # noqa: B018


def test_versions_of_shards_are_warned_of_by_the_index(tmp_path, caplog, monkeypatch):
    run = planned(tmp_path / "run")
    (right, test) = Round(run).strips
    for number, columns in enumerate(cut(right.columns, 1)):
        shard = Rectangle(right.role, right.part, columns, right.rows)
        publish(run, shard, version="1" if number < 30 else "2")
    publish(run, test, version="2")
    publish_index(Round(run))
    only_by_index(monkeypatch)
    with caplog.at_level(logging.WARNING):
        warn_of_versions(Round(run).sketch.versions)
    assert "numpy 1 (30), 2 (3). " in caplog.text


# What happens to a shard whose size and time stay as they were noted.


def keeping_times(path, act):
    """Does something to a file, and sets back its times and its length."""
    status = path.lstat()
    act(path)
    if path.exists() and not path.is_symlink():
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def altered(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def remade(run, shard, seed):
    def act(path):
        path.unlink()
        publish(run, shard, seed)

    return act


def linked(path):
    path.rename(path.parent.parent / "elsewhere.h5")
    path.symlink_to(path.parent.parent / "elsewhere.h5")


DAMAGE = {
    "data altered": (
        lambda path: altered(path, 6000),
        "was altered: wrong checksum in rows 0-4096, columns 0-1.*To make it anew: rm ",
    ),
    "data and metadata altered": (
        lambda path: (altered(path, 6000), altered(path, 40)),
        "SHA-256 of its metadata|seal in its first 512 bytes is damaged.*To make it anew: rm ",
    ),
    "torn": (
        lambda path: os.truncate(path, 5000),
        "has 5000 bytes, but was published with .*To make it anew: rm ",
    ),
    "a link": (linked, "is not a plain file.*To make it anew: rm "),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "To make it anew: rm "),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_shard_is_named_as_without_an_index(run, case):
    act, message = DAMAGE[case]
    shard = list_shards(run.shards)[3]
    opened = Round(run).sketch
    keeping_times(run.shards / shard.name, act)
    with pytest.raises(CorruptError, match=message) as error:
        tiles(opened)
    assert shard.name in str(error.value)


def test_shard_that_is_gone_is_missing_as_without_an_index(run):
    shard = list_shards(run.shards)[3]
    opened = Round(run).sketch
    (run.shards / shard.name).unlink()
    with pytest.raises(IncompleteError, match="is gone; make it again with: skerch-ooc measure"):
        tiles(opened)


def test_another_shard_of_the_same_name_size_and_time_is_refused(run):
    shard = list_shards(run.shards)[3]
    keeping_times(run.shards / shard.name, remade(run, shard, seed=1))
    with pytest.raises(CorruptError, match=f"{shard.name} holds other data than .*index.h5 says"):
        tiles(Round(run).sketch)


def test_swapped_shards_of_equal_times_are_refused(run):
    first, second = list_shards(run.shards)[3:5]
    times = (run.shards / first.name).stat()
    os.utime(run.shards / second.name, ns=(times.st_atime_ns, times.st_mtime_ns))
    Round(run).sketch.note()
    opened = opened_anew(run)
    for old, new in ((first.name, "x"), (second.name, first.name), ("x", second.name)):
        (run.shards / old).rename(run.shards / new)
    with pytest.raises(CorruptError, match="it may have been renamed or swapped"):
        tiles(opened)


def test_damage_of_what_is_not_read_does_no_harm(run):
    expected = tiles(Round(run).sketch)
    path = run.shards / list_shards(run.shards)[3].name
    keeping_times(path, lambda path: altered(path, 40))
    assert all(map(np.array_equal, tiles(opened_anew(run)), expected))


def test_shard_whose_data_lie_elsewhere_than_noted_is_read_where_they_lie(run):
    expected = tiles(Round(run).sketch)
    rewritten(run, {"offsets": SealedFile(index_path(run)).arrays["offsets"] + 8})
    assert all(map(np.array_equal, tiles(opened_anew(run)), expected))


def test_shard_that_is_replaced_after_the_sketch_was_opened_is_refused(run):
    index_path(run).unlink()
    opened = opened_anew(run)
    shard = list_shards(run.shards)[3]
    remade(run, shard, seed=1)(run.shards / shard.name)
    with pytest.raises(CorruptError, match=f"{shard.name} was replaced by another one meanwhile"):
        tiles(opened)


# What happens to the index.


def rewritten(run, arrays, checksums=None, stated=None):
    """Writes the index anew, sealed, with something else in it."""
    path = index_path(run)
    file = SealedFile(path)
    data = file.bulk().read(*(Range(0, length) for length in file.layout.shape))
    path.unlink()
    with sealed_writer(path, file.layout) as writer:
        for row, values in enumerate(data if checksums is None else checksums(data)):
            writer.write_rows(row, values[None])
        identity = {key: value for key, value in file.identity.items() if key != "bulk"}
        writer.publish(identity | (stated or {}), file.arrays | arrays, file.provenance)


FORGED = {
    "checksums": lambda run: rewritten(run, {}, lambda data: data ^ 1),
    "no names": lambda run: rewritten(run, {"shards": np.arange(COLUMNS)}),
    "names of nothing": lambda run: rewritten(run, {"shards": np.array([b"x\xff"] * COLUMNS)}),
    "fewer names": lambda run: rewritten(
        run, {"shards": SealedFile(index_path(run)).arrays["shards"][1:]}
    ),
    "names of high columns": lambda run: rewritten(
        run, {"shards": np.array([b"right.p0.c0-1.r0-99999999999999.h5"])}
    ),
    "offsets of text": lambda run: rewritten(run, {"offsets": np.array([b"1"] * COLUMNS)}),
    "negative offsets": lambda run: rewritten(run, {"offsets": np.full(COLUMNS, -1)}),
    "another run": lambda run: rewritten(run, {}, stated={"run": "0" * 64}),
    "another sketch": lambda run: rewritten(run, {}, stated={"sketch": "0" * 64}),
}


@pytest.mark.parametrize("case", FORGED)
def test_index_that_says_something_else_than_the_shards_is_refused(run, case):
    FORGED[case](run)
    message = r"index\.h5 is not of this sketch. It can be made anew: rm "
    with pytest.raises(CorruptError, match=message):
        Round(run).sketch  # noqa: B018


def test_index_without_its_datasets_is_refused(run):
    path = index_path(run)
    identity = {k: v for k, v in SealedFile(path).identity.items() if k != "bulk"}
    path.unlink()
    with sealed_writer(path) as writer:
        writer.publish(identity)
    with pytest.raises(CorruptError, match=r"index\.h5 is not of this sketch"):
        Round(run).sketch  # noqa: B018


@pytest.mark.parametrize("position", [30, 520, 3000, -300, -1])
def test_altered_index_is_named(run, position):
    altered(index_path(run), position)
    with pytest.raises(CorruptError, match=r"index\.h5.*It can be made anew: rm "):
        tiles(Round(run).sketch)


def test_index_that_is_gone_is_done_without(run):
    expected = tiles(Round(run).sketch)
    index_path(run).unlink()
    assert all(map(np.array_equal, tiles(opened_anew(run)), expected))


def test_index_of_other_shards_is_not_used(run):
    # A note leads to the sketch of other shards, as nobody writes it.
    shard = list_shards(run.shards)[3]
    wider = Rectangle(shard.role, 0, Range(3, 5), shard.rows)
    publish(run, wider)
    (run.shards / shard.name).unlink()
    listing = Round(run).listing(list_shards(run.shards))
    (record,) = list(run.log("listings"))
    run.record("listings", {"listing": listing, "digest": record["digest"]})
    assert Round(run).sketch.digest != record["digest"]
