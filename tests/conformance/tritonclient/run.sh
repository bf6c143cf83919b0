#!/usr/bin/env bash
# NVIDIA's tritonclient and curl, unmodified, through the verifying proxy, and our Python package, to models in an enclave on the
# emulated platform.
# Ends with a line "N passed, N failed". Everything made goes into the target folder; packages come from PyPI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/tritonclient
# What the step before this one trained, if it ran.
models=$target/conformance/onnxruntime/models
mkdir -p "$work"

if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import maturin, sklearn, skl2onnx, tritonclient.http' 2>/dev/null ||
    "$work/venv/bin/pip" -q install 'scikit-learn==1.7.2' 'skl2onnx==1.20.0' 'protobuf<7' 'tritonclient[http]==2.73.0' 'maturin==1.16.0'
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --features inference --bins})
# Without optimisation: what is tested is not its speed. In our target folder: some of what it depends on is there already.
rm -rf "$work/wheels"
(cd "$root/services/inference/python" &&
    CARGO_TARGET_DIR=$(cd "$target" && pwd) "$work/venv/bin/maturin" build --quiet --locked --profile dev --out "$work/wheels")
"$work/venv/bin/pip" -q install --force-reinstall --no-deps "$work"/wheels/*.whl
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
if [ ! -f "$models/held-out.npz" ]; then "$work/venv/bin/python" "$root/examples/digits/train.py" "$models"; fi
exec "$work/venv/bin/python" "$here/check.py" "$target/debug/enclos" "$root/services/inference/enclave" "$models" "$work"
