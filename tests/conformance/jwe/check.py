"""jwcrypto decrypts what `enclos model encrypt` wrote, and `enclos model decrypt` what jwcrypto wrote, or says why not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from jwcrypto import jwe, jwk

enclos = sys.argv[1]
passed = failed = 0


def check(what, holds):
    global passed, failed
    passed, failed = passed + bool(holds), failed + (not holds)
    if not holds:
        print("FAILED:", what)


with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    os.environ["ENCLOS_STATE"] = str(folder / "state")

    def run(*arguments):
        return subprocess.run([enclos, *map(str, arguments)], cwd=folder, capture_output=True, text=True)

    policy = folder / "policy.toml"
    policy.write_text('[[identity]]\nkind = "sgx"\nmr_enclave = "%s"\n' % ("11" * 32))
    added = run("key-broker", "add", "theirs", "--policy", policy)
    assert added.returncode == 0, added.stderr
    key = jwk.JWK.from_json(run("key-broker", "export", "theirs").stdout)
    check("the name of the exported key", key.get("kid") == "theirs")

    # jwcrypto takes an empty content for a failure.
    for size in (1, 2, 3, 100, 65_537, 3_000_000):
        content = os.urandom(size)
        (folder / "model.onnx").write_bytes(content)
        done = run("model", "encrypt", "model.onnx", "--key", "theirs")
        check(f"encrypting {size} bytes: {done.stderr}", done.returncode == 0)
        text = (folder / "model.onnx.jwe").read_text()
        token = jwe.JWE()
        token.allowed_algs = ["dir", "A256GCM"]
        token.deserialize(text, key)
        check(f"jwcrypto decrypts {size} bytes of ours", token.payload == content)
        check("its header", token.jose_header == {"alg": "dir", "enc": "A256GCM", "kid": "theirs"})

        other = jwe.JWE(content, protected={"alg": "dir", "enc": "A256GCM", "kid": "theirs", "typ": "x"})
        other.add_recipient(key)
        (folder / "other.jwe").write_text(other.serialize(compact=True))
        done = run("model", "decrypt", "other.jwe", "-o", "other.onnx")
        check(f"we decrypt {size} bytes of jwcrypto's: {done.stderr}", done.returncode == 0)
        check("their content", (folder / "other.onnx").read_bytes() == content)

    # A key that jwcrypto made, and no store.
    own = jwk.JWK.generate(kty="oct", size=256, kid="own")
    (folder / "own.jwk").write_text(own.export())
    done = run("model", "encrypt", "model.onnx", "--key", "own", "--jwk", "own.jwk", "-o", "own.jwe")
    check(f"a key of jwcrypto's: {done.stderr}", done.returncode == 0)
    token = jwe.JWE()
    token.deserialize((folder / "own.jwe").read_text(), own)
    check("jwcrypto decrypts with its own key", token.payload == content)

    def refused(text, reason):
        (folder / "bad.jwe").write_text(text)
        done = run("model", "decrypt", "bad.jwe", "-o", "bad.onnx")
        check(f"{reason}: {done.returncode} {done.stderr}", done.returncode == 1 and reason in done.stderr)
        check(f"{reason}: nothing is written", not (folder / "bad.onnx").exists())

    def theirs(key, **header):
        token = jwe.JWE(b"a model", protected={"kid": "theirs", **header})
        token.add_recipient(key)
        return token.serialize(compact=True)

    refused(theirs(key, alg="A256KW", enc="A256GCM"), "A256KW")
    refused(theirs(jwk.JWK.generate(kty="oct", size=512), alg="dir", enc="A256CBC-HS512"), "A256CBC-HS512")
    refused(theirs(key, alg="dir", enc="A256GCM", zip="DEF"), "zip")
    refused(theirs(jwk.JWK.generate(kty="oct", size=256), alg="dir", enc="A256GCM"), "does not decrypt")
    good = theirs(key, alg="dir", enc="A256GCM").split(".")
    for place in (0, 2, 3, 4):
        parts = list(good)
        middle = len(parts[place]) // 2
        flipped = "A" if parts[place][middle] != "A" else "B"
        parts[place] = parts[place][:middle] + flipped + parts[place][middle + 1 :]
        refused(".".join(parts), "JWE")
    refused(".".join([good[0], "AAAA", *good[2:]]), "encrypted key")

print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
