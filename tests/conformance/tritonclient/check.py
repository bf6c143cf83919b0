"""tritonclient, curl and Python's http.client through the proxy; and our Python package.

Usage: check.py ENCLOS ENCLAVE MODELS WORK. Starts `enclos inference` and `enclos inference-proxy` on free ports, classifies
held-out digits, asks wrongly, and takes the server away in the middle.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import enclos_inference
import numpy
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ENCLOS, ENCLAVE, MODELS, WORK = (Path(argument).resolve() for argument in sys.argv[1:])
NAMES = ["mlp", "forest", "named-forest"]
HELD_OUT = numpy.load(MODELS / "held-out.npz")
X, Y = HELD_OUT["x"], HELD_OUT["y"]
FOLDER = Path(tempfile.mkdtemp(prefix="run-", dir=WORK))
ENVIRONMENT = {**os.environ, "ENCLOS_STATE": str(WORK / "state"), "ENCLOS_PLATFORM": "emulated"}

passed = failed = 0
started = []


def check(name, is_right, found=""):
    """Counts and says one check."""
    global passed, failed
    passed, failed = passed + bool(is_right), failed + (not is_right)
    print("ok    " if is_right else "FAILED", name, "" if is_right else found, flush=True)


def start(name, *arguments):
    """Starts a command that says with one line of JSON where it is."""
    log = open(FOLDER / f"{name}.log", "ab")
    process = subprocess.Popen([ENCLOS, *arguments, "--json"], stdout=subprocess.PIPE, stderr=log, env=ENVIRONMENT)
    started.append(process)
    line = process.stdout.readline()
    if not line.startswith(b"{"):
        sys.exit(f"{name} does not start: {(FOLDER / f'{name}.log').read_text()[-2000:]}")
    return process, json.loads(line)


def serve(listen):
    """The service, with its models."""
    models = [part for name in NAMES for part in ("--model", MODELS / f"{name}.onnx")]
    return start("server", "inference", *models, "--enclave", ENCLAVE, "--listen", listen, "--write-policy", FOLDER / "client")


def stop(process):
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def refused(name, words, ask):
    """Is it an error, with these words?"""
    try:
        answer = ask()
    except InferenceServerException as error:
        check(name, words in str(error), str(error))
    else:
        check(name, False, f"answered: {answer}")


def get(address, path, headers={}):
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response, response.read()


def inputs(rows, binary, dtype="FP32"):
    tensor = triton.InferInput("X", list(rows.shape), dtype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def classify(client, model, binary):
    """Labels, with inputs and outputs in binary or in JSON."""
    names = [output["name"] for output in client.get_model_metadata(model)["outputs"]]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(model, inputs(X, binary), outputs=outputs, request_id="7")
    labels, probabilities = (answer.as_numpy(name) for name in names)
    return labels, probabilities, answer.get_response()


def tritonclient_checks(address, offered):
    client = triton.InferenceServerClient(address, network_timeout=300, connection_timeout=60)
    check("the server is live", client.is_server_live())
    check("the server is ready", client.is_server_ready())
    metadata = client.get_server_metadata()
    check("server metadata", metadata["name"] == "enclos" and "binary_tensor_data" in metadata["extensions"], metadata)
    versions = {model["name"]: model["sha256"] for model in offered}
    for name in NAMES:
        check(f"{name} is ready", client.is_model_ready(name))
        check(f"{name} is ready by its version", client.is_model_ready(name, versions[name]))
    check("no other version is ready", not client.is_model_ready("mlp", "0" * 64))
    check("no other model is ready", not client.is_model_ready("nothing"))
    metadata = client.get_model_metadata("mlp")
    check("model metadata: input", metadata["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 64]}], metadata)
    check("model metadata: versions", metadata["versions"] == [versions["mlp"]], metadata)

    # As examples/digits/train.py says of the models, on the same rows.
    for name, labels in [("mlp", Y), ("forest", Y), ("named-forest", None)]:
        in_json, probabilities_in_json, _ = classify(client, name, False)
        in_binary, probabilities, answer = classify(client, name, True)
        # tritonclient gives text as str from JSON, and as bytes from binary.
        is_same = (in_json.astype(str) == in_binary.astype(str)).all() and len(in_json) == len(X)
        check(f"{name}: labels in JSON and in binary are equal", is_same, (in_json[:3], in_binary[:3]))
        check(f"{name}: probabilities in JSON and in binary are equal", (probabilities_in_json == probabilities).all())
        check(f"{name}: who answered", answer["model_version"] == versions[name] and answer["id"] == "7", answer)
        if labels is not None:
            accuracy = (in_binary == labels).mean()
            check(f"{name}: accuracy {accuracy:.4f} on {len(X)} held-out digits", accuracy > 0.97)
    words = "zero one two three four five six seven eight nine".split()
    text = [label.decode() for label in classify(client, "named-forest", True)[0]]
    accuracy = numpy.mean([word == words[digit] for word, digit in zip(text, Y)])
    check(f"named-forest: accuracy {accuracy:.4f} of labels that are text (BYTES)", accuracy > 0.97, text[:5])
    label, other = (output["name"] for output in metadata["outputs"])
    one = client.infer("mlp", inputs(X[:1], True), outputs=[triton.InferRequestedOutput(label)])
    check("any number of rows: one", one.as_numpy(label).shape == (1,))
    check("only the output that was asked for", one.as_numpy(other) is None)
    by_version = client.infer("mlp", inputs(X[:9], True), model_version=versions["mlp"])
    check("by version", (by_version.as_numpy(label) == classify(client, "mlp", True)[0][:9]).all())
    asked = [client.async_infer("forest", inputs(X[i : i + 1], True)) for i in range(8)]
    check("several at once", [int(a.get_result().as_numpy(label)[0]) for a in asked] == list(classify(client, "forest", True)[0][:8]))

    for binary in (False, True):
        how = "binary" if binary else "JSON"
        refused(f"a wrong shape in {how}", "64", lambda: client.infer("mlp", inputs(X[:, :63].copy(), binary)))
        refused(f"a wrong datatype in {how}", "INT64", lambda: client.infer("mlp", inputs(X.astype(numpy.int64), binary, "INT64")))
    refused("an unknown model", "nothing", lambda: client.infer("nothing", inputs(X[:1], True)))
    refused("an unknown version", "0" * 64, lambda: client.infer("mlp", inputs(X[:1], True), model_version="0" * 64))
    refused("an unknown output", "no output", lambda: client.infer("mlp", inputs(X[:1], True), outputs=[triton.InferRequestedOutput("y")]))
    refused("compressed bodies", "coding", lambda: client.infer("mlp", inputs(X[:1], True), request_compression_algorithm="gzip"))
    refused("classification", "not supported", lambda: client.infer("mlp", inputs(X[:1], True), outputs=[triton.InferRequestedOutput(label, class_count=3)]))
    refused("sequences", "not supported", lambda: client.infer("mlp", inputs(X[:1], True), sequence_id=5))
    check("the service goes on", client.is_server_ready())
    client.close()


def curl_checks(address):
    row = {"inputs": [{"name": "X", "shape": [1, 64], "datatype": "FP32", "data": X[0].tolist()}]}
    command = ["curl", "-sS", "--noproxy", "*", "-D", FOLDER / "headers", "-d", json.dumps(row)]
    said = subprocess.run([*command, f"http://{address}/v2/models/forest/infer"], capture_output=True, text=True)
    answer = json.loads(said.stdout)
    check("curl", answer["outputs"][0]["data"] == [int(Y[0])], answer)
    headers = (FOLDER / "headers").read_text().lower()
    check("who answered is in the headers", "enclos-mrenclave: " in headers and "enclos-emulated: true" in headers, headers)


def page_checks(address):
    response, body = get(address, "/verdict")
    verdict = json.loads(body)["verdict"]
    check("the verdict", response.status == 200 and verdict["accepted"] and verdict["emulated"], body[:300])
    response, _ = get(address, "/v2", {"Origin": "https://attacker.example"})
    check("pages of other origins are refused", response.status == 403)
    response, _ = get(address, "/v2", {"Host": "attacker.example"})
    check("names of others are refused", response.status == 403)


def package_checks(url, versions, mrenclave):
    """Our Python package, straight to the host."""
    policy, collateral = FOLDER / "client/policy.toml", FOLDER / "client/collateral.json"
    client = enclos_inference.Client(url, policy=policy, collateral=collateral)
    check("package: nobody answered yet", client.answered_by is None)
    verdict = client.verdict
    is_right = verdict["accepted"] and verdict["emulated"] and verdict["appraisal"]["identity"]["mr_enclave"] == mrenclave
    check("package: the verdict", is_right, verdict)
    label, probability = (output["name"] for output in client.metadata("mlp")["outputs"])
    answer = client.infer("mlp", {"X": X})
    check("package: accuracy", (answer[label] == Y).mean() > 0.97 and answer[label].dtype == numpy.int64)
    check("package: shapes", answer[probability].shape == (len(X), 10) and answer[probability].dtype == numpy.float32)
    check("package: who answered", client.answered_by["accepted"])
    check("package: outputs that are named", list(client.infer("mlp", {"X": X[:1]}, outputs=[label])) == [label])
    check("package: arrays of any layout", (client.infer("mlp", {"X": numpy.asfortranarray(X)})[label] == answer[label]).all())
    check("package: arrays of any byte order", (client.infer("mlp", {"X": X.astype(">f4")})[label] == answer[label]).all())
    words = client.infer("named-forest", {"X": X[:3]})
    check("package: text", all(isinstance(word, str) for word in next(iter(words.values()))), words)

    def raises(name, kind, words, ask):
        try:
            ask()
        except kind as error:
            check(name, words in str(error), str(error))
        else:
            check(name, False, "no error")

    raises("package: a wrong shape", enclos_inference.ModelError, "64", lambda: client.infer("mlp", {"X": X[:, :63]}))
    raises("package: a wrong datatype", enclos_inference.ModelError, "FP64", lambda: client.infer("mlp", {"X": X.astype(float)}))
    raises("package: no datatype", ValueError, "complex", lambda: client.infer("mlp", {"X": X.astype(complex)}))
    raises("package: an unknown input", enclos_inference.ModelError, "no input", lambda: client.infer("mlp", {"Z": X}))
    raises("package: an unknown model", enclos_inference.Refused, "nothing", lambda: client.infer("nothing", {"X": X}))
    strict = enclos_inference.Client(url, policy=FOLDER / "strict.toml", collateral=collateral)
    raises("package: emulated is refused by default", enclos_inference.Refused, "refused", lambda: strict.infer("mlp", {"X": X}))
    pinned = enclos_inference.Client(url, policy=policy, collateral=collateral, models=[versions["mlp"]])
    raises("package: no other model is asked", enclos_inference.Refused, "does not have", lambda: pinned.metadata("forest"))
    raises("package: a policy that is none", ValueError, "policy", lambda: enclos_inference.Client(url, policy=collateral, collateral=collateral))
    nobody = enclos_inference.Client("http://127.0.0.1:1", policy=policy, collateral=collateral)
    raises("package: nobody there", enclos_inference.InferenceError, "127.0.0.1:1", lambda: nobody.verdict)


def proxy_arguments(server, policy):
    collateral = FOLDER / "client/collateral.json"
    return "inference-proxy", "--server", server, "--policy", policy, "--collateral", collateral, "--listen", "127.0.0.1:0"


def run():
    server, at = serve("127.0.0.1:0")
    policy = FOLDER / "client/policy.toml"
    _, proxy = start("proxy", *proxy_arguments(at["url"], policy))
    address = proxy["url"].removeprefix("http://")
    check("the proxy says who answers", proxy["accepted"] and proxy["verdict"]["emulated"], proxy)
    tritonclient_checks(address, proxy["models"])
    curl_checks(address)
    page_checks(address)

    def is_refused(name, words, *arguments):
        said = subprocess.run([ENCLOS, *arguments, "--json"], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
        check(name, said.returncode == 4 and words in said.stdout, (said.returncode, said.stdout, said.stderr))

    # The policy without the emulated root, and one of another enclave.
    strict, other = FOLDER / "strict.toml", FOLDER / "other.toml"
    text = policy.read_text()
    strict.write_text("".join(line for line in text.splitlines(True) if not line.startswith("emulated_roots")))
    other.write_text(text.replace(at["mrenclave"], "11" * 32))
    is_refused("an emulated platform is refused by default", "refused", *proxy_arguments(at["url"], strict))
    is_refused("another enclave is refused", "refused", *proxy_arguments(at["url"], other))
    is_refused("another model is refused", "does not have the model", *proxy_arguments(at["url"], policy), "--model-sha256", "22" * 32)
    hashes = {model["name"]: model["sha256"] for model in proxy["models"]}
    package_checks(at["url"], hashes, at["mrenclave"])
    _, pinned = start("pinned", *proxy_arguments(at["url"], policy), "--model-sha256", hashes["mlp"])
    check("only the model that is demanded is there", [m["name"] for m in pinned["models"]] == ["mlp"], pinned["models"])
    response, _ = get(pinned["url"].removeprefix("http://"), "/v2/models/forest")
    check("no other is asked", response.status == 404)

    # Without a server there is an error in the protocol's form; another enclave, with another key, is verified anew.
    check("the server ends in good order", stop(server) == 0)
    response, body = get(address, "/v2/health/ready")
    check("no server, no answer", response.status == 502 and json.loads(body)["error"], body)
    server, at = serve(at["url"].removeprefix("http://"))
    client = triton.InferenceServerClient(address, network_timeout=300)
    labels = classify(client, "mlp", True)[0]
    check("a restarted server is verified anew, and answers", (labels == Y).mean() > 0.97)
    # This time nothing was asked in between: the proxy learns of it from a request that cannot be decrypted.
    stop(server)
    server, at = serve(at["url"].removeprefix("http://"))
    labels = classify(client, "mlp", True)[0]
    check("a request for the key of an enclave that is gone is encrypted anew", (labels == Y).mean() > 0.97)
    client.close()
    with open(FOLDER / "proxy.log") as log:
        check("the proxy did not panic", "panicked" not in log.read())


try:
    run()
finally:
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
