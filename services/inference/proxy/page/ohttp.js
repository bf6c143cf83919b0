// Oblivious HTTP (RFC 9458) around binary HTTP (RFC 9292), for a client, from WebCrypto alone. One suite of HPKE (RFC 9180):
// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, in base mode. It vouches for no key: who calls it has to.

const KEM = 0x0020, KDF = 0x0001, AEAD = 0x0001;
/** RFC 9180, section 7: lengths of public keys, of the hash, and of AES-128-GCM's key, nonce and tag. */
const N_PK = 32, N_H = 32, N_K = 16, N_N = 12, N_T = 16;
/** As the Rust client: the smallest length that messages are padded to. */
const SMALLEST_BUCKET = 1024;

const encoder = new TextEncoder();
const bytes = (text) => encoder.encode(text);
const uint16 = (number) => Uint8Array.of(number >> 8, number & 0xff);

export function concat(...parts) {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Reads in order, and never past the end. */
class Reader {
  constructor(data, what) { Object.assign(this, { data, what, at: 0 }); }

  get left() { return this.data.length - this.at; }

  take(length) {
    if (length > this.left) throw new Error(`${this.what} is cut short: ${length} bytes are said to follow, ${this.left} do`);
    this.at += length;
    return this.data.subarray(this.at - length, this.at);
  }

  /** Of so many bytes, big-endian; six at most, so that it is exact. */
  number(length) { return this.take(length).reduce((number, byte) => number * 256 + byte, 0); }

  /** A variable-length integer (RFC 9000, section 16). */
  varint() {
    const [first] = this.take(1);
    const others = (1 << (first >> 6)) - 1;
    const rest = this.take(others);
    const number = rest.reduce((number, byte) => number * 256 + byte, first & 0x3f);
    if (!Number.isSafeInteger(number)) throw new Error(`${this.what} has a length that cannot be`);
    return number;
  }

  /** Bytes behind their length. */
  vector() { return this.take(this.varint()); }
}

// --- HPKE (RFC 9180) ---

async function hmac(key, data) {
  const imported = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, data));
}

/** HKDF-Extract (RFC 5869, section 2.2). WebCrypto's HKDF has it and the next in one only; and HMAC there takes no empty key. */
const extract = (salt, material) => hmac(salt.length ? salt : new Uint8Array(N_H), material);

/** HKDF-Expand (RFC 5869, section 2.3), of one block: nothing here needs more. */
async function expand(key, info, length) {
  if (length > N_H) throw new RangeError(`one block has ${N_H} bytes, not ${length}`);
  return (await hmac(key, concat(info, Uint8Array.of(1)))).subarray(0, length);
}

// Section 4.
const labeledExtract = (suite, salt, label, material) => extract(salt, concat(bytes("HPKE-v1"), suite, bytes(label), material));
const labeledExpand = (suite, key, label, info, length) => expand(key, concat(uint16(length), bytes("HPKE-v1"), suite, bytes(label), info), length);

const EMPTY = new Uint8Array(0);
const KEM_SUITE = concat(bytes("KEM"), uint16(KEM));
const HPKE_SUITE = concat(bytes("HPKE"), uint16(KEM), uint16(KDF), uint16(AEAD));

/** Makes a key pair for one message, or says what this browser lacks. */
export async function ephemeral() {
  if (!globalThis.crypto?.subtle) throw new Error("this page cannot encrypt: browsers encrypt only in pages from localhost, from this machine's own address, or by https");
  try {
    return await crypto.subtle.generateKey({ name: "X25519" }, false, ["deriveBits"]);
  } catch (error) {
    throw new Error(`this browser cannot encrypt: its WebCrypto has no X25519 (${error.name}); use a newer one`);
  }
}

/** SetupBaseS (section 5.1.1): `enc`, `seal` for one message, and `exported` (section 5.3). */
export async function setupBaseS(recipient, info, pair) {
  const enc = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
  const theirs = await crypto.subtle.importKey("raw", recipient, { name: "X25519" }, false, []);
  // Encap (section 4.1).
  // Section 7.1.4: of a key of small order everybody knows the secret, zeros. WebCrypto refuses it as well.
  const unusable = new Error("the server's key is not one to encrypt for");
  const bits = await crypto.subtle.deriveBits({ name: "X25519", public: theirs }, pair.privateKey, 256).catch(() => { throw unusable; });
  const dh = new Uint8Array(bits);
  if (dh.every((byte) => byte === 0)) throw unusable;
  const eae = await labeledExtract(KEM_SUITE, EMPTY, "eae_prk", dh);
  const shared = await labeledExpand(KEM_SUITE, eae, "shared_secret", concat(enc, recipient), N_H);
  // KeySchedule (section 5.1), mode_base, without a pre-shared key.
  const pskId = await labeledExtract(HPKE_SUITE, EMPTY, "psk_id_hash", EMPTY);
  const infoHash = await labeledExtract(HPKE_SUITE, EMPTY, "info_hash", info);
  const context = concat(Uint8Array.of(0), pskId, infoHash);
  const secret = await labeledExtract(HPKE_SUITE, shared, "secret", EMPTY);
  const key = await labeledExpand(HPKE_SUITE, secret, "key", context, N_K);
  const nonce = await labeledExpand(HPKE_SUITE, secret, "base_nonce", context, N_N);
  const exporter = await labeledExpand(HPKE_SUITE, secret, "exp", context, N_H);
  let isUsed = false;
  return {
    enc,
    async seal(plain, additionalData = EMPTY) {
      // The first nonce is the base nonce (section 5.2). There is no second: it would have to be another.
      if (isUsed) throw new Error("a context is for one message");
      isUsed = true;
      return aesGcm("encrypt", key, nonce, plain, additionalData);
    },
    exported: (label, length) => labeledExpand(HPKE_SUITE, exporter, "sec", bytes(label), length),
  };
}

async function aesGcm(operation, key, iv, data, additionalData = EMPTY) {
  const imported = await crypto.subtle.importKey("raw", key, "AES-GCM", false, [operation]);
  return new Uint8Array(await crypto.subtle[operation]({ name: "AES-GCM", iv, additionalData, tagLength: N_T * 8 }, imported, data));
}

// --- Oblivious HTTP (RFC 9458) ---

/** A key configuration (section 3.1): identifier and public key. */
export function readKeyConfig(data) {
  const reader = new Reader(data, "the key configuration");
  const id = reader.number(1), kem = reader.number(2);
  if (kem !== KEM) throw new Error(`the server's key is of KEM ${kem}; this page has X25519 (${KEM}) only`);
  const publicKey = reader.take(N_PK);
  const algorithms = new Reader(reader.take(reader.number(2)), "the key configuration");
  if (reader.left) throw new Error("the key configuration goes on behind its end");
  let isOffered = false;
  while (algorithms.left) {
    const [kdf, aead] = [algorithms.number(2), algorithms.number(2)];
    isOffered ||= kdf === KDF && aead === AEAD;
  }
  if (!isOffered) throw new Error("the server does not take HKDF-SHA256 with AES-128-GCM, which is what this page has");
  return { id, publicKey };
}

/** Encapsulates a request (section 4.3): `request`, and what opens its response. */
export async function encapsulate(keyConfig, message, pair) {
  const { id, publicKey } = readKeyConfig(keyConfig);
  const header = concat(Uint8Array.of(id), uint16(KEM), uint16(KDF), uint16(AEAD));
  const context = await setupBaseS(publicKey, concat(bytes("message/bhttp request"), Uint8Array.of(0), header), pair ?? await ephemeral());
  const request = concat(header, context.enc, await context.seal(message));
  const secret = await context.exported("message/bhttp response", Math.max(N_N, N_K));
  return { request, open: (response) => decapsulate(secret, context.enc, response) };
}

/** Opens an encapsulated response (section 4.4). */
async function decapsulate(secret, enc, response) {
  const reader = new Reader(response, "the encapsulated response");
  const responseNonce = reader.take(Math.max(N_N, N_K));
  const prk = await extract(concat(enc, responseNonce), secret);
  const key = await expand(prk, bytes("key"), N_K), nonce = await expand(prk, bytes("nonce"), N_N);
  try {
    return await aesGcm("decrypt", key, nonce, reader.take(reader.left));
  } catch {
    throw new Error("the response cannot be decrypted: it was altered, or is not the enclave's answer to this request");
  }
}

// --- Binary HTTP (RFC 9292), of known length ---

/** A variable-length integer (RFC 9000, section 16). */
function varint(number) {
  if (number < 1 << 6) return Uint8Array.of(number);
  if (number < 1 << 14) return uint16(0x4000 | number);
  if (number < 1 << 30) return concat(uint16(0x8000 | number >>> 16), uint16(number & 0xffff));
  throw new RangeError(`nothing here is ${number} bytes long`);
}

const vector = (data) => concat(varint(data.length), data);

/** A request (section 3.1), for the authority that the enclave answers as. `body`: text or nothing. */
export function writeRequest({ method, path, headers = {}, body = "" }) {
  const control = [method, "https", "enclave", path].map((text) => vector(bytes(text)));
  const fields = Object.entries(headers).flatMap(([name, value]) => [vector(bytes(name.toLowerCase())), vector(bytes(value))]);
  return concat(varint(0), ...control, vector(concat(...fields)), vector(bytes(body)), vector(EMPTY));
}

/** With zeros behind it (section 3.8), up to a power of two: the operator sees lengths. */
export function padded(message) {
  let bucket = SMALLEST_BUCKET;
  while (bucket < message.length) bucket *= 2;
  return concat(message, new Uint8Array(bucket - message.length));
}

/** Reads a response (section 3.1): the status of the final one, its fields, and its body. */
export function readResponse(data) {
  const reader = new Reader(data, "the message inside");
  const text = new TextDecoder("utf-8", { fatal: true });
  const fieldSection = () => {
    const section = new Reader(reader.left ? reader.vector() : EMPTY, "the message inside");
    const fields = [];
    while (section.left) fields.push([text.decode(section.vector()), text.decode(section.vector())]);
    return fields;
  };
  if (reader.varint() !== 1) throw new Error("the message inside is no response of known length");
  let status = reader.varint();
  // Section 3.5.1: there may be informational ones before.
  while (status >= 100 && status < 200) {
    fieldSection();
    status = reader.varint();
  }
  if (status < 200 || status > 599) throw new Error(`the message inside has the status ${status}, which cannot be`);
  // Section 3.8: what is empty at the end may be left out.
  const headers = new Map(fieldSection());
  const body = reader.left ? reader.vector() : EMPTY;
  fieldSection();
  if (reader.take(reader.left).some((byte) => byte !== 0)) throw new Error("the message inside goes on behind its end");
  return { status, headers, body };
}
