"""Products with sparse test matrices, by torch's compressed sparse rows (CSR)."""

from __future__ import annotations

import threading
import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from skerch_ooc.algebra.noise import Entries

if TYPE_CHECKING:
    import torch

_LOCK = threading.Lock()


def add_transposed_times(entries: Entries, dense: torch.Tensor, out: torch.Tensor) -> None:
    """Adds ``N^T Z`` to ``out``, for a sparse slice ``N`` of a test matrix.

    Args:
        entries: The nonzero entries of ``N``, which are real.
        dense: ``Z``, with as many rows as ``N``.
        out: The matrix that is added to, with as many rows as ``N`` has columns.
    """
    import torch

    _accept_compressed_rows()
    # Compressed rows of N^T hold the entries of one column of N together. The sort is stable, so
    # that the rows of each column stay in ascending order.
    order = np.argsort(entries.columns, kind="stable")
    starts = np.searchsorted(entries.columns[order], np.arange(len(out) + 1))
    transposed = torch.sparse_csr_tensor(
        torch.from_numpy(starts),
        torch.from_numpy(entries.rows[order]),
        torch.from_numpy(entries.values[order].astype(np.float64)).to(dense.dtype),
        (len(out), len(dense)),
        device=dense.device,
        check_invariants=False,
    )
    # Added in place: a product in fresh memory would take longer to store than to compute.
    torch.addmm(out, transposed, dense, out=out)


@cache
def _accept_compressed_rows() -> None:
    """Silences torch's warning that its compressed rows are in beta.

    torch warns once per process; here it does so while warnings are ignored.
    """
    import torch

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(torch.arange(2), one, torch.ones(1), (1, 1))
