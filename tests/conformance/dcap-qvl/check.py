"""dcap-qvl (Phala's verifier, from PyPI) against `enclos quote` and `enclos pccs`.

Usage: check.py ENCLOS WORK. A real enclave attests; dcap-qvl fetches the collateral for its quote from our PCCS, verifies
under our root, and has to refuse everything else.
"""

import asyncio, base64, json, os, subprocess, sys, time, urllib.error, urllib.parse, urllib.request

import dcap_qvl

ENCLOS, WORK = sys.argv[1:3]
NONCE = "00112233445566778899aabbccddeeff"
# What `enclos quote` builds is built in the folder of other enclaves: most of what it depends on is there.
ENVIRONMENT = dict(
    os.environ,
    ENCLOS_STATE=os.path.join(WORK, "state"),
    ENCLOS_PLATFORM="emulated",
    CARGO_TARGET_DIR=os.path.dirname(os.path.dirname(os.path.abspath(WORK))),
)

passed, failed = 0, 0


def test(function):
    global passed, failed
    name = function.__name__.replace("_", " ")
    try:
        function()
        passed += 1
        print("ok   ", name)
    except Exception as error:  # every kind of failure is a failed test
        failed += 1
        print("FAILED", name, "-", type(error).__name__, str(error)[:400])
    return function


def equal(found, expected):
    assert found == expected, f"{found!r} instead of {expected!r}"


def path(name):
    return os.path.join(WORK, name)


def enclos(*arguments, code=0):
    ran = subprocess.run([ENCLOS, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    assert ran.returncode == code, f"{arguments}: {ran.returncode}, {ran.stdout} {ran.stderr}"
    return json.loads(ran.stdout)


class Pccs:
    """`enclos pccs` at any free port."""

    def __init__(self, state="up-to-date"):
        command = [ENCLOS, "pccs", "--listen", "127.0.0.1:0", "--tcb-state", state, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        self.url = json.loads(self.process.stdout.readline())["url"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def get(self, address, status=200):
        try:
            answer = urllib.request.urlopen(urllib.parse.urljoin(self.url, address), timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        equal(answer.status, status)
        assert len(answer.headers["Request-ID"]) == 32
        return answer.headers, answer.read()


def collateral_of(quote, url):
    async def fetch():
        return await dcap_qvl.get_collateral(url, quote)

    return asyncio.run(fetch())


def verify(quote, url):
    collateral = collateral_of(quote, url)
    return dcap_qvl.verify_with_root_ca(quote, collateral, ROOT_DER, int(time.time()))


def flipped(at):
    altered = bytearray(QUOTE)
    altered[at] ^= 1
    return bytes(altered)


def refuses(call, *words):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        assert any(word in str(error) for word in words), f"refused for another reason: {error}"
    else:
        raise AssertionError("it was accepted")


MADE = enclos(
    "quote", "--nonce", NONCE, "--output", path("quote.bin"), "--collateral", path("collateral.json"),
    "--root", path("root.pem"), "--json",
)
QUOTE = open(path("quote.bin"), "rb").read()
ROOT_PEM = open(path("root.pem")).read()
ROOT_DER = base64.b64decode("".join(line for line in ROOT_PEM.splitlines() if "-----" not in line))
UP_TO_DATE = Pccs()


@test
def the_quote_is_of_the_enclave_that_ran():
    report = dcap_qvl.parse_quote(QUOTE).report
    equal(bytes(report.mr_enclave).hex(), MADE["mrenclave"])
    equal(bytes(report.report_data).hex(), NONCE + "00" * 48)


@test
def fetches_our_collateral_and_accepts_our_quote():
    equal(verify(QUOTE, UP_TO_DATE.url).status, "UpToDate")


@test
def refuses_our_quote_under_intels_root():
    collateral = collateral_of(QUOTE, UP_TO_DATE.url)
    refuses(lambda: dcap_qvl.verify(QUOTE, collateral, int(time.time())), "UnknownIssuer", "erif", "certificate")


@test
def refuses_a_flipped_bit_anywhere():
    # Header, REPORT, signature, attestation key, QE REPORT and its signature, authentication data.
    collateral = collateral_of(QUOTE, UP_TO_DATE.url)
    for at in (30, 48, 112, 368, 431, 440, 500, 564, 900, 960, 1020):
        try:
            dcap_qvl.verify_with_root_ca(flipped(at), collateral, ROOT_DER, int(time.time()))
        except ValueError:
            continue
        raise AssertionError(f"byte {at} was flipped and the quote accepted")


@test
def refuses_a_flipped_bit_in_the_certificates():
    # dcap-qvl takes the chain from the quote when it fetches collateral, and judges by that.
    start = QUOTE.index(b"-----BEGIN CERTIFICATE-----")
    for at in range(start + 100, start + 1500, 97):
        if QUOTE[at] in b"\n\r":
            continue
        refuses(lambda: verify(flipped(at), UP_TO_DATE.url), "")


@test
def sees_every_state_of_the_tcb():
    for state, status in (("hardening-needed", "SWHardeningNeeded"), ("out-of-date", "OutOfDate")):
        with Pccs(state) as pccs:
            report = verify(QUOTE, pccs.url)
            equal(report.status, status)
            equal(list(report.advisory_ids), ["EMULATED-SA-00001"])
    with Pccs("revoked") as pccs:
        refuses(lambda: verify(QUOTE, pccs.url), "Revoked")


@test
def a_pck_certificate_is_given_for_the_platform():
    parameters = f"qeid={QUOTE[28:44].hex()}&encrypted_ppid={'00' * 384}&pceid=0000&"
    tcb = f"cpusvn={QUOTE[48:64].hex()}&pcesvn={QUOTE[10:12].hex()}"
    headers, body = UP_TO_DATE.get("pckcert?" + parameters + tcb)
    equal(headers["Content-Type"], "application/x-pem-file")
    chain = urllib.parse.unquote(headers["SGX-PCK-Certificate-Issuer-Chain"])
    equal(chain.count("BEGIN CERTIFICATE"), 2)
    assert chain.endswith(ROOT_PEM) and (body + chain.encode()) in QUOTE
    pck = dcap_qvl.parse_pck_extension_from_pem(body)
    equal(bytes(pck.fmspc), b"EMULAT")
    equal(headers["SGX-FMSPC"], b"EMULAT".hex().upper())
    equal(headers["SGX-TCBm"].lower(), QUOTE[48:64].hex() + QUOTE[10:12].hex())
    equal(headers["SGX-PCK-Certificate-CA-Type"], "platform")
    UP_TO_DATE.get("pckcert?" + parameters.replace("qeid=", "qeid=ff", 1) + tcb, 400)
    UP_TO_DATE.get(f"pckcert?qeid={'00' * 16}&pceid=0000&" + tcb, 461)
    UP_TO_DATE.get("pckcert?" + parameters + f"cpusvn={'00' * 16}&pcesvn=0000", 462)


@test
def crls_come_in_the_encodings_of_a_pccs():
    headers, der = UP_TO_DATE.get("pckcrl?ca=platform&encoding=der")
    equal(urllib.parse.unquote(headers["SGX-PCK-CRL-Issuer-Chain"]).count("BEGIN CERTIFICATE"), 2)
    equal(headers["Content-Type"], "application/pkix-crl")
    # Each is signed when it is asked for, so they are compared by whose they are.
    platform, root = b"Enclos Emulated SGX PCK Platform CA", b"Enclos Emulated SGX Root CA"
    place = urllib.parse.quote("https://localhost:8081/sgx/certification/v4/rootcacrl", safe="")
    assert platform in der
    assert platform in bytes.fromhex(UP_TO_DATE.get("pckcrl?ca=platform")[1].decode())
    assert root in bytes.fromhex(UP_TO_DATE.get("rootcacrl")[1].decode())
    assert root in UP_TO_DATE.get("crl?uri=" + place)[1]


@test
def version_3_gives_tcb_info_2_which_our_verifier_accepts():
    headers, body = UP_TO_DATE.get("/sgx/certification/v3/tcb?fmspc=" + b"EMULAT".hex())
    chain = urllib.parse.unquote(headers["SGX-TCB-Info-Issuer-Chain"])
    answer = json.loads(body)
    equal(answer["tcbInfo"]["version"], 2)
    assert "sgxtcbcomp16svn" in answer["tcbInfo"]["tcbLevels"][0]["tcb"]
    collateral = json.load(open(path("collateral.json")))
    collateral.update(tcb_info=body.decode(), tcb_info_issuer_chain=chain)
    del collateral["tcb_info_signature"]
    json.dump(collateral, open(path("collateral-v3.json"), "w"))
    with open(path("policy.toml"), "w") as policy:
        policy.write(f'any_identity = true\nemulated_roots = ["{MADE["platform"]["emulated_root"]}"]\n')
    verdict = enclos(
        "verify", path("quote.bin"), "--collateral", path("collateral-v3.json"), "--policy", path("policy.toml"),
        "--nonce", NONCE, "--json",
    )
    equal((verdict["accepted"], verdict["emulated"]), (True, True))


@test
def what_is_not_there_is_said_as_a_pccs_says_it():
    fmspc = b"EMULAT".hex().upper()
    for address, status in (
        ("tcb?fmspc=00906ED50000", 404),
        (f"tcb?fmspc={fmspc}&tcbEvaluationDataNumber=1", 404),
        ("tcb?fmspc=xyz", 400),
        ("tcb", 400),
        ("pckcrl?ca=processor", 404),
        ("pckcrl?ca=nobody", 400),
        ("crl?uri=https%3A%2F%2Fexample.org", 404),
        ("qve/identity", 404),
        (f"/tdx/certification/v4/tcb?fmspc={fmspc}", 404),
        ("/tdx/certification/v4/qe/identity", 404),
        ("/sgx/certification/v5/rootcacrl", 400),
        ("/nowhere", 404),
    ):
        try:
            UP_TO_DATE.get(address, status)
        except AssertionError as error:
            raise AssertionError(f"{address}: {error}")
    for selector in ("update=standard", "update=early", "tcbEvaluationDataNumber=20"):
        UP_TO_DATE.get(f"tcb?fmspc={fmspc}&{selector}")


UP_TO_DATE.__exit__()
print(f"{passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
