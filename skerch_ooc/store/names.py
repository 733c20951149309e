"""What the files of a run are called, and of which kind a name is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import RANGE
from skerch_ooc.store.inventory import Entry, Folder
from skerch_ooc.store.result_files import RECIPE_FILE, RESULT_FILES
from skerch_ooc.store.shards import Rectangle
from skerch_ooc.store.sketch import BASIS_FILE

_SUMS = r"(?:corange\.)?sums\.t\d+-\d+\.h5"
_TOTALS = r"(?:corange\.)?total\.h5"
NOISE = r"noise-[a-z]+(?:-[a-z]+)?\.h5"
_BASIS = r"basis\.h5|basis\.t\d+-\d+\.h5|basis\.recipe\.h5"
BASIS_DRAFTS = r"basis\.draft\.h5|gram\.basis\.t\d+-\d+\.h5"
PIECES = r"(?:eigenvectors|U|V)\.t\d+-\d+\.h5"
DRAFTS = r"(?:draft|gram)\.(?:eigenvectors|U|V)(?:\.t\d+-\d+)?\.h5"
ROUND_ROLE = r"round[1-9]\d*-[0-9a-f]{16}"


def matches(entry: Entry, *patterns: str) -> bool:
    """Whether the name of a file is of one of some patterns."""
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
    return is_sketch_folder(entry.folder) and matches(entry, _BASIS)


def is_of_sketch(entry: Entry) -> bool:
    """Whether a file has the name and place of what is derived from a sketch."""
    if not is_sketch_folder(entry.folder):
        return False
    named = matches(entry, _SUMS, _TOTALS, NOISE, _BASIS, BASIS_DRAFTS)
    return named or Rectangle.from_name(entry.name) is not None


def is_of_making(entry: Entry) -> bool:
    """Whether a file is one by which vectors of a result are made, and no part of it."""
    inside = len(entry.folder) == 2 and entry.folder[0] == "results"
    return inside and (entry.name == RECIPE_FILE or matches(entry, DRAFTS))


BASIS_RECIPE_FILE = "basis.recipe.h5"
BASIS_DRAFT_FILE = "basis.draft.h5"


def names_of(plan: Plan, identity: Mapping[str, Any]) -> list[str]:
    """The names that a file which is no shard may have, by what its identity says of it."""
    match identity:
        case {"type": "sums", "tiles": [start, stop]}:
            side = identity.get("side", RANGE)
            prefix = "" if side == RANGE else f"{side}."
            names = [f"{prefix}sums.t{start}-{stop}.h5"]
            # Both, where a task of one side has as many tiles as all of the other.
            whole = [len(plan.tiles(rows)) for rows in plan.identity.shape]
            return [f"{prefix}total.h5", *names] if start == 0 and stop in whole else names
        case {"type": "noise", "noise": name}:
            return [f"noise-{name}.h5"]
        case {"type": "basis"}:
            return [BASIS_FILE]
        case {"type": "recipe", "round": _}:
            return [BASIS_RECIPE_FILE, BASIS_DRAFT_FILE]
        case {"type": "recipe", "rows": {**matrices}}:
            return [RECIPE_FILE, *(f"draft.{matrix}.h5" for matrix in matrices)]
        case {"type": "piece", "matrix": matrix, "tiles": [start, stop]}:
            return [f"{matrix}.t{start}-{stop}.h5"]
        case {"type": "gram", "matrix": matrix, "tiles": [start, stop]}:
            return [f"gram.{matrix}.t{start}-{stop}.h5"]
        case {"type": kind} if kind in RESULT_FILES:
            return [RESULT_FILES[kind]]
    return []
