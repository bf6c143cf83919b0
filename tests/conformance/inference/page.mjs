// The verifying proxy's page as a person uses it, in headless Chromium.
//
// Usage: page.mjs ENCLOS ENCLAVE MODELS WORK PYTHON. Starts the service with two models and the proxy. Digits are drawn with the
// mouse; what the page shows is compared with what ONNX Runtime says of the pixels that the page says it sent. Errors on the
// console and requests to other origins fail the test in which they happen.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, connect } from "node:net";
import { join } from "node:path";
import { chromium } from "playwright-core";

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

/** What ONNX Runtime says of these pixels. */
function expected(model, pixels) {
  const program = "import json, sys, numpy, onnxruntime\npath, row = json.load(sys.stdin)\nlabels, probabilities = onnxruntime.InferenceSession(path).run(None, {'X': numpy.array([row], dtype=numpy.float32)})[:2]\nprint(json.dumps([int(labels[0]), [float(p) for p in probabilities[0].values()]]))";
  const done = spawnSync(PYTHON, ["-c", program], { input: JSON.stringify([join(MODELS, `${model}.onnx`), pixels]), encoding: "utf8" });
  assert.equal(done.status, 0, done.stderr);
  return JSON.parse(done.stdout);
}

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
let passed = 0, failed = 0;

async function test(name, run, { at = origin, expects = /^$/, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, ...options });
  const page = await context.newPage();
  const problems = [];
  page.on("console", (entry) => { if (["error", "warning"].includes(entry.type()) && !/status of [45]\d\d/.test(entry.text())) problems.push(entry.text()); });
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(`${at}/`) && !request.url().startsWith("data:")) problems.push(`a request to ${request.url()}`); });
  try {
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
  assert.match(await page.locator(".proof").innerText(), /proves nothing by itself/);
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
    }
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

// A host that offers a key of its own, with the enclave's evidence.
const offer = await fetch(`${server.said.url}/.well-known/enclos-inference`).then((response) => response.json());
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
