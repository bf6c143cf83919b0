#!/usr/bin/env bash
# Confidential inference from one end to the other, on the emulated platform: the owner encrypts a model and runs a key broker; an
# operator serves the encrypted model from an enclave; a client verifies both and asks. Then the key is revoked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/inference
mkdir -p "$work"
run=$(mktemp -d "$work/run.XXXXXX")
# An emulated machine of its own, the operator's; the owner's is elsewhere and has no part of it.
export ENCLOS_STATE=${ENCLOS_STATE:-$work/state} ENCLOS_PLATFORM=emulated
enclos=$target/debug/enclos
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --features inference --bins})
owner() { ENCLOS_STATE=$run/owner "$enclos" "$@"; }

started=()
finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$run"
}
trap finish EXIT
# start NAME COMMAND...: starts what serves, and waits until it says where.
start() {
    local name=$1 said=$run/$1.json
    shift
    "$@" --json > "$said" 2> "$run/$name.log" &
    started+=($!)
    for _ in $(seq 600); do
        [ ! -s "$said" ] || break
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    [ -s "$said" ] || { cat "$run/$name.log"; exit 1; }
    url=$(sed 's/.*"url":"\([^"]*\)".*/\1/' "$said")
}

echo "== The enclave, and a policy that names it"
# Of the sources here, as the other suites have it: what the command carries is the same, and would be built once more.
"$enclos" inference --only-build --enclave "$root/services/inference/enclave" --write-policy "$run/client" --json > "$run/image.json"
image=$(sed 's/.*"image":"\([^"]*\)".*/\1/' "$run/image.json")
# A policy for hardware: the same measurement, no emulated root.
grep -v '^emulated_roots' "$run/client/policy.toml" > "$run/hardware.toml"

echo "== The owner encrypts a model"
cp "$root/services/inference/tests/data/tree.onnx" "$run/tree.onnx"
owner model encrypt "$run/tree.onnx" --key digits --policy "$run/client/policy.toml"
owner model encrypt "$run/tree.onnx" --key strict --policy "$run/hardware.toml" -o "$run/strict.onnx.jwe"
rm "$run/tree.onnx"

echo "== The owner's key broker, with collateral from a provisioning service"
start pccs "$enclos" pccs --listen 127.0.0.1:0
start broker env ENCLOS_STATE="$run/owner" "$enclos" key-broker serve --listen 127.0.0.1:0 --pccs "$url"
broker=$url

echo "== An enclave on an emulated platform is refused by default"
if "$enclos" --quiet inference --enclave "$image" --model "$run/strict.onnx.jwe" --key-broker "$broker" --listen 127.0.0.1:0; then exit 1; fi

echo "== And gets the key whose policy names the emulated root"
start server "$enclos" inference --enclave "$image" --model "$run/tree.onnx.jwe" --key-broker "$broker" --listen 127.0.0.1:0
server=$url
printf '[[%s]]' "$(printf '0,0,5,13,9,1,0,0,0,0,13,15,10,15,5,0,0,3,15,2,0,11,8,0,0,4,12,0,0,8,8,0,0,5,8,0,0,9,8,0,0,4,11,0,1,12,7,0,0,2,14,5,10,12,0,0,0,0,6,13,10,0,0,0')" > "$run/row.json"
"$enclos" infer --server "$server" --policy "$run/client/policy.toml" --collateral "$run/client/collateral.json" \
    --input "$run/row.json"

echo "== What the owner sees"
owner key-broker log
owner key-broker revoke digits
if "$enclos" --quiet inference --enclave "$image" --model "$run/tree.onnx.jwe" --key-broker "$broker" --listen 127.0.0.1:0; then exit 1; fi
echo "All of it holds."
