#!/usr/bin/env bash
# Debian's skopeo, umoci, runc and buildah against an image that `enclos image` wrote. Ends with a line "N passed, N failed".
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
container="enclos-vault-$$"
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# check NAME COMMAND…: the command succeeds.
check() {
    local name=$1
    shift
    if "$@" >"$work/said" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        cat "$work/said"
    fi
}
refuses() { ! "$@"; }
field() { python3 -c 'import json,sys; v = json.load(sys.stdin)
for k in sys.argv[1].split("/"): v = v[int(k)] if isinstance(v, list) else v[k]
print(v)' "$1"; }

enclos() { (cd "$root" && cargo run --release --quiet -- "$@"); }
made=$(enclos image examples/vault --output "$work/vault" --tag 1.0 --json)
enclos image examples/vault --output "$work/vault.tar" --tag 1.0 --json >"$work/archive.json"
digest=$(field digest <<<"$made")
mrenclave=$(field mrenclave <<<"$made")

skopeo inspect "oci:$work/vault:1.0" >"$work/inspect.json"
check "skopeo finds the digest" test "$(field Digest <"$work/inspect.json")" = "$digest"
check "skopeo finds MRENCLAVE among the labels" \
    test "$(field Labels/io.enclos.mrenclave <"$work/inspect.json")" = "$mrenclave"
check "the archive is the same image" \
    test "$(skopeo inspect "oci-archive:$work/vault.tar:1.0" | field Digest)" = "$digest"
check "skopeo copies it" skopeo copy --quiet "oci-archive:$work/vault.tar:1.0" "oci:$work/copy:2.0"
for image in "$work/vault" "$work/vault.tar" "$work/copy:2.0"; do
    check "enclos inspects $(basename "$image")" \
        test "$(enclos inspect --json "oci:$image" | field identity/mrenclave)" = "$mrenclave"
done

umoci unpack --image "$work/vault:1.0" "$work/bundle" 2>"$work/umoci"
check "the container runs as no one" test "$(field process/user/uid <"$work/bundle/config.json")" = 65532
# No terminal in continuous integration.
python3 - "$work/bundle/config.json" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))
config["process"]["terminal"] = False
json.dump(config, open(sys.argv[1], "w"))
PYTHON
run() { runc --root "$work/runc" run --bundle "$work/bundle" "$container-$1" >"$work/run.$1" 2>&1; }
check "runc runs it" run 1
check "it keeps secrets" grep -q "none of the values in plain text" "$work/run.1"
check "it says that the emulator protects nothing" grep -q "emulator, which protects nothing" "$work/run.1"
check "runc runs it again" run 2
check "the sealed vault is still there" grep -q "of an earlier run" "$work/run.2"

# A plain program, without a host crate.
enclos image examples/primes --output "$work/primes" --tag 1.0 --json >"$work/primes.json"
umoci unpack --image "$work/primes:1.0" "$work/plain" 2>"$work/umoci"
python3 - "$work/plain/config.json" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))
config["process"]["terminal"] = False
config["process"]["args"].append("100000")
json.dump(config, open(sys.argv[1], "w"))
PYTHON
check "runc runs a plain program" \
    sh -c 'runc --root "$1/runc" run --bundle "$1/plain" "$2-3" >"$1/run.3" 2>&1' - "$work" "$container"
check "it gets its arguments, and computes" grep -q "^9592 primes below 100000" "$work/run.3"

# The scaffold's Containerfile, by buildah, with what `enclos image` built of the vault.
context="$work/context" release=container/x86_64-unknown-linux-gnu/release
mkdir -p "$context/target/$release" "$context/target/enclos"
sed 's/{{name}}/vault/g' "$root/cli/template/Containerfile" >"$context/Containerfile"
cp "${CARGO_TARGET_DIR:-$root/target}/$release/vault-host" "$context/target/$release/"
cp "$root/examples/vault/target/enclos/vault.enclave" "$context/target/enclos/"
buildah() { command buildah --root "$work/storage" --runroot "$work/storage.run" --storage-driver vfs "$@"; }
check "buildah builds the scaffold's Containerfile" buildah build --isolation chroot --quiet --tag vault:1.0 "$context"
check "buildah writes an image" buildah push --quiet vault:1.0 "oci:$work/built:1.0"
umoci unpack --image "$work/built:1.0" "$work/scaffold" 2>"$work/umoci"
python3 - "$work/scaffold/config.json" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))
config["process"]["terminal"] = False
config["root"]["readonly"] = False
json.dump(config, open(sys.argv[1], "w"))
PYTHON
check "runc runs it" \
    sh -c 'runc --root "$1/runc" run --bundle "$1/scaffold" "$2-4" >"$1/run.4" 2>&1' - "$work" "$container"
check "its vault is as the other's" grep -q "none of the values in plain text" "$work/run.4"

# A label that lies: the configuration changed by umoci itself.
cp -r "$work/vault" "$work/lying"
umoci config --image "$work/lying:1.0" --config.label "io.enclos.mrenclave=$(printf '0%.0s' {1..64})"
check "a label that lies is named" \
    test "$(enclos inspect --json "oci:$work/lying" | field container/untrue_labels/0/0)" = io.enclos.mrenclave

# One flipped byte in the enclave's layer.
layer=$(field layers/1/digest <"$work/vault/blobs/sha256/${digest#sha256:}")
python3 - "$work/vault/blobs/sha256/${layer#sha256:}" <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(5000)
    byte = f.read(1)[0]
    f.seek(5000)
    f.write(bytes([byte ^ 1]))
PYTHON
check "skopeo refuses an altered layer" refuses skopeo copy --quiet "oci:$work/vault:1.0" "oci:$work/never:1.0"
check "umoci refuses an altered layer" refuses umoci unpack --image "$work/vault:1.0" "$work/never-bundle"
refuses enclos inspect "oci:$work/vault" >"$work/refusal" 2>&1
check "enclos refuses an altered layer, and says so" grep -q "altered or damaged" "$work/refusal"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
