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
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import numpy
import onnxruntime
import tritonclient.http as triton

from ohttp import ask_with_ohttpy

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


def stop(number=-1):
    """Ends one in good order."""
    process, pid = started.pop(number)
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
