"""Scores of the samples of a run, or of those that components were fitted to, in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from skerch_ooc.algebra.principal import with_signs
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import DriftError, OocError, OperatorError, UsageError, quoted
from skerch_ooc.base.files import is_there
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.progress import Progress
from skerch_ooc.operators.matrices.labels import Labels
from skerch_ooc.operators.matrix import StoredMatrix
from skerch_ooc.operators.samples import Learned, Samples
from skerch_ooc.pipeline.principal.fit import pca_path
from skerch_ooc.pipeline.principal.inputs import Reopened
from skerch_ooc.results.components import Components
from skerch_ooc.results.lowrank import Svd
from skerch_ooc.results.modes import CENTRED, Prepared, prepared_in
from skerch_ooc.results.scores import (
    Blocks,
    Sheet,
    is_table,
    names_along,
    require_free,
    write_scores,
    writer_of,
)
from skerch_ooc.store import names, result_files
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.rundir import Run, is_planned, open_run
from skerch_ooc.store.sealed import SealedFile

_ROWS = 4096


def scores_of(
    kept: Components, samples: Samples, *, whiten: bool = False
) -> Iterator[tuple[Range, Array]]:
    """Scores of samples, slab by slab, in their dtype."""
    for rows, slab in samples.slabs():
        yield rows, kept.scores(slab, whiten=whiten).astype(samples.dtype, copy=False)


def write_scores_of(
    directory: Path, name: str, out: Path | None, progress: Progress
) -> tuple[Path, Sheet]:
    """Writes the scores of the samples that a directory has components of.

    They are read off the left vectors where a run has these; else the samples are read once more.

    Args:
        directory: A run of ``kind = "svd"``, or what :class:`skerch_ooc.PCA` has left.
        name: The name of the result.
        out: The file; by default ``scores.h5`` beside the result, which is kept if it is there.
        progress: Shows how far it is.

    Returns:
        The file, and what it holds.

    Raises:
        UsageError: If there is nothing that scores could be of, or the file is there already.
        DriftError: If the samples are no longer those of the components.
        IncompleteError: If the result is missing, or the file cannot be written.
    """
    file = open_if_there(pca_path(directory))
    if is_planned(directory):
        sheet, blocks = _of_vectors(directory, name)
    elif file is not None:
        sheet, blocks = _of_samples(directory, file)
    else:
        raise nothing_there(directory)
    path = out or directory / names.RESULTS / name / names.SCORES.name()
    if out is None and (found := open_if_there(path)) and found.states(sheet.identity()):
        return path, sheet
    writer_of(path)
    require_free(path)
    if is_table(path):
        try:
            labels = _labels_in(directory, file)
            sheet = replace(sheet, names=names_along(labels, labels.rows))
        except OocError as error:
            progress.say(f"names of rows are left out, as they cannot be read: {error}")
    with progress.stage("scores", sheet.shape[0], "rows") as advance:

        def counted() -> Iterator[tuple[Range, Array]]:
            for rows, block in blocks:
                yield rows, block
                advance(len(rows))

        return write_scores(path, sheet, counted()), sheet


def nothing_there(directory: Path) -> UsageError:
    """What is said of a directory without a result."""
    return UsageError(
        f"{directory} holds neither a run nor components; make them with: skerch-ooc run SPEC "
        f"--run {quoted(directory)}, or by PCA with run_dir"
    )


def is_centred(directory: Path) -> bool:
    """Whether scores of a directory are of centred samples, as those of components are."""
    if is_there(pca_path(directory)) or not is_planned(directory):
        return True
    return open_run(directory).plan.identity.args.get("subtract") in CENTRED


def svd_result(directory: Path, name: str) -> tuple[Run, Svd]:
    """A run, and the singular values and vectors that it has found.

    Raises:
        UsageError: If it is of another kind.
        IncompleteError: If the result is missing.
    """
    run = open_run(directory)
    if run.plan.identity.kind != "svd":
        raise UsageError(
            f'{directory} is of kind = "{run.plan.identity.kind}"; scores are of kind = "svd": use '
            "a run of that"
        )
    path = result_files.result_path(run, name)
    result_files.opened_result(path)
    if run.plan.identity.dtype.startswith("complex"):
        raise UsageError(f"{path} is complex; scores are of real numbers: use a real matrix")
    return run, Svd(path)


def _of_vectors(directory: Path, name: str) -> tuple[Sheet, Blocks]:
    """Scores as left vectors times singular values, with the signs of components."""
    run, usv = svd_result(directory, name)
    known = result_files.opened_result(usv.path).digest
    directions = usv.V[:].double().numpy().T
    signed = with_signs(directions)
    signs = np.sign((signed * directions).sum(axis=1))
    weights = usv.S.double().numpy() * signs
    dtype = usv.U[:1].numpy().dtype

    def blocks() -> Iterator[tuple[Range, Array]]:
        for rows in cut(Range(0, usv.shape[0]), _ROWS):
            yield rows, (usv.U[rows.slice].double().numpy() * weights).astype(dtype)

    sheet = Sheet((usv.shape[0], usv.rank), dtype, run.plan.run_id, known)
    return sheet, blocks()


def kept_samples(directory: Path, file: SealedFile) -> tuple[Components, Samples, Reopened]:
    """Components that a directory keeps, and the samples that they are of, opened once more.

    Raises:
        OperatorError: If these were no files.
        DriftError: If they have changed.
    """
    source = file.provenance.get("source")
    if source is None:
        raise OperatorError(
            f"the samples of {directory} were handed over as a Python object; call "
            "PCA.load(run_dir).transform(X, out=...) with that object"
        )
    opened = Reopened(**source)
    # Weights count where components are fitted, and not in scores.
    ours = ("digest", "weights")
    known = {key: value for key, value in file.identity["data"].items() if key not in ours}
    if opened.identity() != known:
        raise DriftError(
            f"the samples of {directory} have changed since they were fitted; restore "
            f"{source['args']} in {source['folder']}, or fit again into another folder"
        )
    kept = Components.load(file)
    return kept, opened.samples().filled_by(Learned(kept.fill, kept.factors)), opened


def known_of(
    source: Reopened | None, shape: tuple[int, int], *, exactly: bool = False
) -> Prepared:  # fmt: skip
    """What is known of the matrix that samples are the rows of; see :meth:`Prepared.of`."""
    matrix = None if source is None else source.matrix()
    if isinstance(matrix, StoredMatrix):
        return Prepared.of(matrix, exactly=exactly)
    return Prepared.of_shape(shape)


def _of_samples(directory: Path, file: SealedFile) -> tuple[Sheet, Blocks]:
    """Scores of samples that are read once more."""
    kept, samples, _ = kept_samples(directory, file)
    shape = (samples.shape[0], len(kept.values))
    sheet = Sheet(shape, samples.dtype, str(file.identity["run"]), kept.digest)
    return sheet, scores_of(kept, samples)


def _labels_in(directory: Path, file: SealedFile | None) -> Labels:
    """What the rows and columns of a directory's matrix are called."""
    if is_planned(directory):
        return prepared_in(open_run(directory)).labels
    assert file is not None
    _, samples, source = kept_samples(directory, file)
    return known_of(source, samples.shape).labels
