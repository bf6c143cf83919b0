// The verifying proxy's page as a person uses it, in headless Chromium.
//
// Usage: page.mjs ENCLOS ENCLAVE MODELS WORK PYTHON. Starts the service with two models and the proxy. Digits are drawn with the
// mouse; what the page shows is compared with what ONNX Runtime says of the pixels that the page says it sent. Errors on the
// console, requests to other origins and anything that is sent in plain fail the test in which they happen. Before that, the
// page's encryption alone: ohttp.mjs.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, connect } from "node:net";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { tests as encryption } from "./ohttp.mjs";

const [ENCLOS, ENCLAVE, MODELS, WORK, PYTHON] = process.argv.slice(2);
const folder = mkdtempSync(join(WORK, "page-"));
const client = join(folder, "client");
const env = { ...process.env, ENCLOS_STATE: join(WORK, "state"), ENCLOS_PLATFORM: "emulated" };
const started = [];

/** Starts a command that says with one line of JSON where it is. */
async function start(...given) {
  const child = spawn(ENCLOS, [...given, "--json"], { env, stdio: ["ignore", "pipe", "pipe"] });
  const process = { child, log: "", out: "" };
  started.push(process);
  child.stderr.on("data", (data) => { process.log += data; });
  await new Promise((done) => {
    child.stdout.on("data", (data) => { process.out += data; if (process.out.includes("\n")) done(); });
    child.on("exit", done);
  });
  if (!process.out.startsWith("{")) throw new Error(`${given[0]} does not start: ${process.log}`);
  return { ...process, said: JSON.parse(process.out.split("\n")[0]) };
}

async function stop(child) {
  child.kill("SIGTERM");
  if (child.exitCode === null) await new Promise((done) => child.on("exit", done));
}

const server = await start("inference", "--model", join(MODELS, "mlp.onnx"), "--model", join(MODELS, "forest.onnx"), "--enclave", ENCLAVE, "--listen", "127.0.0.1:0", "--write-policy", client);
// What goes to the server passes here, and is counted by path.
const sent = [];
let target = new URL(server.said.url);
const relay = createServer((near) => {
  const far = connect(Number(target.port), target.hostname);
  near.on("data", (data) => { const [, line] = /^((?:GET|POST) \S+) HTTP/m.exec(data.toString("latin1")) ?? []; if (line) sent.push(line); });
  near.pipe(far).pipe(near);
  for (const socket of [near, far]) socket.on("error", () => { near.destroy(); far.destroy(); });
});
await new Promise((done) => relay.listen(0, "127.0.0.1", done));
const proxy = await start("inference-proxy", "--server", `http://127.0.0.1:${relay.address().port}`, "--policy", join(client, "policy.toml"), "--collateral", join(client, "collateral.json"), "--listen", "127.0.0.1:0");
const origin = proxy.said.url;
const GATEWAY = "POST /.well-known/ohttp-gateway";
const OFFER = "GET /.well-known/enclos-inference";
const offer = await fetch(`${server.said.url}/.well-known/enclos-inference`).then((response) => response.json());

/** What ONNX Runtime says of these pixels. */
function expected(model, pixels) {
  const program = "import json, sys, numpy, onnxruntime\npath, row = json.load(sys.stdin)\nlabels, probabilities = onnxruntime.InferenceSession(path).run(None, {'X': numpy.array([row], dtype=numpy.float32)})[:2]\nprint(json.dumps([int(labels[0]), [float(p) for p in probabilities[0].values()]]))";
  const done = spawnSync(PYTHON, ["-c", program], { input: JSON.stringify([join(MODELS, `${model}.onnx`), pixels]), encoding: "utf8" });
  assert.equal(done.status, 0, done.stderr);
  return JSON.parse(done.stdout);
}

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
let passed = 0, failed = 0;

for (const [name, run] of Object.entries(encryption)) {
  try {
    await run();
    passed++;
    console.log("ok    encryption:", name);
  } catch (error) {
    failed++;
    console.log("FAILED encryption:", name, "-", String(error.stack ?? error).slice(0, 1500));
  }
}

/** What a page sent with POST, by page. */
const posts = new WeakMap();
/** Words of requests; of four letters at least, so that ciphertext does not have them by chance. */
const PLAIN = /inputs|datatype|FP32|models|infer|versions|POST|https|enclave|content-type/;

/** Why a request is not one that the page may send. */
function forbidden(request, at) {
  const { pathname, search, origin: to } = new URL(request.url());
  if (request.url().startsWith("data:")) return null;
  if (to !== at) return `a request to ${request.url()}`;
  if (request.method() === "GET") return ["/", "/page.js", "/offer.js", "/ohttp.js", "/style.css", "/verdict", "/verdict?anew"].includes(pathname + search) ? null : `GET ${pathname}${search}`;
  if (request.method() !== "POST" || pathname + search !== "/ohttp") return `${request.method()} ${pathname}${search}`;
  const body = request.postDataBuffer();
  if (request.headers()["content-type"] !== "message/ohttp-req") return `POST of ${request.headers()["content-type"]}`;
  const bucket = body.length - 7 - 32 - 16;
  if (bucket < 1024 || !Number.isInteger(Math.log2(bucket))) return `${body.length} bytes are not padded`;
  const [plain] = PLAIN.exec(body.toString("latin1")) ?? [];
  return plain ? `${plain} in plain` : null;
}

async function test(name, run, { at = origin, expects = /^$/, before = async () => {}, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, ...options });
  const page = await context.newPage();
  const problems = [];
  page.on("console", (entry) => { if (["error", "warning"].includes(entry.type()) && !/status of [45]\d\d/.test(entry.text())) problems.push(entry.text()); });
  page.on("pageerror", (error) => problems.push(String(error)));
  posts.set(page, []);
  page.on("request", (request) => {
    if (request.method() === "POST") posts.get(page).push(request);
    const problem = forbidden(request, at);
    if (problem) problems.push(problem);
  });
  try {
    await before(page);
    await page.goto(`${at}/`);
    await page.locator("body[data-ready]").waitFor();
    await run(page);
    assert.deepEqual(problems.filter((problem) => !expects.test(problem)), []);
    passed++;
    console.log("ok    page:", name);
  } catch (error) {
    failed++;
    console.log("FAILED page:", name, "-", String(error.stack ?? error).slice(0, 1500));
    await page.screenshot({ path: join(WORK, "failed.png"), fullPage: true });
  }
  await context.close();
}

// Strokes in hundredths of the canvas.
const circle = (x, y, wide, high) => Array.from({ length: 25 }, (_, i) => [x + wide * Math.sin(i * Math.PI / 12), y - high * Math.cos(i * Math.PI / 12)]);
const DIGITS = {
  0: [circle(50, 50, 20, 34)],
  1: [[[38, 30], [52, 15], [52, 85]]],
  3: [[[30, 18], [66, 18], [46, 46], [66, 60], [60, 82], [30, 84]]],
  4: [[[55, 15], [25, 58], [75, 58]], [[60, 38], [60, 88]]],
  7: [[[28, 18], [70, 18], [44, 86]], [[36, 52], [66, 52]]],
};

async function draw(page, strokes) {
  await page.locator("#clear").click();
  const box = await page.locator("#canvas").boundingBox();
  const place = ([x, y]) => [box.x + box.width * x / 100, box.y + box.height * y / 100];
  for (const [first, ...others] of strokes) {
    await page.mouse.move(...place(first));
    await page.mouse.down();
    for (const point of others) await page.mouse.move(...place(point), { steps: 4 });
    await page.mouse.up();
  }
}

const pixels = async (page) => (await page.locator("#pixels").inputValue()).trim().split(/\s+/).map(Number);

async function ask(page) {
  await page.locator("#ask").click();
  await page.locator("#ask:not([disabled])").waitFor();
}

await test("who answers is shown: measurement, models, and that the platform is emulated", async (page) => {
  const shown = page.locator("#identity");
  assert.equal(await shown.getAttribute("data-tone"), "warn");
  const text = await shown.innerText();
  assert.ok(text.includes(server.said.mrenclave), text);
  for (const { name, sha256 } of proxy.said.models) assert.ok(text.includes(name) && text.includes(sha256), text);
  assert.match(text, /Accepted by the policy, but emulated/);
  assert.match(text, /PROTECTS NOTHING/);
  const key = createHash("sha256").update(Buffer.from(offer.key_config, "base64")).digest("hex");
  assert.ok(text.includes(key), text);
  const proof = await page.locator(".proof").innerText();
  for (const said of [/checks itself/, /proxy relays what it cannot\s+read/, /takes the proxy's word/, /code comes from the proxy/, /proves nothing at all/]) assert.match(proof, said);
});
for (const model of ["mlp", "forest"]) {
  await test(`digits that are drawn get the answer of ONNX Runtime: ${model}`, async (page) => {
    await page.locator("#model").selectOption(model);
    let right = 0;
    for (const [digit, strokes] of Object.entries(DIGITS)) {
      await draw(page, strokes);
      const row = await pixels(page);
      assert.equal(row.length, 64);
      assert.ok(Math.max(...row) > 10 && Math.min(...row) < 2 && Math.max(...row) <= 16, `ink and paper: ${row}`);
      await ask(page);
      const [label, probabilities] = expected(model, row);
      assert.equal(await page.locator("#digit").innerText(), String(label), `${digit} as ${row}`);
      const shown = await page.locator("#answer meter").evaluateAll((meters) => meters.map((meter) => meter.value));
      assert.equal(shown.length, 10);
      for (const [i, value] of shown.entries()) assert.ok(Math.abs(value - probabilities[i]) < 1e-4, `${value} instead of ${probabilities[i]}`);
      right += label === Number(digit);
      const text = await page.locator("#answer").innerText();
      assert.ok(text.includes(server.said.mrenclave) && text.includes(proxy.said.models.find(({ name }) => name === model).sha256), text);
      assert.match(text, /emulated: protects nothing/);
      const [shownKey] = /(?<=for the key\s+SHA-256 )[0-9a-f]{64}/.exec(text);
      assert.equal(shownKey, createHash("sha256").update(Buffer.from(offer.key_config, "base64")).digest("hex"));
      const [bytesSent] = /(?<=sent\s+)\d+(?= bytes)/.exec(text);
      assert.equal(Number(bytesSent), posts.get(page).at(-1).postDataBuffer().length);
    }
    // One for the metadata of each model, one for each digit; each for a key of its own.
    const sealed = posts.get(page).map((request) => request.postDataBuffer().subarray(7, 39).toString("hex"));
    assert.equal(sealed.length, 2 + Object.keys(DIGITS).length);
    assert.equal(new Set(sealed).size, sealed.length);
    // A mouse is no pen of 1995; but a reduction that did not resemble the data set's would be no better than chance.
    assert.ok(right >= 3, `${right} of ${Object.keys(DIGITS).length} are what was drawn`);
    await page.screenshot({ path: join(WORK, `page-${model}.png`), fullPage: true });
  });
}
await test("the numbers may be written, and wrong ones are not sent", async (page) => {
  const row = Array.from({ length: 64 }, (_, i) => i % 17);
  await page.locator("#pixels").fill(row.join(" "));
  await ask(page);
  assert.equal(await page.locator("#digit").innerText(), String(expected("mlp", row)[0]));
  const before = sent.filter((line) => line.startsWith("POST")).length;
  for (const wrong of ["1 2 3", row.join(" ").replace("16", "17"), row.join(" ").replace("16", "x"), Array(64).fill(0).join(" ")]) {
    await page.locator("#pixels").fill(wrong);
    await ask(page);
    assert.ok((await page.locator("#message").innerText()).length > 10, wrong);
    assert.equal(await page.locator("#digit").count(), 0);
  }
  assert.equal(sent.filter((line) => line.startsWith("POST")).length, before);
});
await test("the page may load nothing else, and nobody may frame it", async (page) => {
  const { headers } = await fetch(`${origin}/`).then((response) => ({ headers: response.headers }));
  assert.match(headers.get("content-security-policy"), /default-src 'none'.*frame-ancestors 'none'/);
  const isStopped = await page.evaluate(() => new Promise((done) => {
    document.addEventListener("securitypolicyviolation", () => done(true));
    const image = document.createElement("img");
    image.src = "http://127.0.0.1:1/";
    setTimeout(() => done(false), 3000);
  }));
  assert.ok(isStopped);
  const framed = await fetch(`${origin}/`, { headers: { Origin: "https://attacker.example" } });
  assert.equal(framed.status, 403);
}, { expects: /127\.0\.0\.1:1\// });
await test("a narrow window does not scroll sideways", async (page) => {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wide <= 0, `${wide} pixels`);
}, { viewport: { width: 390, height: 800 } });

/** Has the page be told something else by the proxy. */
const intercepted = (path, change) => (page) => page.route((url) => url.pathname === path, async (route) => {
  const response = await route.fetch();
  await route.fulfill(await change(response, route));
});
const verdictWith = (change) => intercepted("/verdict", async (response) => {
  const said = await response.json();
  change(said);
  return { response, json: said };
});
const inBase64 = (change) => (text) => {
  const data = [...Buffer.from(text, "base64")];
  change(data);
  return Buffer.from(data).toString("base64");
};
const flip = (at) => inBase64((data) => { data[at] ^= 1; });
const otherHash = (hash) => (hash[0] === "0" ? "1" : "0") + hash.slice(1);

for (const [what, reason, change] of [
  ["another key", /does not vouch for this key/, (said) => { said.key_config = flip(10)(said.key_config); }],
  ["the key's identifier", /does not vouch for this key/, (said) => { said.key_config = flip(0)(said.key_config); }],
  ["no key", /not base64|does not vouch/, (said) => { delete said.key_config; }],
  ["a key that is not base64", /not base64/, (said) => { said.key_config = "!"; }],
  ["MRENCLAVE of the verdict", /evidence is of the enclave/, ({ verdict: { appraisal: { identity } } }) => { identity.mr_enclave = otherHash(identity.mr_enclave); }],
  ["MRENCLAVE of the evidence", /evidence is of the enclave/, (said) => { said.evidence = flip(48 + 64)(said.evidence); }],
  ["the report data", /does not vouch for this key/, (said) => { said.evidence = flip(48 + 320 + 31)(said.evidence); }],
  ["the report data's second half", /does not vouch for this key/, (said) => { said.evidence = flip(48 + 320 + 63)(said.evidence); }],
  ["evidence that is cut short", /ends within its body/, (said) => { said.evidence = inBase64((data) => { data.length = 431; })(said.evidence); }],
  ["evidence of another version", /its version is 2/, (said) => { said.evidence = inBase64((data) => { data[0] = 2; })(said.evidence); }],
  ["evidence of a trust domain", /not of an SGX enclave/, (said) => { said.evidence = inBase64((data) => { data[0] = 4; data[4] = 0x81; })(said.evidence); }],
  ["no evidence", /not base64|no quote/, (said) => { delete said.evidence; }],
  ["a model's hash", /does not vouch for this key and these models/, (said) => { for (const models of [said.models, said.offered_models]) models[0].sha256 = otherHash(models[0].sha256); }],
  ["a model's hash, only of those to ask", /does not vouch for the models to ask/, (said) => { said.models[0].sha256 = otherHash(said.models[0].sha256); }],
  ["a model's name", /does not vouch for this key and these models/, (said) => { for (const models of [said.models, said.offered_models]) models[0].name = "other"; }],
  ["a model less", /does not vouch for this key and these models/, (said) => { said.offered_models.pop(); }],
  ["a model more", /does not vouch for this key and these models/, (said) => { said.offered_models.push(said.offered_models[0]); }],
  ["a hash that is none", /no SHA-256/, (said) => { said.offered_models[0].sha256 = "xy"; }],
  ["a verdict that accepts nobody", /does not accept/, (said) => { said.verdict.accepted = false; }],
  ["an identity that is not SGX's", /does not accept/, (said) => { said.verdict.appraisal.identity.kind = "tdx"; }],
]) {
  await test(`nothing is sent when the proxy's word does not fit: ${what}`, async (page) => {
    const before = sent.length;
    for (const isAsked of [false, true]) {
      if (isAsked) {
        await draw(page, DIGITS[3]);
        await ask(page);
      }
      assert.equal(await page.locator("#identity").getAttribute("data-tone"), "bad");
      assert.match(await page.locator("#identity").innerText(), /nothing is sent/);
      assert.match(await page.locator("#identity").innerText(), reason);
    }
    assert.equal(await page.locator("#digit").count(), 0);
    assert.deepEqual(posts.get(page), []);
    assert.deepEqual(sent.slice(before).filter((line) => line.startsWith("POST")), []);
  }, { before: verdictWith(change) });
}
await test("so that it is not the test that refuses: the same verdict, passed on unaltered", async (page) => {
  await draw(page, DIGITS[3]);
  await ask(page);
  assert.equal(await page.locator("#digit").count(), 1);
}, { before: verdictWith(() => {}) });

await test("a verdict that changes after the page was loaded is checked again", async (page) => {
  await draw(page, DIGITS[3]);
  const before = posts.get(page).length;
  await verdictWith((said) => { said.key_config = flip(10)(said.key_config); })(page);
  await ask(page);
  assert.equal(await page.locator("#identity").getAttribute("data-tone"), "bad");
  assert.equal(posts.get(page).length, before);
});
await test("a response that was altered on the way is an error", async (page) => {
  await draw(page, DIGITS[3]);
  for (const at of [0, 20, -1]) {
    await intercepted("/ohttp", async (response) => {
      const body = await response.body();
      body[at < 0 ? body.length + at : at] ^= 1;
      return { response, body };
    })(page);
    await ask(page);
    assert.match(await page.locator("#message").innerText(), /cannot be decrypted/);
    assert.equal(await page.locator("#digit").count(), 0);
    await page.unrouteAll();
  }
  await ask(page);
  assert.equal(await page.locator("#digit").count(), 1);
});
await test("nothing but what was encrypted for this request is an answer", async (page) => {
  await draw(page, DIGITS[3]);
  let last;
  for (const [fulfilled, reason] of [
    [{ status: 200, contentType: "application/json", body: '{"outputs":[]}' }, /not encrypted/],
    [{ status: 503, contentType: "application/problem+json", body: '{"detail":"as many requests wait as may"}' }, /as many requests wait/],
    [{ status: 502, contentType: "application/json", body: '{"error":"the server is gone"}' }, /the server is gone/],
    [{ status: 500, contentType: "text/html", body: "<b>" }, /status 500/],
    [{ status: 200, contentType: "message/ohttp-res", body: "" }, /cut short/],
    ["another request's", /cannot be decrypted/],
  ]) {
    await page.route((url) => url.pathname === "/ohttp", async (route) => {
      const response = await route.fetch();
      last ??= await response.body();
      await route.fulfill(typeof fulfilled === "string" ? { response, body: last } : fulfilled);
    });
    await ask(page);
    assert.match(await page.locator("#message").innerText(), reason);
    assert.equal(await page.locator("#digit").count(), 0);
    await page.unrouteAll();
  }
});
await test("an error of the enclave's is decrypted and shown", async (page) => {
  await draw(page, DIGITS[3]);
  await page.locator("#model option:checked").evaluate((option) => { option.dataset.input = "no such input"; });
  await ask(page);
  assert.match(await page.locator("#message").innerText(), /The enclave answers 400: .*no such input/);
  assert.equal(await page.locator("#digit").count(), 0);
});
await test("a gateway that only says that the key is old is asked no second time", async (page) => {
  await draw(page, DIGITS[3]);
  const before = posts.get(page).length;
  await page.route((url) => url.pathname === "/ohttp", (route) => route.fulfill({ status: 400, contentType: "application/problem+json", body: '{"detail":"the key is not in use"}' }));
  await ask(page);
  assert.match(await page.locator("#message").innerText(), /the key is not in use/);
  assert.equal(posts.get(page).length, before + 1);
});
await test("a browser without X25519 says so, and sends nothing", async (page) => {
  assert.match(await page.locator("#identity").innerText(), /nothing is sent[^]*no X25519/);
  await draw(page, DIGITS[3]);
  await ask(page);
  assert.equal(await page.locator("#digit").count(), 0);
  assert.deepEqual(posts.get(page), []);
}, { before: (page) => page.addInitScript(() => { crypto.subtle.generateKey = async () => { throw new DOMException("Unrecognized name.", "NotSupportedError"); }; }) });
await test("an enclave that was started anew has another key: judged anew, then asked once more", async (page) => {
  await draw(page, DIGITS[3]);
  const row = await pixels(page);
  await stop(server.child);
  const next = await start("inference", "--model", join(MODELS, "mlp.onnx"), "--model", join(MODELS, "forest.onnx"), "--enclave", ENCLAVE, "--listen", "127.0.0.1:0");
  server.child = next.child;
  target = new URL(next.said.url);
  const [before, posted] = [sent.length, posts.get(page).length];
  await ask(page);
  assert.equal(await page.locator("#digit").innerText(), String(expected("mlp", row)[0]));
  assert.deepEqual(sent.slice(before), [GATEWAY, OFFER, GATEWAY]);
  assert.equal(posts.get(page).length, posted + 2);
  const newer = await fetch(`${next.said.url}/.well-known/enclos-inference`).then((response) => response.json());
  assert.notEqual(newer.key_config, offer.key_config);
  const fingerprint = createHash("sha256").update(Buffer.from(newer.key_config, "base64")).digest("hex");
  for (const part of ["#identity", "#answer"]) assert.ok((await page.locator(part).innerText()).includes(fingerprint), part);
  assert.deepEqual(sent.filter((line) => ![GATEWAY, OFFER].includes(line)), [], "of all tests: the proxy sends nothing else");
});

// A host that offers a key of its own, with the enclave's evidence.
const key = Buffer.from(offer.key_config, "base64");
key[10] ^= 1;
const FORGED = JSON.stringify({ ...offer, key_config: key.toString("base64") });
await test("a server that is refused is shown as such, and gets nothing", async (page) => {
  await draw(page, DIGITS[3]);
  await stop(server.child);
  const other = createServer((near) => {
    const head = `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: ${FORGED.length}\r\n\r\n`;
    near.once("data", () => near.end(head + FORGED));
    near.on("error", () => {});
  });
  await new Promise((done) => other.listen(0, "127.0.0.1", done));
  target = new URL(`http://127.0.0.1:${other.address().port}`);
  // What is sent for the key verified before, this host cannot read; its answer has the proxy verify anew.
  await ask(page);
  const before = sent.length;
  await ask(page);
  assert.equal(await page.locator("#identity").getAttribute("data-tone"), "bad");
  assert.match(await page.locator("#identity").innerText(), /Nobody is accepted: nothing is sent/);
  assert.match(await page.locator("#identity").innerText(), /refused|evidence|offer/);
  assert.equal(await page.locator("#digit").count(), 0);
  assert.deepEqual(sent.slice(before).filter((line) => line === GATEWAY), [], "nothing was sent");
  await page.screenshot({ path: join(WORK, "page-refused.png"), fullPage: true });
  other.close();
});

await browser.close();
relay.close();
for (const { child, log } of started) {
  await stop(child);
  if (log.includes("panicked")) { failed++; console.log("FAILED a program panicked", log.slice(-2000)); }
}
if (!failed) rmSync(folder, { recursive: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
