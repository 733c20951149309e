#!/usr/bin/env bash
# All stages of a planned run as job arrays that wait for each other; nothing else stays running.
#
#   skerch-ooc plan SPEC --run DIR
#   bash chain.sh DIR [SBATCH OPTION...]
#
# Options go to every job, such as --partition=gpu --time=2:00:00 --cpus-per-task=4. What is there
# already is found to be done, so the same line submits the rest after elements have failed, were
# cancelled or ran out of time. `skerch-ooc status DIR` tells what is missing.
#
# Environment variables, and what they are by default:
#
#   ELEMENTS=16   elements of the arrays that measure; at most what the cluster's MaxArraySize allows
#   ROWS=4        elements of the arrays that merge and make vectors
#   ROUNDS=1      rounds of products: for hmt 2 + power_iterations, for svd 2 + 2 power_iterations
#   THROTTLE=     elements of an array that may run at once
#   LOGS=         folder of the logs; else DIR/logs
#   ARGUMENTS=    further arguments of `skerch-ooc task`, such as "--memory 8GiB --device cuda"
set -euo pipefail

fail() {
    echo "chain.sh: $*" >&2
    exit 2
}

(($# >= 1)) || fail "give a planned run: bash chain.sh DIR [SBATCH OPTION...]"
[[ -f $1/plan.json ]] || fail "$1 is no planned run; plan it: skerch-ooc plan SPEC --run $1"
command -v sbatch >/dev/null || fail "there is no command sbatch here; run this on a login node"
run=$(cd -- "$1" && pwd)
options=("${@:2}")
elements=${ELEMENTS:-16} rows=${ROWS:-4} rounds=${ROUNDS:-1}
for number in "$elements" "$rows" "$rounds"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || fail "ELEMENTS, ROWS and ROUNDS must be positive integers"
done
logs=${LOGS:-$run/logs}
mkdir -p -- "$logs"
read -ra arguments <<<"${ARGUMENTS:-}"
script=$(cd -- "$(dirname -- "$0")" && pwd)/stage.sbatch

last=
submit() {
    local stage=$1 count=$2 answer
    local wait=(${last:+"--dependency=afterany:$last"})
    answer=$(sbatch --parsable --job-name="skerch-ooc $stage" \
        --array="0-$((count - 1))${THROTTLE:+%$THROTTLE}" --output="$logs/$stage.%A_%a.log" \
        ${wait[@]+"${wait[@]}"} ${options[@]+"${options[@]}"} \
        "$script" "$run" "$stage" "$count" ${arguments[@]+"${arguments[@]}"}) ||
        fail "sbatch refused $stage, for the reason above; nothing after it was submitted"
    last=${answer%%;*}
    [[ $last =~ ^[0-9]+$ ]] || fail "sbatch answered '$answer' for $stage, which is no job number"
    echo "$stage: job $last, $count element(s)"
}

for ((round = 1; round <= rounds; round++)); do
    suffix=
    ((round == 1)) || suffix=.$round
    submit "measure$suffix" "$elements"
    submit "merge$suffix" "$rows"
    submit "solve$suffix" 1
    submit "vectors$suffix" "$rows"
done
submit assess 1
echo "logs: $logs; how far it is: skerch-ooc status $run; to stop all of it: scancel, with these jobs"
