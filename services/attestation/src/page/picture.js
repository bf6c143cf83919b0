// The picture of an inspection. Draws what the service's answer says and decides nothing itself; every text goes in as
// text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const DAY = 86400;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const html = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const panel = (title, ...children) => {
  const id = `panel-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return html("section", { class: "panel", "aria-labelledby": id }, html("h2", { id }, title), children);
};

const ICONS = {
  good: ["circle", "M8 12.5l3 3 5-6.5"], bad: ["octagon", "M8.5 8.5l7 7m0-7l-7 7"],
  warn: ["triangle", "M12 9.5v4.5m0 2.6v.1"], unknown: ["circle", "M9.6 9.6a2.5 2.5 0 1 1 3.4 2.4c-.8.4-1 .9-1 1.6m0 2.7v.1"],
};
function icon(tone) {
  const [shape, stroke] = ICONS[tone];
  const outline = {
    circle: () => svg("circle", { cx: 12, cy: 12, r: 10.5 }),
    octagon: () => svg("path", { d: "M7.7 1.5h8.6l6.2 6.2v8.6l-6.2 6.2H7.7l-6.2-6.2V7.7z" }),
    triangle: () => svg("path", { d: "M12 2.2l10.6 18.9H1.4z", "stroke-linejoin": "round" }),
  }[shape]();
  fill(outline, { fill: "none", stroke: "currentColor", "stroke-width": 2 }, []);
  const mark = svg("path", { d: stroke, fill: "none", stroke: "currentColor", "stroke-width": 2.2, "stroke-linecap": "round" });
  return svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, outline, mark);
}

function banner(tone, title, lines) {
  const [first, ...rest] = lines;
  return html("div", { class: `banner ${tone}`, id: "verdict", "data-tone": tone }, icon(tone), html("div", {},
    html("h2", {}, title),
    first ? html("p", {}, first) : null,
    rest.length ? html("ul", {}, rest.map((line) => html("li", {}, line))) : null));
}

function emulated(detail) {
  return html("div", { class: "emulated", id: "emulated", role: "note" }, html("div", {},
    html("h2", {}, "EMULATED: THIS PROTECTS NOTHING"), html("p", {}, detail)));
}

/** Hexadecimal, under stripes coloured by its bytes, by which the eye tells two values apart. */
function hex(value) {
  const bytes = value.match(/../g) ?? [];
  const stripe = svg("svg", { class: "stripe", viewBox: `0 0 ${bytes.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" },
    bytes.map((byte, index) => {
      const number = parseInt(byte, 16);
      return svg("rect", { x: index, y: 0, width: 1.02, height: 1, fill: `hsl(${Math.round(number * 360 / 256)} ${number ? 60 : 0}% ${40 + (number % 4) * 7}%)` });
    }));
  return [stripe, html("span", { class: "hex" }, value)];
}

const isZero = (value) => /^0*$/.test(value);
const list = (...rows) => html("dl", {}, rows.filter(Boolean).map(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
const date = (text) => text.replace("T", " ").replace("Z", " UTC");
const seconds = (text) => Date.parse(text) / 1000;
const CHECKS = {
  pck_chain: "Certificate chain", tcb_info: "TCB info", qe_identity: "Quoting enclave identity", quote: "Quote",
  endorsement_key_chain: "Endorsement chain", report: "Report",
};
const PARTS = { sgx_platform: "SGX platform", tdx_platform: "TDX platform", tdx_module: "TDX module", quoting_enclave: "Quoting enclave" };
const TEES = { sgx: "SGX enclave", tdx: "TDX trust domain", "sev-snp": "SEV-SNP guest" };
const ROOTS = { intel: "Intel's SGX root", amd: "AMD's root", emulated: "an emulated platform's root", unknown: "a root this service does not know" };

/** Whether an outcome is about the TCB's level only, so that every signature may still hold. */
const isTcb = (status) => status.startsWith("TCB_") && !/MISMATCH|INVALID|UNRECOGNIZED/.test(status);
const toneOf = (status) => (status === "OK" ? "good" : isTcb(status) && !/REVOKED|NOT_SUPPORTED/.test(status) ? "warn" : "bad");

/** Everything found wrong, in order, once. */
const failuresOf = (appraisal) => appraisal.checks.flatMap((check) => check.failures);

/** All parts of the picture, to be put into the page. */
export function draw(answer) {
  const parts = [];
  const { evidence, token, certificate } = answer;
  if (token) parts.push(...drawToken(token));
  if (evidence) parts.push(...drawEvidence(evidence));
  if (certificate) parts.push(...drawCertificate(certificate, evidence));
  const what = `${answer.encodings.join(", then ")}; ${answer.bytes} bytes`;
  parts.push(html("details", { class: "panel" }, html("summary", {}, `Everything the service answered (read as ${what})`),
    html("pre", { tabindex: 0, "aria-label": "Answer in JSON" }, JSON.stringify(answer, null, 2))));
  return parts;
}

function drawEvidence(evidence) {
  const { verdict, details } = evidence;
  const { appraisal } = verdict;
  const parts = [];
  if (verdict.emulated) {
    parts.push(emulated("No hardware stands behind this evidence. Whoever runs the machine can read and change everything. It is for development only."));
  } else if (evidence.calls_itself_emulated) {
    parts.push(emulated("Its certificates call themselves emulated, and this service was not told to accept them."));
  }
  parts.push(verdictBanner(evidence));
  parts.push(panel("Checks", html("ul", { class: "chips", id: "checks" }, appraisal.checks.map((check) => {
    const unchecked = evidence.collateral === "none" && check.status !== "OK";
    const tone = unchecked ? "unknown" : toneOf(check.status);
    return html("li", { class: tone, "data-check": check.kind }, html("b", {}, CHECKS[check.kind] ?? check.kind),
      html("code", {}, unchecked ? "NOT CHECKED" : check.status));
  })), html("p", { class: "quiet" }, "Outcomes have the names of Intel's quote verification library.")));
  if (appraisal.tee) parts.push(panel("Chain of trust", chain(evidence)));
  if (appraisal.identity) parts.push(panel("Identity", identity(evidence)));
  if (details.versions.length) parts.push(panel("TCB", ...tcb(evidence)));
  else if (appraisal.tcb) parts.push(panel("TCB", snpVersions(appraisal.tcb.platform)));
  if (details.validity.length || details.certificates.length) {
    const validity = details.validity.length ? details.validity
      : details.certificates.map(({ subject, from, until }) => ({ what: `certificate "${subject}"`, from, until }));
    parts.push(panel("Dates", timeline(validity, appraisal.time, evidence.time_chosen)));
  }
  return parts;
}

function verdictBanner({ verdict, collateral, collateral_missing: missing, trailing }) {
  const { appraisal } = verdict;
  const root = appraisal.root_of_trust;
  const what = `${TEES[appraisal.tee] ?? "Unreadable evidence"}${root ? `, vouched for by ${ROOTS[root.kind]}` : ", with no usable chain"}.`;
  const extra = trailing ? [`${trailing} bytes follow the quote; nothing authenticates them.`] : [];
  if (collateral === "none" && appraisal.tee) {
    return banner("unknown", "Not appraised: collateral is missing", [what, `${missing}.`,
      "What is shown below is only what the evidence says of itself. Give its collateral (JSON) to have it judged.", ...extra]);
  }
  const by = collateral === "request" ? "It was judged by the collateral you gave." : "It was judged by this service's collateral.";
  if (!verdict.accepted) {
    const signature = failuresOf(appraisal).some((failure) => /SIGNATURE|QE_REPORT_DATA|INVALID_ISSUER/.test(failure.status));
    const title = signature ? "Refused: a signature does not hold" : "Refused";
    return banner("bad", title, [`${what} ${by}`, ...verdict.reasons.map((reason) => reason.message), ...extra]);
  }
  const status = appraisal.tcb?.status;
  const debug = appraisal.identity?.debug;
  const caveats = [
    debug ? "A debugger can read and change it: it keeps no secrets." : null,
    status && status !== "UpToDate" ? `The TCB is ${status}, which this service leaves to the policy of each tenant.` : null,
    appraisal.tcb?.advisories.length ? `Advisories that apply: ${appraisal.tcb.advisories.join(", ")}.` : null,
    ...(appraisal.notes ?? []), ...(appraisal.premature ?? []), ...extra,
  ].filter(Boolean);
  if (verdict.emulated) return banner("warn", "Signatures hold, on an emulated platform", [`${what} ${by}`, ...caveats]);
  if (debug) return banner("warn", "Genuine, but open to debuggers", [`${what} ${by}`, ...caveats]);
  if (status && status !== "UpToDate") return banner("warn", `Genuine; TCB ${status}`, [`${what} ${by}`, ...caveats]);
  return banner("good", "Genuine and up to date", [`${what} ${by}`, ...caveats]);
}

/** Which outcomes concern which link of the chain. */
const LINKS = {
  root: /ROOT_CA_(MISSING|INVALID)|CERT_CHAIN_UNTRUSTED|SNP_CHAIN_UNTRUSTED/,
  intermediate: /INTERMEDIATE_CA|SNP_CHAIN_INVALID_ISSUER/,
  leaf: /SGX_PCK_(MISSING|INVALID|REVOKED)|^PCK_REVOKED|INVALID_PCK_CERT|SNP_(TCB|CHIP)_MISMATCH|SNP_CHAIN_REVOKED/,
  qe: /QE_REPORT|QE_IDENTITY_MISMATCH/,
  body: /INVALID_QUOTE_SIGNATURE|SNP_INVALID_REPORT_SIGNATURE/,
};

function chain({ verdict, details, collateral }) {
  const { appraisal } = verdict;
  const failures = failuresOf(appraisal);
  const snp = appraisal.tee === "sev-snp";
  const now = seconds(appraisal.time);
  // Without collateral the verifier stops before the signatures of the quote.
  const checked = collateral !== "none" && (snp || appraisal.tcb);
  const names = snp ? { root: "Root (ARK)", intermediate: "Intermediate (ASK or ASVK)", leaf: "Endorsement key (VCEK or VLEK)" }
    : { root: "Root CA", intermediate: "PCK CA", leaf: "Platform (PCK certificate)" };
  const card = (kind, role, title, lines, whole, isChecked = checked) => {
    const wrong = failures.find((failure) => LINKS[kind].test(failure.status));
    const [tone, state] = wrong && (isChecked || kind === "root") ? ["bad", wrong.detail]
      : isChecked ? ["good", whole] : ["unknown", "not checked"];
    return html("li", { class: tone, "data-link": kind, "data-tone": tone }, html("p", { class: "role" }, role), html("h3", {}, title),
      lines.map((line) => html("p", {}, line)), html("p", { class: "state" }, icon(tone), html("span", {}, state)));
  };
  const cards = details.certificates.map((certificate) => {
    const { role, subject, from, until, key, serial } = certificate;
    const lines = [`${from.slice(0, 10)} to ${until.slice(0, 10)}`,
      html("span", { class: "hex" }, role === "root" ? `key ${key}` : `serial ${serial}`)];
    const whole = role === "root" ? ROOTS[appraisal.root_of_trust?.kind] ?? "root" : role === "leaf" ? "signed by the CA" : "signed by the root";
    const drawn = card(role, names[role], subject, lines, whole, checked || (collateral === "none" && !snp && appraisal.root_of_trust));
    if (now > seconds(until) && drawn.dataset.tone === "good") {
      drawn.className = "warn";
      drawn.querySelector(".state").replaceChildren(icon("warn"), html("span", {}, `expired on ${until.slice(0, 10)}`));
    }
    return drawn;
  });
  if (!snp) {
    const identified = checked && !failures.some((failure) => failure.status === "QE_IDENTITY_MISMATCH");
    cards.push(card("qe", "Quoting enclave", "Attestation key", ["Its report binds the key that signs quotes."],
      identified ? "the one of its identity, signed by the platform" : "signed by the platform"));
  }
  const { identity } = appraisal;
  const measurement = identity?.mr_enclave ?? identity?.mr_td ?? identity?.measurement ?? "";
  cards.push(card("body", snp ? "Report" : "Quote", TEES[appraisal.tee],
    [html("span", { class: "hex" }, measurement)], snp ? "signed by the endorsement key" : "signed by the attestation key"));
  return html("ol", { class: "chain", id: "chain" }, cards);
}

function flag(set, tone, text) {
  return set ? html("span", { class: `flag ${tone}` }, text) : null;
}

function identity({ verdict, version, open_enclave: wrapped }) {
  const { identity: id, report_data: data } = verdict.appraisal;
  const value = (name, text) => (text && !isZero(text) ? [name, hex(text)] : null);
  const flags = [
    flag(id.debug, "bad", "DEBUG: a debugger can read it"), flag(!id.debug, "good", "no debugger"),
    flag(id.migratable, "warn", "may be migrated"), flag(id.service_td, "warn", "service TD bound"),
    flag(id.sept_ve_disabled === false, "warn", "host can raise exceptions (SEPT_VE)"),
  ];
  const form = `${id.kind === "sev-snp" ? "report" : "quote"} version ${version}${wrapped ? ", in an Open Enclave report" : ""}`;
  return list(["Kind", `${TEES[id.kind]}, ${form}`], ["Attributes", flags],
    value("MRENCLAVE", id.mr_enclave), value("MRSIGNER", id.mr_signer),
    id.kind === "sgx" ? ["Product, SVN", `${id.product_id}, ${id.svn}`] : null,
    value("MRTD", id.mr_td), ...(id.rtmr ?? []).map((rtmr, index) => value(`RTMR${index}`, rtmr)),
    value("MRSEAM", id.mr_seam), value("MROWNER", id.mr_owner), value("MRCONFIGID", id.mr_config_id), value("Service TDs", id.mr_service_td),
    value("Measurement", id.measurement), value("Host data", id.host_data), value("Identity key", id.id_key_digest), value("Chip", id.chip_id),
    id.kind === "sev-snp" ? ["Guest SVN, VMPL", `${id.guest_svn}, ${id.vmpl}`] : null,
    value("CONFIGID", id.config_id), ["Report data", isZero(data) ? "zero" : hex(data)]);
}

/** A version as a bar, with a mark at the one it must reach. */
function bar(has, needs) {
  const width = 100, most = Math.max(has, needs, 1);
  const short = has < needs;
  const [end, mark] = [width * has / most, width * needs / most];
  return svg("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none", role: "img", "aria-label": `${has} of ${needs}` },
    svg("rect", { class: "track", x: 0, y: 4, width, height: 8 }),
    svg("rect", { class: "fill", x: 0, y: 4, width: Math.max(end, has ? 1 : 0), height: 8 }),
    short ? svg("rect", { class: "gap", x: end + .5, y: 4.5, width: Math.max(mark - end - 1, 0), height: 7, "vector-effect": "non-scaling-stroke" }) : null,
    needs ? svg("rect", { class: "mark", x: Math.min(mark, width - 1.2) - .6, y: 0, width: 1.8, height: 16 }) : null);
}

const statusTone = (status) => (status === "UpToDate" ? "good" : /Revoked|NotSupported/.test(status) ? "bad" : "warn");

function tcb({ verdict, details }) {
  const judged = verdict.appraisal.tcb;
  const legend = html("p", { class: "legend" },
    html("span", { class: "good" }, svg("svg", { viewBox: "0 0 32 16", "aria-hidden": "true" }, svg("rect", { class: "fill", x: 0, y: 4, width: 32, height: 8 })), "reached"),
    html("span", { class: "bad" }, svg("svg", { viewBox: "0 0 32 16", "aria-hidden": "true" }, svg("rect", { class: "fill", x: 0, y: 4, width: 14, height: 8 }), svg("rect", { class: "gap", x: 14.5, y: 4.5, width: 16, height: 7 })), "short of it"),
    html("span", {}, svg("svg", { viewBox: "0 0 32 16", "aria-hidden": "true" }, svg("rect", { class: "mark", x: 15, y: 0, width: 2, height: 16 })), "what the newest level asks for"));
  const head = judged ? list(
    ["All together", html("b", { class: judged.status ? statusTone(judged.status) : "bad" }, judged.status ?? "not judged: the evidence is refused")],
    judged.evaluation_data_number === undefined ? null : ["Reference values", `TCB evaluation data number ${judged.evaluation_data_number}, quoting enclave ${judged.qe_evaluation_data_number}`],
    judged.advisories.length ? ["Advisories", judged.advisories.join(", ")] : null,
    judged.platform.fmspc ? ["Platform", html("span", {}, "FMSPC ", html("code", {}, judged.platform.fmspc))] : null) : null;
  const groups = details.versions.map(({ part, versions }) => {
    const component = judged?.components.find((candidate) => candidate.part === part);
    const short = versions.filter(({ has, needs }) => has < needs).length;
    // Most of the sixteen components are not used on any one platform.
    const unused = versions.filter(({ has, needs }) => !has && !needs).length;
    const level = component?.level ? `level of ${component.level.date.slice(0, 10)}` : component ? "below every level" : "";
    const rest = component && [level, component.newest && component.level?.date !== component.newest.date ? `newest is of ${component.newest.date.slice(0, 10)}` : null,
      component.missing_since ? `updates missing since ${component.missing_since.slice(0, 10)}` : null].filter(Boolean).join("; ");
    return html("div", { class: "part", "data-part": part },
      html("div", { class: "part-head" }, html("h3", {}, PARTS[part] ?? part),
        component ? html("span", { class: `flag ${statusTone(component.status)}` }, component.status) : null,
        html("span", { class: "quiet" }, [rest, short ? `${short} of ${versions.length} short` : `${versions.length} of ${versions.length} reached`].filter(Boolean).join("; "))),
      html("ul", { class: "bars" }, versions.filter(({ has, needs }) => has || needs).map(({ what, has, needs }) =>
        html("li", { class: has < needs ? "bad" : "good" }, html("span", { class: "quiet" }, what), bar(has, needs),
          html("span", { class: "figure" }, has < needs ? `${has}, needs ${needs}` : `${has} ≥ ${needs}`)))),
      unused ? html("p", { class: "quiet" }, `${unused} more are 0, and nothing more is asked of them.`) : null);
  });
  return [head, html("p"), legend, groups];
}

function snpVersions({ product, reported, committed, current, launch }) {
  const names = { fmc: "FMC", bootloader: "Boot loader", tee: "TEE", snp: "SNP firmware", microcode: "Microcode" };
  return html("table", {}, html("thead", {}, html("tr", {}, [product, "reported", "committed", "current", "at launch"].map((head) => html("th", { scope: "col" }, head)))),
    html("tbody", {}, Object.entries(names).map(([key, name]) =>
      html("tr", {}, html("th", { scope: "row" }, name), [reported, committed, current, launch].map((tcb) => html("td", {}, String(tcb[key])))))));
}

/** Periods around the time they are judged at. A day next to it takes more room than a year far from it. */
function timeline(validity, time, chosen) {
  const now = seconds(time), left = 290, width = 1000, middle = left + (width - left) * .42, row = 26, top = 34;
  const scale = (at) => {
    const days = (at - now) / DAY;
    const span = days < 0 ? middle - left : width - 14 - middle;
    return middle + Math.sign(days) * span * Math.min(Math.log1p(Math.abs(days)) / Math.log1p(36500 / 3), 1);
  };
  const height = top + validity.length * row + 10;
  const ticks = [[-3650, "10 years"], [-365, "1 year"], [-30, "1 month"], [30, "1 month"], [365, "1 year"], [3650, "10 years"]];
  const axis = ticks.map(([days, name]) => {
    const x = scale(now + days * DAY);
    return [svg("line", { class: "axis", x1: x, x2: x, y1: 22, y2: height }), svg("text", { class: "axis-text", x, y: 16, "text-anchor": "middle" }, name)];
  });
  const rows = validity.map(({ what, from, until }, index) => {
    const [start, end, y] = [scale(seconds(from)), scale(seconds(until)), top + index * row];
    const tone = now > seconds(until) ? "bad" : now < seconds(from) ? "warn" : "good";
    const state = { bad: "expired", warn: "not yet valid", good: "valid" }[tone];
    const name = what.replace(/^certificate "(.*)"$/, "$1");
    return svg("g", {}, svg("title", {}, `${what}: ${date(from)} to ${date(until)}, ${state}`),
      svg("text", { x: 0, y: y + 13 }, name.length > 42 ? `${name.slice(0, 41)}…` : name),
      svg("rect", { class: tone, x: start, y: y + 3, width: Math.max(end - start, 3), height: 13, rx: 3 }),
      tone === "good" ? null : svg("text", { class: "axis-text", x: end + 6, y: y + 13 }, `${state}${tone === "bad" ? ` ${until.slice(0, 10)}` : ""}`));
  });
  const text = validity.map(({ what, from, until }) => `${what} from ${date(from)} to ${date(until)}`).join("; ");
  return [html("div", { class: "scroll" }, svg("svg", { class: "timeline", id: "timeline", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Judged at ${date(time)}. ${text}` },
    axis, rows, svg("line", { class: "now", x1: middle, x2: middle, y1: 20, y2: height }),
    svg("text", { class: "now-text", x: middle, y: 16, "text-anchor": "middle" }, chosen ? time.slice(0, 10) : "now"))),
  html("p", { class: "quiet" }, `Judged at ${date(time)}${chosen ? ", a time that was chosen, not the present" : ""}.`)];
}

const TOKEN = {
  validated: ["good", "Valid: a token of this service"], not_in_force: ["warn", "A token of this service, but not in force"],
  invalid_signature: ["bad", "Refused: the signature does not hold"], not_validated: ["unknown", "Not validated: not a token of this service"],
  unsigned: ["bad", "Not signed"],
};

function drawToken({ header, claims, validation, message, emulated: isEmulated }) {
  const [tone, title] = TOKEN[validation];
  const parts = [];
  if (isEmulated) parts.push(emulated("The platform this token was made for is emulated. No hardware stands behind what it claims."));
  const believed = validation === "validated" ? null : "What it claims is shown below; believe it only when its signature was validated.";
  parts.push(banner(tone, title, [message, believed].filter(Boolean)));
  const table = (object) => html("table", {}, html("tbody", {}, Object.entries(object).map(([name, value]) =>
    html("tr", {}, html("th", { scope: "row" }, name), html("td", {}, claimValue(name, value))))));
  if (Number.isFinite(claims.exp) && Number.isFinite(claims.nbf ?? claims.iat)) {
    const iso = (at) => new Date(at * 1000).toISOString().replace(".000Z", "Z");
    try {
      const period = { what: "token", from: iso(claims.nbf ?? claims.iat), until: iso(claims.exp) };
      parts.push(panel("Dates", timeline([period], iso(Math.floor(Date.now() / 1000)), false)));
    } catch {
      // Dates outside of what a calendar has; the claims show them as numbers.
    }
  }
  parts.push(panel("Claims", table(claims)), panel("Header", table(header)));
  return parts;
}

function claimValue(name, value) {
  if (["iat", "nbf", "exp"].includes(name) && Number.isFinite(value) && Math.abs(value) < 8e12) return `${value} (${date(new Date(value * 1000).toISOString().replace(".000", ""))})`;
  if (typeof value === "string") return /^([0-9a-f]{2}){16,64}$/.test(value) ? hex(value) : html("span", { class: "hex" }, value);
  return html("code", {}, JSON.stringify(value, null, 1));
}

function drawCertificate({ details, extension, key_bound: bound }, evidence) {
  const parts = [];
  if (!evidence) {
    parts.push(banner("unknown", "A certificate without evidence", ["No extension of it holds a quote. Nothing about an enclave can be told from it."]));
  }
  const binding = bound === undefined ? null : ["Its key", bound ? html("span", { class: "flag good" }, "bound: the report data begins with its SHA-256")
    : html("span", {}, "the report data is not the SHA-256 of this key; formats that bind it through claims are not checked here")];
  parts.push(panel("Certificate", list(["Subject", details.subject || "(no common name)"], ["Issuer", details.issuer || "(no common name)"],
    ["Valid", `${date(details.from)} to ${date(details.until)}`], ["Key (SHA-256)", hex(details.key)],
    extension ? ["Evidence in extension", html("code", {}, extension)] : null, binding)));
  return parts;
}
