// Azure's JavaScript SDK: a token for a quote and what its enclave says, validated. Usage: demo.mjs ADDRESS QUOTE STATEMENT
import { createRequire } from "node:module";
import { isDeepStrictEqual } from "node:util";

const { AttestationClient } = createRequire(import.meta.url)("@azure/attestation");

const [address, quote, statement] = process.argv.slice(2);
const said = Buffer.from(statement, "hex");
const client = new AttestationClient(address);
const { body, token } = await client.attestSgxEnclave(Buffer.from(quote, "hex"), { runTimeJson: said });
const problems = token.getTokenProblems(await client.getAttestationSigners());
if (problems.length > 0) throw new Error(problems.join("; "));
if (!isDeepStrictEqual(body.runTimeClaims, JSON.parse(said))) throw new Error("it says something else");
console.log(`MRENCLAVE ${body.mrEnclave.slice(0, 16)}…, which says ${JSON.stringify(body.runTimeClaims)}`);
