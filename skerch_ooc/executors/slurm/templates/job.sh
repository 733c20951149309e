#!/usr/bin/env bash
# {{ title }}
# Written by `skerch-ooc submit`, for submission {{ submission }}. By hand again:
#   {{ again }}

echo "{{ beginning }} $(hostname)"
# Who is cancelled before Python listens has no last word.
trap 'trap - EXIT TERM; kill -TERM $$' TERM
# Whatever exit code the lines of the set-up end it with: nothing is done then.
trap 'code=$?; echo "the lines of --setup ended it with exit code $code, before any work" >&2
    code=$((code ? code : 2)); echo "{{ early_ending }}"; exit "$code"' EXIT
# Until Python listens, the warning of the end would end it.
trap '' USR1
command=({{ python }} -P -m skerch_ooc)

{{ setup }}# The last word on how it ended; exec leaves it to Python.
trap 'echo "{{ ending }}"' EXIT
run={{ run }}
set -euo pipefail
if ! command -v "${command[0]}" >/dev/null; then
    echo "there is no ${command[0]} on $(hostname)" >&2
    exit 127
fi
{{ body }}
