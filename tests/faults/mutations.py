"""Ways in which a file of a run can be damaged."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from skerch_ooc.store.checksums import LIBVER, SEAL_BYTES, Extent, Seal, hash_of
from skerch_ooc.store.rawfile import DescriptorBytes

Mutation = Callable[[Path, random.Random, "Others"], None]


class Others:
    """Files that may come to stand in the place of another.

    Args:
        run: The run directory.
        foreign: A run directory of another seed, otherwise alike.
    """

    def __init__(self, run: Path, foreign: Path) -> None:
        self.run, self.foreign = run, foreign

    def sibling(self, path: Path, chance: random.Random) -> Path | None:
        """Another file of the same folder and kind."""
        there = sorted(other for other in path.parent.glob(f"*{path.suffix}") if other != path)
        return chance.choice(there) if there else None

    def counterpart(self, path: Path) -> Path | None:
        """The file of the same name in the run of another seed."""
        inside = path.relative_to(self.run).parts
        parts = ("*" if inside[0] == "sketch" and number == 1 else part
                 for number, part in enumerate(inside))  # fmt: skip
        found = sorted(self.foreign.glob("/".join(parts)))
        return found[0] if found else None


def flip(path: Path, chance: random.Random, _: Others) -> None:
    """Random bits of random bytes, in the first block as often as in all the rest."""
    data = bytearray(path.read_bytes())
    for _number in range(chance.choice((1, 1, 1, 2, 8))):
        most = min(len(data), 8192) if chance.random() < 0.5 else len(data)
        data[chance.randrange(most)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def zero(path: Path, chance: random.Random, _: Others) -> None:
    """A range of zeros, as after a power failure."""
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data))
    length = min(chance.choice((1, 16, 512, 4096, len(data))), len(data) - start)
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


def truncate(path: Path, chance: random.Random, _: Others) -> None:
    """The end is missing."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def lengthen(path: Path, chance: random.Random, _: Others) -> None:
    """There is more than there should be."""
    with open(path, "ab") as file:
        file.write(chance.randbytes(chance.choice((1, 512, 5000))))


def empty(path: Path, _: random.Random, __: Others) -> None:
    """Nothing is left."""
    path.write_bytes(b"")


def delete(path: Path, _: random.Random, __: Others) -> None:
    """The file is gone."""
    path.unlink()


def folder(path: Path, _: random.Random, __: Others) -> None:
    """A folder stands in its place."""
    path.unlink()
    path.mkdir()


def pipe(path: Path, _: random.Random, __: Others) -> None:
    """A pipe, which nobody may open: that would never end."""
    path.unlink()
    os.mkfifo(path)


def link(path: Path, chance: random.Random, others: Others) -> None:
    """A symbolic link: to the file itself, moved elsewhere, to nothing, or in a circle."""
    moved = others.run.parent / "moved"
    os.replace(path, moved)
    path.symlink_to(chance.choice([moved, "/dev/null", others.run / "nothing", path]))


def swap(path: Path, chance: random.Random, others: Others) -> None:
    """Two files of a folder take each other's names."""
    other = others.sibling(path, chance)
    if other is not None:
        between = path.with_name("between")
        for old, new in ((path, between), (other, path), (between, other)):
            os.rename(old, new)


def foreign(path: Path, _: random.Random, others: Others) -> None:
    """The file of this name of a run with another seed."""
    other = others.counterpart(path)
    if other is not None:
        path.unlink()
        shutil.copyfile(other, path)


ANY: dict[str, Mutation] = {
    "bits flipped": flip,
    "zeroed range": zero,
    "truncated": truncate,
    "lengthened": lengthen,
    "emptied": empty,
    "deleted": delete,
    "a folder instead": folder,
    "a pipe instead": pipe,
    "a symbolic link instead": link,
    "two swapped": swap,
    "of a foreign run": foreign,
}


def reseal(path: Path) -> None:
    """Gives an altered file a seal that fits, as who knows the format can."""
    with open(path, "r+b") as file:
        length = os.fstat(file.fileno()).st_size
        head = file.read(SEAL_BYTES).rstrip(b"\0").decode().splitlines()
        numbers = [int(word) for word in head[2].split(" ")[1:]]
        bulks = [Extent(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        bulks = [bulk for bulk in bulks if bulk.length]
        seal = Seal(length, tuple(bulks), hash_of(DescriptorBytes(file.fileno()), length, bulks))
        file.seek(0)
        file.write(seal.as_bytes())


def _replaced(make: Callable[[h5py.File, str, np.ndarray, Path], None]) -> Mutation:
    """Has a dataset replaced by something that reads alike, and the seal made anew."""

    def mutate(path: Path, chance: random.Random, others: Others) -> None:
        elsewhere = others.run.parent / "elsewhere.h5"
        with h5py.File(path, "r+", libver=LIBVER, locking=False) as file:
            name = chance.choice(sorted(file))
            values = np.asarray(file[name][()])
            with h5py.File(elsewhere, "w") as other:
                other.create_dataset(name, data=values)
            del file[name]
            make(file, name, values, elsewhere)
        reseal(path)

    return mutate


def _external_link(file: h5py.File, name: str, _: np.ndarray, elsewhere: Path) -> None:
    file[name] = h5py.ExternalLink(elsewhere, name)


def _soft_link(file: h5py.File, name: str, values: np.ndarray, _: Path) -> None:
    file.create_dataset("another", data=values)
    file[name] = h5py.SoftLink("another")


def _virtual(file: h5py.File, name: str, values: np.ndarray, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    if values.shape:
        layout[...] = h5py.VirtualSource(elsewhere, name, values.shape)
        file.create_virtual_dataset(name, layout)
    else:
        file[name] = h5py.ExternalLink(elsewhere, name)


def _external_storage(file: h5py.File, name: str, values: np.ndarray, elsewhere: Path) -> None:
    raw = elsewhere.with_suffix(".raw")
    raw.write_bytes(values.tobytes())
    if values.shape:
        file.create_dataset(
            name, values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)]
        )
    else:
        file[name] = h5py.SoftLink("/nowhere")


def _compressed(file: h5py.File, name: str, values: np.ndarray, _: Path) -> None:
    if values.shape:
        file.create_dataset(name, data=values, compression="gzip")
    else:
        file.create_group(name)


RESEALED: dict[str, Mutation] = {
    "external link, resealed": _replaced(_external_link),
    "soft link, resealed": _replaced(_soft_link),
    "virtual dataset, resealed": _replaced(_virtual),
    "external storage, resealed": _replaced(_external_storage),
    "filtered or a group, resealed": _replaced(_compressed),
}
"""Of HDF5 files only."""
