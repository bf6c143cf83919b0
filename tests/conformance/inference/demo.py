"""Confidential inference from one end to the other, on the emulated platform.

Usage: demo.py ENCLOS ENCLAVE MODELS WORK

The owner encrypts a classifier of handwritten digits and runs a key broker; an operator serves the encrypted file from an
enclave; a client's verifying proxy verifies the enclave, and PyPI's tritonclient, unmodified, classifies held-out digits through
it. Then what the operator's side handled is searched for what it must not have seen:

- everything that went over its connections, to clients and to the key broker, recorded by relays;
- everything that its process and the kernel gave each other (what it read and wrote of files, sockets, its log), recorded by strace;
- all of its memory outside of the enclave, while requests are answered and after them;
- every file in its folders.

Searched for are pieces of the requests, of the answers and of the model, as they are and as JSON. So that a search which finds
nothing means something, the same search must find every kind where it belongs: in strace's record of the client's proxy, and in
the owner's file; and the model inside of the enclave.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import numpy
import onnxruntime
import tritonclient.http as triton

ENCLOS, ENCLAVE, MODELS, WORK = (Path(argument).resolve() for argument in sys.argv[1:])
FOLDER = Path(tempfile.mkdtemp(prefix="run-", dir=WORK))
OWNER, OPERATOR, CLIENT = (FOLDER / name for name in ("owner", "operator", "client"))
NAME = "mlp"
# Each party has a machine of its own. The operator's is emulated, and stays the same from run to run: its image is built there.
STATE = {"owner": OWNER / "state", "operator": WORK / "state", "client": CLIENT / "state"}
# Pieces that are searched for, in bytes. Numbers of a model, and rows of pixels, are not in programs by chance.
PIECE = 32
# System calls with contents.
CALLS = "read,readv,pread64,preadv,preadv2,recvfrom,recvmsg,recvmmsg,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,execve"
# How much memory is looked at in one go, in bytes.
CHUNK = 1 << 20
started = []
failures = []


def title(text):
    print(f"\n== {text}", flush=True)


def check(name, is_right, found=""):
    print(f"{'ok' if is_right else 'FAILED':7}{name}{'' if is_right else f': {found}'}", flush=True)
    if not is_right:
        failures.append(name)


def environment(party):
    return {**os.environ, "ENCLOS_STATE": str(STATE[party]), "ENCLOS_PLATFORM": "emulated"}


def run(party, *arguments, expected=0):
    """A command of a party's, which must end so. What it says is shown and returned."""
    done = subprocess.run([ENCLOS, *arguments], env=environment(party), capture_output=True, text=True, timeout=600)
    print(done.stdout, done.stderr, sep="", end="", flush=True)
    if done.returncode != expected:
        sys.exit(f"FAILED {arguments[0]}: exit code {done.returncode} instead of {expected}")
    return done.stdout


def start(party, name, *arguments, trace=None):
    """A command that says with one line of JSON where it serves; with all that it and the kernel give each other in a file."""
    log = open(FOLDER / f"{name}.log", "ab")
    strace = [] if trace is None else ["strace", "--seccomp-bpf", "-f", "-qq", "-xx", "-s", str(1 << 28), "-e", f"trace={CALLS}", "-o", trace]
    process = subprocess.Popen([*strace, ENCLOS, *arguments, "--json"], stdout=subprocess.PIPE, stderr=log, env=environment(party))
    line = process.stdout.readline()
    if not line.startswith(b"{"):
        sys.exit(f"FAILED {name} does not start: {(FOLDER / f'{name}.log').read_text()[-2000:]}")
    # Under strace it is strace's only child; strace ends with it.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pid = int(children[0]) if trace else process.pid
    started.append((process, pid))
    said = json.loads(line)
    print(f"{name}: {said['url']}", flush=True)
    return said


def stop():
    """Ends the one that was started last, in good order."""
    process, pid = started.pop()
    os.kill(pid, signal.SIGTERM)
    return process.wait(120)


class Relay:
    """Passes connections on, and keeps every byte of both directions."""

    def __init__(self, url):
        host, port = url.removeprefix("http://").rsplit(":", 1)
        self.target = (host, int(port))
        self.recorded = {"there": bytearray(), "back": bytearray()}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(self.target)
            for from_, to, direction in ((near, far, "there"), (far, near, "back")):
                threading.Thread(target=self._copy, args=(from_, to, direction), daemon=True).start()

    def _copy(self, from_, to, direction):
        try:
            while piece := from_.recv(1 << 16):
                self.recorded[direction] += piece
                to.sendall(piece)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Secrets:
    """Pieces of what the operator must not see, by kind, and the search for them."""

    def __init__(self):
        self.pieces = {}  # piece: kind

    def add(self, kind, data, distinct):
        """All whole pieces of some bytes that have so many different ones: zeros are everywhere."""
        for at in range(0, len(data) - PIECE + 1, PIECE):
            piece = bytes(data[at : at + PIECE])
            # The beginning is what is looked for first: it must be rare.
            if len(set(piece)) >= distinct and len(set(piece[:8])) >= 4:
                self.pieces.setdefault(piece, kind)

    def kinds(self):
        return sorted(set(self.pieces.values()))

    def prepare(self):
        """Places are found by the first eight bytes of a piece; a table of their hashes sorts out most at once."""
        starts = {piece[:8] for piece in self.pieces}
        self.table = numpy.zeros(1 << 22, dtype=bool)
        self.table[self._hash(numpy.frombuffer(b"".join(starts), dtype="<u8"))] = True

    @staticmethod
    def _hash(words):
        return (words * numpy.uint64(0x9E3779B97F4A7C15)) >> numpy.uint64(64 - 22)

    def find(self, data):
        """Which pieces are in these bytes: by kind, how many different ones."""
        found = set()
        for shift in range(8):
            count = (len(data) - shift) // 8
            if count <= 0:
                break
            words = numpy.frombuffer(data, dtype="<u8", count=count, offset=shift)
            for index in numpy.flatnonzero(self.table[self._hash(words)]):
                at = shift + 8 * int(index)
                piece = bytes(data[at : at + PIECE])
                if piece in self.pieces:
                    found.add(piece)
        counts = {}
        for piece in found:
            counts[self.pieces[piece]] = counts.get(self.pieces[piece], 0) + 1
        return counts


def merged(all_counts):
    total = {}
    for counts in all_counts:
        for kind, count in counts.items():
            total[kind] = max(total.get(kind, 0), count)
    return total


def memory(pid, enclave, secrets):
    """What is found in a process's memory: outside of the enclave, inside of it, and how many bytes were looked at outside."""
    base, size = enclave
    outside, inside, looked_at = [], [], 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in maps:
            fields = line.split()
            low, high = (int(text, 16) for text in fields[0].split("-"))
            if not fields[1].startswith("r") or fields[-1] in ("[vvar]", "[vvar_vclock]", "[vsyscall]"):
                continue
            is_inside = base <= low < base + size
            # Pieces may lie across two chunks.
            for at in range(low, high, CHUNK):
                length = min(high - at, CHUNK + PIECE)
                try:
                    mem.seek(at)
                    data = mem.read(length)
                except (OSError, OverflowError):
                    break
                looked_at += 0 if is_inside else min(len(data), CHUNK)
                # Most of a heap was never touched.
                if data.count(0) < len(data):
                    (inside if is_inside else outside).append(secrets.find(data))
    return merged(outside), merged(inside), looked_at


def traced(path):
    """What strace saw pass between a process and the kernel."""
    data = bytearray()
    text = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
    with open(path, "rb") as lines:
        for line in lines:
            for match in text.finditer(line):
                data += bytes.fromhex(match[1].decode().replace("\\x", ""))
    return bytes(data)


def tensor(x, binary):
    tensor = triton.InferInput("X", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return [tensor]


def classify(client, x, binary):
    names = [output["name"] for output in client.get_model_metadata(NAME)["outputs"]]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(NAME, tensor(x, binary), outputs=outputs, request_id=REQUEST_ID)
    labels, probabilities = (answer.as_numpy(name) for name in names)
    return labels, probabilities, answer.get_response()


# As long as a piece.
REQUEST_ID = f"patient-{os.urandom(12).hex()}"


def demo():
    for folder in (OWNER, OPERATOR, CLIENT):
        folder.mkdir()
    held_out = numpy.load(MODELS / "held-out.npz")
    x, y = held_out["x"], held_out["y"]

    title("The enclave, and a policy that names it")
    image = json.loads(run("operator", "inference", "--enclave", ENCLAVE, "--only-build", "--write-policy", CLIENT, "--json").splitlines()[-1])
    policy, collateral = CLIENT / "policy.toml", CLIENT / "collateral.json"
    # A policy for hardware: the same measurement, no emulated root.
    hardware = OWNER / "hardware.toml"
    hardware.write_text("".join(line for line in policy.read_text().splitlines(True) if not line.startswith("emulated_roots")))

    title("The owner encrypts a model; the operator gets the encrypted file only")
    plain_model = (MODELS / f"{NAME}.onnx").read_bytes()
    model = OWNER / f"{NAME}.onnx"
    model.write_bytes(plain_model)
    encrypted, strict = OPERATOR / f"{NAME}.onnx.jwe", OPERATOR / "strict.onnx.jwe"
    run("owner", "model", "encrypt", model, "--key", "digits", "--policy", policy, "-o", encrypted)
    run("owner", "model", "encrypt", model, "--key", "strict", "--policy", hardware, "-o", strict)

    title("The owner's key broker, with collateral from a provisioning service")
    pccs = start("operator", "pccs", "pccs", "--listen", "127.0.0.1:0")
    broker = start("owner", "broker", "key-broker", "serve", "--listen", "127.0.0.1:0", "--pccs", pccs["url"])
    to_broker = Relay(broker["url"])

    title("An enclave on an emulated platform is refused by default")
    serve = ["inference", "--enclave", image["image"], "--key-broker", to_broker.url, "--listen", "127.0.0.1:0"]
    run("operator", *serve, "--model", strict, expected=1)

    title("And gets the key whose policy names the emulated root")
    host_trace, proxy_trace = FOLDER / "server.strace", FOLDER / "proxy.strace"
    at = start("operator", "server", *serve, "--model", encrypted, trace=host_trace)
    host = started[-1][1]
    to_server = Relay(at["url"])

    title("A client verifies, and tritonclient (PyPI, unmodified) classifies held-out digits through its proxy")
    proxy = start("client", "proxy", "inference-proxy", "--server", to_server.url, "--policy", policy, "--collateral", collateral, "--listen", "127.0.0.1:0", trace=proxy_trace)
    check("verified, and said to be emulated", proxy["accepted"] and proxy["verdict"]["emulated"] and proxy["verdict"]["appraisal"]["identity"]["mr_enclave"] == image["mrenclave"], proxy)
    address = proxy["url"].removeprefix("http://")
    client = triton.InferenceServerClient(address, network_timeout=600, connection_timeout=60)
    # ZipMap: a dictionary a row.
    outside = onnxruntime.InferenceSession(plain_model, providers=["CPUExecutionProvider"]).run(None, {"X": x})
    for binary in (False, True):
        labels, probabilities, answer = classify(client, x, binary)
        how = "binary tensors" if binary else "JSON"
        check(f"{len(x)} digits in {how}: accuracy {(labels == y).mean():.4f}", (labels == y).mean() > 0.97)
        check(f"{how}: labels of the same file in ONNX Runtime, outside", (labels == outside[0]).all())
        check(f"{how}: probabilities within 1e-5", numpy.abs(probabilities - numpy.array([list(row.values()) for row in outside[1]])).max() < 1e-5)
        check(f"{how}: the model is the owner's, by its SHA-256", answer["model_version"] == proxy["models"][0]["sha256"])

    title("ohttpy (PyPI, unmodified) with the verified key configuration")
    numpy.save(CLIENT / "rows.npy", x[:8])
    program = [sys.executable, Path(__file__).with_name("ohttp.py"), ENCLOS, to_server.url, CLIENT, CLIENT / "rows.npy"]
    done = subprocess.run(program, env=environment("client"), capture_output=True, text=True, timeout=120)
    print(done.stdout, done.stderr, sep="", flush=True)
    check("the same labels", done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) == labels[:8].tolist())

    title("What the operator's side handled is searched for plain text")
    secrets = Secrets()
    secrets.add("model", plain_model, 24)
    for row in x:
        # From the third pixel of each line on: those before it are mostly paper, and zeros are everywhere.
        secrets.add("request, binary", row.astype("<f4").tobytes()[8:], 6)
    secrets.add("response, binary", probabilities.astype("<f4").tobytes(), 16)
    # As tritonclient writes JSON, and as the enclave answers it.
    names = [output["name"] for output in client.get_model_metadata(NAME)["outputs"]]
    request, _ = triton.InferenceServerClient.generate_request_body(tensor(x, False), request_id=REQUEST_ID, outputs=[triton.InferRequestedOutput(name, binary_data=False) for name in names])
    with urllib.request.urlopen(urllib.request.Request(f"{proxy['url']}/v2/models/{NAME}/infer", request)) as response:
        texts = {"request, JSON": request, "response, JSON": response.read()}
    for kind, text in texts.items():
        for data in re.findall(rb'"data":\s*\[([^\]]{2000,})\]', text):
            secrets.add(kind, data, 6)
    secrets.add("request and response, id", REQUEST_ID.encode(), 6)
    secrets.prepare()
    print({kind: sum(k == kind for k in secrets.pieces.values()) for kind in secrets.kinds()}, "pieces")
    looks, done = [], threading.Event()

    def requests():
        other = triton.InferenceServerClient(address, network_timeout=600)
        while not done.is_set():
            classify(other, x, True)
            classify(other, x, False)

    asking = threading.Thread(target=requests)
    asking.start()
    looks.append(memory(host, at["memory"], secrets))
    done.set()
    asking.join()
    looks.append(memory(host, at["memory"], secrets))
    for when, (found, inside, size) in zip(("while requests are answered", "after them"), looks):
        check(f"{size >> 20} MiB of the host's memory outside of the enclave, {when}", not found and size > 1 << 20, found)
    inside = merged(inside for _, inside, _ in looks)
    check("the same search finds the model inside of the enclave", inside.get("model", 0) > 0, inside)
    for name, relay in (("clients", to_server), ("the key broker", to_broker)):
        for direction, data in relay.recorded.items():
            check(f"{len(data)} bytes over connections with {name}, {direction}", len(data) > 100 and not secrets.find(bytes(data)), secrets.find(bytes(data)))

    title("What the owner sees; after that no enclave gets the key any more")
    said = run("owner", "key-broker", "log")
    check("the measurement that got the key", image["mrenclave"] in said and "released" in said and "refused" in said, said)
    run("owner", "key-broker", "revoke", "digits")
    run("operator", *serve, "--model", encrypted, expected=1)

    stop()
    plain = traced(proxy_trace)
    controls = merged([secrets.find(plain), secrets.find(model.read_bytes())])
    check("the search finds every kind where it belongs: between tritonclient and the proxy (strace), in the owner's file", sorted(controls) == secrets.kinds(), controls)
    check("the server ends in good order", stop() == 0)
    data = traced(host_trace)
    check(f"{len(data)} bytes between the host's process and the kernel (strace)", not secrets.find(data), secrets.find(data))
    # So that the record is known to be whole: what the relays saw is in it, and the encrypted file.
    sealed = Secrets()
    sealed.add("connections", bytes(to_server.recorded["there"][-4096:]), 20)
    sealed.add("file", encrypted.read_bytes()[-4096:], 12)
    sealed.prepare()
    check("that record has what the relays recorded, and the encrypted file", len(sealed.find(data)) == 2, sealed.find(data))
    files = [path for folder in (OPERATOR, STATE["operator"]) for path in folder.rglob("*") if path.is_file()]
    files += [FOLDER / "server.log"]
    found = {str(path): secrets.find(path.read_bytes()) for path in files}
    check(f"{len(files)} files of the operator's", not any(found.values()), {p: f for p, f in found.items() if f})


try:
    demo()
finally:
    while started:
        stop()
if failures:
    sys.exit(f"{len(failures)} failed; see {FOLDER}")
shutil.rmtree(FOLDER)
print("\nAll of it holds.")
