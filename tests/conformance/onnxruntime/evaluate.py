"""Asks the program `evaluate` (services/inference/enclave/src/bin), natively or as the program of an enclave."""

import base64
import json
import selectors
import subprocess

import numpy

# Those of the Open Inference Protocol that numpy has, besides text.
DATATYPES = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}
NAMES = {numpy.dtype(d): name for name, d in DATATYPES.items()}


def encoded(array):
    """A tensor as `evaluate` reads it; None if it has no such type."""
    array = numpy.asarray(array)
    if array.dtype == object or array.dtype.kind in "US":
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in array.reshape(-1).tolist()]
        name, raw = "BYTES", b"".join(len(t).to_bytes(4, "little") + t for t in texts)
    elif array.dtype in NAMES:
        name = NAMES[array.dtype]
        raw = numpy.ascontiguousarray(array, DATATYPES[name]).tobytes()
    else:
        return None
    return {"datatype": name, "shape": list(array.shape), "data": base64.b64encode(raw).decode()}


def decoded(output):
    """A tensor that `evaluate` wrote."""
    raw = base64.b64decode(output["data"])
    if output["datatype"] != "BYTES":
        return numpy.frombuffer(raw, DATATYPES[output["datatype"]]).reshape(output["shape"])
    texts = []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return numpy.array(texts, dtype=object).reshape(output["shape"])


class Evaluate:
    """The program, running. One that ends without an answer is started again."""

    def __init__(self, command):
        self.command, self.process = command, None

    def ask(self, order, timeout=300):
        """An answer; an error with the stage "crash" or "hang" if there is none."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        selector = selectors.DefaultSelector()
        selector.register(self.process.stdout, selectors.EVENT_READ)
        line = self.process.stdout.readline() if selector.select(timeout) else None
        if line:
            return json.loads(line)
        self.end()
        return {"stage": "crash" if line == b"" else "hang", "error": "it gave no answer"}

    def end(self):
        """Ends it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
