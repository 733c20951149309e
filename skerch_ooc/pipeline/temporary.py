"""Temporary run directories, for results whose run was given none, as long as they are used."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from skerch_ooc.store import names
from skerch_ooc.store.rundir import is_planned
from skerch_ooc.store.shards import list_shards

if TYPE_CHECKING:
    from skerch_ooc.results.lowrank import LowRank

log = logging.getLogger("skerch_ooc")

Result = TypeVar("Result", bound="LowRank")


class TemporaryFolder:
    """A folder that is removed when this object is collected, or the process ends.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="skerch-ooc-"))
        self._removal = weakref.finalize(self, _remove_of, self.path, os.getpid())

    def keep(self) -> None:
        """Leaves the folder where it is, for good."""
        self._removal.detach()


def _remove_of(path: Path, process: int) -> None:
    """Removes the folder of a process; a child that was forked has but a copy of the object."""
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)


def in_folder(run_dir: str | Path | None, compute: Callable[[str | Path], Result]) -> Result:
    """Computes a result in a run directory; in a temporary one if none is given.

    The temporary one is there as long as the result, or one of its matrices. What was measured is
    kept where the computation fails: no product is lost.

    Args:
        run_dir: The run directory, if there is one.
        compute: Makes the result in a folder.
    """
    if run_dir is not None:
        return compute(run_dir)
    folder = TemporaryFolder()
    log.info(
        "the run is in %s, which is removed with its result; give run_dir to keep it", folder.path
    )
    try:
        result = compute(folder.path)
    except BaseException:
        if is_planned(folder.path) and list_shards(folder.path / names.SHARDS):
            folder.keep()
            log.warning(
                "what was measured is kept: the same call with run_dir = %r goes on",
                str(folder.path),
            )
        raise
    for reader in (result, result.left_vectors, result.right_vectors):
        vars(reader)["_folder"] = folder
    return result
