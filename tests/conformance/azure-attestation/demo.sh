#!/usr/bin/env bash
# Evidence from one end to the other, on the emulated platform, with nothing but this repository and Azure's SDKs: an enclave
# attests; a relying party refuses that by default and accepts it when told the root; an attestation service, itself inside an
# enclave, proves where its signing key is held; and both Azure SDKs validate its token for the first enclave.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
enclos=$target/debug/enclos
cd "$root"
cargo build -q ${PACKAGES:--p enclos-cli --features attestation-service --bins}
echo "== An enclave attests, and a relying party judges its evidence (examples/attested)"
"$enclos" --quiet run examples/attested -- --output "$work/demo"
echo
echo "== An attestation service inside an enclave (services/attestation/enclave)"
image=$work/attestation-service.enclave
"$enclos" build services/attestation/enclave --json --output "$image" > "$work/demo/image.json"
cp "$here/demo.mjs" "$work/demo.mjs"
exec "$work/venv/bin/python" "$here/demo.py" "$enclos" "$image" "$work"
