"""Ask ONNX models in an enclave: verified first, encrypted for it, numpy in and out.

    client = Client("http://127.0.0.1:8090", policy="policy.toml", collateral="collateral.json")
    client.verdict["emulated"]                                  # who answers, and why it is accepted
    client.infer("digits", {"X": rows})["probabilities"]

Nothing is sent before the server's evidence is accepted by the policy (`Refused` otherwise), and nothing but encrypted for the
key that the evidence vouches for. Verification is done anew when the key's time is over, after a restart, and every ten minutes.
"""

import json
import os
import struct

import numpy

from ._native import Connection, InferenceError, Refused

__all__ = ["Client", "InferenceError", "ModelError", "Refused"]

# Names of the Open Inference Protocol.
_DATATYPES = {
    "BOOL": numpy.bool_, "UINT8": numpy.uint8, "UINT16": numpy.uint16, "UINT32": numpy.uint32, "UINT64": numpy.uint64,
    "INT8": numpy.int8, "INT16": numpy.int16, "INT32": numpy.int32, "INT64": numpy.int64,
    "FP16": numpy.float16, "FP32": numpy.float32, "FP64": numpy.float64,
}
_NAMES = {numpy.dtype(kind): name for name, kind in _DATATYPES.items()}


class ModelError(InferenceError):
    """The enclave's answer is an error: `status` is HTTP's, the text says what is wrong with the request."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Client:
    """Asks the enclave behind a host.

    url: where the host is, such as "http://127.0.0.1:8090".
    policy: a file (TOML, or JSON if it is called *.json) that says which enclaves to accept; the format is that of `enclos verify`.
    collateral: a file, read anew at each verification.
    models: SHA-256 of model files, hexadecimal; if any are given, no other model is asked.

    Raises ValueError for a policy that is not usable. Verifies at the first use.
    """

    def __init__(self, url, *, policy, collateral, models=()):
        with open(policy, encoding="utf-8") as file:
            text = file.read()
        self._connection = Connection(url, text, os.fspath(collateral), list(models))
        self._verdict = None

    @property
    def verdict(self):
        """Who answers, and why it is accepted: accepted, emulated, reasons, appraisal, and the models it vouches for."""
        self._verdict = json.loads(self._connection.verdict())
        return self._verdict

    @property
    def answered_by(self):
        """The verdict on who answered last; None before."""
        return self._verdict

    def metadata(self, model):
        """Inputs, outputs and versions of a model, as the Open Inference Protocol has them."""
        return self._ask("GET", _path(model), b"", None)[0]

    def infer(self, model, inputs, outputs=None):
        """Runs a model: arrays by the names of inputs, to arrays by the names of outputs (all, or those that are named).

        Strings (of numpy's dtypes str, bytes in UTF-8, or object) are BYTES; outputs of BYTES are arrays of str.
        Raises Refused, ModelError (what is wrong with the request), InferenceError (no answer).
        """
        described, tensors = [], []
        for name, array in inputs.items():
            datatype, data = _to_binary(numpy.asarray(array))
            parameters = {"binary_data_size": len(data)}
            described.append({"name": name, "shape": numpy.shape(array), "datatype": datatype, "parameters": parameters})
            tensors.append(data)
        request = {"inputs": described, "parameters": {"binary_data_output": True}}
        if outputs is not None:
            request["outputs"] = [{"name": name} for name in outputs]
        header = json.dumps(request).encode()
        answer, binary = self._ask("POST", _path(model) + "/infer", header + b"".join(tensors), len(header))
        arrays, place = {}, 0
        for output in answer["outputs"]:
            size = output["parameters"]["binary_data_size"]
            arrays[output["name"]] = _from_binary(output["datatype"], binary[place : place + size]).reshape(output["shape"])
            place += size
        return arrays

    def _ask(self, method, path, body, header):
        status, answer, binary, verdict = self._connection.ask(method, path, body, header)
        self._verdict = json.loads(verdict)
        answer = json.loads(answer)
        if status != 200:
            raise ModelError(status, answer.get("error", f"status {status}"))
        return answer, binary


def _path(model):
    if not model or "/" in model or "?" in model:
        raise ValueError(f"{model!r} is no name of a model")
    return f"/v2/models/{model}"


def _to_binary(array):
    if array.dtype.kind in "USO":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
        return "BYTES", b"".join(struct.pack("<I", len(text)) + text for text in texts)
    # Little-endian, row-major.
    array = numpy.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    name = _NAMES.get(array.dtype.newbyteorder("="))
    if name is None:
        raise ValueError(f"arrays of {array.dtype} have no datatype in the Open Inference Protocol")
    return name, array.tobytes()


def _from_binary(datatype, data):
    if datatype == "BYTES":
        texts, place = [], 0
        while place < len(data):
            (length,) = struct.unpack_from("<I", data, place)
            place += 4 + length
            texts.append(data[place - length : place].decode())
        return numpy.array(texts, dtype=object)
    return numpy.frombuffer(data, numpy.dtype(_DATATYPES[datatype]).newbyteorder("<"))
