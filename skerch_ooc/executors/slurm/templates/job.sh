#!/usr/bin/env bash
# {{ title }}
# Written by `skerch-ooc submit`, for submission {{ submission }}. By hand again:
#   {{ again }}

echo "{{ beginning }} $(hostname)"
# The last word on how it ended; exec leaves it to Python.
trap 'echo "{{ ending }}"' EXIT
# Until Python listens, the warning of the end would end it.
trap '' USR1
command=({{ python }} -P -m skerch_ooc)

{{ setup }}run={{ run }}
set -euo pipefail
if ! command -v "${command[0]}" >/dev/null; then
    echo "there is no ${command[0]} on $(hostname)" >&2
    exit 127
fi
{{ body }}
