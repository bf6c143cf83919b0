// The page's HPKE, Oblivious HTTP and binary HTTP, alone: against examples of the RFCs, and against npm's `@hpke/core` and
// `bhttp-js`. Run by page.mjs; `ohttp-page.mjs` is a copy of services/inference/proxy/page/ohttp.js.

import assert from "node:assert/strict";
import { webcrypto as crypto } from "node:crypto";
import { Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { BHttpDecoder, BHttpEncoder } from "bhttp-js";
import { concat, encapsulate, ephemeral, padded, readKeyConfig, readResponse, setupBaseS, writeRequest } from "./ohttp-page.mjs";

const hex = (data) => Buffer.from(data).toString("hex");
const unhex = (text) => new Uint8Array(Buffer.from(text.replace(/\s/g, ""), "hex"));
const text = (data) => new TextDecoder().decode(data);
const bytes = (data) => new TextEncoder().encode(data);
const altered = (data, at) => data.with(at < 0 ? data.length + at : at, data.at(at) ^ 1);

/** A key pair of an example. */
async function pair(secret, publicKey) {
  const [d, x] = [secret, publicKey].map((key) => Buffer.from(key, "hex").toString("base64url"));
  const jwk = { kty: "OKP", crv: "X25519", x };
  return {
    privateKey: await crypto.subtle.importKey("jwk", { ...jwk, d }, "X25519", true, ["deriveBits"]),
    publicKey: await crypto.subtle.importKey("jwk", jwk, "X25519", true, []),
  };
}

const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes128Gcm() });

/** A gateway with a key of its own, by other people's HPKE: RFC 9458, sections 4.3 and 4.4. */
async function gateway(id) {
  const keys = await suite.kem.generateKeyPair();
  const publicKey = new Uint8Array(await suite.kem.serializePublicKey(keys.publicKey));
  const keyConfig = concat(Uint8Array.of(id), unhex("0020"), publicKey, unhex("0008 0001 0003 0001 0001"));
  const answer = async (request, respond) => {
    const [header, enc, sealed] = [request.slice(0, 7), request.slice(7, 39), request.slice(39)];
    assert.equal(hex(header), `${hex([id])}002000010001`);
    const recipient = await suite.createRecipientContext({ recipientKey: keys.privateKey, enc, info: concat(bytes("message/bhttp request\0"), header) });
    const response = await respond(new Uint8Array(await recipient.open(sealed)));
    const secret = await recipient.export(bytes("message/bhttp response"), 16);
    const nonce = crypto.getRandomValues(new Uint8Array(16));
    // WebCrypto's own HKDF, which the page does not use.
    const material = await crypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
    const derive = (info, length) => crypto.subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt: concat(enc, nonce), info: bytes(info) }, material, length * 8);
    const key = await crypto.subtle.importKey("raw", await derive("key", 16), "AES-GCM", false, ["encrypt"]);
    const iv = await derive("nonce", 12);
    return concat(nonce, new Uint8Array(await crypto.subtle.encrypt({ name: "AES-GCM", iv }, key, response)));
  };
  return { keyConfig, answer };
}

export const tests = {
  async "RFC 9180, A.1.1: base mode of X25519, HKDF-SHA256, AES-128-GCM"() {
    const keys = await pair("52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736", "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431");
    const recipient = unhex("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d");
    const context = await setupBaseS(recipient, unhex("4f6465206f6e2061204772656369616e2055726e"), keys);
    assert.equal(hex(context.enc), "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431");
    const sealed = await context.seal(bytes("Beauty is truth, truth beauty"), bytes("Count-0"));
    assert.equal(hex(sealed), "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a");
    for (const [label, value] of [
      ["", "3853fe2b4035195a573ffc53856e77058e15d9ea064de3e59f4961d0095250ee"],
      ["\0", "2e8f0b54673c7029649d4eb9d5e33bf1872cf76d623ff164ac185da9e88c21a5"],
      ["TestContext", "e9e43065102c3836401bed8c3c3c75ae46be1639869391d62c61f1ec7af54931"],
    ]) assert.equal(hex(await context.exported(label, 32)), value);
    await assert.rejects(context.seal(bytes("a second message")), /one message/);
  },

  async "RFC 9458, appendix A: a request and its response"() {
    const keyConfig = unhex("01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003");
    const keys = await pair("bc51d5e930bda26589890ac7032f70ad12e4ecb37abb1b65b1256c9c48999c73", "4b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b472");
    const { request, open } = await encapsulate(keyConfig, unhex("00034745540568747470730b6578616d706c652e636f6d012f"), keys);
    assert.equal(hex(request), "010020000100014b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b4726374e469135906992e1268c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525");
    const response = unhex("c789e7151fcba46158ca84b04464910d86f9013e404feea014e7be4a441f234f857fbd");
    const opened = await open(response);
    assert.equal(hex(opened), "0140c8");
    assert.deepEqual([readResponse(opened).status, readResponse(opened).body.length], [200, 0]);
    // Any byte of it, and any end of it.
    for (let i = 0; i < response.length; i++) await assert.rejects(open(altered(response, i)), /cannot be decrypted/, `byte ${i}`);
    for (let length = 0; length < response.length; length++) await assert.rejects(open(response.slice(0, length)), /cut short|cannot be decrypted/, `${length} bytes`);
  },

  async "a gateway of @hpke/core and bhttp-js understands, and is understood"() {
    const { keyConfig, answer } = await gateway(0xfe);
    const seen = new Set();
    // Around where lengths take more bytes, and where the next bucket begins.
    for (const length of [0, 1, 63, 64, 900, 1024, 16383, 16384, 70000]) {
      const [asked, answered] = ["a", "ä"].map((letter) => letter.repeat(length));
      const message = writeRequest({ method: "POST", path: "/v2/models/m/infer", headers: { "Content-Type": "application/json" }, body: asked });
      const plain = padded(message);
      assert.ok(plain.length >= 1024 && Number.isInteger(Math.log2(plain.length)) && (plain.length === 1024 || plain.length < 2 * message.length), `${plain.length} bytes`);
      const { request, open } = await encapsulate(keyConfig, plain);
      assert.equal(request.length, 7 + 32 + plain.length + 16);
      seen.add(hex(request.slice(7, 39)));
      const sealed = await answer(request, async (received) => {
        assert.equal(hex(received), hex(plain));
        assert.ok(text(message).includes("content-type"), "names are in lower case");
        const decoded = new BHttpDecoder().decodeRequest(received.slice(0, message.length));
        assert.deepEqual([decoded.method, decoded.url, decoded.headers.get("content-type")], ["POST", "https://enclave/v2/models/m/infer", "application/json"]);
        assert.equal(await decoded.text(), asked);
        const encoded = await new BHttpEncoder().encodeResponse(new Response(answered, { status: 418, headers: { "x-one": "1" } }));
        return padded(new Uint8Array(encoded));
      });
      const { status, headers, body } = readResponse(await open(sealed));
      assert.deepEqual([status, headers.get("x-one"), text(body)], [418, "1", answered]);
      await assert.rejects(open(altered(sealed, -1)), /cannot be decrypted/);
      const other = await encapsulate(keyConfig, plain);
      await assert.rejects(other.open(sealed), /cannot be decrypted/, "another request's");
      // What is altered on the way, the gateway cannot open.
      for (const at of [3, 20, 50, -1]) await assert.rejects(answer(altered(request, at), () => assert.fail("it was opened")), (error) => !/it was opened/.test(error.message));
    }
    assert.equal(seen.size, 9, "each has a key of its own");
  },

  async "lengths are padded as the Rust client pads them"() {
    for (const [length, expected] of [[0, 1024], [1023, 1024], [1024, 1024], [1025, 2048], [2048, 2048], [2049, 4096]]) {
      const message = new Uint8Array(length).fill(7);
      assert.equal(hex(padded(message)), hex(concat(message, new Uint8Array(expected - length))));
    }
  },

  async "RFC 9292: responses with trailers, informational ones, and what is no response"() {
    // Figure 13.
    const figure = unhex("0140c8001d5468697320636f6e74656e7420636f6e7461696e732043524c462e0d0a0d07747261696c65720474657874");
    assert.deepEqual([readResponse(figure).status, text(readResponse(figure).body)], [200, "This content contains CRLF.\r\n"]);
    assert.equal(readResponse(unhex("0140660040c8 00 00 00 000000")).status, 200);
    for (const [message, reason] of [
      ["", /cut short/], ["01", /cut short/], ["0140", /cut short/], ["014066", /cut short/],
      ["0040c8", /no response of known length/], ["0340c8", /no response of known length/],
      ["014063", /99/], ["014258", /600/],
      ["0140c805", /cut short/], ["0140c8020161", /cut short/], ["0140c80003", /cut short/], ["0140c80000000001", /behind its end/],
      ["0140c800ffffffffffffffff", /cannot be/], ["0140c80401ff0161", /./],
    ]) assert.throws(() => readResponse(unhex(message)), reason, message);
    // Cut anywhere, it is an error, or has lost nothing but what may be left out: never another content.
    for (let length = 0; length < figure.length; length++) {
      let cut;
      try { cut = readResponse(figure.slice(0, length)); } catch { continue; }
      assert.ok(["", text(readResponse(figure).body)].includes(text(cut.body)), `${length} bytes`);
    }
  },

  async "key configurations that cannot be used are errors"() {
    const good = (await gateway(7)).keyConfig;
    assert.equal(readKeyConfig(good).id, 7);
    for (let length = 0; length < good.length; length++) assert.throws(() => readKeyConfig(good.slice(0, length)), /cut short/, `${length} bytes`);
    for (const [config, reason] of [
      [concat(good, Uint8Array.of(0)), /behind its end/],
      [good.with(2, 0x10), /KEM 16/],
      [concat(good.slice(0, 35), unhex("0004 0001 0003")), /does not take/],
      [concat(good.slice(0, 35), unhex("0000")), /does not take/],
      [concat(good.slice(0, 35), unhex("0003 000100")), /cut short/],
    ]) assert.throws(() => readKeyConfig(config), reason);
    // Keys of small order (RFC 7748, section 6.1).
    for (const key of ["00".repeat(32), `01${"00".repeat(31)}`]) {
      await assert.rejects(encapsulate(concat(good.slice(0, 3), unhex(key), good.slice(35)), bytes("secret")), /not one to encrypt for/, key);
    }
  },

  async "a browser without X25519 is told so"() {
    const { keyConfig } = await gateway(1);
    const { generateKey } = globalThis.crypto.subtle;
    globalThis.crypto.subtle.generateKey = async () => { throw new DOMException("no", "NotSupportedError"); };
    try {
      await assert.rejects(ephemeral(), /no X25519/);
      await assert.rejects(encapsulate(keyConfig, bytes("secret")), /no X25519/);
    } finally {
      globalThis.crypto.subtle.generateKey = generateKey;
    }
  },
};
