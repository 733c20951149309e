"""Bases: the orthonormal basis of a sketch's range, written out as the next round's test matrix."""

from __future__ import annotations

import numpy as np

from skerch_ooc.errors import UsageError
from skerch_ooc.progress import Progress
from skerch_ooc.provenance import provenance
from skerch_ooc.recovery.choosing import noise_floor
from skerch_ooc.recovery.decompose import root_of
from skerch_ooc.resources import Resources, torch_threads
from skerch_ooc.rounds import BASIS_FILE, basis_identity
from skerch_ooc.sealed import sealed_writer
from skerch_ooc.sides import CORANGE, RANGE
from skerch_ooc.stages.merge import Merged
from skerch_ooc.stages.problems import Source
from skerch_ooc.stages.vectors import (
    Vectors,
    corrected,
    gram_of_vectors,
    layout_of,
    needs_correction,
    write_vectors,
)


def make_basis(merged: Merged, resources: Resources, progress: Progress) -> None:
    """Writes an orthonormal basis of the range of a round's sketch, unless it is there.

    Directions that are rounding errors are left out. Beside the basis ``Q`` the file holds how it
    was made of the sketch, and ``Q^H T`` with the test sketch ``T`` of the same rows, with which
    the next round is compared.

    Raises:
        UsageError: If memory is too little, or the operator is zero.
        CorruptError: If a shard, or the basis that is there, is damaged.
    """
    sketch = merged.sketch
    if sketch.basis() is not None:
        return
    round_, plan = sketch.round, sketch.round.run.plan
    side = merged.sides[CORANGE if round_.adjoint else RANGE]
    epsilon = float(np.finfo(plan.identity.dtype).eps)
    with torch_threads(resources.threads):
        root = root_of(side.copy(round_.role), noise_floor(epsilon))
    if root.inverse.shape[1] == 0:
        raise UsageError(
            "there is nothing to decompose: the operator's products with all test vectors are zero"
        )
    vectors = Vectors(Source(side.reader, round_.role), root.inverse)
    if needs_correction(plan, root.condition):
        gram = gram_of_vectors(plan, vectors, side.side.rows, resources, progress)
        vectors = corrected(np.ones(vectors.rank), vectors, gram, None, None)[1]
    test = side.reader if "test" in side.side.sketches else None
    path = sketch.folder / BASIS_FILE
    layout = layout_of(plan, "basis", side.side.rows, vectors.rank)
    with sealed_writer(path, layout) as writer:
        figures, orthogonality = write_vectors(
            plan, vectors, writer.bulks[0], resources, progress, test=test,
            stage=f"basis {round_.number + 1}",
        )  # fmt: skip
        arrays = {
            "transform": vectors.transform,
            "test_products": figures.test_products,
            "orthogonality": np.array(orthogonality),
        }
        if vectors.correction is not None:
            arrays["correction"] = vectors.correction
        writer.publish(
            basis_identity(plan, sketch.digest), arrays, provenance(threads=resources.threads)
        )
