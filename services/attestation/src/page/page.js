// The form of the evidence inspector: takes what is pasted or dropped, asks the service, shows the picture.

import { draw } from "./picture.js";

const MAX_FILE = 128 * 1024;
const at = (id) => document.getElementById(id);
const form = at("form"), text = at("evidence"), collateral = at("collateral"), time = at("time");
const message = at("message"), result = at("result");

/** The bytes of a file with evidence in it, as long as the text box still says so. */
let file = null;

function base64(bytes) {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}

function say(problem) {
  message.textContent = problem;
  if (problem) result.replaceChildren();
}

async function inspect() {
  say("");
  const bytes = file ? file.bytes : new TextEncoder().encode(text.value);
  if (!bytes.length) return say("Paste or choose a quote, a token or a certificate first.");
  if (bytes.length > MAX_FILE) return say(`This has ${bytes.length} bytes; evidence has at most ${MAX_FILE}. Is it the right file?`);
  const request = { evidence: base64(bytes) };
  if (collateral.value.trim()) {
    try {
      request.collateral = JSON.parse(collateral.value);
    } catch (error) {
      return say(`The collateral is not JSON: ${error.message}`);
    }
  }
  if (time.value.trim()) request.time = time.value.trim();
  result.setAttribute("aria-busy", "true");
  try {
    const response = await fetch("/inspect", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
    });
    const answer = await response.json();
    if (!response.ok) return say(`This cannot be inspected: ${answer.error?.message ?? response.statusText}.`);
    result.replaceChildren(...draw(answer));
    result.focus({ preventScroll: true });
    result.scrollIntoView({ block: "start" });
  } catch (error) {
    say(`The service does not answer (${error.message}). Is it still running?`);
  } finally {
    result.removeAttribute("aria-busy");
  }
}

async function take(chosen) {
  if (!chosen) return;
  const bytes = new Uint8Array(await chosen.arrayBuffer());
  // Collateral is what has collateral's fields; everything else is for the service to tell.
  const start = new TextDecoder().decode(bytes.slice(0, 4096));
  if (/^\s*\{/.test(start) && /"(tcb_info|pck_crl|certificate_chain)/.test(start)) return takeCollateral(chosen);
  file = { bytes };
  text.value = `${chosen.name}, ${bytes.length} bytes`;
  await inspect();
}

async function takeCollateral(chosen) {
  if (!chosen) return;
  collateral.value = await chosen.text();
  at("options").open = true;
  if (file || text.value.trim()) await inspect();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  inspect();
});
text.addEventListener("input", () => { file = null; });
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) inspect();
});
at("clear").addEventListener("click", () => {
  file = null;
  for (const field of [text, collateral, time, at("file"), at("collateral-file")]) field.value = "";
  say("");
  result.replaceChildren();
  text.focus();
});
at("file").addEventListener("change", (event) => take(event.target.files[0]));
at("collateral-file").addEventListener("change", (event) => takeCollateral(event.target.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", async (event) => {
  document.body.classList.remove("dropping");
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  for (const dropped of event.dataTransfer.files) await take(dropped);
});
