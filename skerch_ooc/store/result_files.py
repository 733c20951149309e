"""Files of results: paths, names, listing, opening, removal, and the commands that make them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skerch_ooc.base import files
from skerch_ooc.base.errors import IncompleteError, UsageError, quoted, shown_list
from skerch_ooc.base.places import ObjectPath, removal
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import RANGE
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.cleaned import is_cleaned
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile

VALUES = {"eigh": "eigenvalues", "svd": "S"}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}")


def result_name(settings: RecoverySpec, plan: Plan) -> str:
    """Returns the folder name of a result: ``default`` for the plan's own settings."""
    if settings == plan.recovery:
        return "default"
    return _name_of(settings)


def _name_of(settings: RecoverySpec) -> str:
    """Makes a folder name of settings."""
    powers = f"-power-{settings.power_iterations}" if settings.power_iterations else ""
    implicit = "-implicit" if settings.vectors == "implicit" else ""
    which = f"-{settings.which}" if settings.which != "LM" else ""
    core = "" if METHODS[settings.method].orthogonal else f"-core-{settings.core}"
    return f"{settings.method}{powers}{core}-rank-{settings.rank}{which}{implicit}"


def result_path(run: Run, name: str) -> Path:
    """Returns the path of the file of a result.

    Raises:
        UsageError: If the name of the result is not a plain folder name.
    """
    # The name comes from a user or a script: nothing in it may lead out of the run directory.
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"name = {name!r}: must be a plain folder name of letters, digits and _.=+-, not "
            "beginning with a dot"
        )
    return run.results / name / names.RESULT[run.plan.identity.kind].name()


def has_sums(run: Run) -> bool:
    """Whether any sketch of a run was merged."""
    return bool(names.TOTAL_SUMS.found_in(run.directory, side=RANGE))


def has_derived(run: Run) -> bool:
    """Whether a run has something that was made of a sketch, and states which."""
    return bool(files.folders_in(run.sketch) or results_of(run))


def results_of(run: Run) -> list[Path]:
    """Lists the files of all results of a run, in the order of their names."""
    return names.RESULT[run.plan.identity.kind].found_in(run.directory)


def begun_results(run: Run) -> list[Path]:
    """Lists the folders of unfinished results: a process makes them, or was killed meanwhile.

    Raises:
        OSError: If a folder cannot be read.
    """
    made = {path.parent for path in results_of(run)}
    folders = files.folders_in(run.results)
    return [path for path in folders if path not in made and names.sealed_in(path)]


def has_result(run: Run, name: str) -> bool:
    """Whether a result is there.

    Raises:
        UsageError: If its name is not a plain folder name.
    """
    return result_path(run, name).exists()


def assessment_path(path: Path) -> Path:
    """Returns the path of the assessment of a result, given the file of the result."""
    return path.parent / names.ASSESSMENT.name()


def is_assessed(run: Run, name: str) -> bool:
    """Whether a result has an assessment; it may be of a result that was replaced since.

    Raises:
        UsageError: If the name of the result is not a plain folder name.
    """
    return assessment_path(result_path(run, name)).exists()


def bytes_of_result(path: Path) -> int:
    """Returns the bytes of a result, its pieces, and all that is derived from sketches."""
    derived = path.parent.parent.parent.glob(f"{names.SKETCH}/*/*.h5")
    return sum(map(files.size_of, [*derived, *path.parent.glob("*.h5")]))


def recipe_path(path: Path) -> Path:
    """Returns the path of the recipe by which the vectors of a result are made."""
    return path.parent / names.RECIPE.name()


def report_path(path: Path) -> Path:
    """Returns the path of the report about a result, given the file of the result."""
    return path.parent / names.REPORT.name()


def values_path(path: Path) -> Path:
    """Returns the path of the table of all values of a result, given the file of the result."""
    return path.parent / names.VALUES_FILE.name()


def _figure_path(path: Path, figure: str) -> Path:
    return path.parent / names.FIGURE.folder[-1] / names.FIGURE.name(figure=figure)


def write_figures(path: Path, figures: Mapping[str, bytes]) -> None:
    """Writes the figures of a report about a result, and removes older ones that it lacks.

    Raises:
        OSError: If a figure cannot be written or removed.
    """
    for figure in names.FIGURES:
        file = _figure_path(path, figure)
        files.make_folder(file.parent)
        if figure in figures:
            files.replace_bytes(file, figures[figure])
        else:
            file.unlink(missing_ok=True)


def keep_default_result(run: Run, settings: RecoverySpec) -> None:
    """Renames the default result, if there is one, as the default gets other settings.

    Its new name is made of its own settings. A result of that name is not replaced.

    Args:
        run: The run, before its plan is amended.
        settings: The settings that the default is going to have.

    Raises:
        UsageError: If there is something of that name already.
    """
    folder = result_path(run, "default").parent
    if settings == run.plan.recovery or not folder.is_dir():
        return
    kept = folder.with_name(_name_of(run.plan.recovery))
    if isinstance(folder, ObjectPath) and isinstance(kept, ObjectPath):
        head = result_path(run, "default").name
        renamed = _rename_objects(folder, kept, head)
    else:
        renamed = not kept.exists()
        if renamed:
            folder.rename(kept)
    if not renamed:
        command = removal(kept, below=True)
        raise UsageError(
            f"{folder} is to be renamed to {kept.name}, as the default result gets other settings, "
            f"and there is such a result; remove one of them first: {command}"
        )
    # The plan that gives the default other settings must not be on the disk before.
    files.sync_folder(run.results)


def _rename_objects(folder: ObjectPath, kept: ObjectPath, head: str) -> bool:
    """Gives the objects of a result another name, or goes on with that.

    Args:
        folder: What is renamed.
        kept: The new name.
        head: The object that names the others: it comes last, and goes first.

    Returns:
        Whether it is done; not if the new name is that of something else.
    """
    store = folder.store
    there = sorted(store.keys(folder.key), key=lambda name: name == head)
    taken = set(store.keys(kept.key))
    if head in taken:
        # What was killed as it removed the old names had begun with the head.
        begun = head not in there or files.holds(kept / head, (folder / head).read_bytes())
    else:
        begun = taken.issubset(there)
    if not begun:
        return False
    if head not in taken:
        for name in there:
            store.copy((folder / name).key, (kept / name).key)
    for name in reversed(there):
        store.delete((folder / name).key)
    return True


def remove_result(path: Path) -> None:
    """Removes the file of a result that is to be replaced, with its assessment and report."""
    figures = (_figure_path(path, figure) for figure in names.FIGURES)
    for made in (path, assessment_path(path), report_path(path), values_path(path), *figures):
        made.unlink(missing_ok=True)


def result_identity(plan: Plan, digest: str, settings: RecoverySpec) -> dict[str, Any]:
    """Makes the identity of a result, without the description of its data.

    Args:
        plan: The plan in force.
        digest: The digest of the sketch that it is made of.
        settings: Method, core, rank and kind of vectors.
    """
    implicit = {"vectors": "implicit"} if settings.vectors == "implicit" else {}
    kind, stated = names.RESULT[plan.identity.kind], settings.as_json() | implicit
    return kind.identity(plan.run_id, sketch=digest, settings=stated)


def opened_result(path: Path) -> SealedFile:
    """Opens the file of a result.

    Args:
        path: The file, in the results folder of a run directory.

    Raises:
        IncompleteError: If it is not there; names the command that makes it.
        CorruptError: If it is damaged; says how it is made anew.
    """
    file = open_if_there(path)
    if file is None:
        raise IncompleteError(_not_there(path))
    return file


def command_on(verb: str, directory: Path, name: str) -> str:
    """Returns a command about a result, such as ``skerch-ooc assess DIR --name NAME``."""
    return f"skerch-ooc {verb} {quoted(directory)}" + f" --name {name}" * (name != "default")


def _not_there(path: Path) -> str:
    directory, name = path.parent.parent.parent, path.parent.name
    if is_cleaned(directory):
        (kind,) = (kind for kind in names.RESULT.values() if kind.name() == path.name)
        others = [found.parent.name for found in kind.found_in(directory)]
        return (
            f"there is no result {path}, and the shards were removed: it can be had of a new run "
            f"only. Results that are there: {shown_list(others)}"
        )
    again = command_on("recover", directory, name)
    return f"there is no result {path}; make it with: {again}"


def command_of(
    run: Run, name: str, settings: Mapping[str, Any], directory: str | None = None
) -> str:
    """Returns the command that makes a result, with the options that differ from the plan.

    Args:
        run: The run.
        name: Name of the result, which is that of its folder.
        settings: Method, core, rank and vectors (by default stored).
        directory: The run directory as the command names it; by default its path.
    """
    recovery = run.plan.recovery
    planned = recovery.as_json() | {"vectors": recovery.vectors, "which": recovery.which}
    settings = {"vectors": "stored", "which": "LM", **settings}
    options = {} if name == "default" else {"name": name}
    options |= {
        key: settings[key]
        for key in ("method", "core", "rank", "which", "vectors")
        if settings.get(key) != planned.get(key)
    }
    words = [f" --{key} {value}" for key, value in options.items()]
    return f"skerch-ooc recover {directory or quoted(run.directory)}" + "".join(words)
