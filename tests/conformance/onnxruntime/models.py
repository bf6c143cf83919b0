"""Neural networks by each engine and by ONNX Runtime: the numbers must agree, on each of several shapes of inputs.

    models.py PROGRAM FOLDER
"""

import sys
from pathlib import Path

import numpy
import onnx
import onnxruntime

from architectures import MODELS
from evaluate import Evaluate, decoded, encoded

# Float sums of thousands of numbers, each engine in its own order, through dozens of layers.
RELATIVE = 2e-3
# Of the largest number of an output.
ABSOLUTE = 5e-5


def session(path):
    """ONNX Runtime with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def difference(ours, theirs):
    """What differs; None if they agree."""
    if ours.shape != theirs.shape:
        return f"the shape is {ours.shape}, not {theirs.shape}"
    largest = float(numpy.abs(theirs).max())
    if numpy.allclose(ours, theirs, RELATIVE, ABSOLUTE * largest):
        return None
    return f"it differs by up to {float(numpy.abs(ours - theirs).max())}; the largest number is {largest}"


def main(program, folder):
    """All models."""
    evaluate, passed, failed = Evaluate([program]), 0, 0
    for name, (make, examples) in MODELS.items():
        path = folder / f"{name}.onnx"
        onnx.save(make(), path)
        theirs = session(path)
        for inputs in examples:
            expected = theirs.run(None, {i.name: v for i, v in zip(theirs.get_inputs(), inputs)})
            for who in ["tract", "rten", None]:
                answer = evaluate.ask({"model": str(path), "engine": who, "inputs": [encoded(i) for i in inputs]})
                what = f"{name} {list(inputs[0].shape)} by {who or answer.get('reason')}"
                if "error" in answer:
                    reason = answer["error"]
                else:
                    ours = [decoded(o) for o in answer["outputs"]]
                    reason = next(filter(None, map(difference, ours, expected)), None)
                print(f"{'FAILED' if reason else 'ok':8} {what}{': ' + reason if reason else ''}")
                passed, failed = passed + (not reason), failed + bool(reason)
    evaluate.end()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
