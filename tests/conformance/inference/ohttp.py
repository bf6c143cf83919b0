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


def main(enclos, url, folder, rows):
    """Prints the labels of rows of pixels."""
    key_config, models = verified_key_config(enclos, url, folder)
    # It takes a list of configurations (RFC 9458, section 3.2).
    session = Session(key_config=len(key_config).to_bytes(2, "big") + key_config)
    model = models[-1]
    request = {"inputs": [{"name": "X", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]}
    address = f"{url}/v2/models/{model['name']}/versions/{model['sha256']}/infer"
    response = session.post(address, data=json.dumps(request), headers={"Content-Type": "application/json"})
    if response.status_code != 200 or not response.content:
        raise SystemExit(f"FAILED {response.status_code} {response.headers}: {response.content}")
    answer = response.json()
    # What is wrong with a request comes back encrypted, too.
    wrong = session.post(address, data=b"{", headers={"Content-Type": "application/json"})
    if wrong.status_code != 400 or "error" not in wrong.json():
        raise SystemExit(f"FAILED {wrong.status_code}: {wrong.content}")
    print(json.dumps(answer["outputs"][0]["data"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), numpy.load(sys.argv[4]))
