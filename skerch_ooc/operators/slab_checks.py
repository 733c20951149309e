"""Checks of slabs and of what is made of them: every entry must be finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.slabs import Slab, SparseSlab

Explain = Callable[[int, int], str]
"""Why an entry counts as missing, by its row and column; empty where it is stored as NaN."""

_LARGEST = 1e130
"""Products of a block, whose squares are added up, have to be smaller."""


def require_finite(
    rows: Range, slab: Slab, product: torch.Tensor | None, explain: Explain | None = None
) -> None:
    """Refuses products that are not finite, and looks for the reason in the slab.

    Raises:
        OperatorError: Naming the row, or the overflow.
    """
    # A sum is small and finite only if nearly all summands are, and quickly made.
    if product is None or abs(product.sum().item()) < _LARGEST:
        return
    require_entries(rows, slab, explain)
    if bool(torch.isfinite(product).all()):
        if float(product.abs().max()) < _LARGEST:
            return
        raise OperatorError(
            f"products of the rows {rows} are as large as {float(product.abs().max()):.1e}, and "
            "their squares out of the range of double precision; look for a wrong entry, or scale "
            "the matrix"
        )
    kind = slab.rows.dtype if isinstance(slab, SparseSlab) else slab.dtype
    raise OperatorError(f"products of the rows {rows} are too large for {kind}; use a wider dtype")


def require_entries(rows: Range, slab: Slab, explain: Explain | None = None) -> None:
    """Refuses NaN and infinity.

    Raises:
        OperatorError: Naming the first row and column, and how many there are.
    """
    values = torch.from_numpy(slab.rows.data) if isinstance(slab, SparseSlab) else slab
    if bool(torch.isfinite(values.sum())):
        return
    wrong = (~torch.isfinite(values)).nonzero()
    if not len(wrong):
        return
    if isinstance(slab, SparseSlab):
        place = int(wrong[0, 0])
        row = int(np.searchsorted(slab.rows.indptr, place, side="right")) - 1
        column, value = int(slab.rows.indices[place]), values[place].item()
    else:
        row, column = (int(one) for one in wrong[0])
        value = values[row, column].item()
    why = explain(rows.start + row, column) if explain else ""
    more = f"; {len(wrong)} entries of the rows {rows} are so" if len(wrong) > 1 else ""
    raise OperatorError(
        f"row {rows.start + row} of the matrix holds {why or value} in column "
        f"{column}{more}; replace what is missing before the matrix is decomposed, or give "
        'missing = "column-mean", or empty_columns = "leave-out" for columns without any entry'
    )
