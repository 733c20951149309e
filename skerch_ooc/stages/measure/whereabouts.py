"""Whereabouts: where the file of a factory is looked for, as runs and their specs are moved."""

from __future__ import annotations

import logging
from pathlib import Path

from skerch_ooc.base.errors import CorruptError, OperatorError
from skerch_ooc.base.files import is_folder, is_readable, read_json
from skerch_ooc.base.places import is_object
from skerch_ooc.operators.loading import factory_file, factory_sha256
from skerch_ooc.planning.parts import OperatorSource
from skerch_ooc.store.names import PLACES
from skerch_ooc.store.rundir import Run

log = logging.getLogger("skerch_ooc")


def folders_of(run: Run, source: OperatorSource) -> list[Path]:
    """Lists the folders in which the file of a factory may be.

    They are where the plan's path leads (relative to a run directory; the folder itself where the
    run is in an object store), where the spec was when the run was planned, and the current folder.
    """
    planned = Path(source.folder)
    folders = [planned if is_object(run.directory) else (run.directory / planned).resolve()]
    try:
        noted = read_json(run.logs / PLACES.name())["folder"]
        # A log may hold anything, and a path with a null byte raises wherever it is used.
        if "\0" not in noted:
            folders.append(Path(noted))
    except (OSError, CorruptError, KeyError, TypeError):
        log.debug("%s has no note of where the factory was", run.directory)
    return list(dict.fromkeys([*folders, Path.cwd()]))


def say_changed(path: object) -> None:
    """Warns that the file of a factory is not the one that the run was planned with."""
    log.warning(
        "%s has changed since the run was planned; products that are still made are checked "
        "against the fingerprint",
        path,
    )


def find_folder(run: Run, source: OperatorSource) -> Path:
    """Finds the folder of a factory's file; see :func:`folders_of` for where it looks.

    Raises:
        OperatorError: If no candidate holds the factory's file.
    """
    assert source.factory is not None
    candidates = folders_of(run, source)
    if source.sha256 is None:
        return next((folder for folder in candidates if is_folder(folder)), Path.cwd())
    present = []
    for folder in candidates:
        path = factory_file(source.factory, folder)
        if path is not None and is_readable(path):
            if factory_sha256(source.factory, folder) == source.sha256:
                return folder
            present.append(folder)
    if not present:
        raise OperatorError(
            f"the factory {source.factory!r} is in none of: {', '.join(map(str, candidates))}; "
            "run the command from its folder, or put it back"
        )
    say_changed(factory_file(source.factory, present[0]))
    return present[0]
