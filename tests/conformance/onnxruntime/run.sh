#!/usr/bin/env bash
# Our engines and ONNX Runtime on the same models and inputs, and ONNX's own node tests. Each part ends with a line "N passed,
# N failed".
# Everything made goes into the target folder; packages come from PyPI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/onnxruntime
mkdir -p "$work/networks"

if [ ! -x "$work/venv/bin/python" ]; then python3 -m venv "$work/venv"; fi
"$work/venv/bin/python" -c 'import onnx, onnxruntime, skl2onnx, sklearn' 2>/dev/null ||
    # The exporter gives booleans where protobuf 7 insists on integers.
    "$work/venv/bin/pip" -q install 'scikit-learn==1.7.2' 'skl2onnx==1.20.0' 'onnx==1.23.2' 'onnxruntime==1.32.0' 'protobuf<7'
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --features inference --bins})
# Built as the enclave of the service is, so that what both need is built once; here it runs by itself.
"$target/debug/enclos" build "$here/evaluate" --unsigned --output "$work/evaluate.enclave" >/dev/null
program=$target/enclave/x86_64-unknown-linux-gnu/release/evaluate
# One thread each: more only wait for each other on matrices this small.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 RTEN_NUM_THREADS=1
python=$work/venv/bin/python
"$python" "$root/examples/digits/train.py" "$work/models"
failed=0
"$python" "$here/check.py" "$program" "$work/models" || failed=1
"$python" "$here/nodes.py" "$program" "$work" || failed=1
"$python" "$here/models.py" "$program" "$work/networks" || failed=1
exit $failed
