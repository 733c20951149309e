"""``cleaned.json``: the mark of a run whose column shards ``clean --shards`` removed.

Without the mark such a run would look as if nothing of it had been measured, and would be measured
anew. The mark is published before the first shard is removed, so that even if the process is killed
in between, the run says what happened to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerch_ooc.base import files
from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.places import is_object, removal
from skerch_ooc.store import names

_FORMAT = 1


@dataclass(frozen=True)
class Cleaned:
    """The content of the mark: the state of a run when its shards were removed.

    Attributes:
        when: The time, UTC.
        amendments: How many amendments the plan had.
        sketch: The hash of the last round's sketch.
        products: The numbers of products ``planned``, ``done`` and of the ``probe``.
        columns: How many columns of each role were measured: all that were planned.
        results: By name, the hash of each result's identity, which has all its checksums.
        shards: How many column shards there were.
        shard_bytes: The bytes of these shards.
    """

    when: str
    amendments: int
    sketch: str
    products: Mapping[str, int]
    columns: Mapping[str, int]
    results: Mapping[str, str]
    shards: int
    shard_bytes: int

    def publish(self, directory: Path, run_id: str) -> bool:
        """Publishes the mark unless there is one; returns whether this call published it."""
        value = {"format": _FORMAT, "type": names.CLEANED.type, "run": run_id} | asdict(self)
        return files.publish_bytes(files.signed_line(value), mark_path(directory))

    def lost_results(self, directory: Path, kind: str) -> list[str]:
        """Lists the results that were there when the shards were removed, and are gone now."""
        there = {path.parent.name for path in names.RESULT[kind].found_in(directory)}
        return sorted(set(self.results) - there)


def mark_path(directory: Path) -> Path:
    """Returns the path of the mark of a run."""
    return directory / names.CLEANED.name()


def is_cleaned(directory: Path) -> bool:
    """Whether a run has a mark; its content is not read."""
    path = mark_path(directory)
    # There is one request for an object of this name, and another for what may lie below it.
    return path.is_file() if is_object(path) else path.exists()


def remove_mark(directory: Path) -> None:
    """Removes the mark of a run of which no shard was removed after all.

    Raises:
        OSError: If it cannot be removed, or there is none.
    """
    mark_path(directory).unlink()
    files.sync_folder(directory)


def read_cleaned(directory: Path, run_id: str) -> Cleaned | None:
    """Reads the mark of a run; ``None`` if its shards were never removed.

    Raises:
        CorruptError: If the mark is damaged, or of another run.
    """
    path = mark_path(directory)
    advice = (
        f"; restore it from a copy. If all shards are there, it can be removed: {removal(path)}"
    )
    try:
        value = files.read_signed(path, advice)
    except FileNotFoundError:
        return None
    if value.pop("run", None) != run_id:
        raise CorruptError(f"{path} belongs to another run{advice}")
    if (value.pop("format", None), value.pop("type", None)) != (_FORMAT, names.CLEANED.type):
        raise CorruptError(f"{path} is of another format{advice}")
    return _checked(value, path, advice)


def _checked(value: dict[str, Any], path: Path, advice: str) -> Cleaned:
    try:
        mark = Cleaned(**value)
        numbers = [mark.amendments, mark.shards, mark.shard_bytes]
        numbers += [*mark.products.values(), *mark.columns.values()]
        texts = [mark.when, mark.sketch, *mark.results.values()]
        good = all(isinstance(number, int) for number in numbers)
        good = good and all(isinstance(text, str) for text in texts)
    except (TypeError, AttributeError) as error:
        raise CorruptError(f"{path} does not note what was removed: {error}{advice}") from error
    if not good:
        raise CorruptError(f"{path} does not note what was removed{advice}")
    return mark
