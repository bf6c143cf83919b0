#!/usr/bin/env bash
# Our engines and ONNX Runtime on the same models and rows. Ends with a line "N passed, N failed".
# Everything made goes into the target folder; packages come from PyPI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/onnxruntime
mkdir -p "$work"

if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import onnxruntime, skl2onnx, sklearn' 2>/dev/null ||
    # The exporter gives booleans where protobuf 7 insists on integers.
    "$work/venv/bin/pip" -q install 'scikit-learn==1.7.2' 'skl2onnx==1.20.0' 'onnxruntime==1.32.0' 'protobuf<7'
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-inference-engine} --example evaluate)
# One thread each: more only wait for each other on matrices this small.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
"$work/venv/bin/python" "$root/examples/digits/train.py" "$work/models"
exec "$work/venv/bin/python" "$here/check.py" "$target/debug/examples/evaluate" "$work/models"
