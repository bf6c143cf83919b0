#!/usr/bin/env bash
# schemathesis against the attestation service's OpenAPI description: no server error, whatever is sent, and answers as
# described. Ends with a line "N passed, N failed". Everything made goes into the target folder; the tool comes from PyPI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/openapi
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import importlib.metadata as m; assert m.version("schemathesis") == "4.32.5"' 2>/dev/null ||
    "$work/venv/bin/pip" -q install 'schemathesis==4.32.5'
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-attestation-service --bins --example made_evidence})
"$target/debug/examples/made_evidence" "$work/made"
exec "$work/venv/bin/python" "$here/fuzz.py" "$target/debug/enclos-attestation-service" "$work"
