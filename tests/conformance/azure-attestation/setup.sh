# Sourced: Azure's SDKs from PyPI and npm, in the target folder. Sets here, root, target and work.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/azure-attestation
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import azure.security.attestation, six' 2>/dev/null ||
    "$work/venv/bin/pip" -q install 'azure-security-attestation==1.0.0' six
if [ ! -d "$work/node_modules/@azure/attestation" ]; then
    (cd "$work" && npm install --no-audit --no-fund --silent --prefix "$work" '@azure/attestation@1.0.0')
fi
# An emulated machine of its own.
export ENCLOS_STATE="$work/state" ENCLOS_PLATFORM=emulated PYTHONDONTWRITEBYTECODE=1
