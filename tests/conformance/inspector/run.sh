#!/usr/bin/env bash
# The evidence inspector in headless Chromium. Ends with a line "N passed, N failed".
# Everything made goes into the target folder; the driver comes from npm, Chromium from Debian.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/inspector
quotes=${ENCLOS_QUOTES:-$root/../shared/quotes}
mkdir -p "$work"
[ -d "$quotes" ] || { echo "no recorded quotes at $quotes; set ENCLOS_QUOTES" >&2; exit 2; }

if [ ! -d "$work/node_modules/playwright-core" ]; then
    npm install --no-audit --no-fund --silent --prefix "$work" 'playwright-core@1.64.1'
fi
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-attestation-service --bins --example made_evidence})
"$target/debug/examples/made_evidence" "$work/made"
cp "$here/page.mjs" "$work/page.mjs"
exec node "$work/page.mjs" "$target/debug/enclos-attestation-service" "$quotes" "$work"
