// A question as a command, and as a program: what this page sends, without the key.
import { STEERING } from "./dom.js";

/** What is sent for a question, as the gateway takes it. */
export function body({ way, prompt, usd, most, temperature, options }) {
  const [name, model] = way.includes("/") ? way.split("/") : [way, way];
  const changed = Object.keys(options).length > 0;
  return {
    model: changed ? model : way,
    messages: [{ role: "user", content: prompt }],
    max_tokens: most,
    temperature,
    ...(usd ? { budget: { usd } } : {}),
    ...(changed ? { policy: { name, ...options } } : {}),
  };
}

/** As a command for a shell. */
export function asCurl(body, base) {
  const sent = { ...body, stream: true, stream_options: { include_usage: true } };
  const quoted = (text) => `'${text.replace(/'/g, "'\\''")}'`;
  return [
    `curl --no-buffer ${quoted(new URL("chat/completions", base).href)} \\`,
    `  -H "Authorization: Bearer $OPENAI_API_KEY" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -H 'X-Debug: 1' \\`,
    `  -d ${quoted(escaped(JSON.stringify(sent)))}`,
    "",
  ].join("\n");
}

/** As a program for OpenAI's package. */
export function asPython(body, base) {
  const { budget, policy, ...known } = body;
  const ours = { ...(budget ? { budget } : {}), ...(policy ? { policy } : {}) };
  const named = Object.entries(known).map(([name, value]) => `    ${name}=${py(value)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${py(base.href.replace(/\/$/, ""))}, api_key=os.environ.get("OPENAI_API_KEY", "unused"))`,
    "stream = client.chat.completions.create(",
    ...named,
    "    stream=True,",
    `    stream_options=${py({ include_usage: true })},`,
    `    extra_headers=${py({ "X-Debug": "1" })},`,
    ...(Object.keys(ours).length ? [`    extra_body=${py(ours)},`] : []),
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    `        print(choice.delta.content or "", end="", flush=True)`,
    "    if chunk.usage:",
    `        print("\\nUSD:", chunk.usage.cost)`,
    "",
  ].join("\n");
}

/** A value of JSON as Python writes it. */
function py(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(py).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${py(name)}: ${py(one)}`).join(", ")}}`;
  }
  return escaped(JSON.stringify(value)); // JSON's strings and numbers are Python's too
}

/** JSON in which nothing steers whoever reads it. */
function escaped(json) {
  return json.replace(STEERING, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
