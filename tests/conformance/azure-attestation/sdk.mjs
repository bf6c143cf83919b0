// Azure's JavaScript SDK against the attestation service; started by sdk.py with the settings of the run.
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { isDeepStrictEqual } from "node:util";

const require = createRequire(import.meta.url);
const {
  AttestationAdministrationClient,
  AttestationClient,
  KnownAttestationType,
  createAttestationPolicyToken,
} = require("@azure/attestation");

const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const report = Buffer.from(settings.report, "hex");
const runtime = Buffer.from(settings.runtime, "hex");
const credential = { getToken: async () => ({ token: "not-checked", expiresOnTimestamp: Date.now() + 3600e3 }) };
const client = () => new AttestationClient(settings.open, credential);
const admin = (endpoint = settings.open) => new AttestationAdministrationClient(endpoint, credential);
const signed = ([privateKey, certificate]) => ({ privateKey, certificate });
const { OpenEnclave, SgxEnclave } = KnownAttestationType;

function equal(found, expected) {
  if (!isDeepStrictEqual(found, expected)) {
    throw new Error(`${JSON.stringify(found)} is not ${JSON.stringify(expected)}`);
  }
}

async function fails(code, promise, ...words) {
  let error;
  try {
    await promise;
  } catch (caught) {
    error = caught;
  }
  if (!error) throw new Error(`no error, expected ${code}`);
  equal(error.name, "RestError");
  equal(error.code, code);
  for (const word of words) {
    if (!error.message.includes(word)) throw new Error(error.message);
  }
}

const tests = {
  async "openid metadata and signers"() {
    equal((await client().getOpenIdMetadata()).issuer, settings.open);
    equal((await client().getAttestationSigners()).length, settings.signers);
  },
  async "attest without a credential"() {
    const response = await new AttestationClient(settings.open).attestSgxEnclave(report.subarray(16));
    equal(response.body.verifierType, "sgx");
  },
  async "attest an Open Enclave report with binary runtime data"() {
    const { body, token } = await client().attestOpenEnclave(report, { runTimeData: runtime });
    equal(token.getTokenProblems(await client().getAttestationSigners()), []);
    equal(Buffer.from(body.enclaveHeldData).toString("hex"), settings.runtime);
    equal(body.sgxCollateral.quotehash, createHash("sha256").update(report).digest("hex"));
    equal(body.mrEnclave, report.subarray(16 + 48 + 64, 16 + 48 + 96).toString("hex"));
    equal([typeof body.productId, typeof body.svn, body.isDebuggable], ["number", "number", false]);
  },
  async "attest an SGX quote with JSON runtime data"() {
    const { body } = await client().attestSgxEnclave(report.subarray(16), { runTimeJson: runtime });
    equal(body.runTimeClaims, JSON.parse(runtime.toString()));
    equal(body.issuer, settings.open);
  },
  async "a token for a running enclave, its emulated root being named"() {
    const [quote, statement] = [settings.emulated, settings.statement].map((hex) => Buffer.from(hex, "hex"));
    const { body, token } = await client().attestSgxEnclave(quote, { runTimeJson: statement });
    equal(token.getTokenProblems(await client().getAttestationSigners()), []);
    equal(body.mrEnclave, quote.subarray(48 + 64, 48 + 96).toString("hex"));
    equal(body.runTimeClaims, JSON.parse(statement.toString()));
    await fails("InvalidParameter", client().attestSgxEnclave(quote, { runTimeJson: Buffer.from('{"roll":7}') }));
  },
  async "draft policy gives an unsecured token"() {
    const { token } = await client().attestOpenEnclave(report, { draftPolicyForAttestation: settings.permit });
    equal(token.algorithm, "none");
  },
  async "flipped byte"() {
    const flipped = Buffer.from(report);
    flipped[16 + 48 + 64] ^= 1;
    await fails("InvalidParameter", client().attestOpenEnclave(flipped), "invalid");
  },
  async "denying policy"() {
    await admin().setPolicy(SgxEnclave, settings.deny);
    await fails("PolicyEvaluationError", client().attestSgxEnclave(report.subarray(16)), "A Deny claim was issued");
    equal((await admin().resetPolicy(SgxEnclave)).body.policyResolution, "Removed");
    await client().attestSgxEnclave(report.subarray(16));
  },
  async "bad policy"() {
    await fails("PolicyParsingError", admin().setPolicy(SgxEnclave, "version=1.0"), "Line: '1', Column: '12'");
  },
  async "set and get an unsigned policy"() {
    const result = await admin().setPolicy(OpenEnclave, settings.permit);
    equal(result.body.policyResolution, "Updated");
    const jws = createAttestationPolicyToken(settings.permit).serialize();
    const hash = createHash("sha256").update(jws).digest("hex");
    equal(Buffer.from(result.body.policyTokenHash).toString("hex"), hash);
    equal((await admin().getPolicy(OpenEnclave)).body, settings.permit);
    await admin().resetPolicy(OpenEnclave);
  },
  async "set a policy signed with RSA and with EC"() {
    for (const signer of [settings.signer, settings.ec]) {
      const { body } = await admin().setPolicy(OpenEnclave, settings.permit, signed(signer));
      equal(body.policyResolution, "Updated");
      equal(body.policySigner.certificates[0].replaceAll(/\s/g, ""), signer[1].replaceAll(/\s/g, ""));
      equal((await admin().getPolicy(OpenEnclave)).body, settings.permit);
      await admin().resetPolicy(OpenEnclave, signed(signer));
    }
  },
  async "isolated instance"() {
    const isolated = admin(settings.isolated);
    await fails("InvalidOperation", isolated.setPolicy(SgxEnclave, settings.permit), "not signed");
    await fails("InvalidOperation", isolated.setPolicy(SgxEnclave, settings.permit, signed(settings.stranger)));
    await isolated.setPolicy(SgxEnclave, settings.permit, signed(settings.signer));
    equal((await isolated.getPolicy(SgxEnclave)).body, settings.permit);
    await isolated.resetPolicy(SgxEnclave, signed(settings.signer));
  },
  async "policy management certificates, RSA and EC"() {
    const isolated = admin(settings.isolated);
    const count = async () => (await isolated.getPolicyManagementCertificates()).body.length;
    equal(await count(), 1);
    for (const added of [settings.other, settings.ec]) {
      let { body } = await isolated.addPolicyManagementCertificate(added[1], ...settings.signer);
      equal(body.certificateResolution, "IsPresent");
      equal(await count(), 2);
      await isolated.setPolicy(SgxEnclave, settings.permit, signed(added));
      ({ body } = await isolated.removePolicyManagementCertificate(added[1], ...settings.signer));
      equal(body.certificateResolution, "IsAbsent");
      equal(await count(), 1);
    }
    await isolated.resetPolicy(SgxEnclave, signed(settings.signer));
  },
};

for (const [name, run] of Object.entries(tests)) {
  try {
    await run();
    console.log(`ok    javascript: ${name}`);
  } catch (error) {
    console.log(`FAILED javascript: ${name} - ${error.name} ${String(error.message).slice(0, 400)}`);
  }
}
