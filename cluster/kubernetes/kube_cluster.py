"""Runs a spec on a Dask cluster that is made for it on Kubernetes, and removed afterwards.

    python kube_cluster.py SPEC DIR [WORKERS]

It runs in a pod of the same image that has the volume of the runs, too, or wherever that volume is
mounted under the same path; SPEC, what it names, and DIR lie on it. Needs dask-kubernetes here, and
its operator in the cluster; a service account that may make DaskClusters. The command
``skerch-ooc run SPEC --run DIR`` goes on with the same run in any other place.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dask_kubernetes.operator import KubeCluster

import skerch_ooc as ooc

SPECIFICATION = Path(__file__).with_name("dask-cluster.yaml")
THREADS = 4
MEMORY = "7GiB"
"""What a task may use; less than the limits of a worker's pod, which kill it."""


def main(spec: str, directory: str, workers: int = 8) -> None:
    """Plans, measures, merges and recovers; what is done already is not done again."""
    run = ooc.plan(spec, directory, threads=THREADS)
    with KubeCluster(custom_cluster_spec=str(SPECIFICATION)) as cluster:
        cluster.scale(workers)
        executor = ooc.Dask(cluster)
        for stage in (ooc.measure, ooc.merge, ooc.recover):
            stage(run, executor=executor, threads=THREADS, memory=MEMORY)
    print(ooc.assess(run))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
