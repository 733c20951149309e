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

if [ $# -lt 2 ]; then
    echo "usage: bash $0 SPEC DIR [options of run]" >&2
    exit 2
fi
spec=$1 run=$2
shift 2

skerch-ooc run "$spec" --run "$run" --executor dask "$@"

# Each task has left a line in the log of receipts.
python3 - "$run/logs/receipts.jsonl" <<'END'
import collections
import json
import sys

products = collections.Counter()
for line in open(sys.argv[1]):
    receipt = json.loads(line)
    if receipt["stage"] == "measure":
        products[receipt["pid"]] += receipt["products"]
for process, count in products.items():
    print(f"process {process} on this machine: {count} products")
END
