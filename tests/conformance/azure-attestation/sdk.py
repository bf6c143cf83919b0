"""Azure's Python SDK (and, through node, its JavaScript SDK) against the attestation service.

Usage: sdk.py QUOTES WORK SERVICE... Starts the service (a command, to which the configuration is added) with a private CA, two tenants (localhost without and 127.0.0.1 with
policy management certificates) and recorded evidence judged at the time of its collateral.
"""

import base64, datetime, hashlib, http.client, ipaddress, json, os, shutil, signal, ssl, struct, subprocess, sys, tempfile, time

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.security.attestation import AttestationAdministrationClient, AttestationClient, AttestationType
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from pki import cert_pem, certificate, key_id, pem, write

QUOTES, WORK, *SERVICE = sys.argv[1:]
# Whether the keys are inside an enclave.
INSIDE = "--enclave" in SERVICE
# In force: the June 2025 collateral of the recorded quotes.
EVIDENCE_TIME = "2025-06-27T23:29:34Z"

passed, failed = 0, 0


def test(function):
    global passed, failed
    name = "python: " + function.__name__.replace("_", " ")
    try:
        function()
        passed += 1
        print("ok   ", name)
    except Exception as error:  # every kind of failure is a failed test
        failed += 1
        print("FAILED", name, "-", type(error).__name__, str(error)[:400])
    return function


def quote(name):
    with open(os.path.join(QUOTES, name), "rb") as file:
        return file.read()


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


folder = tempfile.mkdtemp(prefix="run-", dir=WORK)
ca_key = ec.generate_private_key(ec.SECP256R1())
ca = certificate("Test CA", ca_key)
server_key = ec.generate_private_key(ec.SECP256R1())
server = certificate(
    "localhost", server_key, (ca, ca_key),
    [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
)
CA = write(os.path.join(folder, "ca.pem"), cert_pem(ca))
write(os.path.join(folder, "server.pem"), cert_pem(server))
write(os.path.join(folder, "server.key"), pem(server_key))
signer_key, other_key, stranger_key = (rsa.generate_private_key(65537, 2048) for _ in range(3))
signer, other, stranger = (
    certificate(name, key) for name, key in (("signer", signer_key), ("other", other_key), ("stranger", stranger_key))
)
write(os.path.join(folder, "signer.pem"), cert_pem(signer))
ec_key = ec.generate_private_key(ec.SECP256R1())
ec_cert = certificate("ec signer", ec_key)
os.mkdir(os.path.join(folder, "collateral"))
for name in os.listdir(os.path.join(QUOTES, "collateral")):
    shutil.copy(os.path.join(QUOTES, "collateral", name), os.path.join(folder, "collateral"))
PORT = 20000 + os.getpid() % 20000
write(os.path.join(folder, "service.toml"), f"""
listen = "127.0.0.1:{PORT}"
data = "data"
collateral = "collateral"
evidence_time = "{EVIDENCE_TIME}"
tls = {{ certificate = "server.pem", key = "server.key" }}
# Recorded evidence is old, as is what it ran on.
tcb = {{ accept = ["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"], allow_service_td = true }}
[[tenant]]
host = "localhost"
[[tenant]]
host = "127.0.0.1"
policy_signers = "signer.pem"
""")
log = open(os.path.join(folder, "service.log"), "w")


def start():
    process = subprocess.Popen([*SERVICE, os.path.join(folder, "service.toml")], stderr=log, stdout=log)
    for _ in range(200):
        try:
            if raw("GET", "/health")[0] == 200:
                return process
        except OSError:
            if process.poll() is not None:
                break
        time.sleep(0.05)
    sys.exit("the service did not start; see " + log.name)


TLS = ssl.create_default_context(cafile=CA)


def raw(method, path, body=None, host="localhost", headers=None):
    connection = http.client.HTTPSConnection(host, PORT, context=TLS, timeout=30)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.read()


def raw_json(method, path, body=None, **more):
    status, text = raw(method, path, json.dumps(body) if body is not None else None, **more)
    return status, json.loads(text)


def token_claims(answer):
    payload = answer["token"].split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


class Credential:
    def __init__(self, token="not-checked-in-open-mode"):
        self.token = token

    def get_token(self, *scopes, **_):
        return AccessToken(self.token, int(time.time()) + 3600)


OPEN, ISOLATED = f"https://localhost:{PORT}", f"https://127.0.0.1:{PORT}"


def client(endpoint=OPEN, **more):
    return AttestationClient(endpoint, Credential(), connection_verify=CA, **more)


def admin(endpoint=OPEN, **more):
    return AttestationAdministrationClient(endpoint, Credential(), connection_verify=CA, **more)


def fails(code, call, *words):
    try:
        call()
    except HttpResponseError as error:
        # A 401 becomes azure.core's own exception, which reads the same body but has no model.
        said = error.error if error.status_code == 401 else error.model.error
        assert said.code == code, f"{said.code}: {said.message}"
        for word in words:
            assert word in said.message, said.message
        return
    raise AssertionError(f"no error, expected {code}")


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


report = quote("maa/oe_report_0.bin")
runtime = quote("maa/runtimeData_1.bin")
PERMIT = "version=1.0; authorizationrules { => permit(); }; issuancerules { c:[type==\"x-ms-sgx-mrsigner\"] => issue(type=\"who\", value=c.value); };"
DENY = "version=1.0; authorizationrules { => deny(); }; issuancerules {};"
process = start()


@test
def openid_metadata():
    metadata = client().get_open_id_metadata()
    equal(metadata["issuer"], OPEN)
    equal(metadata["jwks_uri"], OPEN + "/certs")


@test
def signing_certificates():
    signers = client().get_signing_certificates()
    equal(len(signers), 1)
    cert = x509.load_pem_x509_certificate(signers[0].certificates[0].encode())
    spki = cert.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashlib.sha256(spki + b"\0").digest()
    equal(signers[0].key_id, base64.b64encode(digest).decode())
    evidence = [e.value.value for e in cert.extensions if e.oid.dotted_string == "1.3.6.1.4.1.311.105.1"]
    equal(len(evidence), 1 if INSIDE else 0)
    for report in evidence:
        # As in Azure's certificates: an Open Enclave report whose report data begins with the key's name.
        equal(report[:16], struct.pack("<IIQ", 1, 2, len(report) - 16))
        equal(report[16 + 48 + 320:][:32], digest)


def check_sgx(result, token, held, evidence):
    body = evidence[16:] if evidence[:8] == bytes([1, 0, 0, 0, 2, 0, 0, 0]) else evidence
    enclave = body[48:48 + 384]
    equal(result.mr_enclave, enclave[64:96].hex())
    equal(result.mr_signer, enclave[128:160].hex())
    equal(result.product_id, int.from_bytes(enclave[256:258], "little"))
    equal(result.svn, int.from_bytes(enclave[258:260], "little"))
    equal(result.is_debuggable, bool(enclave[48] & 2))
    equal(result.version, "1.0")
    equal(result.verifier_type, "sgx")
    equal(result.issuer, OPEN)
    equal(result.enclave_held_data, held)
    equal(result.sgx_collateral["quotehash"], hashlib.sha256(evidence).hexdigest())
    claims = token._body
    equal(claims["maa-attestationcollateral"], claims["x-ms-sgx-collateral"])
    equal(sorted(claims["x-ms-sgx-collateral"]), ["qeidcertshash", "qeidcrlhash", "qeidhash", "quotehash",
                                                   "tcbinfocertshash", "tcbinfocrlhash", "tcbinfohash"])
    equal(claims["exp"] - claims["iat"], 28800)
    equal(claims["x-ms-sgx-report-data"], enclave[320:384].hex())
    # By the default policy.
    for deprecated, name in (("is-debuggable", "x-ms-sgx-is-debuggable"), ("sgx-mrsigner", "x-ms-sgx-mrsigner"),
                             ("sgx-mrenclave", "x-ms-sgx-mrenclave"), ("product-id", "x-ms-sgx-product-id"),
                             ("svn", "x-ms-sgx-svn"), ("tee", "x-ms-attestation-type")):
        equal(claims[deprecated], claims[name])


@test
def attest_open_enclave_with_binary_runtime_data():
    result, token = client().attest_open_enclave(report, runtime_data=runtime)
    check_sgx(result, token, runtime, report)
    assert result.runtime_claims is None
    equal(token._body["aas-ehd"], b64url(runtime))
    equal(token._body["maa-ehd"], b64url(runtime))


@test
def attest_open_enclave_with_json_runtime_data():
    result, token = client().attest_open_enclave(report, runtime_json=runtime)
    check_sgx(result, token, None, report)
    equal(result.runtime_claims, json.loads(runtime))


@test
def attest_sgx_quote_with_binary_runtime_data():
    result, token = client().attest_sgx_enclave(report[16:], runtime_data=runtime)
    check_sgx(result, token, runtime, report[16:])


@test
def attest_sgx_quote_with_json_runtime_data():
    result, token = client().attest_sgx_enclave(report[16:], runtime_json=runtime)
    check_sgx(result, token, None, report[16:])
    equal(result.runtime_claims, json.loads(runtime))


@test
def attest_without_runtime_data_and_check_the_issuer():
    result, token = client(validate_issuer=True, issuer=OPEN).attest_sgx_enclave(report[16:])
    check_sgx(result, token, None, report[16:])


@test
def recorded_samples_with_their_held_data():
    for name in ("intel_release", "intel_debug", "oe_release", "oe_debug", "oe_prodid"):
        evidence = quote(f"maasample_{name}.bin")
        held = quote(f"maa/maasample_{name}.ehd")
        attest = client().attest_open_enclave if evidence[:4] == bytes([1, 0, 0, 0]) else client().attest_sgx_enclave
        result, token = attest(evidence, runtime_data=held)
        check_sgx(result, token, held, evidence)


@test
def policy_hash_is_of_the_policy_in_force():
    text, _ = admin().get_policy(AttestationType.SGX_ENCLAVE)
    result, _ = client().attest_sgx_enclave(report[16:])
    encoded = b64url(text.encode()).encode()
    equal(bytes(result.policy_hash), hashlib.sha256(encoded).digest())


@test
def draft_policy_gives_an_unsecured_token():
    result, token = client().attest_open_enclave(report, draft_policy=PERMIT, validate_token=False)
    equal(token.algorithm, "none")
    assert token.key_id and token.key_url == OPEN + "/certs"
    equal(token._body["who"], result.mr_signer)


@test
def draft_policy_that_denies():
    fails("PolicyEvaluationError", lambda: client().attest_open_enclave(report, draft_policy=DENY),
          "A Deny claim was issued, authorization failed.")


@test
def draft_policy_that_is_none():
    fails("PolicyParsingError", lambda: client().attest_open_enclave(report, draft_policy="version=1.0\n[type"),
          "Line: '2', Column: '1'", "expecting ';'")


@test
def flipped_byte_in_the_report():
    for place in (16 + 48 + 64, 16 + 48 + 320, 16 + 436 + 10, len(report) - 2000):
        flipped = bytearray(report)
        flipped[place] ^= 1
        fails("InvalidParameter", lambda: client().attest_open_enclave(bytes(flipped)), "invalid")


@test
def truncated_and_wrong_evidence():
    fails("InvalidParameter", lambda: client().attest_open_enclave(report[:1000]), "ends inside")
    fails("InvalidParameter", lambda: client().attest_open_enclave(report[16:]), "Open Enclave")
    fails("InvalidParameter", lambda: client().attest_sgx_enclave(report), "OpenEnclave")
    fails("InvalidParameter", lambda: client().attest_sgx_enclave(quote("dcapqvl_tdx_v4.bin")), "TDX")


@test
def runtime_data_of_somebody_else():
    fails("InvalidParameter", lambda: client().attest_open_enclave(report, runtime_data=b"other"), "SHA-256")
    fails("InvalidParameter", lambda: client().attest_open_enclave(report, runtime_json=b"{}"), "SHA-256")


@test
def default_policy():
    for kind in (AttestationType.SGX_ENCLAVE, AttestationType.OPEN_ENCLAVE):
        text, token = admin().get_policy(kind)
        assert "permit" in text and text.startswith("version"), text
        equal(token.issuer, OPEN)


@test
def set_get_and_reset_an_unsigned_policy():
    kind = AttestationType.OPEN_ENCLAVE
    result, token = admin().set_policy(kind, PERMIT)
    equal(str(result.policy_resolution), "Updated")
    assert result.policy_signer is None
    payload = json.dumps({"AttestationPolicy": b64url(PERMIT.encode())})
    jws = f"eyJhbGciOiJub25lIn0.{b64url(payload.encode())}."
    equal(bytes(result.policy_token_hash), hashlib.sha256(jws.encode()).digest())
    equal(admin().get_policy(kind)[0], PERMIT)
    # The other type keeps its own.
    assert admin().get_policy(AttestationType.SGX_ENCLAVE)[0] != PERMIT
    result, token = client().attest_open_enclave(report)
    equal(token._body["who"], result.mr_signer)
    assert "sgx-mrsigner" not in token._body
    result, _ = admin().reset_policy(kind)
    equal(str(result.policy_resolution), "Removed")
    assert admin().get_policy(kind)[0] != PERMIT


@test
def set_a_signed_policy():
    kind = AttestationType.SGX_ENCLAVE
    result, _ = admin().set_policy(kind, PERMIT, signing_key=pem(signer_key), signing_certificate=cert_pem(signer))
    equal(str(result.policy_resolution), "Updated")
    der = signer.public_bytes(serialization.Encoding.DER)
    shown = x509.load_pem_x509_certificate(result.policy_signer.certificates[0].encode())
    equal(shown.public_bytes(serialization.Encoding.DER), der)
    equal(admin().get_policy(kind)[0], PERMIT)
    result, token = client().attest_sgx_enclave(report[16:])
    equal(token._body["x-ms-policy-signer"]["x5c"], [base64.b64encode(der).decode()])
    # Not result.policy_signer: the SDK converts it twice and raises AttributeError.
    admin().reset_policy(kind)


@test
def bad_policy_is_refused_with_its_place():
    kind = AttestationType.SGX_ENCLAVE
    before = admin().get_policy(kind)[0]
    fails("PolicyParsingError", lambda: admin().set_policy(kind, "version=1.0;\nauthorizationrules\n{ => permit() };"),
          "Line: '3', Column: '15'", "expecting ';'", "policy > claimRule")
    equal(admin().get_policy(kind)[0], before)


@test
def denying_policy_denies_until_it_is_reset():
    kind = AttestationType.SGX_ENCLAVE
    admin().set_policy(kind, DENY)
    fails("PolicyEvaluationError", lambda: client().attest_sgx_enclave(report[16:]), "A Deny claim was issued")
    admin().reset_policy(kind)
    client().attest_sgx_enclave(report[16:])


@test
def policy_cannot_forge_claims_of_the_service():
    forged = "version=1.0; authorizationrules { => permit(); }; issuancerules { => issue(type=\"x-ms-sgx-mrenclave\", value=\"00\"); };"
    fails("PolicyEvaluationError", lambda: client().attest_sgx_enclave(report[16:], draft_policy=forged), "x-ms-sgx-mrenclave")


SIGNED = {"signing_key": pem(signer_key), "signing_certificate": cert_pem(signer)}
STRANGER = {"signing_key": pem(stranger_key), "signing_certificate": cert_pem(stranger)}


@test
def isolated_instance_demands_a_known_signer():
    kind = AttestationType.SGX_ENCLAVE
    isolated = admin(ISOLATED)
    fails("InvalidOperation", lambda: isolated.set_policy(kind, PERMIT), "not signed")
    fails("InvalidOperation", lambda: isolated.set_policy(kind, PERMIT, **STRANGER), "none of the policy management")
    fails("InvalidOperation", lambda: isolated.reset_policy(kind), "not signed")
    result, token = isolated.set_policy(kind, PERMIT, **SIGNED)
    equal(str(result.policy_resolution), "Updated")
    equal(token.issuer, ISOLATED)
    equal(isolated.get_policy(kind)[0], PERMIT)
    # Tenants do not share policies.
    assert admin().get_policy(kind)[0] != PERMIT
    equal(str(isolated.reset_policy(kind, **SIGNED)[0].policy_resolution), "Removed")


@test
def policy_management_certificates():
    isolated = admin(ISOLATED, **SIGNED)
    listed = lambda: [x509.load_pem_x509_certificate(chain[0].encode()) for chain in isolated.get_policy_management_certificates()[0]]
    equal(listed(), [signer])
    result, _ = isolated.add_policy_management_certificate(cert_pem(other))
    equal(str(result.certificate_resolution), "IsPresent")
    equal(result.certificate_thumbprint, other.fingerprint(hashes.SHA1()).hex().upper())
    equal(len(listed()), 2)
    isolated.set_policy(AttestationType.SGX_ENCLAVE, PERMIT, signing_key=pem(other_key), signing_certificate=cert_pem(other))
    for _ in range(2):
        result, _ = isolated.remove_policy_management_certificate(cert_pem(other))
        equal(str(result.certificate_resolution), "IsAbsent")
    equal(listed(), [signer])
    fails("InvalidOperation", lambda: isolated.remove_policy_management_certificate(cert_pem(signer)), "last")
    fails("InvalidOperation", lambda: isolated.add_policy_management_certificate(cert_pem(other), **STRANGER), "none of")
    isolated.reset_policy(AttestationType.SGX_ENCLAVE)


@test
def open_instance_has_no_policy_management_certificates():
    equal(admin().get_policy_management_certificates()[0], [])
    fails("InvalidOperation", lambda: admin().add_policy_management_certificate(cert_pem(other), **SIGNED), "no policy management")


@test
def tdx_quotes_over_rest():
    for name in ("dcapqvl_tdx_v4.bin", "automata_v5.bin"):
        evidence = quote(name)
        status, answer = raw_json("POST", "/attest/TdxVm?api-version=2025-06-01", {"quote": b64url(evidence), "nonce": "n-1"})
        equal((status, answer.get("error")), (200, None))
        claims = token_claims(answer)
        version = int.from_bytes(evidence[:2], "little")
        body = evidence[48 + (6 if version == 5 else 0):]
        equal(claims["x-ms-attestation-type"], "tdxvm")
        equal(claims["tdx_mrtd"], body[136:184].hex())
        equal(claims["tdx_rtmr3"], body[472:520].hex())
        equal(claims["tdx_report_data"], body[520:584].hex())
        equal(claims["attester_tcb_status"], "UpToDate")
        equal(claims["nonce"], "n-1")
    status, answer = raw_json("POST", "/attest/TdxVm?api-version=2022-08-01", {"quote": b64url(evidence)})
    equal((status, answer["error"]["code"]), (400, "InvalidParameter"))


@test
def sev_snp_report_over_rest():
    cert = x509.load_der_x509_certificate(quote("snp/test-vcek.der"))
    chain = cert_pem(cert).encode() + quote("snp/milan_ask_ark_asvk.pem")
    snp = quote("snp/test-report.bin")
    evidence = json.dumps({"SnpReport": b64url(snp), "VcekCertChain": base64.b64encode(chain).decode()}).encode()
    for version in ("2022-08-01", "2025-06-01"):
        status, answer = raw_json("POST", f"/attest/SevSnpVm?api-version={version}", {"report": b64url(evidence)})
        equal((status, answer.get("error")), (200, None))
        claims = token_claims(answer)
        equal(claims["x-ms-attestation-type"], "sevsnpvm")
        equal(claims["x-ms-sevsnpvm-launchmeasurement"], snp[0x90:0xc0].hex())
        equal(claims["x-ms-sevsnpvm-bootloader-svn"], snp[0x180])
        equal(claims["x-ms-sevsnpvm-microcode-svn"], snp[0x187])
    broken = bytearray(snp)
    broken[0x90] ^= 1
    evidence = json.dumps({"SnpReport": b64url(bytes(broken)), "VcekCertChain": base64.b64encode(chain).decode()}).encode()
    status, answer = raw_json("POST", "/attest/SevSnpVm?api-version=2022-08-01", {"report": b64url(evidence)})
    equal((status, answer["error"]["code"]), (400, "InvalidParameter"))


@test
def tcb_baselines_and_policies_that_ask_for_one():
    status, answer = raw_json("GET", "/tcbbaselines/SgxEnclave?api-version=2025-06-01")
    equal(status, 200)
    numbers = [baseline["tcbIdentifier"] for baseline in answer["tcbBaselines"]]
    assert numbers and answer["tcbBaselines"][0]["isSelectedTcb"], answer
    policy = 'version=1.1; configurationrules {{ => issueproperty(type="x-ms-sgx-tcbidentifier", value="{}"); }}; authorizationrules {{ => permit(); }}; issuancerules {{}};'
    _, token = client().attest_sgx_enclave(report[16:], draft_policy=policy.format("19"), validate_token=False)
    equal(token._body["x-ms-sgx-tcbidentifier"], "19")
    fails("InvalidParameter", lambda: client().attest_sgx_enclave(report[16:], draft_policy=policy.format("999")), "baseline")


@test
def attestation_results_over_rest():
    status, answer = raw_json("POST", "/attest/SgxEnclave?api-version=2022-08-01&tokenFormat=ear",
                              {"quote": b64url(report[16:]), "nonce": "0123456789"})
    equal((status, answer.get("error")), (200, None))
    claims = token_claims(answer)
    equal((claims["eat_profile"], claims["eat_nonce"]), ("tag:github.com,2023:veraison/ear", "0123456789"))
    # The platform of the recorded report lacks updates.
    equal(claims["submods"]["sgx"]["ear.status"], "warning")


@test
def errors_over_rest_have_their_shape():
    quoted = {"quote": b64url(report[16:])}
    for status, code, method, path, body in (
        (400, "InvalidParameter", "POST", "/attest/SgxEnclave", quoted),
        (400, "InvalidParameter", "POST", "/attest/SgxEnclave?api-version=1999-01-01", quoted),
        (400, "InvalidParameter", "POST", "/attest/SgxEnclave?api-version=2020-10-01", {}),
        (400, "InvalidParameter", "POST", "/attest/SgxEnclave?api-version=2020-10-01", []),
        (400, "InvalidParameter", "POST", "/attest/SgxEnclave?api-version=2020-10-01", {"quote": "%%%"}),
        (400, "InvalidParameter", "POST", "/attest/SgxEnclave?api-version=2020-10-01", {"quote": 5}),
        (400, "InvalidParameter", "POST", "/attest/Tpm?api-version=2020-10-01", {"data": ""}),
        (405, "MethodNotAllowed", "GET", "/attest/SgxEnclave?api-version=2020-10-01", None),
        (404, "NotFound", "GET", "/nothing", None),
        (413, "RequestTooLarge", "POST", "/attest/SgxEnclave?api-version=2020-10-01", {"quote": "A" * 2_000_000}),
        (400, "InvalidOperation", "PUT", "/policies/SgxEnclave?api-version=2020-10-01", "no jws"),
    ):
        try:
            answer = raw_json(method, path, body)
        except (ConnectionError, ssl.SSLEOFError):
            # A server may stop reading a body that is too long.
            equal(status, 413)
            continue
        equal((answer[0], answer[1]["error"]["code"]), (status, code))
        assert answer[1]["error"]["message"]
    status, _ = raw("GET", "/certs", headers={"Host": "somebody.example"})
    equal(status, 404)


@test
def descriptions_and_metrics():
    status, text = raw("GET", "/openapi.json")
    equal(status, 200)
    assert "/attest/SgxEnclave" in json.loads(text)["paths"]
    status, text = raw("GET", "/metrics")
    assert b'enclos_attestation_requests_total{route="attest",status="2xx"}' in text


@test
def acknowledged_policies_and_keys_survive_kill():
    global process
    before = [signer.key_id for signer in client().get_signing_certificates()]
    for round_ in range(10):
        policy = PERMIT + f" // round {round_}"
        admin().set_policy(AttestationType.OPEN_ENCLAVE, policy)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start()
        equal(admin().get_policy(AttestationType.OPEN_ENCLAVE)[0], policy)
    admin().reset_policy(AttestationType.OPEN_ENCLAVE)
    equal([signer.key_id for signer in client().get_signing_certificates()], before)


@test
def management_demands_a_bearer_token_when_configured():
    global process
    process.terminate()
    equal(process.wait(15), 0)
    config = os.path.join(folder, "service.toml")
    plain = open(config).read()
    issuer_key = rsa.generate_private_key(65537, 2048)
    numbers = issuer_key.public_key().public_numbers()
    part = lambda number: b64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))
    write(os.path.join(folder, "jwks.json"), json.dumps(
        {"keys": [{"kty": "RSA", "kid": "k1", "n": part(numbers.n), "e": part(numbers.e)}]}))
    write(config, plain.replace("[[tenant]]", '''[authentication]
issuer = "https://login.test"
audience = "https://attest.azure.net"
jwks = "jwks.json"
[[tenant]]''', 1))

    def bearer(key=issuer_key, **changed):
        claims = {"iss": "https://login.test", "aud": "https://attest.azure.net", "exp": int(time.time()) + 600, **changed}
        signed = b64url(json.dumps({"alg": "RS256", "kid": "k1"}).encode()) + "." + b64url(json.dumps(claims).encode())
        return signed + "." + b64url(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))

    def as_(token):
        return AttestationAdministrationClient(OPEN, Credential(token), connection_verify=CA)

    process = start()
    try:
        kind = AttestationType.SGX_ENCLAVE
        for token in ("junk", bearer(signer_key), bearer(iss="https://other"), bearer(aud="other"), bearer(exp=1)):
            fails("Unauthorized", lambda: as_(token).set_policy(kind, DENY))
            fails("Unauthorized", lambda: as_(token).get_policy(kind))
        as_(bearer()).set_policy(kind, PERMIT)
        equal(as_(bearer()).get_policy(kind)[0], PERMIT)
        as_(bearer()).reset_policy(kind)
        client().attest_sgx_enclave(report[16:])
    finally:
        process.terminate()
        process.wait(15)
        write(config, plain)
        process = start()


EMULATED = os.path.join(WORK, "emulated")


def made(name):
    with open(os.path.join(EMULATED, name), "rb") as file:
        return file.read()


emulated_root = key_id(x509.load_pem_x509_certificate(made("root.pem")))


CONFIG = os.path.join(folder, "service.toml")
with open(CONFIG) as text:
    PLAIN = text.read()


def restart_with(text):
    global process
    process.terminate()
    process.wait(15)
    write(CONFIG, text)
    process = start()


@test
def evidence_of_an_emulated_platform_is_refused_by_default():
    shutil.copy(os.path.join(EMULATED, "collateral.json"), os.path.join(folder, "collateral", "emulated.json"))
    restart_with(PLAIN)
    fails("InvalidParameter", lambda: client().attest_sgx_enclave(made("quote.bin"), runtime_json=made("statement.json")))


@test
def a_running_enclave_gets_a_token_where_its_emulated_root_is_named():
    evidence, statement = made("quote.bin"), made("statement.json")
    restart_with(f'emulated_roots = ["{emulated_root}"]\n' + PLAIN)
    result, token = client().attest_sgx_enclave(evidence, runtime_json=statement)
    check_sgx(result, token, None, evidence)
    equal(result.runtime_claims, json.loads(statement))
    assert 1 <= result.runtime_claims["roll"] <= 6
    another = json.dumps(dict(json.loads(statement), roll=7)).encode()
    fails("InvalidParameter", lambda: client().attest_sgx_enclave(evidence, runtime_json=another))


def verified(name, cert, policy):
    """Exit code of `enclos verify` for a signing certificate, as of the time of the collateral."""
    path = write(os.path.join(folder, name), cert_pem(cert))
    policy = write(os.path.join(folder, "verify.toml"), "any_identity = true\n" + policy)
    collateral = os.path.join(EMULATED, "collateral.json")
    command = [SERVICE[0], "--quiet", "verify", path, "--policy", policy, "--collateral", collateral, "--time", EVIDENCE_TIME]
    return subprocess.run(command, stdout=log, stderr=log).returncode


if INSIDE:
    @test
    def evidence_in_a_signing_certificate_is_about_its_own_key():
        told = f'emulated_roots = ["{emulated_root}"]\n'
        for signer in client().get_signing_certificates():
            cert = x509.load_pem_x509_certificate(signer.certificates[0].encode())
            equal(verified("own.pem", cert, ""), 4)
            equal(verified("own.pem", cert, told), 0)
            evidence = [e.value for e in cert.extensions if e.oid.dotted_string == "1.3.6.1.4.1.311.105.1"]
            equal(verified("stranger.pem", certificate("stranger", stranger_key, extensions=evidence), told), 4)
            equal(verified("none.pem", stranger, told), 1)


settings = {
    "emulated": made("quote.bin").hex(), "statement": made("statement.json").hex(),
    "open": OPEN, "isolated": ISOLATED, "report": report.hex(), "runtime": runtime.hex(),
    "signer": [pem(signer_key), cert_pem(signer)], "other": [pem(other_key), cert_pem(other)],
    "stranger": [pem(stranger_key), cert_pem(stranger)], "ec": [pem(ec_key), cert_pem(ec_cert)],
    "permit": PERMIT, "deny": DENY,
    # Inside, naming the emulated root made a new key: keys say what was demanded of platforms when they were made.
    "signers": 2 if INSIDE else 1,
}
result = subprocess.run(
    ["node", os.path.join(WORK, "sdk.mjs"), write(os.path.join(folder, "settings.json"), json.dumps(settings))],
    env={**os.environ, "NODE_EXTRA_CA_CERTS": CA}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
)
print(result.stdout, end="")
passed += result.stdout.count("ok    javascript: ")
failed += result.stdout.count("FAILED javascript: ") + (result.returncode != 0)


@test
def stops_when_told():
    process.terminate()
    equal(process.wait(15), 0)


log.flush()
with open(log.name) as text:
    logged = text.read()
if "panicked" in logged:
    failed += 1
    print("FAILED the service panicked; see", log.name)
if not failed:
    shutil.rmtree(folder)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
