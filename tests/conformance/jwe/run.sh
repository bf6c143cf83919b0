#!/usr/bin/env bash
# PyPI's jwcrypto and `enclos model` on each other's encrypted files. Ends with a line "N passed, N failed".
# Everything made goes into the target folder; packages come from PyPI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/jwe
mkdir -p "$work"

if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import jwcrypto' 2>/dev/null || "$work/venv/bin/pip" -q install 'jwcrypto==1.6.1'
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --features inference --bins})
PYTHONDONTWRITEBYTECODE=1 exec "$work/venv/bin/python" "$here/check.py" "$target/debug/enclos"
