// The Vercel AI SDK with its provider for OpenAI-compatible servers: each exported function is a test.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";

const { BASE_URL, API_KEY, MODEL } = process.env;
const farthing = createOpenAICompatible({
  name: "farthing",
  baseURL: BASE_URL,
  apiKey: API_KEY,
  includeUsage: true,
  metadataExtractor: {
    extractMetadata: async ({ parsedBody }) => ({ farthing: { cost: parsedBody.usage.cost } }),
    createStreamExtractor: () => {
      let cost = null;
      return {
        processChunk: (chunk) => (cost = chunk.usage?.cost ?? cost),
        buildMetadata: () => ({ farthing: { cost } }),
      };
    },
  },
});
const asked = {
  model: farthing(MODEL),
  prompt: "Why is the sky blue?",
  maxOutputTokens: 8,
  temperature: 0,
  maxRetries: 0,
};

export async function a_text() {
  const { text, usage, finishReason, response } = await generateText(asked);
  assert.ok(text);
  assert.equal(finishReason, "length");
  assert.equal(usage.outputTokens, 8);
  assert.ok(response.headers["x-farthing-cost-usd"]);
}

export async function a_stream() {
  const result = streamText(asked);
  let text = "";
  for await (const delta of result.textStream) text += delta;
  assert.equal(text, (await generateText(asked)).text);
  assert.equal((await result.usage).outputTokens, 8);
  assert.ok((await result.providerMetadata).farthing.cost > 0);
}

export async function a_conversation() {
  const { text } = await generateText({
    ...asked,
    prompt: undefined,
    system: "Answer in one word.",
    messages: [
      { role: "user", content: [{ type: "text", text: "Is the sky blue?" }] },
      { role: "assistant", content: "Yes." },
      { role: "user", content: "And now?" },
    ],
  });
  assert.ok(text);
}

export async function a_preset_with_a_budget() {
  const { text, providerMetadata, response } = await generateText({
    ...asked,
    model: farthing("economy"),
    headers: { "X-Budget-Usd": "0.0001" },
    providerOptions: { farthing: { policy: { name: "economy", raise_at: 3.5 } } },
  });
  assert.ok(text);
  assert.equal(response.headers["x-farthing-policy"], "economy");
  assert.equal(Number(response.headers["x-farthing-cost-usd"]), providerMetadata.farthing.cost);
}

export async function an_error() {
  await assert.rejects(generateText({ ...asked, maxRetries: 2, headers: { "X-Budget-Usd": "0" } }), (error) => {
    assert.ok(APICallError.isInstance(error), String(error));
    assert.equal(error.statusCode, 402);
    assert.equal(error.isRetryable, false);
    return true;
  });
}
