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
source "$(dirname "$0")/setup.sh"
quotes=${ENCLOS_QUOTES:-$root/../shared/quotes}
[ -d "$quotes" ] || { echo "no recorded quotes at $quotes; set ENCLOS_QUOTES" >&2; exit 2; }
# Evidence of an enclave that runs, on an emulated machine of its own; as of the time at which the service judges.
(cd "$root" && cargo run -q --release -- --quiet run examples/attested \
    -- --output "$work/emulated" --time 2025-06-27T23:29:34Z)
if $inside; then
    image=$work/attestation-service.enclave
    (cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --features attestation-service --bins} &&
        "$target/debug/enclos" build services/attestation/enclave --output "$image")
    service=("$target/debug/enclos" attestation-service --enclave "$image")
else
    (cd "$root" && cargo build -q ${PACKAGES:--p enclos-attestation-service --bins})
    service=("$target/debug/enclos-attestation-service")
fi
cp "$here/sdk.mjs" "$work/sdk.mjs"
exec "$work/venv/bin/python" "$here/sdk.py" "$quotes" "$work" "${service[@]}"
