"""File names of a run: the table of all kinds of files, with their folders, names and types.

The table has one row for each kind of file. Code that writes a file takes its name from here; code
that lists, verifies or removes files finds out here what a name stands for.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skerch_ooc.base.partition import Range
from skerch_ooc.planning.plan import FORMAT_VERSION, Plan
from skerch_ooc.planning.sides import CORANGE, RANGE, START

Folder = tuple[str, ...]
"""The folders that lead to a file, from the run directory."""

SHARDS, SKETCH, RESULTS, LOGS, AMENDMENTS = "shards", "sketch", "results", "logs", "plan.d"
FOLDERS = (AMENDMENTS, SHARDS, SKETCH, RESULTS, LOGS)
"""The folders of every run."""

BASIS_MATRIX = "basis"
MATRICES = ("eigenvectors", "U", "V")
"""The tall matrices of a result."""

FIGURES = (
    "spectrum", "spectrum-log", "density", "density-whole", "convergence", "scree", "error",
    "vectors", "right-vectors", "maps", "timeline",
)  # fmt: skip
"""The figures of a report."""

# No leading zeros: a value has one spelling, so no two names state the same.
_NUMBER = r"(?:0|[1-9]\d{0,14})"
_FIELDS = {
    "role": r"[a-z][a-z0-9-]{0,39}",
    "part": r"(?:0|[1-9]\d{0,8})",
    "columns": rf"{_NUMBER}-{_NUMBER}",
    "rows": rf"{_NUMBER}-{_NUMBER}",
    "tiles": rf"{_NUMBER}-{_NUMBER}",
    "side": rf"(?:(?:{CORANGE}|{START})\.)?",
    "noise": r"[a-z]+(?:-[a-z]+)?",
    "figure": "|".join(FIGURES),
    "log": r"[a-z]+",
    "number": r"\d{4,}",
    "source": r"(?:start|round[1-9]\d{0,3}|test\d{1,9}-\d{1,9})",
    "of_part": r"(?:\.p[1-9]\d*)?",
}
_RANGES = {"columns", "rows", "tiles"}


def _spelt(field: str, value: object) -> str:
    """Spells the value of a field as it stands in a file name."""
    if field == "side":
        return "" if value == RANGE else f"{value}."
    if field == "of_part":
        return f".p{value}" if value else ""
    return format(value, "04") if field == "number" else str(value)


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        type: The type that its identity states; ``None`` if the file has no identity.
        folder: The folders that lead to it, each as a regular expression.
        template: Its name, with fields in braces.
        matrices: The matrices that it may belong to, if it belongs to one.
    """

    type: str | None
    folder: Folder
    template: str
    matrices: tuple[str, ...] = ()

    def name(self, **values: object) -> str:
        """Returns the name of a file, given the values of all fields."""
        return self.template.format(**{key: _spelt(key, value) for key, value in values.items()})

    def values(self, name: str) -> dict[str, str] | None:
        """Returns the fields of a name as they are spelt; ``None`` if it is not of this kind."""
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        ranges = (found[field].split("-") for field in self._ranges)
        if not all(int(start) < int(stop) for start, stop in ranges):
            return None
        return found.groupdict()

    def is_name(self, name: str, **wanted: object) -> bool:
        """Whether a name is of this kind, and has the wanted values."""
        values = self.values(name)
        return values is not None and all(
            values[field] == _spelt(field, value) for field, value in wanted.items()
        )

    def lies_in(self, folder: Folder) -> bool:
        """Whether files of this kind lie in a folder of a run."""
        return len(folder) == len(self.folder) and all(
            re.fullmatch(*pair) for pair in zip(self.folder, folder, strict=True)
        )

    def found_in(self, directory: Path, **wanted: object) -> list[Path]:
        """Lists the files of this kind in a run directory that have the wanted values, in order.

        Folders that may not be read are left out.
        """
        # glob knows no regular expressions: it finds candidates, which are then matched exactly.
        stars = dict.fromkeys(self._fields - wanted.keys(), "*")
        spelt = {field: _spelt(field, value) for field, value in wanted.items()}
        place = [one if re.escape(one) == one else "*" for one in self.folder]
        found = directory.glob("/".join([*place, self.template.format(**stars | spelt)]))
        return sorted(
            path
            for path in found
            if self.is_name(path.name, **wanted)
            and self.lies_in(path.relative_to(directory).parts[:-1])
        )

    def identity(self, run_id: str, **more: object) -> dict[str, Any]:
        """Makes the identity of a file of this kind, in JSON values.

        Args:
            run_id: The id of the run that it belongs to.
            **more: What tells it from others of its kind; a range is stated by its two ends.
        """
        stated = {
            key: [value.start, value.stop] if isinstance(value, Range) else value
            for key, value in more.items()
        }
        return {"format": FORMAT_VERSION, "type": self.type, "run": run_id, **stated}

    @cached_property
    def _parsed(self) -> list[tuple[str, str | None]]:
        return [(text, field) for text, field, *_ in string.Formatter().parse(self.template)]

    @cached_property
    def _fields(self) -> set[str]:
        return {field for _, field in self._parsed if field}

    @cached_property
    def _ranges(self) -> set[str]:
        return self._fields & _RANGES

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        fields = _FIELDS | {"matrix": "|".join(self.matrices)}
        return re.compile(
            "".join(
                re.escape(text) + (f"(?P<{field}>{fields[field]})" if field else "")
                for text, field in self._parsed
            )
        )


_RUN: Folder = ()
_OF_SKETCH = (SKETCH, "[0-9a-f]{16}")
_OF_RESULT = (RESULTS, ".+")
_SHARD = "{role}.p{part}.c{columns}.r{rows}.h5"

KINDS = (
    PLAN := FileKind(None, _RUN, "plan.json"),
    AMENDMENT := FileKind(None, (AMENDMENTS,), "{number}.json"),
    FINGERPRINT := FileKind(None, _RUN, "fingerprint{of_part}.json"),
    LAYOUT := FileKind(None, _RUN, "layout.json"),
    START_VECTORS := FileKind("start", _RUN, "start.h5"),
    CLEANED := FileKind("cleaned", _RUN, "cleaned.json"),
    LOG := FileKind(None, (LOGS,), "{log}.jsonl"),
    PLACES := FileKind(None, (LOGS,), "places.json"),
    COLUMN_SHARD := FileKind("shard", (SHARDS,), _SHARD),
    ROW_SHARD := FileKind("shard", _OF_SKETCH, _SHARD),
    INDEX := FileKind("index", _OF_SKETCH, "index.h5"),
    TOTAL_SUMS := FileKind("sums", _OF_SKETCH, "{side}total.h5"),
    PARTIAL_SUMS := FileKind("sums", _OF_SKETCH, "{side}sums.t{tiles}.h5"),
    NOISE := FileKind("noise", _OF_SKETCH, "noise-{noise}.h5"),
    REST := FileKind("rest", _OF_SKETCH, "rest-{source}.h5"),
    WHOLE := FileKind("whole", _OF_SKETCH, "{side}whole.h5"),
    MOMENTS := FileKind("moments", (SKETCH,), "moments.t{tiles}.h5"),
    BASIS := FileKind("basis", _OF_SKETCH, "basis.h5"),
    BASIS_PIECE := FileKind("piece", _OF_SKETCH, "{matrix}.t{tiles}.h5", (BASIS_MATRIX,)),
    BASIS_RECIPE := FileKind("recipe", _OF_SKETCH, "basis.recipe.h5", (BASIS_MATRIX,)),
    BASIS_DRAFT := FileKind("recipe", _OF_SKETCH, "basis.draft.h5", (BASIS_MATRIX,)),
    BASIS_GRAM := FileKind("gram", _OF_SKETCH, "gram.{matrix}.t{tiles}.h5", (BASIS_MATRIX,)),
    EIGH := FileKind("eigh", _OF_RESULT, "eigh.h5"),
    SVD := FileKind("svd", _OF_RESULT, "svd.h5"),
    PCA := FileKind("pca", _OF_RESULT, "pca.h5"),
    SCORES := FileKind("scores", _OF_RESULT, "scores.h5"),
    PIECE := FileKind("piece", _OF_RESULT, "{matrix}.t{tiles}.h5", MATRICES),
    RECIPE := FileKind("recipe", _OF_RESULT, "recipe.h5", MATRICES),
    DRAFT := FileKind("recipe", _OF_RESULT, "draft.{matrix}.h5", MATRICES),
    GRAM := FileKind("gram", _OF_RESULT, "gram.{matrix}.t{tiles}.h5", MATRICES),
    ASSESSMENT := FileKind(None, _OF_RESULT, "assessment.json"),
    REPORT := FileKind(None, _OF_RESULT, "report.html"),
    VALUES_FILE := FileKind(None, _OF_RESULT, "values.csv"),
    FIGURE := FileKind(None, (*_OF_RESULT, "figures"), "{figure}.svg"),
)

RESULT = {"eigh": EIGH, "svd": SVD}
"""The kind of file of a result, by the kind of the run."""

BASES = {BASIS, BASIS_PIECE, BASIS_RECIPE}
"""A basis, its pieces and its recipe."""

SUMS_OF_ROUNDS = {TOTAL_SUMS, REST}
"""What tells how far the rounds of ``krylov`` are; small."""

DERIVED = {kind for kind in KINDS if kind.folder == _OF_SKETCH}
"""All that is derived from a sketch and lies in its folder."""

PIECES = {BASIS_PIECE, PIECE}
"""Files with some rows of a basis or of a result's vectors."""

DRAFTS = {BASIS_DRAFT, BASIS_GRAM, DRAFT, GRAM}
"""Intermediate files by which a basis or vectors are corrected while they are made."""

MAKING = {RECIPE, DRAFT, GRAM}
"""Intermediate files from which the vectors of a result are made; they are no part of it."""


def kind_of(folder: Folder, name: str) -> FileKind | None:
    """Returns the kind of a file by its folder and name; ``None`` if it is none of ours."""
    return next((kind for kind in KINDS if kind.lies_in(folder) and kind.is_name(name)), None)


def sealed_in(folder: Path) -> list[Path]:
    """Lists the published files of a folder that are sealed files by their suffix, in order.

    Raises:
        OSError: If the folder cannot be read.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix == ".h5")
    return [path for path in found if not path.name.startswith(".")]


def names_of(plan: Plan, identity: Mapping[str, Any]) -> list[str]:
    """Returns the names that a file may have according to its identity; none for shards."""
    stated = _stated(identity)
    # Sums over all tiles of a side are called its total. If a task of one side has as many tiles as
    # all of the other side, its sums may have either name.
    whole = {f"0-{len(plan.tiles(rows))}" for rows in plan.identity.shape}
    return [
        name
        for kind in KINDS
        if kind.type is not None and kind.type == identity.get("type")
        if kind._fields <= stated.keys()
        if kind is not TOTAL_SUMS or whole.intersection(stated["tiles"])
        if not kind.matrices or set(stated["matrix"]).intersection(kind.matrices)
        for name in _names(kind, stated)
    ]


def _stated(identity: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the values that an identity states for the fields of a name."""
    match identity.get("tiles"):
        case [start, stop]:
            tiles = [f"{start}-{stop}"]
        case _:
            tiles = []
    rows, noise = identity.get("rows"), identity.get("noise")
    matrices = rows if isinstance(rows, Mapping) else [identity.get("matrix")]
    return {
        "tiles": tiles,
        "matrix": [str(matrix) for matrix in matrices],
        "noise": [noise] if isinstance(noise, str) else [],
        "side": [str(identity.get("side", RANGE))],
        "source": [str(identity["source"])] if "source" in identity else [],
    }


def _names(kind: FileKind, stated: Mapping[str, list[str]]) -> Iterator[str]:
    fields = [field for field in stated if f"{{{field}}}" in kind.template]
    for values in itertools.product(*(stated[field] for field in fields)):
        yield kind.name(**dict(zip(fields, values, strict=True)))
