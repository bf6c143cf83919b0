"""PyPI's ohttpy, unmodified, to the enclave: with the key configuration that evidence vouches for.

Usage: ohttp.py ENCLOS URL FOLDER ROWS. FOLDER has policy.toml and collateral.json, ROWS (.npy) are classified by the newest model;
their labels are the last line. A program of its own, since ohttpy lets no other thread of Python's run while it waits.

ohttpy verifies nothing. Here `enclos verify` does, with report data that are computed from docs/inference.md.
"""

import base64
import hashlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy
from ohttpy.session import Session


def report_data(key_config, models):
    def number(n):
        return n.to_bytes(8, "big")

    text = b"enclos inference 2\0" + number(len(key_config)) + key_config + number(len(models))
    for model in models:
        name = model["name"].encode()
        text += number(len(name)) + name + bytes.fromhex(model["sha256"])
    return hashlib.sha256(text).digest() + bytes(32)


def verified_key_config(enclos, url, folder):
    """The key configuration and the models of an offer whose evidence is accepted by the policy in this folder."""
    with urllib.request.urlopen(f"{url}/.well-known/enclos-inference") as response:
        offer = json.load(response)
    key_config, models = base64.b64decode(offer["key_config"]), offer["models"]
    evidence = folder / "evidence.bin"
    evidence.write_bytes(base64.b64decode(offer["evidence"]))
    command = [enclos, "verify", evidence, "--policy", folder / "policy.toml", "--collateral", folder / "collateral.json"]
    done = subprocess.run([*command, "--nonce", report_data(key_config, models).hex()], capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="", end="", flush=True)
    if done.returncode != 0:
        raise SystemExit(f"FAILED the evidence is not accepted: exit code {done.returncode}")
    return key_config, models


def read_response(message):
    """Status and JSON of binary HTTP of known length (RFC 9292), which ohttpy decrypts and leaves as it is."""

    def integer(at):
        length = 1 << (message[at] >> 6)
        return int.from_bytes(message[at : at + length], "big") & ((1 << (8 * length - 2)) - 1), at + length

    kind, at = integer(0)
    if kind != 1:
        raise SystemExit(f"FAILED no response of known length: {message[:40]}")
    status, at = integer(at)
    length, at = integer(at)
    length, at = integer(at + length)
    return status, json.loads(message[at : at + length])


def main(enclos, url, folder, rows):
    """Prints the labels of rows of pixels."""
    key_config, models = verified_key_config(enclos, url, folder)
    # It takes a list of configurations (RFC 9458, section 3.2).
    session = Session(key_config=len(key_config).to_bytes(2, "big") + key_config)
    model = models[-1]
    request = {"inputs": [{"name": "X", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]}
    address = f"{url}/v2/models/{model['name']}/versions/{model['sha256']}/infer"
    response = session.post(address, data=json.dumps(request), headers={"Content-Type": "application/json"})
    status, answer = read_response(response.content)
    if status != 200:
        raise SystemExit(f"FAILED {status}: {answer}")
    # What is wrong with a request comes back encrypted, too.
    wrong = session.post(address, data=b"{", headers={"Content-Type": "application/json"})
    status, said = read_response(wrong.content)
    if status != 400 or "error" not in said:
        raise SystemExit(f"FAILED {status}: {said}")
    print(json.dumps(answer["outputs"][0]["data"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), numpy.load(sys.argv[4]))
