// What the gateway offers: models, presets, policies and their options; and each model's colour.
import told from "./words.js";

export class Fleet {
  models = new Map(); // name -> what /v1/models says of it
  presets = new Map();
  policies = new Map(); // name -> JSON Schema of its options
  #places = new Map();

  /** Reads it anew. Throws what the gateway does. */
  async load(gateway) {
    const [models, policies] = await Promise.all([gateway.json("models"), gateway.json("policies")]);
    const of = (kind) => models.data.filter((one) => one.farthing.kind === kind);
    this.models = new Map(of("model").map((one) => [one.id, one.farthing]));
    this.presets = new Map(of("preset").map((one) => [one.id, one.farthing]));
    this.policies = new Map(policies.data.map((one) => [one.id, one.options]));
    this.#places = new Map([...this.models.keys()].map((name, place) => [name, place]));
  }

  /** The number of a model's colour: by its place in the fleet, as in the terminal. */
  colour(model) {
    if (!this.#places.has(model)) this.#places.set(model, this.#places.size);
    return this.#places.get(model) % told.colours;
  }

  /** The policy behind a name that a request may have, and its options as they are now. */
  behind(way) {
    const preset = this.presets.get(way);
    if (preset) return { policy: preset.policy, options: preset.options, says: preset.description };
    const [policy] = way.split("/");
    if (way.includes("/") && this.policies.has(policy)) return { policy, options: {}, says: "" };
    return { policy: null, options: {}, says: "" };
  }

  /** The way that shows a policy: a preset that has it, else the policy on a model that fits. */
  showing(policy) {
    for (const [name, preset] of this.presets) if (preset.policy === policy) return name;
    const able = [...this.models].find(([, model]) => policy === "kv_prediction" && model.kv_predictors);
    return able ? `${policy}/${able[0]}` : null;
  }

  /** The dearest model that writes. */
  get dearest() {
    const priced = [...this.models].filter(([, model]) => model.price.output > 0);
    return priced.sort(([, a], [, b]) => b.price.output - a.price.output)[0]?.[0] ?? null;
  }

  /** USD for so many tokens written by a model. */
  cost(model, tokens) {
    return ((this.models.get(model)?.price.output ?? 0) * tokens) / 1e6;
  }
}
