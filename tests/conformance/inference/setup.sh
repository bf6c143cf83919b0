# For the scripts beside it: builds the command, installs other people's software, trains the models unless another suite has.
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/inference
models=$target/conformance/onnxruntime/models
# One environment with the suite `tritonclient`.
venv=$target/conformance/tritonclient/venv
python=$venv/bin/python
mkdir -p "$work" "$target/conformance/tritonclient"
if [ ! -x "$python" ]; then python3 -m venv "$venv"; fi
"$python" -c 'import ohttpy, onnxruntime, sklearn, skl2onnx, tritonclient.http' 2>/dev/null ||
    "$venv/bin/pip" -q install 'scikit-learn==1.7.2' 'skl2onnx==1.20.0' 'protobuf<7' 'tritonclient[http]==2.73.0' \
        'onnxruntime==1.32.0' 'ohttpy==0.1a13'
(cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --features inference --bins})
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
if [ ! -f "$models/held-out.npz" ]; then "$python" "$root/examples/digits/train.py" "$models"; fi
