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
enclos=$target/debug/enclos
build=${PACKAGES:--p enclos-cli -p enclos-attestation-service --features enclos-cli/attestation-service --bins}
(cd "$root" && cargo build -q $build)
"$enclos" --quiet run "$root/examples/attested" -- --output "$work/emulated" --time 2025-06-27T23:29:34Z
if $inside; then
    image=$work/attestation-service.enclave
    "$enclos" build "$root/services/attestation/enclave" --output "$image"
    service=("$enclos" attestation-service --enclave "$image")
else
    service=("$target/debug/enclos-attestation-service")
fi
cp "$here/sdk.mjs" "$work/sdk.mjs"
exec "$work/venv/bin/python" "$here/sdk.py" "$quotes" "$work" "${service[@]}"
