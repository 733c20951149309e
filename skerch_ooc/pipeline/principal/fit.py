"""Fitting principal components: by exact sums in one reading, or by rounds of ``krylov``."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.principal import RESOLVED, Spectrum, of_few_rows
from skerch_ooc.base.errors import OperatorError, UsageError, counted, shown
from skerch_ooc.base.files import digest, remove
from skerch_ooc.base.partition import Range, levels
from skerch_ooc.base.resources import (
    SPARE_BYTES,
    ask_for,
    format_bytes,
    operator_threads,
    resident_memory,
)
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.samples import Samples
from skerch_ooc.pipeline.principal.inputs import GivenSamples
from skerch_ooc.pipeline.principal.rounds import by_rounds
from skerch_ooc.pipeline.principal.sums import KINDS, summed
from skerch_ooc.pipeline.principal.wanted import AUTO, Wanted, is_whole
from skerch_ooc.planning.memory import SLAB_BYTES
from skerch_ooc.planning.methods import PAIRS_METHOD
from skerch_ooc.results.components import Components
from skerch_ooc.store import names, rundir
from skerch_ooc.store.anew import open_if_there

log = logging.getLogger("skerch_ooc")

MOST_COLUMNS = 4096
"""Matrices with at most so many columns, or rows in memory, are summed exactly by default."""

_SMALL = 4e9
"""Matrices whose factor takes at most so many operations are factored by default."""

_SMALLEST = 1e-140
"""Entries that are smaller lose digits when they are squared."""

_SLABS = 6
"""Slabs in memory: as read, converted, centred; and the next."""


@dataclass(frozen=True)
class Fitted:
    """Components, and how they were found.

    Attributes:
        components: They themselves.
        method: ``"gram"``, ``"qr"`` or ``"krylov"``.
    """

    components: Components
    method: str


def pca_path(directory: Path) -> Path:
    """The file in which a directory keeps components."""
    return directory / names.RESULTS / "default" / names.PCA.name()


def fit(
    data: GivenSamples, wanted: Wanted, work: Work, directory: Path | None, note: Mapping[str, Any]
) -> Fitted:
    """Finds principal components, or takes those that a directory keeps of the same samples.

    Args:
        data: The samples.
        wanted: What of them.
        work: What does it, and with which resources.
        directory: Where they are kept; ``None`` to keep nothing.
        note: What is kept beside them.

    Raises:
        OperatorError: If the samples are unusable.
        UsageError: If something else is wanted than can be had, or the directory keeps others.
        QualityError: If ``krylov`` did not reach the tolerance.
    """
    shape = data.samples.shape
    if shape[0] < 2:
        raise OperatorError(
            f"there is n_samples = {shape[0]}, and a variance takes two samples; give more"
        )
    wanted.require_few(shape)
    if work.executor.remote:
        _require_shared(data, directory)
    if _is_flat(shape) and not data.samples.is_held and _fits(data.samples, work):
        # Of all pairs of rows products are needed: one reading, instead of many.
        data = replace(data, samples=data.samples.held())
    method = chosen_method(data.samples, wanted, work)
    if directory is None:
        return Fitted(_found(data, wanted, method, work, None, ""), method)
    stated = _identity(data, wanted, method)
    kept = _kept(directory, stated)
    if kept is not None:
        return Fitted(kept, method)
    found = _found(data, wanted, method, work, directory, stated["data"]["digest"])
    if method == PAIRS_METHOD:
        stated["run"] = rundir.open_run(directory).plan.run_id
    source = {} if data.source is None else {"source": data.source.as_json()}
    found.save(pca_path(directory), stated, **source, **note)
    for path in names.MOMENTS.found_in(directory):
        remove(path)
    return Fitted(found, method)


def _require_shared(data: GivenSamples, directory: Path | None) -> None:
    """Refuses what workers cannot take part in.

    Raises:
        UsageError: If samples or weights are in the memory of this process, or nothing is kept.
    """
    if data.weighted:
        raise UsageError(
            f"{data.samples.shape[0]} numbers of sample_weight are in the memory of this process, "
            "where workers cannot read them; give the option row_weights of a file, or no executor"
        )
    if data.source is None:
        raise UsageError(
            f"{data.samples.shape[0]} samples are in memory, where workers cannot read them; give "
            "the path of a file that they see, or no executor"
        )
    if directory is None:
        raise UsageError(
            "run_dir is missing, in which workers leave their sums; give a folder that they see"
        )


def _found(
    data: GivenSamples, wanted: Wanted, method: str, work: Work, directory: Path | None, known: str
) -> Components:
    """Finds components by a method that was chosen, and notes how features are prepared."""
    found = _components(data, wanted, method, work, directory, known)
    learned = data.samples.learned()
    return replace(found, fill=learned.fill, factors=learned.factors)


def _components(
    data: GivenSamples, wanted: Wanted, method: str, work: Work, directory: Path | None, known: str
) -> Components:
    with operator_threads(work.resources.threads):
        if method == PAIRS_METHOD:
            return by_rounds(data, wanted, work, directory)
        samples = data.samples
        if _by_rows(samples, method):
            mean, found = of_few_rows(
                samples.columns, samples.shape, wanted.number, samples.weights
            )
        else:
            moments = summed(data, KINDS[method], work, directory, known)
            mean, found = moments.mean, moments.spectrum(samples.shape[0])
        if method == "gram":
            _require_squares(samples, found)
    number = wanted.number(found.values**2)
    if found.lost < number and found.lost < len(found.values):
        _say_lost(found, number)
    return Components.of(found, mean, samples.shape[0], number, samples.weights)


def _require_squares(samples: Samples, found: Spectrum) -> None:
    """Refuses samples whose squares are lost; another reading tells them from constant ones.

    Raises:
        OperatorError: If there are such.
    """
    if found.squares > _SMALLEST**2:
        return
    for rows, slab in samples.slabs(Range(0, samples.shape[0])):
        entries = slab.data if samples.is_sparse else slab - slab[:1]
        largest = float(np.abs(entries).max(initial=0))
        if 0 < largest <= _SMALLEST:
            raise OperatorError(
                f"squares of the rows {rows}, which are as small as {largest:.1e}, are too small "
                "for double precision; scale them"
            )


def _say_lost(found: Spectrum, number: int) -> None:
    log.warning(
        "%d of %s have singular values below %g of the first, which sums of squares do not tell "
        'from zero; method = "qr" does',
        number - found.lost, counted(number, "component"), RESOLVED,
    )  # fmt: skip


def chosen_method(samples: Samples, wanted: Wanted, work: Work) -> str:
    """How components are found: what is asked for, else what is exact if memory allows it.

    Raises:
        UsageError: If it takes more memory than there may be, or cannot find what is wanted.
    """
    method = wanted.method if wanted.method != AUTO else _best_method(samples, work)
    if method != PAIRS_METHOD:
        _require_memory(samples, method, work)
    elif wanted.components is None:
        raise UsageError(
            f"n_components = {shown(wanted.components)}: of {samples.shape[0]} samples with "
            f"{samples.shape[1]} features "
            f'components are found one by one (method = "{PAIRS_METHOD}"); give how many, or a '
            "share of the variance"
        )
    return method


def _best_method(samples: Samples, work: Work) -> str:
    height, width = samples.shape
    is_small = height * width * 8 <= SLAB_BYTES
    if is_small and height * width * min(height, width) <= _SMALL:
        return "qr"
    at_hand = samples.is_held or samples.is_turned
    exact = width <= MOST_COLUMNS or (_is_flat(samples.shape) and at_hand)
    fits = _needed(samples, "gram") <= work.resources.memory
    return "gram" if exact and fits else PAIRS_METHOD


def _is_flat(shape: tuple[int, int]) -> bool:
    """Whether there are many columns, and so few rows that these are summed by default."""
    return shape[0] <= MOST_COLUMNS < shape[1]


def _fits(samples: Samples, work: Work) -> bool:
    """Whether the whole matrix fits into a small part of the memory."""
    return math.prod(samples.shape) * samples.dtype.itemsize <= work.resources.memory // 4


def _by_rows(samples: Samples, method: str) -> bool:
    """Whether the rows are multiplied with each other, and not the columns."""
    height, width = samples.shape
    few = height < width or (samples.is_turned and height <= MOST_COLUMNS)
    return method == "gram" and few and (samples.is_held or samples.is_turned)


def _needed(samples: Samples, method: str) -> int:
    """Memory that exact sums take, beside what the process holds already."""
    height, width = samples.shape
    if _by_rows(samples, method):
        return 5 * 8 * height**2 + _SLABS * SLAB_BYTES
    root = 8 * width * (width if method == "gram" else min(width, height))
    # While runs are joined; then while the spectrum is found.
    held = max(levels(len(samples.runs())) + 2, 5)
    return root * held + _SLABS * min(SLAB_BYTES, 8 * height * width) + samples.held_bytes


def _require_memory(samples: Samples, method: str, work: Work) -> None:
    sums = _needed(samples, method) + SPARE_BYTES
    held = resident_memory(sums, work.resources.memory)
    if sums + held > work.resources.memory:
        raise UsageError(
            f"the sums over {samples.shape[1]} columns take {format_bytes(sums)} besides the "
            f"{format_bytes(held)} that this process holds, with memory = "
            f'{format_bytes(work.resources.memory)}; give memory = "{ask_for(sums + held)}", or '
            f'method = "{PAIRS_METHOD}"'
        )


def _identity(data: GivenSamples, wanted: Wanted, method: str) -> dict[str, Any]:
    """What the file of components states."""
    stated = data.identity()
    if data.weighted:
        weights = np.ascontiguousarray(data.samples.weights, "<f8")
        stated["weights"] = hashlib.sha256(weights.tobytes()).hexdigest()
    asked = wanted.components
    settings: dict[str, Any] = {
        "n_components": asked if asked is None else int(asked) if is_whole(asked) else float(asked),
        "whiten": bool(wanted.whiten),
        "method": method,
    }
    if method == PAIRS_METHOD:
        settings |= {"tolerance": wanted.tolerance, "seed": wanted.seed}
    if wanted.missing is not None:
        settings["missing"] = wanted.missing
    known = digest(stated)
    return names.PCA.identity(known, data=stated | {"digest": known}, settings=settings)


def _kept(directory: Path, stated: dict[str, Any]) -> Components | None:
    """Components that a directory keeps already.

    Raises:
        UsageError: If they are of other samples, or others were wanted.
    """
    file = open_if_there(pca_path(directory))
    if file is None:
        if not rundir.is_planned(directory):
            rundir.require_place(directory)
        return None
    different = [
        _told_apart(key, file.identity.get(key), stated[key])
        for key in ("settings", "data")
        if file.identity.get(key) != stated[key]
    ]
    if different:
        raise UsageError(
            f"{directory} keeps other components:\n" + "\n".join(different) + "\nGive another "
            "run_dir, or none; it is kept what is there"
        )
    return Components.load(file)


def _told_apart(key: str, there: Any, now: Any) -> str:
    """Says how what is kept differs from what is wanted; of samples not their digests."""
    if key != "data" or not isinstance(there, Mapping):
        return f"  {key}: {shown(there)} there, {shown(now)} now"
    others = [name for name in there.keys() | now.keys() if there.get(name) != now.get(name)]
    told = [
        f"{name} = {shown(there.get(name))} there, {shown(now.get(name))} now"
        for name in sorted({*others} - {"digest", "files", "sha256"})
    ]
    return "  samples: " + ("; ".join(told) or "others there than now, or changed since")
