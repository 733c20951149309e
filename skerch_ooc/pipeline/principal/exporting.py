"""Exporting: a decomposition with names and coordinates of its matrix, as files people open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from skerch_ooc.base.disk_errors import cannot_write
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.files import make_folder, private_file, publish, sync_file
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.progress import Progress
from skerch_ooc.pipeline.principal.fit import pca_path
from skerch_ooc.pipeline.principal.scoring import (
    kept_samples,
    known_of,
    nothing_there,
    scores_of,
    svd_result,
)
from skerch_ooc.results.h5ad import write_h5ad
from skerch_ooc.results.modes import Blocks, Modes, modes_of, prepared_in
from skerch_ooc.results.netcdf import write_netcdf
from skerch_ooc.results.scores import Sheet, names_along, require_free, write_scores
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.rundir import is_planned

_WRITERS: dict[str, Callable[[Path, Modes], None]] = {".nc": write_netcdf, ".h5ad": write_h5ad}
_TABLES = (".csv", ".parquet")
_ROWS = 4096


def export(directory: Path, name: str, out: Path, progress: Progress) -> Modes:
    """Writes values and vectors, with what rows and columns are called, to a new file.

    Args:
        directory: A run of ``kind = "svd"``, or what :class:`skerch_ooc.PCA` has left.
        name: The name of the result.
        out: The file; its suffix says which format: ``.nc`` or ``.h5ad``.
        progress: Shows what is done.

    Returns:
        What was written.

    Raises:
        UsageError: If there is nothing that could be written, the file is there already, or it is
            of another format.
        OperatorError: If the matrix cannot be read, from which names are taken.
        DriftError: If it is another by now.
        IncompleteError: If the result is missing, or the file cannot be written.
    """
    writer = _WRITERS.get(out.suffix.lower())
    if writer is None:
        raise UsageError(
            f"cannot export to {out}: give a name that ends in {', '.join(_WRITERS)}; for tables "
            "there are the verbs scores and loadings"
        )
    require_free(out)
    modes = modes_in(directory, name)
    with progress.stage("export", 1, "files") as advance:
        try:
            make_folder(out.parent)
            with private_file(out.parent) as private:
                writer(private, modes)
                sync_file(private)
                publish(private, out)
        except OSError as error:
            raise cannot_write(out, error) from error
        advance(1)
    return modes


def write_loadings(directory: Path, name: str, out: Path) -> Sheet:
    """Writes the right vectors as a table, a row for each column of the matrix, by its name.

    Args:
        directory: As of :func:`export`.
        name: The name of the result.
        out: The file, ``.csv`` or ``.parquet``.

    Returns:
        What was written.

    Raises:
        UsageError: If there is nothing that could be written, the file is there already, or it is
            of another format.
        OperatorError: If the matrix cannot be read, from which names are taken.
        DriftError: If it is another by now.
        IncompleteError: If the result is missing, or the file cannot be written.
    """
    if out.suffix.lower() not in _TABLES:
        raise UsageError(
            f"cannot write loadings to {out}: give a name that ends in {', '.join(_TABLES)}; for "
            "other files there is the verb export"
        )
    require_free(out)
    modes = modes_in(directory, name)

    def blocks() -> Iterator[tuple[Range, np.ndarray]]:
        for rows, block in modes.right():
            gone = modes.is_left_out(rows, block)
            yield rows, np.where(gone[:, None], np.nan, block).astype(modes.dtype, copy=False)

    names = names_along(modes.labels, modes.labels.columns)
    sheet = Sheet((modes.shape[1], modes.rank), modes.dtype, modes.run, "loadings", names=names)
    write_scores(out, sheet, blocks())
    return sheet


def modes_in(directory: Path, name: str) -> Modes:
    """The modes of a result of a run, or of components, with the names of their matrix.

    Raises:
        UsageError: If there are none.
        OperatorError: If the matrix cannot be read.
        DriftError: If it is another by now.
        IncompleteError: If the result is missing.
    """
    if is_planned(directory):
        run, usv = svd_result(directory, name)
        values = usv.S.double().numpy()
        return modes_of(
            run,
            usv.path,
            values,
            (usv.left_vectors, usv.right_vectors),
            prepared_in(run, exactly=True),
        )
    file = open_if_there(pca_path(directory))
    if file is None:
        raise nothing_there(directory)
    kept, samples, source = kept_samples(directory, file)
    known = known_of(source, samples.shape, exactly=True)
    values = kept.values

    def left() -> Blocks:
        parts = np.where(values > 0, values, 1.0)
        for rows, block in scores_of(kept, samples):
            yield rows, np.where(values > 0, block / parts, 0.0)

    def right() -> Blocks:
        for rows in cut(Range(0, kept.directions.shape[1]), _ROWS):
            yield rows, kept.directions[:, rows.slice].T

    return Modes(
        str(file.identity["run"]), values, left, right, np.dtype(samples.dtype), known.labels, True,
        kept.ratios, False, known.roots, known.is_scaled, known.may_be_left_out,
        known.left_out,
    )  # fmt: skip
