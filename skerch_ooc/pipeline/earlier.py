"""Earlier: the vectors of an earlier result that a run of krylov starts with, found and copied.

A run keeps a copy of them. So its bits, and every process that works on it, depend on nothing
outside of it: the earlier run may be moved, grow, or be removed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import IncompleteError, UsageError, quoted
from skerch_ooc.base.files import digest, is_there
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.partition import Range
from skerch_ooc.base.places import is_object, place
from skerch_ooc.base.provenance import provenance
from skerch_ooc.planning.krylov import Start
from skerch_ooc.planning.sizes import krylov_of
from skerch_ooc.planning.spec import Spec
from skerch_ooc.results.vectors import Tall, open_vectors
from skerch_ooc.stages.recover.recipes import LEFT_VECTORS, RIGHT_VECTORS
from skerch_ooc.store import names, rundir
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.result_files import VALUES, result_path
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile, sealed_writer
from skerch_ooc.store.sketch import start_identity


@dataclass(frozen=True)
class Earlier:
    """Vectors of an earlier result.

    Attributes:
        run: Its run.
        file: The file of the result.
        columns: Which of its vectors are taken, in this order.
    """

    run: Run
    file: SealedFile
    columns: tuple[int, ...]

    @property
    def start(self) -> Start:
        """What the plan of a run says that starts with them."""
        content = {"result": json.loads(self.file.stated), "columns": list(self.columns)}
        return Start(len(self.columns), digest(content))

    @property
    def vectors(self) -> Tall:
        """The vectors to which the operator is applied: those on the right."""
        kind = self.run.plan.identity.kind
        right = RIGHT_VECTORS if kind == "svd" else None
        return open_vectors(self.file, LEFT_VECTORS[kind], right)[1]


def find_earlier(
    spec: Spec, shape: tuple[int, int], layout: ParameterLayout | None
) -> Earlier | None:
    """Finds the vectors that a spec starts with; ``None`` if it names none.

    Args:
        spec: The spec.
        shape: The shape of its operator.
        layout: The layout of the operator's parameters, if it is known.

    Raises:
        UsageError: If there is no run, it is one of another kind of operator, or its result has no
            vectors.
        IncompleteError: If the run has no such result yet.
        CorruptError: If the result is damaged.
    """
    krylov = krylov_of(spec, shape)
    if spec.start is None or krylov is None:
        return None
    directory, name = _place(place_of(spec))
    try:
        run = rundir.open_run(directory)
    except UsageError as error:
        raise UsageError(
            f"start = {spec.start!r}: {directory} is no run directory; name a run that is "
            "finished, or leave start out"
        ) from error
    _require_alike(spec, shape, layout, run)
    path = result_path(run, name)
    file = open_if_there(path)
    if file is None:
        raise IncompleteError(
            f"start = {spec.start!r}: there is no {path} to start with; finish that run with: "
            f"skerch-ooc run --run {quoted(directory)}, or leave start out"
        )
    order = _order(file.arrays[VALUES[spec.kind]], spec.recovery.which)[: krylov.width]
    if not len(order):
        raise UsageError(f"start = {spec.start!r}: {path} has no vectors; leave start out")
    return Earlier(run, file, tuple(map(int, order)))


def place_of(spec: Spec) -> Path:
    """Returns the place that a spec names as its start: relative to the spec, or by its URL."""
    assert spec.start is not None
    named = place(spec.start)
    return named if is_object(named) else spec.folder / named


def _place(path: Path) -> tuple[Path, str]:
    """Returns the run directory that a path leads to, and the name of the result."""
    if path.parent.name == names.RESULTS and not rundir.is_planned(path):
        return path.parent.parent, path.name
    return path, "default"


def _require_alike(
    spec: Spec, shape: tuple[int, int], layout: ParameterLayout | None, run: Run
) -> None:
    """Refuses a run of an operator whose vectors make no sense for that of a spec."""
    known, there = run.plan.identity, run.layout()
    for key, old, new in (
        ("kind", known.kind, spec.kind),
        ("operator.shape", known.shape, shape),
        ("dtype", known.dtype, spec.products_dtype),
    ):
        if old != new:
            raise UsageError(
                f"start = {spec.start!r}: {key} is {old!r} there, and {new!r} here; start with a "
                "result of a run that is alike, or leave start out"
            )
    if layout is not None and there is not None and layout != there:
        raise UsageError(
            f"start = {spec.start!r}: its vectors are made of other parameters, or in another "
            "order, than those here; start with a result of the same model, or leave start out"
        )


def _order(values: Array, which: str) -> Array:
    """Orders the numbers of values as ``which`` says, the wanted ones first."""
    key = {"LM": -np.abs(values), "LA": -values, "SA": values}[which]
    return np.argsort(key, kind="stable")


def keep_start(run: Run, earlier: Earlier | None) -> None:
    """Copies the vectors that a run starts with into it, unless they are there.

    Raises:
        IncompleteError: If there is no room for them.
        CorruptError: If they are damaged.
    """
    path = run.directory / names.START_VECTORS.name()
    if earlier is None or is_there(path):
        return
    vectors, columns = earlier.vectors, list(earlier.columns)
    leading, like = Range(0, max(columns) + 1), vectors.layout
    layout = Layout(
        "start", (like.shape[0], len(columns)), like.dtype, (like.tile[0], len(columns))
    )
    with sealed_writer(path, layout) as writer:
        for number in vectors.row_tiles:
            tile = vectors.read(like.rows(number), leading)
            writer.write_rows(number, np.ascontiguousarray(tile[:, columns]))
        writer.publish(start_identity(run.plan), provenance=provenance())
