// What the page checks itself before it encrypts: that the evidence names the enclave which the verdict accepts, and vouches for
// this key and these models. Whether the evidence is genuine, the platform up to date and the policy met, it has the proxy's
// word for.

import { concat, encapsulate, ephemeral, padded, readKeyConfig, readResponse, writeRequest } from "./ohttp.js";

/** Header of a quote; where in the body MRENCLAVE, MRSIGNER and report data are ("SGX ECDSA QuoteGenReference", appendix A). */
const HEADER = 48, MR_ENCLAVE = 64, MR_SIGNER = 128, REPORT_DATA = 320, BODY = 384;
/** Version 5: type 1 (enclave), and the size of the body, before it. */
const BODY_DESCRIPTION = [1, 0, 0x80, 1, 0, 0];

const hex = (data) => Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
const digest = async (data) => new Uint8Array(await crypto.subtle.digest("SHA-256", data));

function base64(text, what) {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    throw new Error(`${what} is not base64`);
  }
}

/** The REPORT body of an SGX quote. */
function body(quote) {
  const view = new DataView(quote.buffer, quote.byteOffset, quote.length);
  if (quote.length < HEADER) throw new Error("the evidence is no quote: it is shorter than a header");
  const version = view.getUint16(0, true);
  if (![3, 4, 5].includes(version)) throw new Error(`the evidence is no quote that this page knows: its version is ${version}`);
  if (version > 3 && view.getUint32(4, true) !== 0) throw new Error("the evidence is not of an SGX enclave");
  let start = HEADER;
  if (version === 5) {
    if (BODY_DESCRIPTION.some((byte, i) => quote[HEADER + i] !== byte)) throw new Error("the evidence is not of an SGX enclave");
    start += BODY_DESCRIPTION.length;
  }
  if (quote.length < start + BODY) throw new Error("the evidence ends within its body");
  return quote.subarray(start, start + BODY);
}

/** 64 bits, big-endian. */
function uint64(number) {
  const data = new DataView(new ArrayBuffer(8));
  data.setBigUint64(0, BigInt(number));
  return new Uint8Array(data.buffer);
}

/** SHA-256 that binds a key configuration and models: the first half of the enclave's report data. */
function binding(keyConfig, models) {
  const encoder = new TextEncoder();
  const parts = [encoder.encode("enclos inference 2\0"), uint64(keyConfig.length), keyConfig, uint64(models.length)];
  for (const { name, sha256 } of models) {
    if (typeof name !== "string" || !/^[0-9a-f]{64}$/.test(sha256)) throw new Error("a model has no name, or no SHA-256");
    const encoded = encoder.encode(name);
    parts.push(uint64(encoded.length), encoded, Uint8Array.from(sha256.match(/../g), (digits) => parseInt(digits, 16)));
  }
  return digest(concat(...parts));
}

/** There is nobody to encrypt for. */
export class Refused extends Error {}

/**
 * Whom the proxy accepts, after this page's own checks: nothing is encrypted for anybody else. `anew`: the proxy is not to say
 * what it found before.
 */
export async function accepted({ anew = false } = {}) {
  try {
    // So that a browser that cannot encrypt says so before there is anything to send.
    await ephemeral();
    const response = await reach(anew ? "/verdict?anew" : "/verdict");
    if (!response.ok) throw new Error(await reason(response));
    return await check(await response.json());
  } catch (error) {
    throw new Refused(error.message);
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    throw new Error(`the proxy does not answer: ${error.message}`);
  }
}

/** An error of the proxy's has its reason in `error`, one of the gateway's (RFC 9457) in `detail`. */
async function reason(response) {
  const said = await response.json().catch(() => null);
  return String(said?.detail ?? said?.error ?? `the proxy answers with the status ${response.status}`);
}

async function check(said) {
  const { verdict, models, offered_models: offered, key_config, evidence } = said;
  const identity = verdict?.appraisal?.identity;
  if (verdict?.accepted !== true || identity?.kind !== "sgx") throw new Error("the verdict does not accept an SGX enclave");
  if (!Array.isArray(models) || !Array.isArray(offered)) throw new Error("the verdict names no models");
  const keyConfig = base64(key_config, "the key configuration");
  const report = body(base64(evidence, "the evidence"));
  const [mrEnclave, mrSigner] = [MR_ENCLAVE, MR_SIGNER].map((at) => hex(report.subarray(at, at + 32)));
  if (mrEnclave !== identity.mr_enclave) throw new Error(`the evidence is of the enclave ${mrEnclave}, the verdict about ${identity.mr_enclave}`);
  const bound = concat(await binding(keyConfig, offered), new Uint8Array(32));
  if (hex(report.subarray(REPORT_DATA)) !== hex(bound)) throw new Error("the evidence does not vouch for this key and these models");
  const isOffered = ({ name, sha256 }) => offered.some((model) => model.name === name && model.sha256 === sha256);
  if (!models.every(isOffered)) throw new Error("the evidence does not vouch for the models to ask");
  readKeyConfig(keyConfig);
  const fingerprint = hex(await digest(keyConfig));
  return { keyConfig, fingerprint, mrEnclave, mrSigner, models, isEmulated: verdict.emulated !== false };
}

/** The gateway, or the proxy, answers in the enclave's place. */
export class NotAnswered extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

/**
 * Asks the enclave of an offer that was checked, below the newest version of a model: the response, how many bytes went there
 * and back, and the offer that it was encrypted for. As in the Rust client that is another one, judged anew, when the gateway
 * cannot decrypt (the key's time is over, or the enclave was restarted) or the version is gone; once.
 */
export async function ask(offer, model, request) {
  const outcome = await askOnce(offer, model, request).catch((error) => error);
  const isGone = outcome.status === (outcome instanceof NotAnswered ? 400 : 404);
  if (isGone) {
    const newer = await accepted({ anew: true });
    const isSame = newer.fingerprint === offer.fingerprint && JSON.stringify(newer.models) === JSON.stringify(offer.models);
    if (!isSame) return askOnce(newer, model, request);
  }
  if (outcome instanceof Error) throw outcome;
  return outcome;
}

async function askOnce(offer, model, { method = "GET", path = "", json }) {
  const { keyConfig, models } = offer;
  const newest = models.findLast(({ name }) => name === model);
  if (!newest) throw new Error(`the evidence does not vouch for a model ${model}`);
  const target = `/v2/models/${newest.name}/versions/${newest.sha256}${path}`;
  const content = json === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(json) };
  const { request, open } = await encapsulate(keyConfig, padded(writeRequest({ method, path: target, ...content })));
  const response = await reach("/ohttp", { method: "POST", headers: { "Content-Type": "message/ohttp-req" }, body: request });
  if (response.status !== 200) throw new NotAnswered(response.status, await reason(response));
  if (response.headers.get("content-type") !== "message/ohttp-res") throw new Error("the proxy answers with something that is not encrypted");
  const sealed = new Uint8Array(await response.arrayBuffer());
  const { status, body: answered } = readResponse(await open(sealed));
  let parsed;
  try {
    parsed = JSON.parse(new TextDecoder().decode(answered));
  } catch {
    throw new Error(`the enclave answers ${status} with something that is not JSON`);
  }
  return { status, body: parsed, sent: request.length, received: sealed.length, offer };
}
