fail() {
    echo "$*" >&2
    exit 2
}
# This interpreter's Dask, as it is its workers that must have skerch_ooc.
dask=("${command[0]}" -P -m dask)
{{ time_left }}spec='' options=({{ options }})

{{ cluster }}
