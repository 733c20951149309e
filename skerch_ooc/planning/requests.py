"""Requests: how many each stage makes of an object store, from the plan alone.

Stores bill requests that write or list some ten times as high as those that read. Retries come on
top, and what workers ask for before each task.
"""

from __future__ import annotations

from dataclasses import dataclass

from skerch_ooc.base.object_store import RANGE_BYTES, SINGLE_BYTES, THREADS
from skerch_ooc.planning.disk import INDEX_FROM, Files, run_files, shards_of_round
from skerch_ooc.planning.memory import WINDOWS
from skerch_ooc.planning.plan import Plan

HEAD_BYTES = 1 << 16
"""Bytes of the first request: the seal, the metadata before the bulk, and all of a small file."""

_PAGE = 1000
"""Names in an answer to a listing."""

_TO_PUBLISH = 5
"""Requests beside the parts of a large file: to begin and to finish it, and to give it its name."""

_SHARDS_LISTED = 6
"""So many times a stage lists the column shards."""


@dataclass(frozen=True)
class Requests:
    """Requests of a stage.

    Attributes:
        get: Those that read: GET and HEAD.
        put: Those that write: PUT, POST and COPY.
        list: Those that list.
    """

    get: int = 0
    put: int = 0
    list: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(self.get + other.get, self.put + other.put, self.list + other.list)


def window_share(count: int, most: int) -> int:
    """Returns the bytes of a window of each file that is read tile by tile.

    Args:
        count: How many files are read at once.
        most: Bytes that all windows may take.
    """
    return min(max(1, THREADS // count) * RANGE_BYTES, most // (WINDOWS * count))


def requests_of(plan: Plan, windows: int) -> dict[str, Requests]:
    """Returns the requests of each stage, each in one process.

    Args:
        plan: The plan.
        windows: Bytes that windows on shards may take.
    """
    files, rounds = run_files(plan), range(1, plan.rounds + 1)
    shards = files["shards"]
    pages = sum(-(-shards_of_round(plan, number) // _PAGE) for number in rounds)
    listed = Requests(list=_SHARDS_LISTED * pages)
    # The plan is read, and marks and logs are looked for.
    begun = Requests(get=8, put=2, list=7)
    by_round = [_of_round(plan, number) for number in rounds]
    # An index is made of opened shards when they are measured, and then read in their place.
    indexed = sum((_opened(one) for one in by_round if one.count >= INDEX_FROM), Requests())
    measured = _written(shards) + indexed + _written(files["indexes"])
    written = [files[name] for name in ("row shards", "partial sums", "sums", "bases")]
    merged = sum((_assembled(one, windows) for one in by_round), Requests())
    merged += sum(map(_written, written), Requests())
    # A basis is made by a second stream over the sketch.
    sketch = files["row shards"] if files["row shards"].count else shards
    again = _read(sketch, windows)
    if files["row shards"].count or shards.count < INDEX_FROM:
        again += _opened(sketch)
    if plan.rounds > 1:
        merged += again
    result = Requests(get=10, put=4) + _written(files["result"])
    return {
        "measure": begun + listed + measured + Requests(get=shards.count),
        "merge": begun + listed + merged,
        "recover": begun + listed + again + result,
        "assess": begun + Requests(get=6, list=1),
    }


def _of_round(plan: Plan, number: int) -> Files:
    """Returns the column shards of a round, each as large as they are on average."""
    count, every = shards_of_round(plan, number), run_files(plan)["shards"]
    return Files(count, every.data * count // every.count, every.tiles * count // every.count)


def _is_small(files: Files) -> bool:
    return files.bytes // max(1, files.count) <= HEAD_BYTES


def _assembled(shards: Files, windows: int) -> Requests:
    """Returns the requests of reading the column shards of a round."""
    if shards.count >= INDEX_FROM:
        return _read(shards, windows)
    # Small ones are held once they are open.
    return _opened(shards) + (Requests() if _is_small(shards) else _read(shards, windows))


def _opened(files: Files) -> Requests:
    """Returns the requests of opening files: what is not small has its metadata at its end."""
    return Requests(get=files.count * (1 if _is_small(files) else 2))


def _read(files: Files, windows: int) -> Requests:
    """Returns the requests of reading files, all at once, window by window."""
    if not files.count:
        return Requests()
    of_file, tiles = -(-files.data // files.count), max(1, files.tiles // files.count)
    tile = max(1, -(-of_file // tiles))
    window = tile * max(1, window_share(files.count, windows) // tile)
    whole, rest = divmod(of_file, window)
    parts = whole * -(-window // RANGE_BYTES) + -(-rest // RANGE_BYTES)
    return Requests(get=files.count * parts)


def _written(files: Files) -> Requests:
    """Returns the requests of publishing files."""
    if not files.count:
        return Requests()
    of_file = files.bytes // files.count
    large = of_file > SINGLE_BYTES
    each = -(-of_file // RANGE_BYTES) + _TO_PUBLISH if large else 1
    return Requests(get=files.count if large else 0, put=each * files.count)
