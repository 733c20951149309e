"""Needs: which files of a run are still needed, and what must be whole before its shards may go.

First it finds the derived files and column shards that nothing uses any more. Then it checks that
the results are there, and whole, before the shards that they were made of may be removed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError, quoted
from skerch_ooc.base.partition import gaps
from skerch_ooc.base.places import removal
from skerch_ooc.base.progress import Progress
from skerch_ooc.pipeline.state import State
from skerch_ooc.pipeline.status import status
from skerch_ooc.planning.plan import Plan
from skerch_ooc.results.assess import Assessment, assess_result, meets_tolerance, read_assessment
from skerch_ooc.stages.merge.task import Merge
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.cleaned import Cleaned, mark_path, remove_mark
from skerch_ooc.store.inventory import Entry, Inventory
from skerch_ooc.store.names import FileKind, Folder
from skerch_ooc.store.pieces import check_pieces, lost_pieces, piece_paths
from skerch_ooc.store.result_files import (
    assessment_path,
    begun_results,
    recipe_path,
    result_identity,
    result_path,
    results_of,
)
from skerch_ooc.store.rundir import Run, open_run
from skerch_ooc.store.sealed import SealedFile, verify
from skerch_ooc.store.shards import Rectangle
from skerch_ooc.store.sketch import Round, is_later_role, known_rounds


@dataclass(frozen=True)
class Needs:
    """The files that a complete run still needs.

    Attributes:
        run: The run.
        sketch: The digest of the last round's sketch.
        rounds: The rounds whose sketches are needed: those of the plan in force, and those of
            earlier plans with implicit results, which were made before the run grew.
    """

    run: Run
    sketch: str
    rounds: list[Round]

    @cached_property
    def folders(self) -> set[str]:
        """The folders of the sketches that are needed."""
        return {round_.sketch.folder.name for round_ in self.rounds}

    @cached_property
    def shards(self) -> set[str]:
        """The names of the column shards that are needed."""
        return {shard.name for round_ in self.rounds for shard in round_.sketch.shards}

    def superseded(self, inventory: Inventory) -> list[Entry]:
        """Lists derived files that nothing in the run uses any more.

        Shards of later rounds are among them if their basis is not the present one.

        Raises:
            CorruptError: If a file is damaged.
        """
        roles = {role for round_ in self.rounds for role in round_.planned}
        found = [
            entry
            for entry in inventory.entries
            if entry.kind in names.DERIVED and entry.folder[1] not in self.folders
        ]
        for round_ in {round_.sketch.digest: round_ for round_ in self.rounds}.values():
            found += _done_with(round_, inventory)
        for folder in inventory.below((names.RESULTS,)):
            found += self._done_with_result(folder, inventory)
        return found + [
            entry
            for entry in inventory.inside((names.SHARDS,))
            if (shard := Rectangle.from_name(entry.name))
            and is_later_role(shard.role)
            and shard.role not in roles
        ]

    def duplicates(self, inventory: Inventory) -> list[Entry]:
        """Lists column shards of which no column is read, as other shards hold all of them.

        Every byte of those other shards is verified first, as they are all that will be left.

        Raises:
            CorruptError: If one of them is damaged.
        """
        used = [shard for name in self.shards if (shard := Rectangle.from_name(name))]
        found, relied_on = [], set()
        for entry in inventory.inside((names.SHARDS,)):
            shard = Rectangle.from_name(entry.name)
            if shard is None or entry.name in self.shards:
                continue
            alike = (other for other in used if other.strip == shard.strip)
            others = [other for other in alike if other.columns.common(shard.columns)]
            if not gaps(shard.columns, [other.columns for other in others]):
                relied_on |= {other.name for other in others}
                found.append(entry)
        for name in sorted(relied_on):
            verify(self.run.shards / name)
        return found

    def _done_with_result(self, folder: Folder, inventory: Inventory) -> list[Entry]:
        """Lists files beside a result that it is not made of, or no longer made of."""
        inside = inventory.inside(folder)
        result = names.RESULT[self.run.plan.identity.kind]
        if not _has(inside, result):
            # The result may be in the making.
            return []
        file = SealedFile(self.run.results / folder[1] / result.name())
        recipe = _sketch_of(recipe_path(file.path))
        if lost_pieces(file) or (recipe == self.sketch != file.identity.get("sketch")):
            return []
        done = [entry for entry in inside if entry.kind is names.RECIPE]
        return _unnamed(inside, file) + (done if recipe != file.identity.get("sketch") else [])


def needs_of(run: Run) -> Needs:
    """Finds which files a run still needs.

    Raises:
        IncompleteError: If the run is not measured to its end.
        CorruptError: If a shard, a basis or a result is damaged.
    """
    state = State(run)
    if not state.measured:
        raise IncompleteError(
            f"{run.directory} is not measured to its end; go on with: skerch-ooc run --run "
            f"{quoted(run.directory)}"
        )
    amended = len(run.plan.amendments)
    plans = {
        count: Plan(run.plan.identity, run.plan.amendments[:count])
        for identity in implicit_results(run).values()
        if isinstance(count := identity.get("amendments"), int) and 0 < count < amended
    }
    rounds = (known for plan in plans.values() for known in known_rounds(Run(run.directory, plan)))
    # All that are known, if others are not.
    earlier = [known for known in rounds if known.is_measured()]
    return Needs(run, state.last.sketch.digest, state.rounds + earlier)


def implicit_results(run: Run) -> dict[str, dict[str, Any]]:
    """Returns the identities of implicit results, by their names.

    Raises:
        CorruptError: If a result is damaged.
    """
    found = {}
    for path in results_of(run):
        identity = SealedFile(path).identity
        if identity.get("settings", {}).get("vectors") == "implicit":
            found[path.parent.name] = identity
    return found


def _done_with(round_: Round, inventory: Inventory) -> list[Entry]:
    """Lists files that were needed only until the sums, or the basis, of a round were made."""
    sketch, merge = round_.sketch, Merge(round_)
    inside = inventory.inside((names.SKETCH, sketch.folder.name))
    done = {side.name: merge.side(side.name).published() is not None for side in round_.sides}
    found = [entry for entry in inside if all(done.values()) and entry.kind is names.NOISE]
    for side, total in done.items():
        found += [e for e in inside if total and names.PARTIAL_SUMS.is_name(e.name, side=side)]
    basis = sketch.basis() if _has(inside, names.BASIS) else None
    return found if basis is None else found + _unnamed(inside, basis.file)


def _unnamed(inside: Iterable[Entry], file: SealedFile) -> list[Entry]:
    """Lists drafts beside the file of a result or a basis, and pieces that are not part of it."""
    named = {path.name for path in piece_paths(file)}
    return [
        entry
        for entry in inside
        if entry.kind in names.DRAFTS or (entry.kind in names.PIECES and entry.name not in named)
    ]


def _has(entries: Iterable[Entry], kind: FileKind) -> bool:
    return any(entry.kind is kind for entry in entries)


def _sketch_of(path: Path) -> Any:
    """Returns the digest of the sketch that a file says it is of."""
    file = open_if_there(path)
    return None if file is None else file.identity.get("sketch")


def require_finished(run: Run) -> None:
    """Refuses a run that is not finished.

    Raises:
        IncompleteError: If something is left to do; it names the command that comes next.
        CorruptError: If a file is damaged.
    """
    state = State(run, by_notes=True)
    # Of an assessment that is there and damaged more is told where it is read.
    following = None if state.finished else state.next
    if following is not None:
        raise IncompleteError(
            f"{run.directory} is not finished, so that its files may still be needed; go on with: "
            f"{following}"
        )


def mark_of(run: Run, shards: int, shard_bytes: int) -> Cleaned:
    """Checks that a finished run can do without its shards, and returns the mark to publish.

    Args:
        run: The run.
        shards: Number of column shards.
        shard_bytes: Bytes of the column shards.

    Raises:
        IncompleteError: If something needs the shards; it says what, and what to do about it.
        UsageError: If the default result has other settings than the plan.
        CorruptError: If a file is damaged.
    """
    for name in implicit_results(run):
        raise IncompleteError(
            f"results/{name} is implicit: its vectors are made of the shards as they are read. "
            'Recover it with vectors = "stored", or remove it: '
            f"{removal(run.results / name, below=True)}"
        )
    sketch = State(run).last.sketch.digest
    _require_default(run, sketch)
    _require_all_made(run)
    assessment = _assessed(run)
    _require_tolerance(run, assessment)
    state = status(run)
    return Cleaned(
        when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        amendments=len(run.plan.amendments),
        sketch=sketch,
        products=state.products,
        columns={role: count["planned"] for role, count in state.columns.items()},
        results={path.parent.name: SealedFile(path).digest for path in results_of(run)},
        shards=shards,
        shard_bytes=shard_bytes,
    )


def _require_default(run: Run, sketch: str) -> None:
    """Refuses a default result of another sketch, or of other settings than the plan's."""
    path = result_path(run, "default")
    wanted = result_identity(run.plan, sketch, run.plan.recovery)
    stated = SealedFile(path).identity
    different = [key for key in wanted if stated.get(key) != wanted[key]]
    if different:
        shown = ", ".join(f"{key} {stated.get(key)}, not {wanted[key]}" for key in different)
        again = f"{removal(path.parent, below=True)} && skerch-ooc recover {quoted(run.directory)}"
        raise UsageError(
            f"{path} is not the result that the run was planned for ({shown}); remove it and make "
            f"that: {again}"
        )


def _require_all_made(run: Run) -> None:
    """Refuses if a result is in the making, as that needs the shards."""
    for folder in begun_results(run):
        raise IncompleteError(
            f"{folder} is a result that is not finished: recover it with the settings that it was "
            f"begun with, or remove it: {removal(folder, below=True)}"
        )


def _assessed(run: Run) -> Assessment:
    """Computes the assessment of the default result, and compares it with the stored one.

    Raises:
        IncompleteError: If they differ.
    """
    path = result_path(run, "default")
    assessment = assess_result(run, path)
    stored, found = read_assessment(path), assessment.as_json()
    # A later look at the operator is no reason to assess the result again.
    if stored | {"products": None} != found | {"products": None}:
        raise IncompleteError(
            f"{assessment_path(path)} is not that of the result beside it; make it with: "
            f"skerch-ooc assess {quoted(run.directory)}"
        )
    return assessment


def _require_tolerance(run: Run, assessment: Assessment) -> None:
    """Refuses if the run would go on measuring to meet its tolerance."""
    most = run.plan.amendments[-1].most
    going_on = most is not None and run.plan.reach("right") < most
    if going_on and not meets_tolerance(run.plan, assessment):
        raise IncompleteError(
            f"the tolerance of {run.directory} is not met yet; go on with: skerch-ooc run --run "
            f"{quoted(run.directory)}"
        )


def verify_kept(run: Run, mark: Cleaned, progress: Progress) -> None:
    """Reads every byte of the results, which are all that will be left.

    Raises:
        CorruptError: If a result is damaged, or is not the one that is noted.
        IncompleteError: If a result is gone.
    """
    files = {name: result_path(run, name) for name in mark.results}
    advice = (
        "; no further shard is removed. If all shards are still there, this makes the run an "
        f"ordinary one again: {removal(mark_path(run.directory))}"
    )
    with progress.stage("verify", len(files), "results") as advance:
        for name, path in files.items():
            try:
                file = verify(path)
                check_pieces(file)
                for piece in piece_paths(file):
                    verify(piece)
            except FileNotFoundError as error:
                raise IncompleteError(f"{path} is gone{advice}") from error
            except CorruptError as error:
                raise CorruptError(f"{error}{advice}") from error
            if file.digest != mark.results[name]:
                raise CorruptError(f"{path} is not the result that was there before{advice}")
            advance(1)


def publish_mark(run: Run, mark: Cleaned) -> None:
    """Publishes that the shards are being removed, unless the plan has grown meanwhile.

    Args:
        run: The run.
        mark: The mark; if it was published before, it is left as it is.

    Raises:
        UsageError: If the plan has grown, or another process does the same; nothing is changed.
        CorruptError: If the mark that is there is damaged.
    """
    if run.cleaned() == mark:
        return
    if not mark.publish(run.directory, run.plan.run_id):
        raise UsageError(f"another process cleans {run.directory} at this moment; try again later")
    # A process that amends the plan looks for the mark afterwards: one of the two sees the other.
    if len(open_run(run.directory).plan.amendments) != mark.amendments:
        remove_mark(run.directory)
        raise UsageError(
            f"{run.directory} was extended or updated at this moment; nothing was removed. Finish "
            f"it first: skerch-ooc run --run {quoted(run.directory)}"
        )
