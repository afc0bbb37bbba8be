// One answer as it comes: its text, its trace, what it costs, and how it ended.
import { $, copy, clean, decided, el, number, seconds, usd, word } from "./dom.js";
import { soon } from "./frames.js";
import { Ink, scale } from "./ink.js";
import { Trace } from "./trace.js";
import told from "./words.js";

const TOLD_MS = 100; // its figures are told anew while it is written

export class Pane {
  id = ""; // of the answer
  running = false;
  #stop = new AbortController();
  #budget = null; // USD, as admitted
  #by = new Map(); // tokens by model
  #about = 0; // USD that the tokens so far cost, about
  #cost = null; // and what the answer did
  #began = 0;
  #first = null;
  #last = 0;
  #decisions = [];
  #hand = null; // that waits for its model's first token
  #ended = {};
  #told = 0; // when its figures were told last; performance.now()
  #models = ""; // as the legend has them

  constructor(fleet, gateway, say, why) {
    this.root = $("#pane").content.cloneNode(true).firstElementChild;
    Object.assign(this, { fleet, gateway, say });
    this.part = (name) => $(`.${name}`, this.root);
    this.part("why").onclick = () => why(this.id);
    this.part("copy").onclick = () => copy(clean(this.ink.text), "Text", say);
    const group = `view-${(Pane.made = (Pane.made ?? 0) + 1)}`;
    for (const radio of this.root.querySelectorAll(".views input")) {
      radio.name = group;
      radio.onchange = () => this.#view(radio.value);
    }
  }

  /** Asks, and shows what comes until it has ended, however it does. */
  async ask(asked, levels) {
    this.running = true;
    const { way, body } = asked;
    this.part("way").textContent = way;
    this.part("ink").ariaLabel = `Answer of ${way}`;
    this.part("markdown").ariaLabel = `Answer of ${way}, as Markdown`;
    this.ink = new Ink(this.part("ink"), this.part("detail"));
    this.trace = new Trace(this.part("trace"), levels, (at) => this.ink.show(at));
    this.#state("waiting", "waiting for the first token …");
    this.#began = performance.now();
    try {
      const whole = await this.#asked(body);
      this.#finish(whole ? "" : word("broke_off"));
    } catch (error) {
      if (error.name === "AbortError") this.#finish(word("stopped_by", { reason: "you" }));
      else this.#fail(error);
    }
  }

  /** With the tokens' log-probabilities; without, from a server that has none. */
  async #asked(body) {
    const ask = (sent) =>
      this.gateway.chat(
        sent,
        this.#stop.signal,
        (headers) => this.#admitted(headers),
        (event) => this.#take(event),
      );
    try {
      return await ask({ ...body, logprobs: true });
    } catch (error) {
      const asks = error.status === 400 && /logprobs/.test(`${error.param} ${error.message}`);
      if (!asks) throw error;
      return ask(body);
    }
  }

  /** Ends the answer: the gateway hears of it, and its models stop. */
  stop() {
    this.#stop.abort();
  }

  /** After another width or other colours. */
  again() {
    this.trace?.again();
  }

  destroy() {
    this.stop();
    this.trace?.destroy();
  }

  #admitted(headers) {
    const budget = headers.get("X-Farthing-Budget-Usd");
    this.#budget = budget === null ? null : Number(budget);
    this.#ended.fidelity = headers.get("X-Farthing-Fidelity");
    this.#ended.policy = headers.get("X-Farthing-Policy");
    this.part("bar").hidden = !this.#budget;
  }

  #take(event) {
    if (event.error) throw Object.assign(new Error(event.error.message), event.error);
    this.id ||= event.id ?? "";
    const ours = event.farthing ?? {};
    if (ours.switch) this.#decisions.push(ours.switch);
    if (told.handOvers.includes(ours.switch?.kind)) this.#hand = ours.switch;
    if (ours.policy) Object.assign(this.#ended, ours);
    if (event.usage) this.#ended.usage = event.usage;
    this.#cost = event.usage?.cost ?? this.#cost;
    for (const choice of event.choices ?? []) {
      this.#write(choice, ours, ours.model ?? event.model ?? "");
      this.#ended.finish = choice.finish_reason ?? this.#ended.finish;
      this.#ended.details = choice.finish_details ?? this.#ended.details;
    }
    soon(this.#draw);
  }

  #write(choice, ours, model) {
    const pieces = split(choice);
    if (!pieces.length) return;
    this.#last = performance.now();
    if (this.#first === null) {
      this.#first = this.#last;
      this.#state("writing", "writing …");
      this.say(`${this.part("way").textContent} begins to write`);
    }
    const bounds = Array.isArray(ours.entropy) ? ours.entropy : null;
    const entropy = bounds ? bounds[0] : (ours.entropy ?? null);
    const colour = this.fleet.colour(model);
    this.#by.set(model, (this.#by.get(model) ?? 0) + pieces.length);
    this.#about += this.fleet.cost(model, pieces.length);
    pieces.forEach(({ text, logprob }, at) => {
      const likely = logprob === null ? null : Math.exp(logprob);
      const surprisal = entropy === null && logprob !== null;
      const bits = surprisal ? -logprob / Math.LN2 : entropy;
      const accepted = at < (ours.accepted ?? 0);
      const hand = this.#hand;
      this.#hand = null;
      const token = { text, model, colour, bits, bounds, surprisal, accepted, likely, hand };
      this.ink.push(token);
      this.trace.push(token);
    });
  }

  #draw = () => {
    const more = this.ink.draw();
    const later = this.trace.draw(performance.now(), !this.running);
    const now = performance.now();
    if (!this.running || now - this.#told > TOLD_MS) {
      this.#told = now;
      this.#figures();
    }
    if (more || later) soon(this.#draw);
    else if (!this.running) this.root.dataset.drawn = "all";
  };

  #figures() {
    const tokens = this.ink.tokens.length;
    if (this.#first !== null) this.part("ttft").textContent = seconds(this.#first - this.#began);
    this.part("tokens").textContent = String(tokens);
    const took = (this.#last - this.#first) / 1000;
    if (tokens > 2 && took > 0) this.part("pace").textContent = number((tokens - 1) / took, 1);
    const cost = this.#cost ?? this.#about;
    const share = this.#budget ? cost / this.#budget : null;
    const spent = share === null
      ? `${usd(cost)}, ${word("no_budget")}`
      : word("of_budget", { cost: usd(cost), budget: usd(this.#budget), share: `${number(share * 100, 1)}%` });
    this.part("cost").textContent = `${this.#cost === null ? "about " : ""}${spent}`;
    if (share !== null) {
      const percent = Math.min(100, share * 100);
      this.part("bar").firstElementChild.style.inlineSize = `${percent}%`;
      this.part("bar").ariaValueNow = number(percent, 1);
    }
    this.#legend(this.#ended.models ?? Object.fromEntries(this.#by));
  }

  #legend(models) {
    const now = JSON.stringify([models, this.ink.accepted]);
    if (now === this.#models) return;
    this.#models = now;
    const made = Object.entries(models).map(([model, count]) =>
      el("li", { className: `m${this.fleet.colour(model)}` }, el("span", { className: "swatch" }), `${model} ${count}`),
    );
    const guessed = this.ink.accepted;
    if (guessed) {
      made.push(el("li", {}, el("span", { className: "dots", textContent: "abc" }), `guessed ahead ${guessed}`));
    }
    made.push(scale());
    this.part("legend").replaceChildren(...made);
  }

  #finish(why) {
    const cut = this.#ended.details?.reason;
    const ended = why || (cut ? word("stopped_by", { reason: cut }) : "");
    this.#end(why || cut ? "cut" : "done", ended || "complete");
    this.part("print").textContent = this.#print(ended);
    this.say(`${this.part("way").textContent}: ${ended || "complete"}, ${this.ink.tokens.length} tokens, ${this.part("cost").textContent}`);
  }

  #fail(error) {
    this.#end("failed", error.status ? `refused (${error.status})` : word("broke_off"));
    this.part("trouble").replaceChildren(...trouble(error));
    if (this.ink.tokens.length) this.part("print").textContent = this.#print(word("broke_off"));
    this.failed = error;
    // Why a budget or a rate refused it is kept under the request's own id.
    this.id ||= [402, 429].includes(error.status) ? error.id : "";
    this.part("why").disabled = !this.id;
  }

  #end(state, text) {
    this.running = false;
    this.#state(state, text);
    this.part("why").disabled = !this.id;
    this.part("copy").disabled = !this.ink.tokens.length;
    this.#figures();
    soon(this.#draw);
    if (this.view === "markdown") this.#view("markdown");
  }

  /** The small print: how true it is to the model that was named, what it cost, what was decided. */
  #print(ended) {
    const { fidelity, policy, preset, finish, usage, entropy, plain, compressed } = this.#ended;
    const hands = this.#decisions.filter((one) => told.handOvers.includes(one.kind)).length;
    const others = this.#decisions.filter((one) => !told.handOvers.includes(one.kind));
    const details = usage?.cost_details;
    return [
      fidelity === "exact" ? "exact: distributed as the model’s own" : fidelity,
      policy && `policy ${policy}`,
      preset && `by ${preset}`,
      hands ? word(hands === 1 ? "switch" : "switches", { count: hands }) : "",
      ...others.slice(0, 4).map((one) => [decided(one.kind, one.model), one.detail].filter(Boolean).join(": ")),
      plain && !others.length ? decided("plain", "") : "",
      ended || (finish && `ended by ${finish}`),
      usage && `${usd(usage.cost)}: ${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`,
      compressed && `${compressed.after} of the prompt’s ${compressed.before} tokens were read`,
      entropy === "bounds" ? "entropies are lower bounds" : "",
      details?.gpu_seconds && `${number(details.gpu_seconds, 4)} s of accelerators`,
      this.id,
    ].filter(Boolean).join(" · ");
  }

  #state(state, text) {
    this.root.dataset.state = state;
    this.part("state").textContent = text;
  }

  async #view(view) {
    this.view = view;
    const [ink, markdown] = [this.part("ink"), this.part("markdown")];
    ink.hidden = view === "markdown";
    markdown.hidden = view !== "markdown";
    if (view !== "markdown") return;
    const { rendered } = await import("./markdown.js");
    markdown.replaceChildren(rendered(this.ink?.text ?? ""));
  }
}

/** The tokens that a choice of a chunk adds; where it does not say which, all of its text is one. */
function split(choice) {
  const text = choice.delta?.content ?? "";
  const scored = choice.logprobs?.content ?? [];
  const joined = scored.map((token) => token.token).join("");
  if (scored.length > 1 && joined === text) {
    return scored.map(({ token, logprob }) => ({ text: token, logprob }));
  }
  if (!text && !scored.length) return [];
  return [{ text, logprob: scored.length === 1 ? scored[0].logprob : null }];
}

const HINTS = {
  401: "Give an API key above; `farthing keys create NAME` makes one.",
  402: "Raise the budget, ask for fewer tokens, or name a cheaper model. Nothing was spent.",
  404: "It was there when this page was loaded; load it anew to see what there is now.",
  429: "Others are asking too. Try again in a moment.",
  502: "The engine behind the gateway failed. What was written so far is paid for.",
  503: "The gateway runs, but no engine can answer now: models may still be loading.",
  504: "The time that was given was too short.",
};

function trouble(error) {
  const hint = HINTS[error.status] ?? "";
  const after = error.retryAfter ? ` The gateway says: in ${error.retryAfter} s.` : "";
  return [
    el("p", {}, el("strong", { textContent: error.message })),
    ...(error.param ? [el("p", { className: "note", textContent: `It is about ${error.param}.` })] : []),
    ...(hint || after ? [el("p", { className: "note", textContent: hint + after })] : []),
  ];
}
