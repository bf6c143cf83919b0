// Draws a digit, encrypts it for the enclave that the proxy has verified, asks by way of the proxy, which relays what it cannot
// read, and shows who answered. What the page checks itself is in offer.js.

import { Refused, accepted, ask } from "./offer.js";

const element = (id) => document.getElementById(id);
const [canvas, pixels, message, identity, answer, model] = ["canvas", "pixels", "message", "identity", "answer", "model"].map(element);
const context = canvas.getContext("2d", { willReadFrequently: true });
/** Pixels a side that the models take, and how many there may be of them in a bitmap of 32 a side: blocks of 4 by 4. */
const SIDE = 8, BLOCK = 4, BITMAP = SIDE * BLOCK;
const PROBABILITY = 3;

function make(tag, text = "", properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

/** Names and what they are. */
function list(entries) {
  const list = make("dl");
  for (const [name, value] of entries) list.append(make("dt", name), make("dd", String(value)));
  return list;
}

function show(tone, ...parts) {
  identity.dataset.tone = tone;
  identity.replaceChildren(...parts);
}

function showIdentity({ mrEnclave, mrSigner, fingerprint, models, isEmulated }) {
  const title = isEmulated ? "Accepted by the policy, but emulated" : "Accepted by the policy";
  const emulated = make("p", "The platform is an emulated SGX CPU: it PROTECTS NOTHING, and its operator can read everything.", { className: "emulated" });
  const facts = list([
    ["MRENCLAVE", mrEnclave],
    ["MRSIGNER", mrSigner],
    ["key", `SHA-256 ${fingerprint}`],
    ...models.map(({ name, sha256 }) => [`model ${name}`, `SHA-256 ${sha256}`]),
  ]);
  show(isEmulated ? "warn" : "good", make("h2", title), ...(isEmulated ? [emulated] : []), facts);
}

function showRefusal(error) {
  show("bad", make("h2", "Nobody is accepted: nothing is sent"), make("p", error));
}

/** Which offer the list of models is of. */
let listed = "";

/** Asks who answers, and which of the models take a digit. Gives the offer to encrypt for, or nothing. */
async function begin(options) {
  try {
    const offer = await accepted(options);
    showIdentity(offer);
    await listModels(offer);
    return offer;
  } catch (error) {
    if (error instanceof Refused) showRefusal(error.message);
    else message.textContent = error.message;
    return null;
  }
}

async function listModels(offer) {
  const versions = JSON.stringify(offer.models);
  if (versions === listed) return;
  const options = [];
  for (const name of new Set(offer.models.map(({ name }) => name))) {
    const { status, body: metadata } = await ask(offer, name, {});
    const takesDigits = status === 200 && metadata.inputs.length === 1 && metadata.inputs[0].datatype === "FP32" && metadata.inputs[0].shape.at(-1) === SIDE * SIDE;
    const option = make("option", name, { value: name, disabled: !takesDigits });
    if (takesDigits) option.dataset.input = metadata.inputs[0].name;
    options.push(option);
  }
  const isUsable = (option) => option && !option.disabled;
  const before = options.find((option) => option.value === model.value);
  model.replaceChildren(...options);
  model.value = (isUsable(before) ? before : options.find(isUsable))?.value ?? "";
  listed = versions;
}

/** What was drawn as the data set has it: the ink, as large as 32 by 32 dots allow, and how many of each 4 by 4 are black. */
function reduce() {
  const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
  const isInk = (x, y) => data[(y * width + x) * 4 + 3] > 127;
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!isInk(x, y)) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
  }
  const counts = Array(SIDE * SIDE).fill(0);
  if (right < 0) return counts;
  const [wide, high] = [right - left + 1, bottom - top + 1];
  const scale = Math.max(wide, high) / BITMAP;
  const [fromX, fromY] = [left + (wide - BITMAP * scale) / 2, top + (high - BITMAP * scale) / 2];
  for (let y = 0; y < BITMAP; y++) {
    for (let x = 0; x < BITMAP; x++) {
      const [inkX, inkY] = [Math.floor(fromX + (x + .5) * scale), Math.floor(fromY + (y + .5) * scale)];
      const isInside = inkX >= 0 && inkY >= 0 && inkX < width && inkY < height;
      if (isInside && isInk(inkX, inkY)) counts[Math.floor(y / BLOCK) * SIDE + Math.floor(x / BLOCK)]++;
    }
  }
  return counts;
}

function showPixels() {
  const counts = reduce();
  const rows = Array.from({ length: SIDE }, (_, row) => counts.slice(row * SIDE, (row + 1) * SIDE));
  pixels.value = rows.map((row) => row.map((count) => String(count).padStart(2)).join(" ")).join("\n");
}

/** The numbers in the field, or none. */
function given() {
  const numbers = pixels.value.trim().split(/[\s,]+/).map(Number);
  const isRight = numbers.length === SIDE * SIDE && numbers.every((number) => number >= 0 && number <= BLOCK * BLOCK);
  return isRight ? numbers : null;
}

async function askForDigit() {
  message.textContent = "";
  answer.replaceChildren();
  const data = given();
  if (!data) {
    message.textContent = `There must be ${SIDE * SIDE} numbers from 0 to ${BLOCK * BLOCK}.`;
    return;
  }
  if (data.every((number) => number === 0)) {
    message.textContent = "Draw a digit first.";
    return;
  }
  const offer = await begin();
  if (!offer) return;
  const input = model.selectedOptions[0]?.dataset.input;
  if (!input) {
    message.textContent = "None of the models takes 64 pixels.";
    return;
  }
  const json = { inputs: [{ name: input, shape: [1, data.length], datatype: "FP32", data }] };
  try {
    const answered = await ask(offer, model.value, { method: "POST", path: "/infer", json });
    if (answered.offer !== offer) showIdentity(answered.offer);
    if (answered.status === 200) showAnswer(answered);
    else message.textContent = `The enclave answers ${answered.status}: ${answered.body.error}`;
  } catch (error) {
    if (error instanceof Refused) return showRefusal(error.message);
    message.textContent = error.message;
    // Something is wrong with the server, or with the way to it.
    await begin({ anew: true });
  }
}

function showAnswer({ body, sent, received, offer: { mrEnclave, fingerprint, isEmulated } }) {
  const [label, ...others] = body.outputs;
  const probabilities = others.find((output) => output.datatype === "FP32")?.data ?? [];
  const bars = make("ol");
  for (const [digit, probability] of probabilities.entries()) {
    const bar = make("li");
    bar.append(make("code", String(digit)), make("meter", "", { value: probability, ariaLabel: `probability of ${digit}` }), make("code", probability.toFixed(PROBABILITY)));
    bars.append(bar);
  }
  answer.append(make("p", String(label.data[0]), { id: "digit" }), bars, make("h2", "Answered by"), list([
    ["MRENCLAVE", mrEnclave],
    ["model", `${body.model_name}, SHA-256 ${body.model_version}`],
    ["platform", isEmulated ? "emulated: protects nothing" : "SGX hardware"],
  ]), make("h2", "Encrypted by this page"), list([
    ["for the key", `SHA-256 ${fingerprint}`],
    ["sent", `${sent} bytes of ciphertext`],
    ["received", `${received} bytes of ciphertext`],
  ]));
}

let last = null;
function draw({ offsetX, offsetY }) {
  const scale = canvas.width / canvas.clientWidth;
  const point = [offsetX * scale, offsetY * scale];
  context.lineWidth = canvas.width / 11;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...(last ?? point));
  context.lineTo(...point);
  context.stroke();
  last = point;
}
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = null;
  draw(event);
});
canvas.addEventListener("pointermove", (event) => { if (event.buttons) draw(event); });
canvas.addEventListener("pointerup", showPixels);
element("clear").addEventListener("click", () => {
  context.clearRect(0, 0, canvas.width, canvas.height);
  message.textContent = "";
  answer.replaceChildren();
  showPixels();
});
element("ask").addEventListener("click", async ({ target }) => {
  target.disabled = true;
  try { await askForDigit(); } finally { target.disabled = false; }
});
showPixels();
await begin();
document.body.dataset.ready = "true";
