// The options of a policy as controls: sliders, switches and lists, made from its JSON Schema.
import { $, el } from "./dom.js";

const FAR = 4; // times its value, where nothing bounds an option: so far a slider goes

export class Options {
  #given = {}; // what the preset, or else the policy, says
  #changed = new Map();

  /** `details` has a summary and a place for the controls; `moved` is told of each change. */
  constructor(details, fleet, moved) {
    Object.assign(this, { details, fleet, moved, policy: null });
  }

  /** The options that were changed: name -> value. */
  get changed() {
    return Object.fromEntries(this.#changed);
  }

  /** The value of an option as it would be sent; undefined: there is none of this name. */
  value(name) {
    return this.#changed.has(name) ? this.#changed.get(name) : this.#given[name];
  }

  /** Shows the options of another way to answer, these of them changed. */
  of(way, changed = {}) {
    const { policy, options, says } = this.fleet.behind(way);
    const schema = this.fleet.policies.get(policy);
    const shape = Object.entries(schema?.properties ?? {}).map(([name, one]) => [name, plain(one)]);
    this.policy = policy;
    this.way = way;
    this.#given = Object.fromEntries(shape.map(([name, one]) => [name, options[name] ?? one.default]));
    const known = shape.filter(([, one]) => one.kind !== "object");
    this.#changed = new Map(known.filter(([name]) => name in changed).map(([name]) => [name, changed[name]]));
    const place = $(".options", this.details);
    const intro = el("p", { className: "note" }, says || (policy ? `policy ${policy}` : "a model that answers as it does"));
    const controls = known.map(([name, one]) => this.#control(name, one));
    const back = el("button", { type: "button", textContent: "As they were" });
    back.onclick = () => {
      this.of(way);
      this.moved();
    };
    place.replaceChildren(intro, ...controls, ...(controls.length ? [back] : []));
    this.#sum();
  }

  #sum() {
    const count = this.#changed.size;
    const said = count ? `${count} changed` : this.policy ? this.policy : "none";
    $("summary", this.details).textContent = `Options of ${this.way}: ${said}`;
  }

  #set(name, value) {
    const same = JSON.stringify(value) === JSON.stringify(this.#given[name]);
    if (same || value === undefined) this.#changed.delete(name);
    else this.#changed.set(name, value);
    this.#sum();
    this.moved();
  }

  #control(name, one) {
    const value = this.value(name);
    const id = `${this.details.id}-${name}`;
    const label = el("label", { htmlFor: id }, name);
    const note = el("span", { className: "note", id: `${id}-note` }, one.description ?? "");
    const made = this.#made(name, one, value);
    made[0].id = id;
    made[0].setAttribute("aria-describedby", note.id);
    return el("div", { className: "option" }, label, el("span", { className: "inputs" }, ...made), note);
  }

  #made(name, one, value) {
    if (one.kind === "boolean") {
      const box = el("input", { type: "checkbox", checked: Boolean(value) });
      box.onchange = () => this.#set(name, box.checked);
      return [box];
    }
    if (one.enum) {
      const list = el("select", {}, ...(one.nullable ? [el("option", { value: "", textContent: "as it can best" })] : []));
      list.append(...one.enum.map((word) => el("option", { value: word, textContent: word })));
      list.value = value ?? "";
      list.onchange = () => this.#set(name, list.value === "" ? null : list.value);
      return [list];
    }
    if (one.kind === "number" || one.kind === "integer") return this.#slider(name, one, value);
    return [this.#text(name, one, value)];
  }

  #text(name, one, value) {
    const several = one.kind === "array";
    const text = several ? (value ?? []).join(", ") : (value ?? "");
    const box = el("input", { type: "text", value: text, spellcheck: false, maxLength: 256 });
    box.setAttribute("list", "models");
    box.onchange = () => {
      const words = box.value.split(",").map((word) => word.trim()).filter(Boolean);
      const list = one.items === "integer" ? words.map(Number).filter(Number.isInteger) : words;
      const bare = box.value.trim();
      this.#set(name, several ? list : bare === "" && one.nullable ? null : bare);
    };
    return box;
  }

  #slider(name, one, value) {
    const start = typeof value === "string" ? Number(value.replace("inf", "Infinity")) : value;
    const whole = one.kind === "integer";
    const [least, most, step] = reach(one, start);
    const range = el("input", { type: "range", min: least, max: most, step, value: start ?? least, tabIndex: 0 });
    range.ariaLabel = `${name}, slider`;
    const box = el("input", { type: "number", step: whole ? 1 : "any", value: Number.isFinite(start) ? start : "" });
    if (one.minimum !== undefined) box.min = one.minimum;
    if (one.maximum !== undefined) box.max = one.maximum;
    box.placeholder = one.nullable ? "as it can best" : String(value ?? "");
    range.oninput = () => {
      box.value = range.value;
      this.#set(name, Number(range.value));
    };
    box.oninput = () => {
      if (!box.validity.valid) return;
      if (box.value !== "") range.value = box.value;
      this.#set(name, box.value === "" ? (one.nullable ? null : undefined) : Number(box.value));
    };
    return [box, range];
  }
}

/** How far a slider goes, and in which steps. */
function reach(one, start) {
  const whole = one.kind === "integer";
  const size = Number.isFinite(start) && start > 0 ? start : whole ? 8 : 1;
  const most = Math.min(one.maximum ?? one.exclusiveMaximum ?? Infinity, size * FAR);
  const step = whole ? 1 : most <= 1 ? 0.01 : most <= 4 ? 0.05 : 0.1;
  const above = one.exclusiveMinimum === undefined ? undefined : one.exclusiveMinimum + step;
  const below = one.exclusiveMaximum === undefined ? most : Math.min(most, one.exclusiveMaximum - step);
  return [one.minimum ?? above ?? 0, below, step];
}

/** An option's schema, without the ways of JSON Schema to say that it may be null. */
function plain(schema) {
  const cases = schema.anyOf ?? [schema];
  const kept = cases.find((one) => one.type !== "null") ?? {};
  const nullable = cases.some((one) => one.type === "null");
  const kind = kept.$ref || kept.allOf ? "object" : (kept.type ?? (kept.enum ? "string" : "object"));
  return { ...schema, ...kept, kind, nullable, items: kept.items?.type, default: schema.default };
}
