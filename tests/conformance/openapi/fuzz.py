"""schemathesis against a running attestation service.

Usage: fuzz.py SERVICE WORK. The service knows made-up evidence and one tenant whose policies need not be signed.
"""

import base64, json, os, re, shutil, socket, subprocess, sys, tempfile, time, urllib.request

SERVICE, WORK = sys.argv[1:3]
MADE = os.path.join(WORK, "made")
# Bounds the suite to about a minute: examples for each operation and phase.
EXAMPLES = os.environ.get("ENCLOS_EXAMPLES", "150")


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_examples(description):
    """Adds evidence that is accepted, and a policy."""
    with open(os.path.join(MADE, "quote.bin"), "rb") as file:
        quote = base64url(file.read())
    policy = b"version=1.0; authorizationrules { => permit(); }; issuancerules {};"
    payload = json.dumps({"AttestationPolicy": base64url(policy)}).encode()
    jws = ".".join([base64url(b'{"alg":"none"}'), base64url(payload), ""])
    for path, methods in description["paths"].items():
        for operation in methods.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if path == "/inspect":
                    content["example"] = {"evidence": quote, "time": made["time"]}
                elif path == "/attest/SgxEnclave":
                    content["example"] = {"quote": quote, "nonce": "1", "draftPolicyForAttestation": policy.decode()}
                elif path.startswith("/policies"):
                    content["example"] = jws
    parameters = description["components"]["parameters"]
    parameters["ApiVersion"]["example"] = "2025-06-01"
    parameters["AttestationType"]["example"] = "SgxEnclave"
    return description


folder = tempfile.mkdtemp(prefix="run-", dir=WORK)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
origin = f"http://127.0.0.1:{port}"
with open(os.path.join(MADE, "made.json")) as file:
    made = json.load(file)
config = os.path.join(folder, "service.toml")
with open(config, "w") as file:
    file.write(f"""
listen = "127.0.0.1:{port}"
data = "data"
collateral = {json.dumps(os.path.join(MADE, "collateral"))}
evidence_time = "{made["time"]}"
emulated_roots = ["{made["root"]}"]
[[tenant]]
host = "127.0.0.1"
""")
log_path = os.path.join(folder, "log")
log = open(log_path, "w")
process = subprocess.Popen([SERVICE, config], stderr=log)
try:
    for attempt in range(100):
        try:
            urllib.request.urlopen(f"{origin}/health").read()
            break
        except OSError:
            assert process.poll() is None and attempt < 99, "the service does not start"
            time.sleep(0.1)
    description = urllib.request.urlopen(f"{origin}/openapi.json").read()
    operations = sum(len(methods) for methods in json.loads(description)["paths"].values())
    # The description as it is served, and what a valid request looks like, from which others are derived.
    described = os.path.join(folder, "openapi.json")
    with open(described, "w") as file:
        json.dump(with_examples(json.loads(description)), file)
    result = subprocess.run(
        [
            os.path.join(WORK, "venv/bin/schemathesis"), "run", described, "--url", origin, "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            "--max-examples", EXAMPLES, "--seed", "1", "--mode", "all", "--request-timeout", "10", "--no-color",
            "--continue-on-failure",
        ],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    print(result.stdout)
    passed, failed = operations, 0
    if result.returncode != 0:
        found = re.search(r"(\d+) unique failures?", result.stdout)
        failed = int(found[1]) if found else 1
        passed = max(operations - failed, 0)
    # It is still there, and answers.
    assert urllib.request.urlopen(f"{origin}/health").read() == b"ok\n"
    served = urllib.request.urlopen(f"{origin}/metrics").read().decode()
    errors = sum(int(n) for n in re.findall(r'requests_total\{[^}]*status="5xx"\} (\d+)', served))
    requests = sum(int(n) for n in re.findall(r"requests_total\{[^}]*\} (\d+)", served))
    accepted = re.findall(r'requests_total\{route="(attest|inspect|set_policy)",status="2xx"\} [1-9]', served)
    assert len(accepted) == 3, f"only {accepted} ever accepted anything"
    print(f"{requests} requests answered, {errors} of them with server errors")
    assert requests > 500, "hardly anything was asked"
    failed += errors > 0
finally:
    process.terminate()
    process.wait(15)
    log.close()
with open(log_path) as text:
    if "panicked" in text.read():
        failed += 1
        print("FAILED the service panicked; see", log_path)
if not failed:
    shutil.rmtree(folder)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
