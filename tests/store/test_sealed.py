"""Sealed files: no byte of one changes unnoticed."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import time
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch_ooc.base.errors import CorruptError, IncompleteError
from skerch_ooc.base.partition import Range
from skerch_ooc.store import descriptors, sealed
from skerch_ooc.store.checksums import Crc32Texts, Seal, checked_seal
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.rawfile import DescriptorBytes
from skerch_ooc.store.sealed import SealedFile, sealed_writer, verify
from skerch_ooc.store.sources import opened


def read_seal(path) -> Seal:
    """The seal of a file, checked against all bytes but the bulk."""
    with opened(path) as descriptor:
        return checked_seal(descriptor, path)


def layout(shape=(50, 7), tile=(16, 7), dtype="float32") -> Layout:
    return Layout("right", shape, dtype, tile)


def write(path, form: Layout, array, arrays=None):
    with sealed_writer(path, form) as writer:
        for number in range(form.grid[0]):
            writer.write_rows(number, array[form.rows(number).slice])
        writer.publish({"what": "test"}, arrays)


def numbers(shape=(50, 7), dtype="float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("tile", [(16, 7), (16, 3), (50, 2), (8, 7)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_plain_h5py_reads_what_was_written(tmp_path, tile, dtype):
    array = numbers(dtype=dtype)
    write(tmp_path / "a.h5", layout(tile=tile, dtype=dtype), array)
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["right"][:] == array).all()


@settings(deadline=None)
@given(st.integers(0, 49), st.integers(1, 50), st.integers(0, 6), st.integers(1, 7))
def test_any_slice_reads_as_it_was_written(tmp_path_factory, r0, rows, c0, columns):
    folder = tmp_path_factory.mktemp("slices")
    array = numbers()
    write(folder / "a.h5", layout(tile=(16, 3)), array)
    r = Range(r0, min(50, r0 + rows))
    c = Range(c0, min(7, c0 + columns))
    assert (SealedFile(folder / "a.h5").bulk().read(r, c) == array[r.slice, c.slice]).all()


def test_tiles_so_large_that_they_go_to_the_disk_early_read_as_they_were_written(tmp_path):
    form, array = layout((2048, 256), (1024, 256)), numbers((2048, 256))
    write(tmp_path / "a.h5", form, array)
    np.testing.assert_array_equal(verify(tmp_path / "a.h5").bulk().read_tile(1), array[1024:])


def test_files_have_the_same_bytes_each_time(tmp_path):
    for name in ("a.h5", "b.h5"):
        write(tmp_path / name, layout(), numbers(), {"more": np.arange(3.0)})
        # HDF5 counts time in seconds: until the next one begins.
        time.sleep(1.01 - time.time() % 1 if name == "a.h5" else 0.0)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_no_private_file_is_left(tmp_path):
    write(tmp_path / "a.h5", layout(), numbers())
    assert os.listdir(tmp_path) == ["a.h5"]


def unnoticed_alterations(path, step=1):
    """The positions of bytes that can be altered without anybody noticing: of every n-th."""
    good = path.read_bytes()
    unnoticed = []
    for position in range(0, len(good), step):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        try:
            verify(path)
        except CorruptError:
            continue
        unnoticed.append(position)
    return unnoticed


layouts = pytest.mark.parametrize("tile", [(16, 7), (16, 3)], ids=["contiguous", "chunked"])


@pytest.mark.thorough
@layouts
def test_every_single_altered_byte_is_noticed(tmp_path, tile):
    path = tmp_path / "a.h5"
    write(path, layout(tile=tile), numbers(), {"more": np.arange(3.0)})
    assert unnoticed_alterations(path) == []


@pytest.mark.sampled(1)
@layouts
def test_altered_bytes_all_over_a_file_are_noticed(tmp_path, tile):
    """As above, of every 13th: in the seal, in what HDF5 writes, and in each tile."""
    path = tmp_path / "a.h5"
    write(path, layout(tile=tile), numbers(), {"more": np.arange(3.0)})
    assert unnoticed_alterations(path, 13) == []


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 513, 3000, -1])
def test_truncated_file_is_noticed(tmp_path, keep):
    path = tmp_path / "a.h5"
    write(path, layout(), numbers())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptError):
        verify(path)


def test_appended_byte_is_noticed(tmp_path):
    path = tmp_path / "a.h5"
    write(path, layout(), numbers())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CorruptError, match="was published with"):
        verify(path)


def test_altered_tile_is_named_by_its_rows(tmp_path):
    path = tmp_path / "a.h5"
    write(path, layout(), numbers())
    with h5py.File(path, "r+") as file:
        offset = file["right"].id.get_offset()
    with open(path, "r+b") as raw:
        raw.seek(offset + 20 * 7 * 4)
        raw.write(b"\xff")
    with pytest.raises(CorruptError, match="rows 16-32"):
        SealedFile(path).bulk().read(Range(16, 20), Range(0, 7))


def test_other_tiles_still_read(tmp_path):
    path = tmp_path / "a.h5"
    array = numbers()
    write(path, layout(), array)
    file = SealedFile(path)
    with open(path, "r+b") as raw:
        raw.seek(read_seal(path).bulks[0].offset)
        raw.write(b"\xff\xff")
    assert (file.bulk().read(Range(32, 50), Range(0, 7)) == array[32:]).all()


def test_symbolic_link_is_refused(tmp_path):
    write(tmp_path / "a.h5", layout(), numbers())
    (tmp_path / "b.h5").symlink_to(tmp_path / "a.h5")
    with pytest.raises(CorruptError, match="not a plain file"):
        SealedFile(tmp_path / "b.h5")


def test_folder_in_its_place_is_refused(tmp_path):
    (tmp_path / "a.h5").mkdir()
    with pytest.raises(CorruptError, match="not a plain file"):
        SealedFile(tmp_path / "a.h5")


def reseal(path):
    """Gives an altered file a valid seal, as somebody who means harm would."""
    from skerch_ooc.store.checksums import Seal, _parse_seal, hash_of

    raw = bytearray(path.read_bytes())
    parsed = _parse_seal(bytes(raw[:512]))
    with open(path, "r+b") as file:
        digest = hash_of(DescriptorBytes(file.fileno()), len(raw), parsed.bulks)
        file.write(Seal(len(raw), parsed.bulks, digest).as_bytes())


def test_external_link_inside_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    write(path, layout(), numbers())
    with h5py.File(path, "r+") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/x")
    reseal(path)
    with pytest.raises(CorruptError, match="link to elsewhere"):
        SealedFile(path)


def test_virtual_dataset_inside_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    write(path, layout(), numbers())
    with h5py.File(path, "r+", libver="v110") as file:
        virtual = h5py.VirtualLayout(shape=(4,), dtype="f8")
        virtual[:] = h5py.VirtualSource("missing.h5", "x", shape=(4,))
        file.create_virtual_dataset("v", virtual)
    reseal(path)
    with pytest.raises(CorruptError, match="keeps its data in other files"):
        SealedFile(path)


def test_external_storage_inside_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    write(path, layout(), numbers())
    with h5py.File(path, "r+") as file:
        file.create_dataset("x", shape=(4,), dtype="f8", external=[("raw.bin", 0, 32)])
    reseal(path)
    with pytest.raises(CorruptError, match="keeps its data in other files"):
        SealedFile(path)


def test_unwritten_tile_is_never_published(tmp_path):
    with sealed_writer(tmp_path / "a.h5", layout()) as writer:
        writer.write_rows(0, numbers()[:16])
        with pytest.raises(ValueError, match="never written"):
            writer.publish({})
    assert os.listdir(tmp_path) == []


def test_full_disk_leaves_nothing_and_says_so(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(IncompleteError, match="cannot write"):
            write(tmp_path / "a.h5", layout((9000, 7), (4096, 7)), numbers((9000, 7)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_first_publication_wins(tmp_path):
    write(tmp_path / "a.h5", layout(), numbers())
    before = (tmp_path / "a.h5").read_bytes()
    write(tmp_path / "a.h5", layout(), -numbers())
    assert (tmp_path / "a.h5").read_bytes() == before


# Two bulks: left and right singular vectors.

PAIRS = {
    "contiguous": (
        Layout("U", (50, 7), "float32", (16, 7)),
        Layout("V", (30, 7), "float32", (16, 7)),
    ),
    "chunked": (Layout("U", (50, 7), "float32", (16, 3)), Layout("V", (30, 7), "float32", (16, 3))),
    "mixed": (Layout("U", (50, 7), "float32", (16, 3)), Layout("V", (30, 7), "complex64", (16, 7))),
    "named the other way round": (
        Layout("z", (50, 7), "float32", (16, 3)),
        Layout("a", (30, 7), "float64", (16, 3)),
    ),
}
pairs = pytest.mark.parametrize("forms", PAIRS.values(), ids=PAIRS)


def contents_of(forms):
    return [numbers(form.shape, form.dtype) + number for number, form in enumerate(forms)]


def write_pair(path, forms, arrays=None):
    with sealed_writer(path, *forms) as writer:
        for bulk, array in zip(writer.bulks, contents_of(forms), strict=True):
            for number in range(bulk.layout.grid[0]):
                bulk.write_rows(number, array[bulk.layout.rows(number).slice])
        writer.publish({"what": "test"}, arrays)


@pairs
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_each_of_two_bulks_reads_as_it_was_written(tmp_path, forms, which):
    write_pair(tmp_path / "a.h5", forms)
    form = forms[which]
    r, c = Range(5, form.shape[0] - 3), Range(2, 6)
    found = SealedFile(tmp_path / "a.h5").bulk(form.name).read(r, c)
    assert (found == contents_of(forms)[which][r.slice, c.slice]).all()


@pairs
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_plain_h5py_reads_each_of_two_bulks(tmp_path, forms, which):
    write_pair(tmp_path / "a.h5", forms)
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file[forms[which].name][:] == contents_of(forms)[which]).all()


@pairs
def test_the_first_of_two_bulks_is_read_where_none_is_named(tmp_path, forms):
    write_pair(tmp_path / "a.h5", forms)
    assert (SealedFile(tmp_path / "a.h5").bulk().read_tile(1)[:, :3]
            == contents_of(forms)[0][16:32, :3]).all()  # fmt: skip


@pairs
def test_layouts_of_two_bulks_are_told_in_the_order_of_their_writing(tmp_path, forms):
    write_pair(tmp_path / "a.h5", forms)
    assert list(SealedFile(tmp_path / "a.h5").layouts.values()) == list(forms)


def test_bulk_that_is_not_there_is_named(tmp_path):
    write_pair(tmp_path / "a.h5", PAIRS["chunked"])
    with pytest.raises(CorruptError, match=r"a\.h5 holds no W"):
        SealedFile(tmp_path / "a.h5").bulk("W").read_tile(0)


@pytest.mark.soak
@pytest.mark.parametrize("pair", ["mixed", "named the other way round"])
def test_every_single_altered_byte_beside_two_bulks_or_in_them_is_noticed(tmp_path, pair):
    path = tmp_path / "a.h5"
    write_pair(path, PAIRS[pair], {"more": np.arange(3.0)})
    assert unnoticed_alterations(path) == []


@pairs
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_altered_tile_of_one_bulk_leaves_the_other_readable(tmp_path, forms, which):
    path = tmp_path / "a.h5"
    write_pair(path, forms)
    # Seals name bulks in the order of their places.
    extents = dict(zip(sorted(range(2), key=lambda n: offset_of(path, forms[n])),
                       read_seal(path).bulks, strict=True))  # fmt: skip
    with open(path, "r+b") as raw:
        raw.seek(extents[which].offset)
        raw.write(b"\xff\xff")
    other = forms[1 - which]
    found = SealedFile(path).bulk(other.name).read(*(Range(0, n) for n in other.shape))
    assert (found == contents_of(forms)[1 - which]).all()


def offset_of(path, form):
    with h5py.File(path) as file:
        ids = file[form.name].id
        return ids.get_chunk_info(0).byte_offset if form.chunked else ids.get_offset()


def test_bulks_that_changed_places_are_noticed(tmp_path):
    """Two of one form, whose descriptions somebody exchanged and sealed again."""
    forms = (layout(), Layout("left", (50, 7), "float32", (16, 7)))
    path = tmp_path / "a.h5"
    write_pair(path, forms)
    with h5py.File(path, "r+") as file:
        file.move("left", "x")
        file.move("right", "left")
        file.move("x", "right")
    reseal(path)
    with pytest.raises(CorruptError, match="wrong checksum"):
        verify(path)


@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_file_with_an_unwritten_bulk_is_never_published(tmp_path, which):
    forms = PAIRS["chunked"]
    with sealed_writer(tmp_path / "a.h5", *forms) as writer:
        written = writer.bulks[1 - which]
        for number in range(written.layout.grid[0]):
            written.write_rows(
                number, contents_of(forms)[1 - which][written.layout.rows(number).slice]
            )
        with pytest.raises(ValueError, match="never written"):
            writer.publish({})
    assert os.listdir(tmp_path) == []


def test_seal_of_one_bulk_is_spelt_as_ever(tmp_path):
    write(tmp_path / "a.h5", layout(), numbers())
    line = (tmp_path / "a.h5").read_bytes()[:512].splitlines()[2]
    assert re.fullmatch(rb"bulk \d+ 1400", line)


def test_seal_of_two_bulks_names_both(tmp_path):
    write_pair(tmp_path / "a.h5", PAIRS["contiguous"])
    line = (tmp_path / "a.h5").read_bytes()[:512].splitlines()[2]
    assert re.fullmatch(rb"bulk \d+ 1400 \d+ 840", line)


@pytest.mark.parametrize(
    "text",
    ["bulk 2560 1400 2000 840", "bulk 2560 1400 2600 840", "bulk 2560 1400 99999 840",
     "bulk 2560 1400 0 0", "bulk 2560 1400 4096", "bulk 2560 1400 4096 -1", "bulk"],
)  # fmt: skip
def test_seal_with_impossible_bulks_is_damage(tmp_path, text):
    write_pair(tmp_path / "a.h5", PAIRS["contiguous"])
    raw = (tmp_path / "a.h5").read_bytes()
    lines = raw[:512].rstrip(b"\0").splitlines()
    lines[2] = text.encode()
    (tmp_path / "a.h5").write_bytes((b"\n".join(lines) + b"\n").ljust(512, b"\0") + raw[512:])
    with pytest.raises(CorruptError, match="the seal in its first 512 bytes is damaged"):
        read_seal(tmp_path / "a.h5")


def test_what_is_read_is_the_file_that_was_verified(tmp_path, monkeypatch):
    for name, more in (("a.h5", np.zeros(3)), ("b.h5", np.ones(3))):
        write(tmp_path / name, layout(), numbers(), {"more": more})
    checked = checked_seal

    def exchanged(descriptor, path):
        seal = checked(descriptor, path)
        os.replace(tmp_path / "b.h5", path)
        return seal

    monkeypatch.setattr(sealed, "checked_seal", exchanged)
    assert (SealedFile(tmp_path / "a.h5").arrays["more"] == 0).all()


def test_checksums_of_an_opened_file_take_four_bytes_each(tmp_path):
    rows = 20_000
    form = Layout("right", (rows, 1), "float32", (1, 1))
    write(tmp_path / "a.h5", form, numbers((rows, 1)))
    SealedFile(tmp_path / "a.h5")
    tracemalloc.start()
    try:
        opened_files = [SealedFile(tmp_path / "a.h5") for _ in range(4)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(opened_files) < 4 * rows + 20_000


@pytest.mark.parametrize("numbers", [[0], [1, 2**32 - 1], list(range(300))], ids=len)
def test_checksums_are_spelt_as_json_spells_their_digits(numbers):
    spelt = Crc32Texts.put_back(b'{"crc32":[]}', [np.array(numbers, np.uint32)])
    assert json.loads(spelt) == {"crc32": [f"{number:08x}" for number in numbers]}
    kept, (read,) = Crc32Texts.cut_out(spelt)
    assert kept == b'{"crc32":[]}'
    assert read.tolist() == numbers


@pytest.mark.parametrize(
    "text", [b'{"crc32":["0000000g"]}', b'{"crc32":["0000000A"]}', b'{"crc32":[12345678901]}',
             b'{"crc32":["00000001" ]}', b'{"crc32":["00000001"', b'{"crc32":[]}'],
)  # fmt: skip
def test_checksums_in_another_spelling_are_left_where_they_are(text):
    assert Crc32Texts.cut_out(text) == (text, [])


def test_digest_is_that_of_the_identity_in_the_file(tmp_path):
    write(tmp_path / "a.h5", layout(tile=(16, 3)), numbers())
    with h5py.File(tmp_path / "a.h5") as file:
        stated = file["identity"][()]
    assert SealedFile(tmp_path / "a.h5").digest == hashlib.sha256(stated).hexdigest()


def test_file_that_is_removed_is_missed_though_it_was_kept_open(tmp_path):
    write(tmp_path / "a.h5", layout(), numbers())
    file = SealedFile(tmp_path / "a.h5", keep=True)
    assert file.bulk().read_tile(0).shape == (16, 7)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(CorruptError, match=r"a\.h5 cannot be opened any more"):
        file.bulk().read_tile(0)


def test_more_files_than_may_be_kept_open_are_read_all_the_same(monkeypatch, tmp_path):
    before = len(descriptors._KEPT)
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (2 * before + 6, 1024))
    write(tmp_path / "a.h5", layout(), numbers())
    opened_files = [SealedFile(tmp_path / "a.h5", keep=True) for _ in range(10)]
    assert len(descriptors._KEPT) == before + 3
    assert all((file.bulk().read_tile(0) == numbers()[:16]).all() for file in opened_files)
    del opened_files
    gc.collect()
    assert len(descriptors._KEPT) <= before
