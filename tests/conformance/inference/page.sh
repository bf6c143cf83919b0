#!/usr/bin/env bash
# The page of the verifying proxy in headless Chromium. Ends with a line "N passed, N failed".
# The driver comes from npm, and so does what the page's encryption is compared with; Chromium from Debian, ONNX Runtime, which
# answers are compared with, from PyPI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/setup.sh"
if [ ! -d "$work/node_modules/playwright-core" ] || [ ! -d "$work/node_modules/@hpke/core" ] || [ ! -d "$work/node_modules/bhttp-js" ]; then
    npm install --no-audit --no-fund --silent --prefix "$work" 'playwright-core@1.64.1' '@hpke/core@1.9.0' 'bhttp-js@0.2.1'
fi
cp "$here/page.mjs" "$here/ohttp.mjs" "$work/"
# Under a name by which Node takes it for the module that it is.
cp "$root/services/inference/proxy/page/ohttp.js" "$work/ohttp-page.mjs"
exec node "$work/page.mjs" "$target/debug/enclos" "$root/services/inference/enclave" "$models" "$work" "$python"
