"""Sums over all samples, in one reading: run of rows by run of rows, kept so that it can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.principal import ColumnSquares, Factor, Gram, Moments
from skerch_ooc.base.errors import OperatorError, UsageError
from skerch_ooc.base.files import as_given, make_folder
from skerch_ooc.base.partition import Range, tree_sum
from skerch_ooc.base.places import place, removal
from skerch_ooc.base.provenance import provenance
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.samples import Samples
from skerch_ooc.pipeline.principal.inputs import GivenSamples, Reopened, opened_here, shipped_to
from skerch_ooc.stages.measure.shipping import Shipped
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.arrival import FILES, Arrivals
from skerch_ooc.store.sealed import SealedFile, sealed_writer

KINDS: dict[str, type[Moments]] = {"gram": Gram, "qr": Factor}


@dataclass(frozen=True)
class SumTask:
    """A run of rows to be summed, by any process.

    Attributes:
        directory: Where the sums are kept.
        source: The samples, as JSON.
        known: The digest of their identity.
        kind: ``"gram"``, ``"qr"``.
        number: The number of the run of rows.
        shipped: The file of the factory, for workers that share a bucket alone.
    """

    directory: str
    source: str
    known: str
    kind: str
    number: int
    shipped: Shipped | None = None

    @property
    def run(self) -> str:
        """The folder that whoever does it must see."""
        return self.directory

    @property
    def path(self) -> Path:
        """The file of the sums."""
        tiles = Range(self.number, self.number + 1)
        return place(self.directory).joinpath(names.SKETCH, names.MOMENTS.name(tiles=tiles))

    def identity(self) -> dict[str, Any]:
        """What the file states."""
        tiles = Range(self.number, self.number + 1)
        return names.MOMENTS.identity(self.known, kind=self.kind, tiles=tiles)


def perform_sum(task: SumTask, samples: Samples | None = None) -> Callable[[], dict[str, Any]]:
    """Sums a run of rows; returns a function that publishes the sums and returns the receipt."""
    if samples is None:
        samples = opened_here(task.source, task.shipped)
    rows = samples.runs()[task.number]
    moments = moments_of(samples, rows, KINDS[task.kind])

    def finish() -> dict[str, Any]:
        arrays = {"count": np.asarray(moments.count), "mean": moments.mean, "root": moments.root}
        with sealed_writer(task.path) as writer:
            writer.publish(task.identity(), arrays, provenance())
        return {"rows": len(rows), FILES: [f"{names.SKETCH}/{task.path.name}"]}

    return finish


def moments_of(samples: Samples, rows: Range, kind: type[Moments]) -> Moments:
    """Sums some rows, slab by slab.

    Raises:
        OperatorError: If an entry is not finite, or a sum is too large.
    """
    total: Moments | None = None
    for inside, slab in samples.slabs(rows):
        # What overflows is refused by name: numpy's warnings would only come on top.
        with np.errstate(over="ignore", invalid="ignore"):
            weights = None if samples.weights is None else samples.weights[inside.slice]
            of = kind.of_sparse if samples.is_sparse else kind.of
            made = _finite(of(slab, weights), f"rows {inside}")
        total = made if total is None else total.joined(made)
    assert total is not None
    return total


def _finite(made: Moments, what: str) -> Moments:
    """Moments, unless a square has become too large.

    Raises:
        OperatorError: If one has.
    """
    if not made.is_finite:
        raise OperatorError(f"squares of the {what} are too large for double precision; scale them")
    return made


def summed(
    data: GivenSamples, kind: type[Moments], work: Work, directory: Path | None, known: str = ""
) -> Moments:
    """Sums all rows in the fixed tree over runs of them."""
    samples, runs = data.samples, data.samples.runs()
    if samples.is_turned and kind is ColumnSquares:
        return _squares_of(samples, work)
    if directory is None or data.source is None or kind not in KINDS.values():
        with work.progress.stage("sum", samples.shape[0], "rows") as advance:

            def of_run(rows: Range) -> Moments:
                made = moments_of(samples, rows, kind)
                advance(len(rows))
                return made

            return tree_sum(map(of_run, runs), lambda one, other: one.joined(other))
    return tree_sum(
        _sums_in(directory, data.source, samples, kind, work, known),
        lambda one, other: one.joined(other),
    )


def _sums_in(
    directory: Path, source: Reopened, samples: Samples, kind: type[Moments], work: Work, known: str
) -> Iterator[Moments]:
    """Has runs of rows summed that no file has the sums of, and reads all of them."""
    (word,) = (word for word, one in KINDS.items() if one is kind)
    text = json.dumps(source.as_json())
    place = str(as_given(directory))
    shipped = shipped_to(directory, source) if work.executor.remote else None
    tasks = [
        SumTask(place, text, known, word, number, shipped) for number in range(len(samples.runs()))
    ]
    make_folder(directory / names.SKETCH)
    missing = [task for task in tasks if _opened_sum(task) is None]
    rows = sum(len(samples.runs()[task.number]) for task in missing)
    perform = perform_sum if work.executor.remote else partial(perform_sum, samples=samples)
    arrivals = Arrivals(directory)
    with work.session(), work.progress.stage("sum", rows, "rows") as advance:
        for receipt in work.executor.run(perform, missing, work.resources.task_threads):
            arrivals.note(receipt)
            advance(receipt["rows"])
        arrivals.wait()
    for task in tasks:
        file = _opened_sum(task)
        if file is None:
            # Another process has just finished the same fit, and removed the sums.
            yield moments_of(samples, samples.runs()[task.number], kind)
        else:
            yield kind(file.arrays["count"].item(), file.arrays["mean"], file.arrays["root"])


def _squares_of(samples: Samples, work: Work) -> Moments:
    """Squares of features that come one after the other, each with all samples."""
    found = []
    with work.progress.stage("sum", samples.shape[1], "columns") as advance:
        for inside, block in samples.columns():
            with np.errstate(over="ignore", invalid="ignore"):
                made = ColumnSquares.of(block, samples.weights)
                found.append(_finite(made, f"features {inside}"))
            advance(len(inside))
    mean, root = (np.concatenate([getattr(one, key) for one in found]) for key in ("mean", "root"))
    return ColumnSquares(found[0].count, mean, root)


def _opened_sum(task: SumTask) -> SealedFile | None:
    file = open_if_there(task.path)
    if file is not None and not file.states_just(task.identity()):
        raise UsageError(
            f"{task.path} holds sums of other samples, or of another method; give another run_dir, "
            f"or remove them: {removal(task.path)}"
        )
    return file
