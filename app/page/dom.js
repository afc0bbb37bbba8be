// Elements, amounts and words: what all parts of the page say things with.
import told from "./words.js";

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with these properties; strings among its children become text, never HTML. */
export function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A sentence that the terminal has too, with its blanks filled in. */
export const word = (name, blanks = {}) => filled(told.words[name], blanks);

/** What was decided, in a sentence. */
export const decided = (kind, model) => filled(told.decisions[kind] ?? kind, { model });

const filled = (text, blanks) => text.replace(/\{(\w+)\}/g, (_, name) => String(blanks[name] ?? ""));

/** An amount as the terminal writes it: all digits, no exponent. */
export function usd(amount) {
  if (amount === 0) return "$0";
  const digits = Math.min(Math.max(3 - Math.floor(Math.log10(Math.abs(amount))), 2), 12);
  return `$${amount.toFixed(digits).replace(/\.?0+$/, "")}`;
}

export const number = (value, digits = 2) =>
  value.toFixed(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");

export function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${number(ms / 1000)} s`;
}

const STEERS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
export const STEERING = /[\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g;
const HALVES = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** The text with a visible sign for what would steer: controls, changes of direction, halves of
 * characters. Line breaks and tabs stay. */
export const shown = (text) =>
  text.replace(/\r\n?/g, "\n").replace(HALVES, sign).replace(STEERS, sign);

/** The text without these, as `farthing chat` shows it. */
export const clean = (text) =>
  text.replace(/\r\n?/g, "\n").replace(HALVES, "").replace(STEERS, "");

function sign(char) {
  const code = char.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return code === 0x7f ? "\u2421" : "\ufffd";
}

/** Puts a text into the clipboard, and says so; where there is none it shows it to be copied. */
export async function copy(text, what, say) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
  } catch {
    const area = el("textarea", { value: text, readOnly: true, rows: 8, ariaLabel: what });
    const close = el("button", { type: "button", textContent: "Close" });
    const box = el("dialog", {}, el("p", { textContent: `${what}: copy it from here` }), area, close);
    close.onclick = () => box.close();
    box.onclose = () => box.remove();
    document.body.append(box);
    box.showModal();
    area.select();
  }
}
