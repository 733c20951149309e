"""How each kind of file is made anew if it is damaged, and how sealed files are opened, saying so.

Words alone: what is advised is done by people, on the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from skerch_ooc.base.errors import quoted
from skerch_ooc.store import names
from skerch_ooc.store.cleaned import is_cleaned
from skerch_ooc.store.names import FileKind, kind_of
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile


def _run_of(path: Path) -> Path:
    """The run directory of a file that lies two folders below it."""
    return (path if len(path.parents) > 2 else path.absolute()).parents[2]


def measured_anew(run: Run, path: Path) -> str:
    """What to say of a column shard that is damaged, after what is wrong with it."""
    if is_cleaned(run.directory):
        return f"; the others were removed: skerch-ooc clean {quoted(run.directory)} --shards"
    stated = names.COLUMN_SHARD.values(path.name)
    again = run.how_to_measure(None if stated is None else int(stated["part"]))
    then = " && " if again.startswith("skerch-ooc") else ", then "
    return f". To make it anew: rm {quoted(path)}{then}{again}"


def merge_command(directory: Path) -> str:
    """What merges a run on the command line."""
    return f"skerch-ooc merge {quoted(directory)}"


def merged_anew(path: Path) -> str:
    """The same of a file in a folder of the merge."""
    return f". To make it anew: rm {quoted(path)} && {merge_command(_run_of(path))}"


def recovered_anew(path: Path, *, alone: bool = False) -> str:
    """The same of a file in the folder of a result.

    Args:
        path: The file.
        alone: Whether only this file is made anew, and not all of the result.
    """
    directory, name = _run_of(path), path.absolute().parent.name
    if is_cleaned(directory):
        return "; restore it from a copy: its shards were removed"
    remove = f"rm {quoted(path)}" if alone else f"rm -r {quoted(path.parent)}"
    again = f"{remove} && skerch-ooc recover {quoted(directory)}"
    if name != "default":
        again += f" --name {name} (and with the settings that it had)"
    return f". To make it anew: {again}"


def repeated_anew(path: Path, command: str = "recover, or merge,") -> str:
    """The same of a file that is made by whichever command makes what it belongs to."""
    return f". To make it anew: rm {quoted(path)}, then {command} again"


def _piece_anew(path: Path) -> str:
    return recovered_anew(path) if is_cleaned(_run_of(path)) else repeated_anew(path)


def _removed(path: Path) -> str:
    return f". It can be made anew: rm {quoted(path)}"


_WAYS: dict[FileKind, Callable[[Path], str]] = {
    names.ROW_SHARD: merged_anew,
    names.TOTAL_SUMS: merged_anew,
    names.PARTIAL_SUMS: merged_anew,
    names.NOISE: merged_anew,
    names.BASIS: merged_anew,
    names.BASIS_PIECE: repeated_anew,
    names.PIECE: _piece_anew,
    names.BASIS_RECIPE: _removed,
    names.RECIPE: _removed,
    names.EIGH: recovered_anew,
    names.SVD: recovered_anew,
}


def how_made_anew(path: Path) -> str:
    """What to say of a damaged file of a run, after what is wrong with it, by its name and place.

    Nothing of a file that is no file of a run, or is a column shard: see :func:`measured_anew`.
    """
    kind = kind_of(path.absolute().parts[-3:-1], path.name)
    way = None if kind is None else _WAYS.get(kind)
    return "" if way is None else way(path)


def open_sealed(path: Path) -> SealedFile:
    """Opens a file of a run; what is wrong with it is said with how it is made anew.

    Raises:
        CorruptError: If it is damaged.
        FileNotFoundError: If it is not there.
    """
    return SealedFile(path, how_made_anew(path))


def open_if_there(path: Path) -> SealedFile | None:
    """As :func:`open_sealed`; ``None`` if the file is not there."""
    with contextlib.suppress(FileNotFoundError):
        return open_sealed(path)
    return None
