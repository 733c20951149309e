"""What a run says, in a form that can be compared: all but times, hosts and versions."""

from __future__ import annotations

import hashlib
from pathlib import Path

from skerch_ooc.base.partition import Range
from skerch_ooc.base.places import ObjectPath
from skerch_ooc.store.sealed import SealedFile


def file_contents(path: Path, identity: bool = True) -> dict[str, str]:
    """Hashes of the identity and of each dataset of a sealed file."""
    file = SealedFile(path)
    found = {name: sha(array.tobytes()) for name, array in file.arrays.items()}
    for name, layout in file.layouts.items():
        whole = file.bulk(name).read(*(Range(0, n) for n in layout.shape))
        found[name] = sha(whole.tobytes())
    if identity:
        found["identity"] = sha(repr(file.identity).encode())
    return found


def run_contents(run: Path) -> dict[str, dict[str, str]]:
    """The contents of all files of a run, by their paths within it."""
    return {
        str(path.relative_to(run)): file_contents(path)
        for path in sorted(_files_of(run))
        if path.suffix == ".h5" and not path.name.startswith(".")
    }


def _files_of(run: Path) -> list[Path]:
    if isinstance(run, ObjectPath):
        return [run / key for key in run.store.keys(run.key)]
    return list(run.glob("**/*.h5"))


def answer(run: Path) -> dict[str, list[dict[str, str]]]:
    """The merged sums and the results, whatever the shards they were made of."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in [*run.glob("sketch/*/*total.h5"), *run.glob("results/default/*.h5")]:
        found.setdefault(path.name, []).append(file_contents(path, identity=False))
    # The sums of several rounds have one name, in folders named by what they were made of.
    return {name: sorted(same, key=str) for name, same in found.items()}


def sha(data: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(data).hexdigest()[:16]
