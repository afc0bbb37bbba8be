// The decision log of an answer: GET /v1/decisions/ID, as `farthing explain` tells it.
import { $, clean, decided, el, number } from "./dom.js";

const WAITS_MS = [0, 300, 1000, 2500]; // an answer that was stopped is settled a moment later

/** Opens a dialog that tells why this answer came out as it did. */
export async function explain(gateway, id) {
  const [dialog, body] = [$("#why"), $("#why-body")];
  body.replaceChildren(el("p", { className: "note", textContent: "looking it up …" }));
  body.dataset.state = "loading";
  dialog.showModal();
  try {
    body.replaceChildren(...told(await found(gateway, id)));
    body.dataset.state = "told";
  } catch (error) {
    body.replaceChildren(el("p", { role: "alert", textContent: unknown(error) }));
    body.dataset.state = "failed";
  }
}

async function found(gateway, id) {
  for (const [at, wait] of WAITS_MS.entries()) {
    await new Promise((done) => setTimeout(done, wait));
    try {
      return await gateway.json(`decisions/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error.status !== 404 || at === WAITS_MS.length - 1) throw error;
    }
  }
}

function unknown(error) {
  if (error.status === 404) return "Nothing is kept of this answer (FARTHING_DECISIONS_KEEP_S).";
  return error.message;
}

function told(log) {
  const { plan = {}, request = {}, estimate = {}, times = {}, cost = {} } = log;
  const models = Object.entries(cost.models ?? {}).map(([model, line]) => ({ model, ...line }));
  const decisions = (log.decisions ?? []).map((one) => ({ ...one, what: decided(one.kind, one.model) }));
  const left = Object.entries(log.left_out ?? {}).map(([name, count]) => `${count} ${name}`);
  return [
    el("p", {}, `${log.id}, ${log.outcome}${log.error ? ` (${log.error.code ?? log.error.type})` : ""}`),
    terms({
      "asked for": said(request, ["fallback"]),
      policy: said(plan, ["options"]),
      options: said(plan.options ?? {}),
      budget: said({ fallback: request.fallback, ...estimate }),
      times: said(times),
    }),
    ...table("Ways that there were", WAYS, log.alternatives ?? [], "none was weighed"),
    ...table("Decisions", DECISIONS, decisions, "none: it went as planned"),
    ...table("Calls of models", CALLS, log.calls ?? [], "none"),
    ...table("Cost", LINES, models.length ? [...models, { model: "in all", ...cost }] : [], "none"),
    ...(left.length ? [el("p", { className: "note", textContent: `left out, as it would be too long: ${left.join(", ")}` })] : []),
  ];
}

const yes = (value) => (value === undefined || value === null ? "" : value ? "yes" : "no");
const WAYS = [
  ["chosen", "chosen", (value) => (value ? "yes" : "")],
  ["way", "name"],
  ["USD at most", "usd"],
  ["fits", "fits", yes],
  ["tokens", "tokens"],
  ["first token s", "first_token_s"],
  ["latency s", "latency_s"],
  ["quality", "quality"],
  ["why", "reason"],
];
const DECISIONS = [
  ["at s", "at_s"],
  ["token", "token"],
  ["what", "what"],
  ["entropy", "entropy"],
  ["threshold", "threshold"],
  ["confidence", "confidence"],
  ["answers", "answers"],
  ["rest USD", "rest_usd"],
  ["saves s", "saves_s"],
  ["detail", "detail"],
];
const TOKENS = [
  ["prompt", "prompt_tokens"],
  ["cached", "cached_tokens"],
  ["completion", "completion_tokens"],
  ["visible", "visible_tokens"],
  ["drafted", "drafted_tokens"],
  ["accepted", "accepted_tokens"],
  ["predicted", "predicted_tokens"],
];
const CALLS = [
  ["at s", "began_s"],
  ["model", "model"],
  ...TOKENS,
  ["USD", "usd"],
  ["queued s", "queued_s"],
  ["first token s", "ttft_s"],
  ["took s", "duration_s"],
  ["ended", "outcome"],
  ["why", "why"],
];
const LINES = [["model", "model"], ...TOKENS, ["USD", "usd"], ["GPU s", "gpu_seconds"]];

/** A heading and a table of those columns in which anything stands. */
function table(title, columns, rows, none) {
  const heading = el("h3", { textContent: title });
  if (!rows.length) return [heading, el("p", { className: "note", textContent: none })];
  const kept = columns.filter(([, name, shown = cell]) => rows.some((row) => shown(row[name]) !== ""));
  const head = el("tr", {}, ...kept.map(([name]) => el("th", { scope: "col", textContent: name })));
  const body = rows.map((row) =>
    el("tr", {}, ...kept.map(([, name, shown = cell]) => el("td", { textContent: shown(row[name]) }))),
  );
  const made = el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
  return [heading, el("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: title }, made)];
}

function terms(entries) {
  const rows = Object.entries(entries).filter(([, text]) => text);
  return el("dl", { className: "terms" }, ...rows.flatMap(([name, text]) => [
    el("dt", { textContent: name }),
    el("dd", { textContent: text }),
  ]));
}

function said(fields, without = []) {
  return Object.entries(fields)
    .filter(([name, value]) => !without.includes(name) && cell(value) !== "")
    .map(([name, value]) => `${name}=${cell(value)}`)
    .join("  ");
}

function cell(value) {
  if (value === undefined || value === null || value === false || value === "") return "";
  if (value === true) return "yes";
  if (Array.isArray(value)) return value.map(cell).join(",");
  if (typeof value === "object") return said(value);
  return typeof value === "number" ? number(value, 12) : clean(String(value));
}
