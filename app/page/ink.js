// The text of an answer, token by token, in the colours of who wrote it.
import { decided, el, number, shown, word } from "./dom.js";

const BLOCK = 300; // tokens, after which a block ends where it can; without a line break too
const LONGEST = 500; // and where it cannot
const CHAPTER = 800; // tokens of blocks that are laid out, or left out of sight, together
const SPANS = 40_000; // tokens that have an element of their own; what follows is plain text
const SLICE_MS = 6; // of one frame, for drawing
const SLICE = 400; // and tokens
const LEVELS = [0.5, 1, 2, 3, 4.5]; // bits: where the next stronger shade begins

/**
 * One token as it came: its text, who wrote it, bits of entropy (or of surprisal, where only that
 * is known), whether it was guessed ahead, how likely it was.
 * @typedef {{text: string, model: string, colour: number, bits: number | null,
 *   bounds: number[] | null, accepted: boolean, likely: number | null, hand: object | null}} Token
 * `hand` is the decision by which its writer took the pen.
 */

export class Ink {
  tokens = [];
  accepted = 0; // of them, guessed ahead
  #drawn = 0;
  #block = null;
  #inBlock = 0;
  #chapter = null;
  #inChapter = 0;
  #writer = null;
  #at = -1; // the token that is pointed at
  #pinned = true; // whether its end is in sight

  /** `root` holds the text; `detail` says what is known of the token that is pointed at. */
  constructor(root, detail) {
    this.root = root;
    this.detail = detail;
    root.replaceChildren();
    root.onpointerover = (event) => this.#point(event.target.at);
    root.onclick = (event) => this.#point(event.target.at);
    root.onkeydown = (event) => this.#key(event);
    root.onscroll = () => {
      this.#pinned = root.scrollTop + root.clientHeight >= root.scrollHeight - 24;
    };
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  push(token) {
    this.tokens.push(token);
    this.accepted += token.accepted;
  }

  /** Draws what has come, as much as a frame has time for; whether there is more to draw. */
  draw() {
    const until = performance.now() + SLICE_MS;
    const before = this.#drawn;
    while (this.#drawn < this.tokens.length) {
      this.#add(this.tokens[this.#drawn], this.#drawn);
      this.#drawn += 1;
      if (this.#drawn - before >= SLICE) break;
      if (this.#drawn % 32 === 0 && performance.now() > until) break;
    }
    if (this.#drawn > before && this.#pinned) this.root.scrollTop = this.root.scrollHeight;
    return this.#drawn < this.tokens.length;
  }

  /** Says what is known of this token, and marks it. */
  show(at) {
    this.#point(at);
  }

  #add(token, at) {
    if (token.model !== this.#writer) {
      if (token.model) this.#pen(token);
      this.#writer = token.model;
    }
    if (!token.text) return;
    const lines = token.text.split(/(?<=\n)(?!$)/);
    const cut = lines.length > 1 ? lines.slice(0, -1).join("") : "";
    if (cut) this.#put(cut, token, at);
    if (cut) this.#end();
    this.#put(lines.at(-1), token, at);
    this.#inBlock += 1;
    const full = this.#inBlock >= BLOCK && /\s$/.test(token.text);
    if (token.text.endsWith("\n") || full || this.#inBlock >= LONGEST) this.#end();
  }

  #put(text, token, at) {
    if (at >= SPANS) {
      this.#here().append(shown(text));
      return;
    }
    const span = document.createElement("span");
    span.className = `t m${token.colour} e${level(token.bits)}${token.accepted ? " a" : ""}`;
    span.textContent = shown(text);
    span.at = at;
    this.#here().append(span);
    this.#block.until = at;
  }

  #pen(token) {
    const mark = el("span", { className: `pen m${token.colour}` }, token.model);
    if (token.hand) mark.title = handed(token.hand);
    this.#here().append(mark);
  }

  #here() {
    if (this.#block === null) {
      this.#block = el("div", { className: "block", dir: "auto" });
      if (this.#chapter === null) this.root.append((this.#chapter = el("div", { className: "chapter" })));
      this.#chapter.append(this.#block);
    }
    return this.#block;
  }

  #end() {
    this.#inChapter += this.#inBlock;
    this.#block = null;
    this.#inBlock = 0;
    if (this.#inChapter < CHAPTER) return;
    // What is out of sight is not laid out again.
    this.#chapter.until = this.#drawn;
    this.#chapter.classList.add("done");
    this.#chapter = null;
    this.#inChapter = 0;
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const last = Math.min(this.#drawn, SPANS) - 1;
    let at = this.#at + step;
    while (at > 0 && at < last && !this.tokens[at].text) at += step;
    this.#point(Math.max(0, Math.min(at, last)), true);
  }

  #point(at, follow = false) {
    const token = this.tokens[at];
    if (token === undefined) return;
    this.root.querySelector(".here")?.classList.remove("here");
    this.#at = at;
    const span = this.#span(at);
    span?.classList.add("here");
    if (follow) span?.scrollIntoView({ block: "nearest" });
    this.detail.textContent = said(token, at);
  }

  #span(at) {
    const chapter = [...this.root.children].find((one) => (one.until ?? Infinity) >= at);
    for (const block of chapter?.children ?? []) {
      if (!(block.until >= at)) continue;
      for (const span of block.children) if (span.at === at) return span;
      return null;
    }
    return null;
  }
}

/** 0, hardly any doubt, to 5; also where nothing is known. */
function level(bits) {
  if (bits === null) return 1;
  const at = LEVELS.findIndex((limit) => bits < limit);
  return at === -1 ? LEVELS.length : at;
}

function said(token, at) {
  const parts = [`token ${at + 1}: ${JSON.stringify(shown(token.text))}`];
  if (token.model) parts.push(word("written_by", { model: token.model }));
  if (token.bounds) parts.push(`entropy ${token.bounds.map((b) => number(b)).join(" to ")} bits`);
  else if (token.bits !== null && !token.surprisal) parts.push(`entropy ${number(token.bits)} bits`);
  if (token.likely !== null) parts.push(`${number(token.likely * 100, 1)} % likely`);
  if (token.accepted) parts.push("guessed ahead and accepted");
  if (token.hand) parts.push(handed(token.hand));
  return parts.join(" · ");
}

/** By what a model took the pen. */
function handed({ kind, model, entropy, threshold }) {
  const said = decided(kind, model);
  if (entropy === null || entropy === undefined) return said;
  return `${said}: a mean of ${number(entropy)} bits, threshold ${number(threshold)}`;
}

/** The shades, from sure to unsure, for a legend. */
export function scale() {
  const shades = [...LEVELS, Infinity].map((_, at) => el("i", { className: `e${at}` }));
  const steps = el("span", { className: "scale", ariaHidden: "true" }, ...shades);
  return el("li", { className: "note" }, "sure", steps, `unsure: ${LEVELS.at(-1)} bits and more`);
}
