"""Advice on damaged files: how each kind of file is made anew, and opening files with that advice.

These functions return text for messages. The user runs the commands; nothing is removed here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import CorruptError, quoted
from skerch_ooc.base.files import mark_of
from skerch_ooc.base.places import is_object, removal
from skerch_ooc.store import names
from skerch_ooc.store.cleaned import is_cleaned
from skerch_ooc.store.names import FileKind, kind_of
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile

_KEPT = 256
"""So many opened files are kept: blocks and sums of as many rounds as most runs have."""

_LATELY_SECONDS = 60
"""Whether a run in an object store was cleaned is asked for at most this often, for messages."""


def _run_of(path: Path) -> Path:
    """Returns the run directory of a file that lies two folders below it."""
    # A relative path such as default/eigh.h5 has too few parents of its own.
    return (path if len(path.parents) > 2 else path.absolute()).parents[2]


@lru_cache(maxsize=8)
def _cleaned_lately(directory: Path, when: int) -> bool:
    del when
    return is_cleaned(directory)


def measured_anew(run: Run, path: Path) -> str:
    """Says how a damaged column shard is made anew; ends a message about the damage."""
    directory = run.directory
    # In an object store it is a request, which would be one for each shard that is opened.
    lately = int(time.monotonic() / _LATELY_SECONDS)
    if _cleaned_lately(directory, lately) if is_object(directory) else is_cleaned(directory):
        return f"; the others were removed: skerch-ooc clean {quoted(run.directory)} --shards"
    stated = names.COLUMN_SHARD.values(path.name)
    again = run.how_to_measure(None if stated is None else int(stated["part"]))
    then = " && " if again.startswith("skerch-ooc") else ", then "
    return f". To make it anew: {removal(path)}{then}{again}"


def merge_command(directory: Path) -> str:
    """Returns the command that merges a run."""
    return f"skerch-ooc merge {quoted(directory)}"


def merged_anew(path: Path) -> str:
    """Says how a damaged file in the folder of a sketch is made anew."""
    return f". To make it anew: {removal(path)} && {merge_command(_run_of(path))}"


def recovered_anew(path: Path, *, alone: bool = False) -> str:
    """Says how a damaged file in the folder of a result is made anew.

    Args:
        path: The file.
        alone: Whether only this file has to be removed, and not the folder of the result.
    """
    directory, name = _run_of(path), path.absolute().parent.name
    if is_cleaned(directory):
        return "; restore it from a copy: its shards were removed"
    remove = removal(path) if alone else removal(path.parent, below=True)
    again = f"{remove} && skerch-ooc recover {quoted(directory)}"
    if name != "default":
        again += f" --name {name} (and with the settings that it had)"
    return f". To make it anew: {again}"


def repeated_anew(path: Path, command: str = "recover, or merge,") -> str:
    """Says how a damaged file is made anew by repeating the command that made it."""
    return f". To make it anew: {removal(path)}, then {command} again"


def _piece_anew(path: Path) -> str:
    return recovered_anew(path) if is_cleaned(_run_of(path)) else repeated_anew(path)


def _copied_anew(path: Path) -> str:
    return f". To copy it anew: {removal(path)}, then plan again with the spec of the run"


def _removed(path: Path) -> str:
    return f". It can be made anew: {removal(path)}"


def _fitted_anew(path: Path) -> str:
    return f". To make it anew: {removal(path)}, then fit again"


def _scored_anew(path: Path) -> str:
    return f". To make it anew: {removal(path)} && skerch-ooc scores {quoted(_run_of(path))}"


_WAYS: dict[FileKind, Callable[[Path], str]] = {
    names.ROW_SHARD: merged_anew,
    names.INDEX: _removed,
    names.TOTAL_SUMS: merged_anew,
    names.PARTIAL_SUMS: merged_anew,
    names.NOISE: merged_anew,
    names.REST: merged_anew,
    names.WHOLE: _removed,
    names.BASIS: merged_anew,
    names.BASIS_PIECE: repeated_anew,
    names.PIECE: _piece_anew,
    names.MOMENTS: _fitted_anew,
    names.PCA: _fitted_anew,
    names.SCORES: _scored_anew,
    names.BASIS_RECIPE: _removed,
    names.RECIPE: _removed,
    names.START_VECTORS: _copied_anew,
    names.EIGH: recovered_anew,
    names.SVD: recovered_anew,
}


def how_made_anew(path: Path) -> str:
    """Says how a damaged file of a run is made anew, by its name and folder.

    The text is empty for a file that is none of a run's, and for a column shard, which
    :func:`measured_anew` needs the run for.
    """
    # Of what lies in a run directory itself only one kind is made anew.
    kind = kind_of(path.absolute().parts[-3:-1], path.name) or kind_of((), path.name)
    way = None if kind is None else _WAYS.get(kind)
    return "" if way is None else way(path)


def open_sealed(path: Path) -> SealedFile:
    """Opens a sealed file of a run; an error says how the file is made anew.

    Raises:
        CorruptError: If it is damaged.
        FileNotFoundError: If it is not there.
    """
    return SealedFile(path, how_made_anew(path))


def stated_by(path: Path) -> dict[str, Any]:
    """Returns what a file says it is; nothing if the file is not there, or is damaged."""
    with contextlib.suppress(FileNotFoundError, CorruptError):
        return SealedFile(path).identity
    return {}


def open_if_there(path: Path) -> SealedFile | None:
    """As :func:`open_sealed`; ``None`` if the file is not there, or its folder is a file."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return open_sealed(path)
    return None


def open_kept(path: Path) -> SealedFile | None:
    """As :func:`open_if_there`; a file that has not changed since is not read a second time.

    Rounds that follow one another ask for the blocks and sums of all rounds before them.
    """
    mark = mark_of(path)
    return None if mark is None else _opened(path, mark)


@lru_cache(maxsize=_KEPT)
def _opened(path: Path, mark: tuple[object, ...]) -> SealedFile | None:
    del mark
    return open_if_there(path)
