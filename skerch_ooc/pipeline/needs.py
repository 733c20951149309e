"""Which files of a finished run are of use, and which of its derived files are not any more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skerch_ooc.errors import IncompleteError, quoted
from skerch_ooc.partition import gaps
from skerch_ooc.pieces import PiecedMatrix, lost_pieces, pieced_names
from skerch_ooc.removal import Entry, Folder, Inventory
from skerch_ooc.rounds import Round, known_rounds
from skerch_ooc.rundir import Run
from skerch_ooc.sealed import SealedFile, verify
from skerch_ooc.shards import Rectangle
from skerch_ooc.sides import RANGE
from skerch_ooc.spec import Plan
from skerch_ooc.stages.merge import Merge
from skerch_ooc.stages.recover import RECIPE_FILE, RESULT_FILES

_SUMS = r"(?:corange\.)?sums\.t\d+-\d+\.h5"
_TOTALS = r"(?:corange\.)?total\.h5"
_NOISE = r"noise-[a-z]+(?:-[a-z]+)?\.h5"
_BASIS = r"basis\.h5|basis\.t\d+-\d+\.h5|basis\.recipe\.h5"
_BASIS_DRAFTS = r"basis\.draft\.h5|gram\.basis\.t\d+-\d+\.h5"
_PIECES = r"(?:eigenvectors|U|V)\.t\d+-\d+\.h5"
_DRAFTS = r"(?:draft|gram)\.(?:eigenvectors|U|V)(?:\.t\d+-\d+)?\.h5"
_ROUND_ROLE = r"round[1-9]\d*-[0-9a-f]{16}"


def _matches(entry: Entry, *patterns: str) -> bool:
    return re.fullmatch("|".join(patterns), entry.name) is not None


def is_sketch_folder(folder: Folder) -> bool:
    """Whether a folder has the name of one that is derived from a sketch."""
    inside = len(folder) == 2 and folder[0] == "sketch"
    return inside and re.fullmatch("[0-9a-f]{16}", folder[1]) is not None


def is_shard(entry: Entry) -> bool:
    """Whether a file has the name and place of a column shard."""
    return entry.folder == ("shards",) and Rectangle.from_name(entry.name) is not None


def is_basis(entry: Entry) -> bool:
    """Whether a file is a basis, or a piece or the recipe of one."""
    return is_sketch_folder(entry.folder) and _matches(entry, _BASIS)


def is_of_sketch(entry: Entry) -> bool:
    """Whether a file has the name and place of what is derived from a sketch."""
    if not is_sketch_folder(entry.folder):
        return False
    named = _matches(entry, _SUMS, _TOTALS, _NOISE, _BASIS, _BASIS_DRAFTS)
    return named or Rectangle.from_name(entry.name) is not None


def is_of_making(entry: Entry) -> bool:
    """Whether a file is one by which vectors of a result are made, and no part of it."""
    inside = len(entry.folder) == 2 and entry.folder[0] == "results"
    return inside and (entry.name == RECIPE_FILE or _matches(entry, _DRAFTS))


@dataclass(frozen=True)
class Needs:
    """What is of use in a run that is complete.

    Attributes:
        run: The run.
        rounds: The rounds of the plan in force, all measured.
        earlier: Rounds of the plans of implicit results that were made before the run has grown.
    """

    run: Run
    rounds: list[Round]
    earlier: list[Round]

    @property
    def sketch(self) -> str:
        """The digest of the last round's sketch."""
        return self.rounds[-1].sketch.digest

    @property
    def all(self) -> list[Round]:
        """The rounds whose sketches are of use."""
        return self.rounds + self.earlier

    @cached_property
    def folders(self) -> set[str]:
        """The folders of the sketches that are of use."""
        return {round_.sketch.folder.name for round_ in self.all}

    @cached_property
    def shards(self) -> set[str]:
        """The names of the column shards that are of use."""
        sketches = (round_.sketch for round_ in self.all)
        return {file.path.name for sketch in sketches for file in sketch.shard_files}

    def superseded(self, inventory: Inventory) -> list[Entry]:
        """Derived files that nothing in the run makes use of any more.

        Shards of later rounds are among them if their basis is not the one there is now.

        Raises:
            CorruptError: If a file is damaged.
        """
        roles = {role for round_ in self.all for role in round_.planned}
        found = [
            entry
            for entry in inventory.entries
            if is_of_sketch(entry) and entry.folder[1] not in self.folders
        ]
        for round_ in {round_.sketch.digest: round_ for round_ in self.all}.values():
            found += _done_with(round_, inventory)
        for folder in inventory.below(("results",)):
            found += self._done_with_result(folder, inventory)
        return found + [
            entry
            for entry in inventory.inside(("shards",))
            if (shard := Rectangle.from_name(entry.name))
            and re.fullmatch(_ROUND_ROLE, shard.role)
            and shard.role not in roles
        ]

    def duplicates(self, inventory: Inventory) -> list[Entry]:
        """Column shards of which no column is read, as others hold all of them.

        Those others are verified, every byte, as they are all that is left.

        Raises:
            CorruptError: If one of them is damaged.
        """
        used = [Rectangle.from_name(name) for name in self.shards]
        found, relied_on = [], set()
        for entry in inventory.inside(("shards",)):
            shard = Rectangle.from_name(entry.name)
            if shard is None or entry.name in self.shards:
                continue
            others = [
                other
                for other in used
                if other and _alike(other, shard) and len(other.columns.common(shard.columns))
            ]
            if not _is_within(shard, others):
                continue
            relied_on |= {other.name for other in others}
            found.append(entry)
        for name in sorted(relied_on):
            verify(self.run.shards / name)
        return found

    def _done_with_result(self, folder: Folder, inventory: Inventory) -> list[Entry]:
        """What a result in pieces is not made of, or not any more."""
        inside = inventory.inside(folder)
        path = self.run.results / folder[1]
        result = RESULT_FILES[self.run.plan.identity.kind]
        if result not in {entry.name for entry in inside}:
            # It may be in the making.
            return []
        file = SealedFile(path / result)
        recipe = _sketch_of(path / RECIPE_FILE) if _has(inside, RECIPE_FILE) else None
        if lost_pieces(file) or (recipe == self.sketch != file.identity.get("sketch")):
            return []
        named = {piece.name for piece in piece_paths(file)}
        return [
            entry
            for entry in inside
            if _matches(entry, _DRAFTS)
            or (_matches(entry, _PIECES) and entry.name not in named)
            or (entry.name == RECIPE_FILE and recipe != file.identity.get("sketch"))
        ]


def piece_paths(file: SealedFile) -> list[Path]:
    """The pieces of all matrices of a file."""
    names = pieced_names(file.identity)
    return [path for name in names for path in PiecedMatrix(file, name).paths]


def needs_of(run: Run) -> Needs:
    """What is of use in a run.

    Raises:
        IncompleteError: If it is not measured to its end.
        CorruptError: If a shard, a basis or a result is damaged.
    """
    rounds = list(known_rounds(run))
    if len(rounds) < run.plan.rounds or any(rounds[-1].missing().values()):
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
    earlier = [known for plan in plans.values() for known in _rounds_of(run, plan)]
    return Needs(run, rounds, earlier)


def _rounds_of(run: Run, plan: Plan) -> list[Round]:
    """The rounds of an earlier plan of a run; all that are known, if some are not."""
    found = list(known_rounds(Run(run.directory, plan)))
    return [known for known in found if not any(known.missing().values())]


def implicit_results(run: Run) -> dict[str, dict[str, Any]]:
    """The identities of implicit results, by their names.

    Raises:
        CorruptError: If a result is damaged.
    """
    found = {}
    for path in sorted(run.results.glob(f"*/{RESULT_FILES[run.plan.identity.kind]}")):
        identity = SealedFile(path).identity
        if identity.get("settings", {}).get("vectors") == "implicit":
            found[path.parent.name] = identity
    return found


def _done_with(round_: Round, inventory: Inventory) -> list[Entry]:
    """What was needed until the sums, or the basis, of a round were made."""
    sketch, merge = round_.sketch, Merge(round_)
    inside = inventory.inside(("sketch", sketch.folder.name))
    done = {side.name: merge.side(side.name).published() is not None for side in round_.sides}
    found = [entry for entry in inside if all(done.values()) and _matches(entry, _NOISE)]
    for name, total in done.items():
        prefix = "" if name == RANGE else re.escape(f"{name}.")
        found += [e for e in inside if total and _matches(e, rf"{prefix}sums\.t\d+-\d+\.h5")]
    basis = sketch.basis() if _has(inside, "basis.h5") else None
    if basis is not None:
        named = {path.name for path in piece_paths(basis.file)}
        found += [
            entry
            for entry in inside
            if _matches(entry, _BASIS_DRAFTS)
            or (_matches(entry, r"basis\.t\d+-\d+\.h5") and entry.name not in named)
        ]
    return found


def _has(entries: Iterable[Entry], name: str) -> bool:
    return any(entry.name == name for entry in entries)


def _sketch_of(path: Path) -> Any:
    """The sketch that a file says it is of."""
    try:
        return SealedFile(path).identity.get("sketch")
    except FileNotFoundError:
        return None


def _alike(one: Rectangle, other: Rectangle) -> bool:
    return (one.role, one.part, one.rows) == (other.role, other.part, other.rows)


def _is_within(shard: Rectangle, others: Iterable[Rectangle]) -> bool:
    """Whether others hold all columns of a shard."""
    return not gaps(shard.columns, [other.columns for other in others])
