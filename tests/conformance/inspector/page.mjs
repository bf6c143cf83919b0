// The evidence inspector as a person uses it, in headless Chromium.
//
// Usage: page.mjs SERVICE QUOTES WORK. Starts the service with recorded collateral judged at its time. Any error on the
// console and any request to another origin fails the test in which it happens. Screenshots go to WORK.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [SERVICE, QUOTES, WORK] = process.argv.slice(2);
const folder = mkdtempSync(join(WORK, "run-"));
const rows = JSON.parse(readFileSync(join(QUOTES, "verdicts.json"), "utf8"));
const read = (name) => readFileSync(join(QUOTES, name));

async function freePort() {
  const server = createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

/** Starts a service on a free port; everything is stopped at the end. */
const services = [];
async function start(name, configuration) {
  const port = await freePort();
  const path = join(folder, `${name}.toml`);
  writeFileSync(path, `listen = "127.0.0.1:${port}"\ndata = "${name}"\n${configuration}\n[[tenant]]\nhost = "127.0.0.1"\n`);
  const child = spawn(SERVICE, [path], { stdio: ["ignore", "ignore", "pipe"] });
  const service = { child, origin: `http://127.0.0.1:${port}`, log: "" };
  services.push(service);
  child.stderr.on("data", (data) => { service.log += data; });
  for (let tries = 0; ; tries++) {
    try { if ((await fetch(`${service.origin}/health`)).ok) return service; } catch { /* not yet */ }
    if (tries > 100 || child.exitCode !== null) throw new Error(`the service does not start: ${service.log}`);
    await new Promise((done) => setTimeout(done, 100));
  }
}

cpSync(join(QUOTES, "collateral"), join(folder, "collateral"), { recursive: true });
// One judges at the present, by recorded collateral; the other accepts the root of a made-up, hence emulated, platform.
const { origin } = await start("present", `collateral = "collateral"`);
const made = JSON.parse(readFileSync(join(WORK, "made", "made.json"), "utf8"));
const madeQuote = readFileSync(join(WORK, "made", "quote.bin"));
const accepting = await start("accepting", `collateral = ${JSON.stringify(join(WORK, "made", "collateral"))}
evidence_time = "${made.time}"
emulated_roots = ["${made.root}"]`);
const attested = await fetch(`${accepting.origin}/attest/SgxEnclave?api-version=2020-10-01`, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ quote: madeQuote.toString("base64url") }),
});
const { token } = await attested.json();
assert.ok(token, "the service makes a token");

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
let passed = 0, failed = 0;

/** Runs a test on a fresh page; whatever the page complains of is a failure. */
async function test(name, run, { at = origin, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const problems = [];
  page.on("console", (entry) => { if (["error", "warning"].includes(entry.type()) && !/status of 4\d\d/.test(entry.text())) problems.push(entry.text()); });
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(`${at}/`)) problems.push(`a request to ${request.url()}`); });
  try {
    await page.goto(`${at}/inspector`);
    await run(page);
    assert.deepEqual(problems, []);
    passed++;
    console.log("ok    page:", name);
  } catch (error) {
    failed++;
    console.log("FAILED page:", name, "-", String(error.message ?? error).slice(0, 1500));
    await page.screenshot({ path: join(WORK, "failed.png"), fullPage: true });
  }
  await context.close();
}

const shoot = (page, name) => page.screenshot({ path: join(WORK, `${name}.png`), fullPage: true });
const isoTime = (seconds) => new Date(seconds * 1000).toISOString().replace(".000", "");
const tone = (page) => page.locator("#verdict").getAttribute("data-tone");
const title = (page) => page.locator("#verdict h2").innerText();

async function paste(page, text, { collateral, time } = {}) {
  await page.locator("#evidence").fill(text);
  await page.locator("#options").evaluate((details) => { details.open = true; });
  await page.locator("#collateral").fill(collateral ?? "");
  await page.locator("#time").fill(time ?? "");
  await page.locator("#inspect").click();
  await page.locator("#verdict, #message:not(:empty)").first().waitFor();
  await page.locator("#result[aria-busy]").waitFor({ state: "detached" });
}

const sgx = rows.find((row) => row.key === "dcapqvl_sgx_v3");
const given = (row) => ({ collateral: read(row.collateral).toString(), time: isoTime(row.time) });

// In order of Intel's verifier: PCK=… TCB=… QeIdentity=… Quote=…
const ORDER = ["pck_chain", "tcb_info", "qe_identity", "quote"];
const withCollateral = rows.filter((row) => row.collateral && existsSync(join(QUOTES, row.collateral)) && /PCK=/.test(row.intel_qvl));
assert.ok(withCollateral.length >= 30, "recorded verdicts are missing");
await test(`${withCollateral.length} recorded quotes show the verdict of Intel's verifier`, async (page) => {
  for (const row of withCollateral) {
    await paste(page, read(row.quote).toString("base64"), given(row));
    const wanted = [...row.intel_qvl.matchAll(/=(?:STATUS_)?([A-Z_]+)/g)].map((match) => match[1]);
    if (wanted[3] === "UNSUPPORTED_QUOTE_FORMAT") {
      assert.match(await page.locator("#message").innerText(), /cannot be inspected: .{20}/, row.key);
      continue;
    }
    const shown = [];
    for (const check of ORDER) shown.push(await page.locator(`[data-check=${check}] code`).innerText());
    // The one documented difference: roots are pinned by key, so a re-issued root certificate is trusted.
    if (wanted[0] === "SGX_PCK_CERT_CHAIN_UNTRUSTED") wanted[0] = "OK";
    assert.deepEqual(shown, wanted, row.key);
  }
});
await test("a quote is drawn: chain, bars, dates, identity", async (page) => {
  await paste(page, read(sgx.quote).toString("hex"), given(sgx));
  assert.equal(await tone(page), "warn");
  assert.equal(await page.locator("#chain li").count(), 5);
  assert.equal(await page.locator("#chain li[data-tone=good]").count(), 5);
  assert.equal(await page.locator("[data-part=sgx_platform] .bars li").count(), 8);
  assert.ok(await page.locator("#timeline rect").count() >= 7);
  assert.match(await page.locator("#result").innerText(), /MRENCLAVE/);
  await shoot(page, "quote");
});
await test("a trust domain has bars for platform, module and quoting enclave", async (page) => {
  const row = rows.find((candidate) => candidate.key === "dcapqvl_tdx_v4");
  await paste(page, read(row.quote).toString("base64url"), given(row));
  for (const part of ["sgx_platform", "tdx_platform", "quoting_enclave"]) assert.equal(await page.locator(`[data-part=${part}]`).count(), 1, part);
  assert.ok(await page.locator(".bars li.bad").count() > 0);
  await shoot(page, "trust-domain");
}, { colorScheme: "dark" });
await test("a file is dropped, and the service's own collateral is used", async (page) => {
  await page.locator("#file").setInputFiles(join(QUOTES, sgx.quote));
  await page.locator("#verdict").waitFor();
  // Recorded collateral has expired by now, and the page says what.
  assert.equal(await tone(page), "bad");
  assert.match(await page.locator("#verdict").innerText(), /EXPIRED/);
  const data = await page.evaluateHandle((bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "quote.bin"));
    return transfer;
  }, [...read(sgx.quote)]);
  await page.locator("#clear").click();
  await page.dispatchEvent("body", "drop", { dataTransfer: data });
  await page.locator("#verdict").waitFor();
});
for (const [name, link, detail] of [
  ["sgx_mrenclave_flip", "body", /not signed by its attestation key/], ["sgx_isv_sig_flip", "body", /not signed by its attestation key/],
  ["sgx_qesig_flip", "qe", /not signed by the PCK/], ["sgx_attkey_flip", "qe", /does not bind the attestation key/],
]) {
  await test(`${name} shows which signature failed`, async (page) => {
    const base = rows.find((row) => row.quote === `mutants/${name}.bin`);
    await paste(page, read(`mutants/${name}.bin`).toString("base64"), base?.collateral ? given(base) : given(sgx));
    assert.match(await title(page), /signature does not hold/);
    const broken = page.locator(`#chain li[data-link=${link}]`);
    assert.equal(await broken.getAttribute("data-tone"), "bad");
    assert.match(await broken.innerText(), detail);
    assert.equal(await page.locator("#chain li[data-link=leaf]").getAttribute("data-tone"), "good");
    if (name === "sgx_qesig_flip") await shoot(page, "broken");
  });
}
const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
await test("a token made by the service validates, and says that the platform is emulated", async (page) => {
  await paste(page, token);
  assert.equal(await tone(page), "good");
  assert.match(await page.locator("#emulated").innerText(), /PROTECTS NOTHING/);
  assert.match(await page.locator("#result").innerText(), /x-ms-sgx-mrenclave/);
  await shoot(page, "token");
  await paste(page, JSON.stringify({ token }));
  assert.equal(await tone(page), "good");
}, { at: accepting.origin });
await test("tokens that are not the service's are not validated", async (page) => {
  const [header, claims, signature] = token.split(".");
  const flipped = JSON.parse(Buffer.from(claims, "base64url"));
  flipped["x-ms-sgx-svn"] = 99;
  await paste(page, [header, encode(flipped), signature].join("."));
  assert.match(await title(page), /signature does not hold/);
  assert.equal(await tone(page), "bad");
  await paste(page, [encode({ alg: "RS256", kid: "another" }), claims, signature].join("."));
  assert.match(await title(page), /Not validated/);
  assert.equal(await tone(page), "unknown");
  await paste(page, [encode({ alg: "none" }), claims, ""].join("."));
  assert.equal(await title(page), "Not signed");
  const named = JSON.parse(Buffer.from(header, "base64url"));
  await paste(page, [encode({ ...named, alg: "none" }), claims, ""].join("."));
  assert.equal(await title(page), "Not signed");
}, { at: accepting.origin });
await test("emulated evidence is marked, and refused where its root is not accepted", async (page) => {
  await paste(page, madeQuote.toString("hex"));
  assert.match(await page.locator("#emulated").innerText(), /PROTECTS NOTHING/);
  assert.equal(await tone(page), "warn");
  await shoot(page, "emulated");
}, { at: accepting.origin });
await test("evidence under an unknown root is refused", async (page) => {
  const collateral = readFileSync(join(WORK, "made", "collateral", "made.json")).toString();
  await paste(page, madeQuote.toString("hex"), { collateral, time: made.time });
  assert.equal(await tone(page), "bad");
  assert.match(await page.locator("#verdict").innerText(), /unknown root/);
  assert.equal(await page.locator("#chain li[data-link=root]").getAttribute("data-tone"), "bad");
});
await test("evidence without collateral is not appraised, and says so", async (page) => {
  await paste(page, read("dcapqvl_tdx_v4.bin").toString("hex"));
  assert.equal(await tone(page), "unknown");
  assert.match(await title(page), /collateral is missing/);
  assert.equal(await page.locator("#chain li[data-link=body]").getAttribute("data-tone"), "unknown");
  await shoot(page, "no-collateral");
}, { at: accepting.origin });
await test("certificates with evidence", async (page) => {
  for (const name of readdirSync(join(QUOTES, "ra-tls"))) {
    await paste(page, read(`ra-tls/${name}`).toString());
    const text = await page.locator("#result").innerText();
    assert.match(text, /Evidence in extension/, name);
    assert.match(text, /MRENCLAVE/, name);
    await shoot(page, name);
  }
});
await test("garbage gets a helpful error", async (page) => {
  for (const [garbage, wanted] of [
    ["hello world!", /neither binary, hexadecimal, base64/], ["deadbeef", /nothing known/], ["{\"a\":1}", /JSON without/],
    ["-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----", /Never paste private keys/], ["eyJ.e.x", /token/], ["<img src=x onerror=alert(1)>", /neither/],
    [read(sgx.quote).subarray(0, 100).toString("base64"), /needs \d+ bytes|ends|truncated/i], ["", /first/],
  ]) {
    await paste(page, garbage);
    const said = await page.locator("#message").innerText();
    assert.match(said, wanted, garbage.slice(0, 40));
    assert.equal(await page.locator("#verdict").count(), 0);
  }
  await paste(page, "ab".repeat(200_000));
  assert.match(await page.locator("#message").innerText(), /at most/);
  await shoot(page, "garbage");
});
await test("the keyboard suffices, and everything has a name", async (page) => {
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "evidence");
  await page.keyboard.type("00");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.locator("#message:not(:empty)").waitFor();
  const nameless = await page.evaluate(() => [...document.querySelectorAll("input, textarea, button")].filter((field) => !(field.labels?.length || field.innerText || field.getAttribute("aria-label"))).map((field) => field.id));
  assert.deepEqual(nameless, []);
});
await test("contrast of text is at least 4.5 in both schemes", async (page) => {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await paste(page, read(sgx.quote).toString("hex"), given(sgx));
    const poor = await page.evaluate(() => {
      const luminance = (color) => {
        const [r, g, b] = color.match(/[\d.]+/g).map(Number).map((v) => v / 255).map((v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4));
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const opaque = (color) => !/, 0\)$/.test(color);
      const behind = (node) => { for (; node; node = node.parentElement) { const color = getComputedStyle(node).backgroundColor; if (opaque(color)) return color; } return "rgb(255, 255, 255)"; };
      const poor = [];
      for (const node of document.querySelectorAll("body *:not(svg *)")) {
        if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) || !node.getClientRects().length) continue;
        const [one, other] = [luminance(getComputedStyle(node).color), luminance(behind(node))].sort((a, b) => b - a);
        const ratio = (one + .05) / (other + .05);
        if (ratio < 4.5) poor.push(`${node.tagName} ${node.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
      }
      return poor;
    });
    assert.deepEqual(poor, [], colorScheme);
  }
});
await test("a narrow window does not scroll sideways", async (page) => {
  await paste(page, read(sgx.quote).toString("hex"), given(sgx));
  await shoot(page, "narrow");
  const wide = await page.evaluate(() => [...document.querySelectorAll("body *:not(.scroll *):not(svg *)")].filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((node) => `${node.tagName}.${node.className}`));
  assert.deepEqual(wide, []);
}, { viewport: { width: 390, height: 800 } });

await browser.close();
for (const { child, log } of services) {
  child.kill("SIGTERM");
  if (child.exitCode === null) await new Promise((done) => child.on("exit", done));
  if (log.includes("panicked")) { failed++; console.log("FAILED a service panicked", log.slice(-2000)); }
}
if (!failed) rmSync(folder, { recursive: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
