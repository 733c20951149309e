"""Verify: every byte of every file of a run is read and checked."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from skerch_ooc.errors import CorruptError, OocError
from skerch_ooc.pieces import check_pieces
from skerch_ooc.progress import Progress
from skerch_ooc.rundir import Run
from skerch_ooc.sealed import SealedFile, verify
from skerch_ooc.shards import Rectangle, check_identity, list_shards, strangers


def verify_run(run: Run, progress: Progress) -> list[str]:
    """Reads every byte of shards, sums and results.

    Args:
        run: The run; its plan was verified when it was opened.
        progress: Shows how far it is.

    Returns:
        What is wrong, one text for each file; empty if all is well.
    """
    checks = list(_checks(run))
    wrong = [f"{run.shards / name} is no shard" for name in strangers(run.shards)]
    with progress.stage("verify", len(checks), "files") as advance:
        for path, check in checks:
            try:
                check(verify(path))
            except FileNotFoundError:
                wrong.append(f"{path} disappeared while it was verified")
            except OocError as error:
                wrong.append(_with_advice(run, path, str(error)))
            advance(1)
    return wrong


def _with_advice(run: Run, path: Path, text: str) -> str:
    """What is wrong, with the command that makes a derived file anew if none is said."""
    if " again" in text or "rm " in text or path.is_relative_to(run.shards):
        return text
    directory = shlex.quote(str(run.directory))
    verb = f"merge {directory}"
    if path.is_relative_to(run.results):
        name = path.parent.name
        verb = f"recover {directory}" + ("" if name == "default" else f" --name {name}, as before")
    return f"{text}. To make it anew: rm {shlex.quote(str(path))} && skerch-ooc {verb}"


def _checks(run: Run) -> Iterator[tuple[Path, Callable[[SealedFile], None]]]:
    def of_rectangle(rectangle: Rectangle, *, merged: bool = False) -> Callable[[SealedFile], None]:
        return lambda file: check_identity(file, rectangle, run.plan, merged=merged)

    def of_run(file: SealedFile) -> None:
        if file.identity.get("run") != run.plan.run_id:
            raise CorruptError(f"{file.path} belongs to another run")
        check_pieces(file)

    for rectangle in list_shards(run.shards):
        yield run.shards / rectangle.name, of_rectangle(rectangle)
    for folder in sorted(path for path in run.sketch.iterdir() if path.is_dir()):
        rows = list_shards(folder)
        for rectangle in rows:
            yield folder / rectangle.name, of_rectangle(rectangle, merged=True)
        for path in sorted(folder.glob("*.h5")):
            if Rectangle.from_name(path.name) is None and not path.name.startswith("."):
                yield path, of_run
    for path in sorted(run.results.glob("*/*.h5")):
        if not path.name.startswith("."):
            yield path, of_run
