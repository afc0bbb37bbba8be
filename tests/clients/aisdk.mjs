// The Vercel AI SDK with its provider for OpenAI-compatible servers: each exported function is a test.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateObject, generateText, isStepCount, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const { BASE_URL, API_KEY, MODEL } = process.env;
const farthing = createOpenAICompatible({
  name: "farthing",
  baseURL: BASE_URL,
  apiKey: API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
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

export async function embeddings() {
  const { embeddings, usage } = await embedMany({
    model: farthing.embeddingModel(MODEL),
    values: ["sky", "sea"],
  });
  assert.equal(embeddings.length, 2);
  assert.ok(usage.tokens > 0);
}

export async function an_error() {
  await assert.rejects(generateText({ ...asked, maxRetries: 2, headers: { "X-Budget-Usd": "0" } }), (error) => {
    assert.ok(APICallError.isInstance(error), String(error));
    assert.equal(error.statusCode, 402);
    assert.equal(error.isRetryable, false);
    return true;
  });
}

const Sky = z.object({ colour: z.enum(["blue", "grey", "black"]), cloudy: z.boolean() });
const look = tool({
  description: "Look at the sky above a city.",
  inputSchema: z.object({ city: z.enum(["Oslo", "Rome"]) }),
  execute: async ({ city }) => `Clear above ${city}.`,
});
const looking = { ...asked, prompt: "How is the sky above Oslo?", maxOutputTokens: 64 };

export async function an_object() {
  const { object } = await generateObject({ ...looking, schema: Sky });
  assert.ok(Sky.parse(object));
}

export async function an_object_streamed() {
  const { partialObjectStream, object } = streamObject({ ...looking, schema: Sky });
  let last = null;
  for await (const part of partialObjectStream) last = part;
  assert.deepEqual(last, Sky.parse(await object));
}

export async function an_output_by_a_schema() {
  const { output } = await generateText({ ...looking, output: Output.object({ schema: Sky }) });
  assert.ok(Sky.parse(output));
}

export async function a_tool() {
  const { toolCalls, toolResults, finishReason } = await generateText({
    ...looking,
    tools: { look },
    toolChoice: { type: "tool", toolName: "look" },
  });
  assert.equal(toolCalls.length, 1);
  assert.equal(toolResults[0].output, `Clear above ${toolCalls[0].input.city}.`);
  assert.ok(["stop", "tool-calls"].includes(finishReason));
}

export async function a_tool_streamed_and_its_result_sent_back() {
  const { fullStream, steps, text } = streamText({
    ...looking,
    tools: { look },
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    stopWhen: isStepCount(2),
  });
  const kinds = new Set();
  for await (const part of fullStream) kinds.add(part.type);
  assert.ok(kinds.has("tool-call") && kinds.has("tool-result"), [...kinds].join());
  assert.equal((await steps).length, 2);
  assert.ok(await text);
}
