#!/bin/sh
# Makes the environment /opt/skerch_ooc: the versions of a lock, and skerch_ooc from its source.
#
#   sh install.sh LOCK SOURCE
#
# Another place than /opt/skerch_ooc: TARGET.
set -eu

target=${TARGET:-/opt/skerch_ooc}
python3 -m venv "$target"
"$target/bin/pip" install --no-cache-dir -r "$1"
"$target/bin/pip" install --no-cache-dir --no-deps "$2"
"$target/bin/pip" check

# The charts of Dask call these, which Dask itself no longer brings.
for verb in scheduler worker; do
    printf '#!/bin/sh\nexec "%s/bin/dask" %s "$@"\n' "$target" "$verb" >"$target/bin/dask-$verb"
    chmod 755 "$target/bin/dask-$verb"
done
"$target/bin/skerch-ooc" --version
