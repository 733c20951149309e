"""A run on a Dask cluster that Python starts, and the same in one process: the same bits.

    python workflows/dask_cluster.py --runs runs/cluster --workers 2

Needs the extra ``workflows``. Instead of ``LocalCluster`` take any cluster object, such as
``dask_jobqueue.SLURMCluster``, a ``Client``, or the address of a scheduler. Makes the runs ``dask``
and ``serial`` of digits_hessian.toml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from distributed import LocalCluster

sys.path.append(str(Path(__file__).resolve().parent.parent))

import skerch_ooc as ooc
from workflows.shared import decomposed, eigh_of, parser, spec_of

THREADS = 1
"""Of each worker and of the one process: equal bits need as many."""


def main(arguments: Sequence[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes both runs and compares their eigenvalues and vectors."""
    options = parser(__doc__, "runs/cluster")
    options.add_argument("--workers", type=int, default=2)
    given = options.parse_args(arguments)
    spec = spec_of("digits_hessian.toml", ["sketch.block=16", *given.set])
    # Its types say nothing of its arguments.
    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=given.workers, threads_per_worker=1, memory_limit=None, dashboard_address=None
    ) as cluster:
        executor = ooc.Dask(cluster)
        run = ooc.plan(spec, given.runs / "dask", threads=THREADS)
        ooc.measure(run, executor=executor, threads=THREADS)
        ooc.merge(run, executor=executor, threads=THREADS)
        eig = eigh_of(run, executor=executor, threads=THREADS)
    alone, assessment = decomposed(spec, given.runs / "serial", THREADS)
    workers = {line["pid"] for line in run.receipts() if line.get("stage") == "measure"}
    vectors, expected = eig.eigenvectors[:], alone.eigenvectors[:]
    print(f"{len(workers)} processes measured on the cluster, one alone.")
    print(f"Eigenvalues of the same bits: {torch.equal(eig.eigenvalues, alone.eigenvalues)}, "
          f"eigenvectors: {torch.equal(vectors, expected)}.")  # fmt: skip
    print(f"The largest is {eig.eigenvalues[0]:.6g}; "
          f"relative error {assessment.relative_error:.3g}.")  # fmt: skip
    return vectors, expected


if __name__ == "__main__":
    # Worker processes import this file, and must not start clusters of their own.
    main()
