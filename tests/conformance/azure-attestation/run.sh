#!/usr/bin/env bash
# Azure's own SDKs, unmodified, against the attestation service; with --enclave, against one whose engine and keys are inside
# an enclave, on the emulated platform. Ends with a line "N passed, N failed".
# Everything made goes into the target folder; packages come from PyPI and npm.
set -euo pipefail
case ${1-} in
    '') inside=false ;;
    --enclave) inside=true ;;
    *) echo "usage: run.sh [--enclave]" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/azure-attestation
quotes=${ENCLOS_QUOTES:-$root/../shared/quotes}
mkdir -p "$work"
[ -d "$quotes" ] || { echo "no recorded quotes at $quotes; set ENCLOS_QUOTES" >&2; exit 2; }

if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import azure.security.attestation, six' 2>/dev/null ||
    "$work/venv/bin/pip" -q install 'azure-security-attestation==1.0.0' six
if [ ! -d "$work/node_modules/@azure/attestation" ]; then
    (cd "$work" && npm install --no-audit --no-fund --silent --prefix "$work" '@azure/attestation@1.0.0')
fi
export ENCLOS_STATE="$work/state" ENCLOS_PLATFORM=emulated
# Evidence of an enclave that runs, on an emulated machine of its own; as of the time at which the service judges.
(cd "$root" && cargo run -q --release -- --quiet run examples/attested \
    -- --output "$work/emulated" --time 2025-06-27T23:29:34Z)
if $inside; then
    image=$work/attestation-service.enclave
    (cd "$root" && cargo build -q -p enclos-cli --features attestation-service &&
        "$target/debug/enclos" build services/attestation/enclave --output "$image")
    service=("$target/debug/enclos" attestation-service --enclave "$image")
else
    (cd "$root" && cargo build -q -p enclos-attestation-service)
    service=("$target/debug/enclos-attestation-service")
fi
cp "$here/sdk.mjs" "$work/sdk.mjs"
exec "$work/venv/bin/python" "$here/sdk.py" "$quotes" "$work" "${service[@]}"
