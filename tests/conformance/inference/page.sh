#!/usr/bin/env bash
# The page of the verifying proxy in headless Chromium. Ends with a line "N passed, N failed".
# The driver comes from npm, Chromium from Debian, what answers are compared with (ONNX Runtime) from PyPI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/setup.sh"
if [ ! -d "$work/node_modules/playwright-core" ]; then
    npm install --no-audit --no-fund --silent --prefix "$work" 'playwright-core@1.64.1'
fi
cp "$here/page.mjs" "$work/page.mjs"
exec node "$work/page.mjs" "$target/debug/enclos" "$root/services/inference/enclave" "$models" "$work" "$python"
