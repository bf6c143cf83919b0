// Draws a digit, asks the model through the proxy that served this page, and shows who answered. It verifies nothing itself:
// the proxy does, and this page has its word from /verdict and from the headers of each answer.

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

/** JSON of the proxy; an error of its or the network's has the words in `error`. */
async function get(path, options) {
  try {
    const response = await fetch(path, { cache: "no-store", ...options });
    const body = await response.json();
    return response.ok ? { body, headers: response.headers } : { error: body.error ?? `status ${response.status}` };
  } catch (error) {
    return { error: `the proxy does not answer: ${error.message}` };
  }
}

function show(tone, ...parts) {
  identity.dataset.tone = tone;
  identity.replaceChildren(...parts);
}

function showIdentity({ verdict, models }) {
  const { identity: who } = verdict.appraisal;
  const title = verdict.emulated ? "Accepted by the policy, but emulated" : "Accepted by the policy";
  const emulated = make("p", "The platform is an emulated SGX CPU: it PROTECTS NOTHING, and its operator can read everything.", { className: "emulated" });
  const facts = list([
    ["MRENCLAVE", who?.mr_enclave ?? "none: it is no SGX enclave"],
    ["MRSIGNER", who?.mr_signer ?? "none"],
    ...models.map(({ name, sha256 }) => [`model ${name}`, `SHA-256 ${sha256}`]),
  ]);
  show(verdict.emulated ? "warn" : "good", make("h2", title), ...(verdict.emulated ? [emulated] : []), facts);
}

function showRefusal(error) {
  show("bad", make("h2", "Nobody is accepted: nothing is sent"), make("p", error));
}

/** Asks who answers, and which of the models take a digit. */
async function begin() {
  const { body, error } = await get("/verdict");
  if (error) {
    showRefusal(error);
    return false;
  }
  showIdentity(body);
  const names = [...new Set(body.models.map(({ name }) => name))];
  if (names.join() === [...model.options].map(({ value }) => value).join()) return true;
  const options = [];
  for (const name of names) {
    const { body: metadata } = await get(`/v2/models/${name}`);
    const takesDigits = metadata?.inputs.length === 1 && metadata.inputs[0].datatype === "FP32" && metadata.inputs[0].shape.at(-1) === SIDE * SIDE;
    const option = make("option", name, { value: name, disabled: !takesDigits });
    if (takesDigits) option.dataset.input = metadata.inputs[0].name;
    options.push(option);
  }
  model.replaceChildren(...options);
  model.value = options.find((option) => !option.disabled)?.value ?? "";
  return true;
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

async function ask() {
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
  if (!(await begin())) return;
  const input = model.selectedOptions[0]?.dataset.input;
  if (!input) {
    message.textContent = "None of the models takes 64 pixels.";
    return;
  }
  const request = { inputs: [{ name: input, shape: [1, data.length], datatype: "FP32", data }] };
  const { body, headers, error } = await get(`/v2/models/${model.value}/infer`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request),
  });
  if (error) {
    message.textContent = error;
    await begin();
    return;
  }
  const [label, ...others] = body.outputs;
  const probabilities = others.find((output) => output.datatype === "FP32")?.data ?? [];
  const bars = make("ol");
  for (const [digit, probability] of probabilities.entries()) {
    const bar = make("li");
    bar.append(make("code", String(digit)), make("meter", "", { value: probability, ariaLabel: `probability of ${digit}` }), make("code", probability.toFixed(PROBABILITY)));
    bars.append(bar);
  }
  const isEmulated = headers.get("enclos-emulated") === "true";
  answer.append(make("p", String(label.data[0]), { id: "digit" }), bars, make("h2", "Answered by"), list([
    ["MRENCLAVE", headers.get("enclos-mrenclave")],
    ["model", `${body.model_name}, SHA-256 ${body.model_version}`],
    ["platform", isEmulated ? "emulated: protects nothing" : "SGX hardware"],
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
  try { await ask(); } finally { target.disabled = false; }
});
showPixels();
await begin();
document.body.dataset.ready = "true";
