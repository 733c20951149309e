#!/usr/bin/env bash
# A run on worker processes of this machine: as many as there are cores, or GPUs, or --workers N.
#
#   bash workflows/dask_run.sh SPEC DIR [options of run]
#   bash workflows/dask_run.sh workflows/digits_hessian.toml runs/dask --workers 2 --threads 1
#
# Needs nothing but the package. Prints the figures, which are those of one process, and the products
# of each worker. Workers may die: their tasks are done again by others. For a cluster that is running,
# --scheduler tcp://host:8786; for one that Python starts see dask_cluster.py.
set -euo pipefail

if [ "${1:-}" = --help ]; then
    sed -n 's/^# \{0,1\}//p' "$0" | sed 1d
    exit
fi
if [ $# -lt 2 ]; then
    echo "usage: bash $0 SPEC DIR [options of run]" >&2
    exit 2
fi
spec=$1 run=$2
shift 2

skerch-ooc run "$spec" --run "$run" --executor dask "$@"

# Each task has left a line in the log of receipts.
python3 - "$run" <<'END'
import collections
import sys

import skerch_ooc as ooc

products = collections.Counter()
for receipt in ooc.open_run(sys.argv[1]).receipts():
    if receipt.get("stage") == "measure" and receipt.get("published"):
        products[receipt["pid"]] += receipt["products"]
for process, count in products.items():
    print(f"process {process} on this machine: {count} products")
END
