"""Verify: reads every byte of every file of a run, and checks checksums, identities and places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from skerch_ooc.base.errors import CorruptError, OocError
from skerch_ooc.base.files import folders_in, is_taken
from skerch_ooc.base.progress import Progress
from skerch_ooc.results.assess import read_assessment
from skerch_ooc.store import names
from skerch_ooc.store.anew import measured_anew, merged_anew, recovered_anew
from skerch_ooc.store.names import names_of, sealed_in
from skerch_ooc.store.origin import Origins
from skerch_ooc.store.pieces import check_pieces
from skerch_ooc.store.result_files import assessment_path, result_path
from skerch_ooc.store.rundir import Run, layout_path, require_folder
from skerch_ooc.store.sealed import SealedFile, verify
from skerch_ooc.store.shards import Rectangle, check_identity, list_shards, strangers
from skerch_ooc.store.sketch import sketch_folder

Check = Callable[[], object]


def verify_run(run: Run, progress: Progress) -> list[str]:
    """Reads every byte of fingerprints, layout, shards, sums, results and assessments.

    Args:
        run: The run; its plan was verified when it was opened.
        progress: Shows how far it is.

    Returns:
        What is wrong, one text for each file; empty if all is well.

    Raises:
        IncompleteError: If the folder of the shards is gone.
    """
    require_folder(run)
    checks = list(_checks(run))
    wrong = [f"{run.shards / name} is no shard" for name in strangers(run.shards)]
    wrong += _lost_results(run)
    with progress.stage("verify", len(checks), "files") as advance:
        for path, check in checks:
            try:
                check()
            except FileNotFoundError:
                wrong.append(f"{path} disappeared while it was verified")
            except OocError as error:
                wrong.append(_with_advice(run, path, str(error)))
            advance(1)
    return wrong


def _lost_results(run: Run) -> list[str]:
    """Lists results of a cleaned run that are gone, or are no longer those that were noted."""
    mark = run.cleaned()
    if mark is None:
        return []
    wrong = []
    for name, identity in mark.results.items():
        path = result_path(run, name)
        try:
            if SealedFile(path).digest != identity:
                wrong.append(f"{path} is not the result that was there when shards were removed")
        except FileNotFoundError:
            wrong.append(f"{path} is gone, and so are its shards: restore it from a copy")
        except CorruptError:
            # The check of the file itself reports it.
            continue
    return wrong


def _with_advice(run: Run, path: Path, text: str) -> str:
    """Adds to what is wrong the command that makes the file anew, unless one is said already."""
    said = any(word in text for word in (" again", "rm ", "anew"))
    if path.is_relative_to(run.shards):
        return text + measured_anew(run, path)
    if path.is_relative_to(run.results) and (not said or run.cleaned() is not None):
        return text + recovered_anew(path, alone=True)
    return text + merged_anew(path) if path.is_relative_to(run.sketch) and not said else text


def _checks(run: Run) -> Iterator[tuple[Path, Check]]:
    for part in run.plan.parts:
        yield run.fingerprint_path(part.number), partial(run.fingerprint, part.number)
    if is_taken(layout_path(run.directory)):
        yield layout_path(run.directory), run.layout
    if run.plan.identity.start is not None:
        path = run.directory / names.START_VECTORS.name()
        yield path, partial(_check_of_run, run, path)
    origins = Origins(run)
    for rectangle in list_shards(run.shards):
        yield _of_rectangle(run, run.shards, rectangle, origins)
    for folder in folders_in(run.sketch):
        for rectangle in list_shards(folder):
            yield _of_rectangle(run, folder, rectangle)
        for path in sealed_in(folder):
            if Rectangle.from_name(path.name) is None:
                yield path, partial(_check_of_run, run, path)
    for folder in folders_in(run.results):
        for path in sealed_in(folder):
            yield path, partial(_check_of_run, run, path)
            written = assessment_path(path)
            if is_taken(written) and path.name == names.RESULT[run.plan.identity.kind].name():
                yield written, partial(read_assessment, path)


def _of_rectangle(
    run: Run, folder: Path, rectangle: Rectangle, origins: Origins | None = None
) -> tuple[Path, Check]:
    path = folder / rectangle.name

    def check() -> None:
        file = verify(path)
        check_identity(file, rectangle, run.plan, merged=origins is None)
        if origins is not None:
            origins.require(file, rectangle.part)

    return path, check


def _check_of_run(run: Run, path: Path) -> None:
    file: SealedFile = verify(path)
    if file.identity.get("run") != run.plan.run_id:
        raise CorruptError(
            f"{file.path} belongs to another run; restore the one of this run, or remove it"
        )
    _require_own_place(run, file)
    check_pieces(file)


def _require_own_place(run: Run, file: SealedFile) -> None:
    """Refuses a file that stands in the place of another file of the same run."""
    # Such a file has a valid checksum and run id: only what it says of itself tells.
    path, own = file.path, names_of(run.plan, file.identity)
    if path.name not in own:
        found = " or ".join(own) or f"of the type {file.identity.get('type')}"
        raise CorruptError(
            f"{path} is another file by what it says of itself: {found}; put it back to that name"
        )
    sketch = str(file.identity.get("sketch"))
    if path.is_relative_to(run.sketch) and "sketch" in file.identity:
        folder = sketch_folder(run, sketch)
        if path.parent != folder:
            raise CorruptError(
                f"{path} is another file by what it says of itself: of {folder}; put it back there"
            )
