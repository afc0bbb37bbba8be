// The gateway that serves this page: its JSON, and its answers as they stream.

/** It refused, or was not there; `message` says why in its own words. */
export class Refused extends Error {
  constructor(status, error = {}, retryAfter = null, id = "") {
    super(error.message ?? `the gateway answered with status ${status}`);
    Object.assign(this, { status, code: error.code, param: error.param, retryAfter, id });
  }
}

const GONE = { message: "No gateway answers here: it was stopped, or the network is away." };
const TOO_LONG = { message: "The stream holds an event that is too long." };
const KEPT = "farthing-key";
const LONGEST = 8 * 2 ** 20; // characters of one line of a stream

export class Gateway {
  base = new URL("v1/", document.baseURI);
  #key = "";

  constructor() {
    try {
      this.#key = sessionStorage.getItem(KEPT) ?? "";
    } catch {
      // Nothing can be kept here: then it is typed in.
    }
  }

  get hasKey() {
    return this.#key !== "";
  }

  /** From now on this key is sent; `keep`: until the tab closes, else until it is loaded anew. */
  useKey(key, keep) {
    this.#key = key.trim();
    try {
      if (keep && this.#key) sessionStorage.setItem(KEPT, this.#key);
      else sessionStorage.removeItem(KEPT);
    } catch {
      // It stays in memory alone.
    }
  }

  /** What stands at this path, as JSON. Throws Refused. */
  async json(path) {
    const answer = await this.#fetch(path, {});
    return answer.json();
  }

  /**
   * Asks for a streamed chat. Calls `begun` with the answer's headers, then `on` with each event,
   * the moment it comes, and returns once the stream says that it is whole; false: it broke off.
   * Throws Refused, and AbortError where `signal` stops it.
   */
  async chat(body, signal, begun, on) {
    const answer = await this.#fetch("chat/completions", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "X-Debug": "1" },
      signal,
    });
    begun(answer.headers);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await this.#read(reader);
        if (done) return false;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        if (rest.length > LONGEST) throw new Refused(0, TOO_LONG);
        for (const line of lines) {
          if (!line.startsWith("data:")) continue;
          const data = line.slice(5).trim();
          if (data === "[DONE]") return true;
          on(JSON.parse(data));
        }
      }
    } finally {
      reader.cancel().catch(() => {}); // it may be closed already
    }
  }

  async #read(reader) {
    try {
      return await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return { done: true }; // the connection was lost
    }
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    let answer;
    try {
      answer = await fetch(new URL(path, this.base), { cache: "no-store", ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, GONE);
    }
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => ({}));
    const [after, id] = ["Retry-After", "X-Request-Id"].map((name) => answer.headers.get(name));
    throw new Refused(answer.status, said?.error ?? {}, after, id ?? "");
  }
}
