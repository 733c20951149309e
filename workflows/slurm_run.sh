#!/usr/bin/env bash
# A run on Slurm, from the spec to its figures: plans here, submits all stages as job arrays, waits.
#
#   bash workflows/slurm_run.sh SPEC DIR [options of submit] [-- options of sbatch]
#   bash workflows/slurm_run.sh workflows/digits_hessian.toml runs/slurm --time 0:30:00 --mem 4G
#   bash workflows/slurm_run.sh workflows/digits_hessian.toml runs/slurm --dry-run
#
# Needs Slurm, and DIR on a disk that all nodes share; with --dry-run neither: it then prints the
# scripts and commands, and submits nothing. Prints what was submitted, the state of the run until it
# is done, and the figures. Whatever ends in between: the same line again submits what is missing.
set -euo pipefail

if [ "${1:-}" = --help ]; then
    sed -n 's/^# \{0,1\}//p' "$0" | sed 1d
    exit
fi
if [ $# -lt 2 ]; then
    echo "usage: bash $0 SPEC DIR [options of submit] [-- options of sbatch]" >&2
    exit 2
fi
spec=$1 run=$2
shift 2

if [ ! -e "$run/plan.json" ] || [ ! -e "$run/plan.d/0001.json" ]; then
    # On the login node: a probe of 18 products. With operator.shape and sketch.block in the spec it
    # takes none, and the operator is not even built here.
    skerch-ooc plan "$spec" --run "$run"
fi
skerch-ooc submit "$run" "$@"
for option in "$@"; do
    if [ "$option" = --dry-run ]; then exit; fi
done

# Returns 0 when all stages are done, and 4 if nothing is in the queue any more before that.
skerch-ooc status "$run" --watch
skerch-ooc assess "$run"
