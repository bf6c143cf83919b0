"""Starts the attestation service inside an enclave, checks what its certificate proves, and gets tokens by both Azure SDKs.

Usage: demo.py ENCLOS IMAGE WORK. WORK/demo holds the evidence of examples/attested and the identity of IMAGE. Ends with 0 when
everything is as it should be.
"""

import ipaddress, json, os, shutil, ssl, subprocess, sys, tempfile, time, urllib.request

from azure.core.credentials import AccessToken
from azure.security.attestation import AttestationClient
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from pki import cert_pem, certificate, key_id, pem, write

ENCLOS, IMAGE, WORK = sys.argv[1:]
DEMO = os.path.join(WORK, "demo")


def given(name):
    with open(os.path.join(DEMO, name), "rb") as file:
        return file.read()


folder = tempfile.mkdtemp(prefix="demo-", dir=WORK)
# The Python SDK speaks TLS only.
ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ca = certificate("Demo CA", ca_key)
server = certificate("localhost", server_key, (ca, ca_key), [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
CA = write(os.path.join(folder, "ca.pem"), cert_pem(ca))
write(os.path.join(folder, "server.pem"), cert_pem(server))
write(os.path.join(folder, "server.key"), pem(server_key))
os.mkdir(os.path.join(folder, "collateral"))
COLLATERAL = shutil.copy(os.path.join(DEMO, "collateral.json"), os.path.join(folder, "collateral"))
ROOT = key_id(x509.load_pem_x509_certificate(given("root.pem")))
config = write(os.path.join(folder, "service.toml"), f"""
listen = "127.0.0.1:0"
data = "data"
collateral = "collateral"
tls = {{ certificate = "server.pem", key = "server.key" }}
emulated_roots = ["{ROOT}"]
[[tenant]]
host = "localhost"
""")


def enclos(*arguments):
    return subprocess.run([ENCLOS, "--quiet", *arguments], stdout=subprocess.PIPE, text=True)


def check(what, holds):
    print("   " + what)
    if not holds:
        sys.exit("   BUT IT IS NOT SO")


def start():
    process = subprocess.Popen([ENCLOS, "attestation-service", "--enclave", IMAGE, config], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("{") and json.loads(line)["fields"].get("message") == "attestation service ready":
            return process, json.loads(line)["fields"]["port"]
        print("   " + line.rstrip())
    sys.exit("the service did not start")


class NoCredential:
    def get_token(self, *scopes, **_):
        return AccessToken("attesting is open", int(time.time()) + 3600)


process, port = start()
try:
    address = f"https://localhost:{port}"
    certs = urllib.request.urlopen(address + "/certs", context=ssl.create_default_context(cafile=CA)).read().decode()
    certs = write(os.path.join(folder, "certs.json"), certs)
    identity = f'[[identity]]\nkind = "sgx"\nmr_enclave = "{json.loads(given("image.json").splitlines()[-1])["mrenclave"]}"\n'
    default = write(os.path.join(folder, "default.toml"), identity)
    told = write(os.path.join(folder, "told.toml"), f'emulated_roots = ["{ROOT}"]\n' + identity)
    demands = json.loads(enclos("attestation-service", "--check", "--json", config).stdout)["demands_digest"]
    verify = ("verify", certs, "--collateral", COLLATERAL)
    check("its signing certificate is REFUSED by default: the platform is emulated",
          enclos(*verify, "--policy", default).returncode == 4)
    check("and ACCEPTED where that root is named: the key is held by this image, under these demands",
          enclos(*verify, "--policy", told, "--demands", demands).returncode == 0)

    check("but not for a service that demands something else of platforms",
          enclos(*verify, "--policy", told, "--demands", "00" * 32).returncode == 4)

    print("\n== Both Azure SDKs validate its token for the enclave of examples/attested")
    quote, statement = given("quote.bin"), given("statement.json")
    client = AttestationClient(address, NoCredential(), connection_verify=CA)
    result, _ = client.attest_sgx_enclave(quote, runtime_json=statement)
    check(f"Python: MRENCLAVE {result.mr_enclave[:16]}…, which says {json.dumps(result.runtime_claims)}",
          result.runtime_claims == json.loads(statement))
    javascript = subprocess.run(
        ["node", os.path.join(WORK, "demo.mjs"), address, quote.hex(), statement.hex()],
        env={**os.environ, "NODE_EXTRA_CA_CERTS": CA}, stdout=subprocess.PIPE, text=True,
    )
    check("JavaScript: " + javascript.stdout.strip(), javascript.returncode == 0)
finally:
    process.terminate()
    process.wait(15)
print("\nAll of it holds. The platform is emulated: it protects nothing.")
