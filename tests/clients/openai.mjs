// The official `openai` package for JavaScript: each exported function is a test.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const { BASE_URL, API_KEY, MODEL } = process.env;
const sdk = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "Why is the sky blue?" }];
const asked = { model: MODEL, messages, max_tokens: 8, temperature: 0 };

export async function a_chat() {
  const { data, response } = await sdk.chat.completions.create(asked).withResponse();
  assert.equal(data.object, "chat.completion");
  assert.equal(data.choices[0].message.refusal, null);
  assert.equal(data.choices[0].finish_reason, "length");
  assert.equal(data.usage.completion_tokens, 8);
  assert.equal(data._request_id, response.headers.get("x-request-id"));
  assert.equal(Number(response.headers.get("x-farthing-cost-usd")), data.usage.cost);
}

export async function a_stream() {
  const stream = await sdk.chat.completions.create({
    ...asked,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, (await sdk.chat.completions.create(asked)).choices[0].message.content);
  assert.equal(usage.completion_tokens, 8);
}

export async function the_stream_helper() {
  const stream = sdk.chat.completions.stream(asked);
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const answer = await stream.finalChatCompletion();
  assert.equal(answer.choices[0].message.content, text);
}

export async function a_stream_that_is_left() {
  const stream = await sdk.chat.completions.create({ ...asked, max_tokens: 2000, stream: true });
  let seen = 0;
  for await (const _ of stream) if (++seen === 3) break; // the SDK aborts the request
  assert.ok(stream.controller.signal.aborted);
}

export async function a_preset_with_a_budget() {
  const answer = await sdk.chat.completions.create(
    { ...asked, model: "economy", budget: { usd: "0.0001" } },
    { headers: { "X-Policy": "economy;raise_at=3.5", "X-Budget-Fallback": "strict" } },
  );
  assert.equal(answer.farthing.policy, "economy");
  assert.ok(answer.usage.cost <= 0.0001);
}

export async function models() {
  const names = [];
  for await (const model of sdk.models.list()) names.push(model.id);
  assert.ok(names.includes("economy") && names.includes(MODEL));
  assert.equal((await sdk.models.retrieve("economy")).id, "economy");
}

export async function embeddings() {
  const { data, usage } = await sdk.embeddings.create({ model: MODEL, input: ["sky", "sea"] });
  assert.equal(data.length, 2);
  assert.ok(data[0].embedding.length > 100 && data[0].embedding.every(Number.isFinite));
  assert.ok(usage.total_tokens > 0);
}

export async function errors() {
  const failing = (more, options) => sdk.chat.completions.create({ ...asked, ...more }, options);
  await assert.rejects(failing({ model: "nope" }), OpenAI.NotFoundError);
  await assert.rejects(failing({ temperature: 3 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    assert.ok(error.requestID);
    return true;
  });
  await assert.rejects(
    new OpenAI({ baseURL: BASE_URL, apiKey: "sk-nobody" }).models.list(),
    OpenAI.AuthenticationError,
  );
  const tries = [];
  const counting = async (...args) => {
    const answer = await fetch(...args);
    tries.push(answer.status);
    return answer;
  };
  const patient = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 3, fetch: counting });
  await assert.rejects(
    patient.chat.completions.create(asked, { headers: { "X-Budget-Usd": "0" } }),
    { status: 402, code: "budget_exceeded" },
  );
  assert.deepEqual(tries, [402]);
}

export async function a_response() {
  const asked = { model: MODEL, input: "Why is the sky blue?", max_output_tokens: 16, temperature: 0 };
  const whole = await sdk.responses.create(asked);
  assert.equal(whole.status, "incomplete");
  assert.equal(whole.usage.output_tokens, 16);
  let text = "";
  const stream = sdk.responses.stream(asked);
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(final.output_text, whole.output_text);
  const then = await sdk.responses.create({
    ...asked,
    input: "And at night?",
    previous_response_id: whole.id,
  });
  assert.ok(then.usage.input_tokens > whole.usage.input_tokens + 16);
}

const Sky = z.object({
  colour: z.enum(["blue", "grey", "black"]),
  layers: z.array(z.object({ cloudy: z.boolean(), kilometres: z.int().min(0).max(99) })).min(1).max(2),
});
const looking = [{ role: "user", content: "How is the sky above Oslo?" }];

export async function an_answer_by_a_schema_of_zod() {
  const asking = { ...asked, messages: looking, max_tokens: 160 };
  const answer = await sdk.chat.completions.parse({
    ...asking,
    response_format: zodResponseFormat(Sky, "sky"),
  });
  assert.ok(Sky.parse(answer.choices[0].message.parsed));
  const response = await sdk.responses.parse({
    model: MODEL,
    input: looking,
    temperature: 0,
    max_output_tokens: 160,
    text: { format: zodTextFormat(Sky, "sky") },
  });
  assert.ok(Sky.parse(response.output_parsed));
}

export async function a_tool_that_runs() {
  const cities = [];
  const look = zodFunction({
    name: "look",
    description: "Look at the sky above a city.",
    parameters: z.object({ city: z.enum(["Oslo", "Rome"]) }),
    function: ({ city }) => (cities.push(city), "Clear."),
  });
  const runner = sdk.chat.completions.runTools({
    ...asked,
    messages: looking,
    max_tokens: 64,
    tools: [look],
    tool_choice: { type: "function", function: { name: "look" } }, // and so it runs once
  });
  await runner.done();
  assert.equal(cities.length, 1);
}
