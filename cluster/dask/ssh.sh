#!/usr/bin/env bash
# A Dask cluster by hand: a scheduler on this host, workers on others by ssh. It runs until Ctrl-C
# or SIGTERM, then all of it is stopped.
#
#   bash ssh.sh FILE HOST...
#
# FILE is written by the scheduler and removed when it ends; it must be in a folder that all hosts
# see under the same path. When it is there, in another terminal:
#
#   skerch-ooc run SPEC --run DIR --executor dask --scheduler FILE
#
# Environment variables, and what they are by default:
#
#   CORES=1       cores of a worker process: threads of its linear algebra
#   WORKERS=      worker processes of each host; else as many as its cores allow
#   MEMORY=0      memory of a worker process, such as 8GiB; it is started anew above. 0: no limit
#   SCRATCH=/tmp  a folder on a disk of each host, for what Dask itself writes
#   INTERFACE=    network interface, such as ib0, the same on all hosts; else Dask chooses
#   PORT=0        port of the scheduler; 0: one that is free
#   DASHBOARD=:0  address of the dashboard, which needs bokeh; :0: a port that is free
#   DASK=         path of the command `dask` on all hosts; else where it is on this one
#   SSH="ssh -o BatchMode=yes"    is called with a host and one command line
set -euo pipefail
# Ctrl-C is for this script alone, which then stops the others in order.
set -m

fail() {
    echo "ssh.sh: $*" >&2
    exit 2
}

(($# >= 2)) || fail "give a scheduler file and hosts: bash ssh.sh FILE HOST..."
[[ -d $(dirname -- "$1") ]] ||
    fail "there is no folder $(dirname -- "$1"); make it, on a disk that all hosts see"
file=$(cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
hosts=("${@:2}")
cores=${CORES:-1}
dask=${DASK:-$(command -v dask || true)}
read -ra ssh <<<"${SSH:-ssh -o BatchMode=yes}"

[[ ! -e $file ]] ||
    fail "$file is there: a scheduler is running, or was killed; stop it, or remove the file"
[[ -n $dask ]] ||
    fail "there is no command dask here; activate the environment of skerch_ooc, or set DASK"
[[ $cores =~ ^[1-9][0-9]*$ ]] || fail "CORES=$cores: must be a positive integer"
[[ ${WORKERS:-1} =~ ^[1-9][0-9]*$ ]] || fail "WORKERS=$WORKERS: must be a positive integer"

# For one more shell to read: ssh hands a line of text to the login shell of the host.
quoted() {
    local word line=
    for word in "$@"; do
        line+="'${word//\'/\'\\\'\'}' "
    done
    echo "$line"
}

scheduler=
workers=()
finish() {
    local code=$? pid alive tries
    trap - EXIT
    trap '' INT TERM HUP
    # The scheduler tells the workers, which ends what ssh has started.
    [[ -z $scheduler ]] || kill -TERM "$scheduler" 2>/dev/null || true
    for ((tries = 0; tries < 200; tries++)); do
        alive=()
        for pid in $scheduler ${workers[@]+"${workers[@]}"}; do
            ! kill -0 "$pid" 2>/dev/null || alive+=("$pid")
        done
        ((${#alive[@]})) || break
        # Workers that are at work, or beyond reach, end by themselves: their scheduler is gone.
        ((tries != 50)) || kill -TERM "${alive[@]}" 2>/dev/null || true
        sleep 0.1
    done
    ((!${#alive[@]})) || kill -KILL "${alive[@]}" 2>/dev/null || true
    rm -f -- "$file"
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
"$dask" scheduler --scheduler-file "$file" --port "${PORT:-0}" \
    --dashboard-address "${DASHBOARD:-:0}" ${interface[@]+"${interface[@]}"} </dev/null &
scheduler=$!
until [[ -s $file ]]; do
    kill -0 "$scheduler" 2>/dev/null || fail "the scheduler ended at once; its reason is above"
    pause 0.1
done

# nproc would take OMP_NUM_THREADS for the cores there are.
count="n=${WORKERS:-\$((\$(env -u OMP_NUM_THREADS nproc) / $cores))}; [ \"\$n\" -ge 1 ] || n=1"
# Operators may start processes of their own (data loaders do), which daemons may not.
start="exec env $(quoted "OMP_NUM_THREADS=$cores" "MKL_NUM_THREADS=$cores" \
    "OPENBLAS_NUM_THREADS=$cores" DASK_DISTRIBUTED__WORKER__DAEMON=False \
    "$dask" worker --scheduler-file "$file" --nthreads 1 --memory-limit "${MEMORY:-0}" \
    --no-dashboard --local-directory "${SCRATCH:-/tmp}" --death-timeout 120 \
    ${interface[@]+"${interface[@]}"}) --nworkers \"\$n\""
for host in "${hosts[@]}"; do
    # The login shell may be any.
    "${ssh[@]}" "$host" "exec sh -c $(quoted "$count; $start")" </dev/null &
    workers+=($!)
done
echo "ssh.sh: ${#hosts[@]} hosts; Ctrl-C stops them; give skerch-ooc --executor dask" \
    "--scheduler $file" >&2

left=${#hosts[@]}
ended=()
while ((left)); do
    pause 1
    kill -0 "$scheduler" 2>/dev/null || fail "the scheduler has ended; start anew, the run goes on"
    for i in "${!hosts[@]}"; do
        if [[ -z ${ended[i]-} ]] && ! kill -0 "${workers[i]}" 2>/dev/null; then
            code=0
            wait "${workers[i]}" || code=$?
            ended[i]=$code
            ((left -= 1)) || true
            echo "ssh.sh: the workers of ${hosts[i]} have ended (exit code $code);" \
                "$left hosts are left" >&2
        fi
    done
done
fail "no host has workers any more; see above, and try: ${ssh[*]} ${hosts[0]} $dask --version"
