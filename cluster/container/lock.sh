#!/bin/sh
# Makes cpu.lock and cuda.lock anew, from pyproject.toml and constraints: the versions that the tests
# have passed with. Needs uv. From the root of the repository:
#
#   sh cluster/container/lock.sh CONSTRAINTS
#
# INDEX: an index or folder with the builds of torch for CPUs alone.
set -eu

index=${INDEX:-https://download.pytorch.org/whl/cpu}
here=cluster/container
compile() {
    uv pip compile pyproject.toml --extra curvature --extra matrices --extra sklearn \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --no-annotate --no-header --quiet "$@"
}
torch=$(sed -n 's/^torch==//p' "$1")
compile -c "$1" -o "$here/cuda.lock"
cpu=$(mktemp)
trap 'rm -f "$cpu"' EXIT
# Else the newest releases that fit would differ from those of the other lock.
grep -v '^torch' "$here/cuda.lock" >"$cpu"
echo "torch==$torch+cpu" >>"$cpu"
compile -c "$cpu" --find-links "$index" -o "$here/cpu.lock"
