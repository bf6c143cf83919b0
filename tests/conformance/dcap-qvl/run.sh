#!/usr/bin/env bash
# The PyPI package dcap-qvl, unmodified, against quotes and collateral of the emulated platform. Ends with a line
# "N passed, N failed". Everything made goes into the target folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/dcap-qvl
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import dcap_qvl' 2>/dev/null || "$work/venv/bin/pip" -q install 'dcap-qvl==0.7.0'
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --bins})
exec "$work/venv/bin/python" "$here/check.py" "$target/debug/enclos" "$work"
