// The page: a question, one or two answers beside each other, and what there is to do with them.
import { $, copy, el } from "./dom.js";
import { asCurl, asPython, body } from "./copies.js";
import { examples } from "./examples.js";
import { Fleet } from "./fleet.js";
import { Gateway } from "./gateway.js";
import { Options } from "./options.js";
import { Pane } from "./pane.js";
import { packed, unpacked } from "./share.js";
import { explain } from "./why.js";

const gateway = new Gateway();
const fleet = new Fleet();
const say = (text) => {
  $("#said").textContent = text;
};
const sides = ["a", "b"].map((side) => ({
  list: $(`#way-${side}`),
  options: new Options($(`#options-${side}`), fleet, () => {}),
}));
let panes = [];
let opened = false; // the link by which it was

// What is asked

function question() {
  const [a, b] = sides.map((side) => ({ way: side.list.value, options: side.options.changed }));
  const common = {
    prompt: $("#prompt").value.toWellFormed(),
    usd: $("#usd").value.trim(),
    most: $("#most").valueAsNumber,
    temperature: $("#temperature").valueAsNumber,
  };
  return (b.way ? [a, b] : [a]).map((one) => ({ ...common, ...one }));
}

/** The thresholds of the trace, as the options of a side are now. */
function levels({ options }) {
  if (options.policy !== "entropy_switch") return {};
  const [raise, lower, window] = ["raise_at", "lower_at", "window"].map((name) => {
    const value = Number(String(options.value(name)).replace("inf", "Infinity"));
    return Number.isNaN(value) ? null : value;
  });
  return { raise, lower, window: window ?? 5 };
}

async function send() {
  if (panes.some((pane) => pane.running) || !$("#ask").reportValidity()) return;
  notice();
  panes.forEach((pane) => pane.destroy());
  const asked = question();
  panes = asked.map(() => new Pane(fleet, gateway, say, (id) => explain(gateway, id)));
  $("#panes").replaceChildren(...panes.map((pane) => pane.root));
  $("#panes").classList.toggle("two", panes.length > 1);
  busy(true);
  await Promise.all(
    panes.map((pane, at) => {
      const sent = { ...body(asked[at]), stream: true, stream_options: { include_usage: true } };
      return pane.ask({ way: asked[at].way, body: sent }, levels(sides[at]));
    }),
  );
  busy(false);
  if (panes.some((pane) => pane.failed?.status === 401)) openKey();
}

function stop() {
  panes.forEach((pane) => pane.running && pane.stop());
}

function busy(now) {
  $("#send").disabled = now;
  $("#stop").disabled = !now;
  document.body.classList.toggle("busy", now);
}

// What there is to choose from

async function load() {
  notice(el("p", { className: "note", textContent: "asking the gateway which models there are …" }));
  try {
    await fleet.load(gateway);
  } catch (error) {
    refused(error);
    return;
  }
  notice();
  const chosen = sides.map((side) => side.list.value);
  const groups = () => [
    group("Presets", fleet.presets.keys()),
    group("Models", [...fleet.models].filter(([, model]) => model.embeds !== "only").map(([name]) => name)),
    group("Policies on a model", policies()),
  ];
  sides[0].list.replaceChildren(...groups());
  sides[1].list.replaceChildren(el("option", { value: "", textContent: "nobody" }), ...groups());
  $("#models").replaceChildren(...[...fleet.models.keys()].map((name) => el("option", { value: name })));
  choose(0, chosen[0] || (fleet.presets.has("economy") ? "economy" : sides[0].list.options[0].value));
  choose(1, chosen[1]);
  showExamples();
  if (!opened) openLink();
  opened = true;
}

function openLink() {
  const shared = unpacked(location.hash);
  if (shared) fill(shared);
}

/** Each policy on the dearest model: for those that no preset shows. */
function policies() {
  const shown = new Set([...fleet.presets.values()].map((preset) => preset.policy));
  const bare = [...fleet.policies.keys()].filter((name) => !shown.has(name) && name !== "direct" && name !== "planner");
  return fleet.dearest ? bare.map((name) => fleet.showing(name) ?? `${name}/${fleet.dearest}`) : [];
}

function group(label, names) {
  return el("optgroup", { label }, ...[...names].map((name) => el("option", { value: name, textContent: name })));
}

function choose(at, way, options = {}) {
  const { list, options: shown } = sides[at];
  list.value = way;
  if (list.selectedIndex < 0) list.value = at ? "" : list.options[0].value;
  if (list.value) shown.of(list.value, options);
  if (at) $("#options-b").hidden = !list.value;
}

function fill({ prompt, a, b = "", usd, most, temperature, optionsA, optionsB }) {
  if (prompt !== undefined) $("#prompt").value = prompt;
  if (usd !== undefined) $("#usd").value = usd;
  if (most !== undefined) $("#most").value = most;
  if (temperature !== undefined) $("#temperature").value = temperature;
  if (a) choose(0, a, optionsA);
  choose(1, b, optionsB);
}

function showExamples() {
  const made = examples(fleet).map((one) => {
    const button = el("button", { type: "button", className: "chip", textContent: one.name, title: one.shows });
    button.onclick = () => {
      fill({ temperature: 0.2, usd: "0.0001", ...one, a: one.way, b: one.beside });
      $("#prompt").focus();
      say(`${one.name}: ${one.shows}`);
      $("#shows").textContent = one.shows;
    };
    return button;
  });
  const shows = el("p", { id: "shows", className: "note", textContent: "Each fills the question in; nothing is sent before you send it." });
  $("#examples").replaceChildren(...made, shows);
}

// What is wrong, and the key

function notice(...children) {
  $("#notice").replaceChildren(...children);
  $("#notice").className = children.length ? "card" : "";
}

function refused(error) {
  const again = el("button", { type: "button", textContent: "Try again" });
  again.onclick = load;
  notice(el("p", {}, el("strong", { textContent: error.message })), again);
  $("#examples").replaceChildren(el("p", { className: "note", textContent: "The gateway has not said what it offers." }));
  if (error.status === 401) openKey();
}

function openKey() {
  $("#key-box").hidden = false;
  $("#key-open").ariaExpanded = "true";
  $("#key").focus();
}

function useKey(key, keep) {
  gateway.useKey(key, keep);
  $("#key").value = "";
  $("#key-box").hidden = true;
  $("#key-open").ariaExpanded = "false";
  showKey();
  load();
}

function showKey() {
  $("#key-open").textContent = gateway.hasKey ? "API key ✓" : "API key";
}

// The colours of the page

const THEMES = { "": ["◐", "as the system has them"], light: ["☀", "light"], dark: ["☾", "dark"] };

function theme(next) {
  const root = document.documentElement;
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  $("#theme").textContent = THEMES[next][0];
  $("#theme").ariaLabel = `Colours: ${THEMES[next][1]}`;
  $("#theme").title = $("#theme").ariaLabel;
  panes.forEach((pane) => pane.again());
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme ?? "";
  const next = names[(names.indexOf(now) + 1) % names.length];
  try {
    if (next) localStorage.setItem("farthing-theme", next);
    else localStorage.removeItem("farthing-theme");
  } catch {
    // It lasts until the page is loaded anew.
  }
  theme(next);
}

// What is done where

$("#ask").onsubmit = (event) => {
  event.preventDefault();
  send();
};
$("#stop").onclick = stop;
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  if (event.key === "Escape" && !$("dialog[open]")) stop();
});
sides.forEach((side, at) => {
  side.list.onchange = () => choose(at, side.list.value);
});
$("#curl").onclick = () => copy(question().map((one) => asCurl(body(one), gateway.base)).join("\n"), "curl", say);
$("#python").onclick = () => copy(question().map((one) => asPython(body(one), gateway.base)).join("\n"), "Python", say);
$("#share").onclick = () => {
  const [a, b] = question();
  const { prompt, usd, most, temperature } = a;
  const state = { prompt, usd, most, temperature, a: a.way, optionsA: a.options, ...(b && { b: b.way, optionsB: b.options }) };
  const fragment = packed(state);
  if (unpacked(fragment) === null) {
    say("This is too long for a link");
    return;
  }
  const link = new URL(fragment, document.baseURI).href;
  history.replaceState(null, "", link);
  copy(link, "Link", say);
};
$("#key-open").onclick = () => {
  if ($("#key-box").hidden) openKey();
  else {
    $("#key-box").hidden = true;
    $("#key-open").ariaExpanded = "false";
  }
};
$("#key-box").onsubmit = (event) => {
  event.preventDefault();
  useKey($("#key").value, $("#key-keep").checked);
};
$("#key-forget").onclick = () => useKey("", false);
$("#why-close").onclick = () => $("#why").close();
$("#theme").onclick = nextTheme;
matchMedia("(prefers-color-scheme: dark)").onchange = () => panes.forEach((pane) => pane.again());
addEventListener("hashchange", openLink);
let resized = 0;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => panes.forEach((pane) => pane.again()), 150);
});

theme(document.documentElement.dataset.theme ?? "");
showKey();
load();
