#!/usr/bin/env bash
# A Dask cluster on the GPUs of this machine: a scheduler, and one worker for each GPU. It runs
# until Ctrl-C or SIGTERM, then all of it is stopped.
#
#   bash gpus.sh FILE [GPU...]
#
# A GPU is what CUDA_VISIBLE_DEVICES may name: a number or a UUID. Without any: those that
# CUDA_VISIBLE_DEVICES lists, else all that `nvidia-smi -L` shows. FILE is written by the scheduler
# and removed when it ends. When it is there, in another terminal:
#
#   skerch-ooc run SPEC --run DIR --executor dask --scheduler FILE --device cuda
#
# Environment variables, and what they are by default:
#
#   CORES=        cores of a worker process: threads of its linear algebra; else its share of them
#   MEMORY=0      memory of a worker process, such as 8GiB; it is started anew above. 0: no limit
#   SCRATCH=/tmp  a folder on a disk of this machine, for what Dask itself writes
#   JOIN=         if set, FILE is that of a scheduler which is running; only workers are started
#   INTERFACE=    network interface, such as ib0, or lo for this machine only; else Dask chooses
#   PORT=0        port of the scheduler; 0: one that is free
#   DASHBOARD=:0  address of the dashboard, which needs bokeh; :0: a port that is free
set -euo pipefail
# Ctrl-C is for this script alone, which then stops the others in order.
set -m

fail() {
    echo "gpus.sh: $*" >&2
    exit 2
}

(($# >= 1)) || fail "give a scheduler file: bash gpus.sh FILE [GPU...]"
[[ -d $(dirname -- "$1") ]] || fail "there is no folder $(dirname -- "$1"); make it"
file=$1
gpus=("${@:2}")
command -v dask >/dev/null ||
    fail "there is no command dask; activate the environment of skerch_ooc"
if [[ -n ${JOIN-} ]]; then
    [[ -s $file ]] ||
        fail "there is no scheduler file $file to join; start a scheduler, or leave JOIN out"
else
    [[ ! -e $file ]] ||
        fail "$file is there: a scheduler is running, or was killed; stop it, or remove the file"
fi

if ((!${#gpus[@]})) && [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
    IFS=', ' read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif ((!${#gpus[@]})) && command -v nvidia-smi >/dev/null; then
    # By UUID, as CUDA may number them in another order; the parts of a GPU that is divided.
    mapfile -t gpus < <(nvidia-smi -L | awk '
        function name() { match($0, /UUID: [^)]*/); return substr($0, RSTART + 6, RLENGTH - 6) }
        /^GPU/ { if (whole) print whole; whole = name() }
        /^ +MIG/ { print name(); whole = "" }
        END { if (whole) print whole }')
fi
((${#gpus[@]})) ||
    fail "no GPU: CUDA_VISIBLE_DEVICES is empty and nvidia-smi lists none; name them:" \
        "bash gpus.sh $file 0 1"

# nproc would take OMP_NUM_THREADS for the cores there are.
cores=${CORES:-$(($(env -u OMP_NUM_THREADS nproc) / ${#gpus[@]}))}
[[ $cores =~ ^[0-9]+$ ]] || fail "CORES=$cores: must be a positive integer"
((cores >= 1)) || cores=1
export OMP_NUM_THREADS=$cores MKL_NUM_THREADS=$cores OPENBLAS_NUM_THREADS=$cores
# Operators may start processes of their own (data loaders do), which daemons may not.
export DASK_DISTRIBUTED__WORKER__DAEMON=False

scheduler=
workers=()
finish() {
    local code=$? pid alive tries
    trap - EXIT
    trap '' INT TERM HUP
    if [[ -n $scheduler ]]; then
        # It tells the workers.
        kill -TERM "$scheduler" 2>/dev/null || true
    else
        ((!${#workers[@]})) || kill -TERM "${workers[@]}" 2>/dev/null || true
    fi
    for ((tries = 0; tries < 200; tries++)); do
        alive=()
        for pid in $scheduler ${workers[@]+"${workers[@]}"}; do
            ! kill -0 "$pid" 2>/dev/null || alive+=("$pid")
        done
        ((${#alive[@]})) || break
        ((tries != 50)) || kill -TERM "${alive[@]}" 2>/dev/null || true
        sleep 0.1
    done
    ((!${#alive[@]})) || kill -KILL "${alive[@]}" 2>/dev/null || true
    [[ -n ${JOIN-} ]] || rm -f -- "$file"
    exit "$code"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# `wait` is left at a signal, `sleep` is not.
pause() {
    sleep "$1" &
    wait $! || true
}

interface=(${INTERFACE:+--interface "$INTERFACE"})
if [[ -z ${JOIN-} ]]; then
    dask scheduler --scheduler-file "$file" --port "${PORT:-0}" \
        --dashboard-address "${DASHBOARD:-:0}" ${interface[@]+"${interface[@]}"} </dev/null &
    scheduler=$!
    until [[ -s $file ]]; do
        kill -0 "$scheduler" 2>/dev/null || fail "the scheduler ended at once; its reason is above"
        pause 0.1
    done
fi
for gpu in "${gpus[@]}"; do
    CUDA_VISIBLE_DEVICES=$gpu dask worker --scheduler-file "$file" --nthreads 1 \
        --memory-limit "${MEMORY:-0}" --no-dashboard --local-directory "${SCRATCH:-/tmp}" \
        --death-timeout 120 ${interface[@]+"${interface[@]}"} </dev/null &
    workers+=($!)
done
echo "gpus.sh: ${#gpus[@]} GPUs; Ctrl-C stops all; give skerch-ooc --executor dask" \
    "--scheduler $file --device cuda" >&2

# A worker that dies is started anew by its parent; a parent that has ended was told to.
wait -n $scheduler "${workers[@]}" 2>/dev/null || true
fail "the scheduler or a worker has ended, the reason is above; start anew, the run goes on"
