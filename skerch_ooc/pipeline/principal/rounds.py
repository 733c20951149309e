"""Components by rounds of ``krylov``: so many, or as many as explain a share of the variance."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerch_ooc.algebra.principal import ColumnSquares, Moments, Spectrum, components_for
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import QualityError, UsageError, counted
from skerch_ooc.base.resources import format_bytes
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.matrices.options import COLUMN_MEAN
from skerch_ooc.operators.samples import CentredSamples, StoredSamples, TurnedSamples
from skerch_ooc.pipeline.grow import look_for_more
from skerch_ooc.pipeline.principal.inputs import STORED, GivenSamples, Reopened
from skerch_ooc.pipeline.principal.sums import summed
from skerch_ooc.pipeline.principal.wanted import Wanted, is_whole
from skerch_ooc.pipeline.run import run
from skerch_ooc.planning.methods import PAIRS_METHOD
from skerch_ooc.planning.spec import Spec
from skerch_ooc.results.components import Components
from skerch_ooc.results.lowrank import Svd
from skerch_ooc.store.rundir import is_planned, open_run

_FIRST = 16
"""So many components are looked for first where nobody knows how many make up a share."""
_HELD = 4
"""Directions may take this part of the memory, as a divisor."""


@dataclass(frozen=True)
class _Search:
    """What is decomposed, and with what.

    Attributes:
        table: The spec, but for the rank.
        folder: What paths in it are relative to.
        operator: The operator, if it is at hand.
        directory: The run.
        work: What does it.
    """

    table: dict[str, Any]
    folder: Path | None
    operator: Any
    directory: Path
    work: Work

    def triplets(self, rank: int) -> Svd:
        """Runs all stages until so many are known; what is done already is not done again."""
        recovery = {"method": PAIRS_METHOD, "rank": rank}
        spec = Spec.from_table(self.table | {"recovery": recovery}, self.folder)
        work = self.work
        found = run(
            spec, self.directory, work.executor, operator=self.operator,
            memory=work.resources.memory, progress=work.progress,
        )  # fmt: skip
        assert isinstance(found, Svd)
        return found


def by_rounds(data: GivenSamples, wanted: Wanted, work: Work, directory: Path | None) -> Components:
    """Finds components by rounds of ``krylov``, in a run directory.

    Raises:
        QualityError: If they did not reach the tolerance, or not the share of the variance.
    """
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="skerch-ooc-") as made:
            try:
                return by_rounds(data, wanted, work, Path(made))
            except QualityError as error:
                # Its advice is to go on with the run, which is gone.
                known = str(error).partition(". ")[0]
                raise QualityError(
                    f"{known}; give a larger tolerance, or a run_dir, in which it can go on"
                ) from error
    samples = data.samples
    spread = summed(data, ColumnSquares, work, None)
    squares = float(spread.root.sum())
    search = _search(data, wanted, spread, work, directory)
    if is_whole(wanted.components):
        usv = search.triplets(int(wanted.components or 1))
    else:
        usv = _of_share(search, float(wanted.components or 1), squares, samples.shape)
    values, directions = usv.S.double().numpy(), usv.V[:].double().numpy().T
    number = len(values)
    if not is_whole(wanted.components):
        number = components_for(float(wanted.components or 1), values**2 / squares)
    found = Spectrum(values, np.ascontiguousarray(directions), squares, len(values))
    return Components.of(found, spread.mean, samples.shape[0], number, samples.weights)


def _search(
    data: GivenSamples, wanted: Wanted, spread: Moments, work: Work, directory: Path
) -> _Search:
    table: dict[str, Any] = {
        "kind": "svd", "seed": wanted.seed, "pairs_tolerance": wanted.tolerance,
    }  # fmt: skip
    samples, source, operator = data.samples, data.source, None
    if samples.weights is None and source is not None and source.factory == STORED:
        also = source.args.get("subtract") in ("row-mean", "both")
        source = replace(source, args={**source.args, "subtract": "both" if also else COLUMN_MEAN})
        table["operator"] = {
            "factory": STORED, "args": source.args, "device": source.device,
        }  # fmt: skip
        if not (also or work.executor.remote):
            operator = _with_means(source, spread.mean, work)
    elif work.executor.remote:
        raise UsageError(
            f'method = "{PAIRS_METHOD}" shares samples of a file among workers, and these have '
            'weights or are made by a function of yours; give method = "gram", or no executor'
        )
    elif isinstance(samples, TurnedSamples) and samples.weights is None:
        operator = samples.centred()
    else:
        # Means are weighted where samples are, which the option of a file does not do.
        operator = CentredSamples(samples, spread.mean, spread.root / spread.count)
    return _Search(table, Path(source.folder) if source else None, operator, directory, work)


def _with_means(source: Reopened, mean: Array, work: Work) -> Any:
    """A matrix on disk whose means are known, so that each round takes off the same ones.

    ``None`` if columns are prepared before: what is known then is not the mean of the file.
    """
    samples = source.samples(work.resources.memory)
    if not isinstance(samples, StoredSamples) or not samples.matrix.steps.columns.is_none:
        return None
    samples.matrix.known_means = torch.from_numpy(mean).to(samples.matrix.device)
    return samples.matrix


def _of_share(search: _Search, share: float, squares: float, shape: tuple[int, int]) -> Svd:
    """Looks for twice as many components until they explain a share of the variance.

    Args:
        search: What is decomposed.
        share: Of the variance, to be exceeded.
        squares: The sum of the squares of all singular values.
        shape: Samples and features.

    Raises:
        QualityError: If as many as fit into the memory do not.
    """
    memory = search.work.resources.memory
    most = min(min(shape), max(1, memory // (_HELD * 8 * shape[1])))
    rank = min(_FIRST, most)
    if is_planned(search.directory):
        # A run that was interrupted knows how far it had come.
        rank = int(open_run(search.directory).plan.recovery.rank)
    while True:
        usv = search.triplets(rank)
        explained = float((usv.S.double() ** 2).sum()) / squares
        if explained > share or rank >= min(shape):
            return usv
        if rank >= most:
            raise QualityError(
                f"{counted(rank, 'component')} explain {explained:.3g} of the variance, and "
                f"n_components = {share} asks for more, whose directions do not fit into a part of "
                f"{format_bytes(memory)}; give more memory, a smaller share, or how many"
            )
        more = min(2 * rank, most)
        search.work.progress.say(
            f"{counted(rank, 'component')} explain {explained:.3g} of the variance; looking for "
            f"{more}"
        )
        look_for_more(open_run(search.directory), more)
        rank = more
