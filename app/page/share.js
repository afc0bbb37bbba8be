// A question with all its settings in a link's fragment, which no server sees; never a key.

const LONGEST = 100_000; // characters of a fragment

/** The fragment that says this. */
export function packed(state) {
  const bytes = new TextEncoder().encode(JSON.stringify({ v: 1, ...state }));
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return `#q=${btoa(text).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "")}`;
}

/** What a fragment says, each value of its kind or left out; null: it is none of ours. */
export function unpacked(fragment) {
  if (!fragment.startsWith("#q=") || fragment.length > LONGEST) return null;
  let told;
  try {
    const text = atob(fragment.slice(3).replace(/-/g, "+").replace(/_/g, "/"));
    const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
    told = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return null;
  }
  if (told === null || typeof told !== "object" || told.v !== 1) return null;
  const kinds = { prompt: "string", a: "string", b: "string", usd: "string", most: "number", temperature: "number" };
  const kept = {};
  for (const [name, kind] of Object.entries(kinds)) if (typeof told[name] === kind) kept[name] = told[name];
  for (const name of ["optionsA", "optionsB"]) kept[name] = options(told[name]);
  return kept;
}

function options(value) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return {};
  const fits = (one) => one === null || ["string", "number", "boolean"].includes(typeof one);
  const entries = Object.entries(value).filter(([, one]) => fits(one) || (Array.isArray(one) && one.every(fits)));
  return Object.fromEntries(entries);
}
