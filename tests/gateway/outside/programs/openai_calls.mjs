// Call a gateway as programs of OpenAI's package for JavaScript do, and print what came back: `openai_calls.mjs URL MODEL`.

import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", timeout: 30000 });
const common = { model, prompt: "a man ", temperature: 0.7, seed: 7 };

const calls = {
  async listed() {
    const ids = [];
    for await (const found of client.models.list()) ids.push((await client.models.retrieve(found.id)).id);
    return ids;
  },
  whole: () => client.completions.create({ ...common, max_tokens: 80 }),
  async streamed() {
    const chunks = [];
    const stream_options = { include_usage: true };
    for await (const chunk of await client.completions.create({ ...common, max_tokens: 80, stream: true, stream_options }))
      chunks.push(chunk);
    return chunks;
  },
  // JSON.stringify of JavaScript writes no BigInt, and a number has 53 bits: a string, as protobuf's JSON has it.
  largest_seed: async () =>
    (await client.completions.create({ ...common, seed: String(2n ** 64n - 1n), max_tokens: 80 })).choices[0].text,
  logprobs: async () => (await client.completions.create({ ...common, max_tokens: 20, logprobs: 3 })).choices[0],
  echo: async () => (await client.completions.create({ ...common, max_tokens: 1, logprobs: 1, echo: true })).choices[0],
  async left() {
    for await (const chunk of await client.completions.create({ ...common, max_tokens: 1e9, stream: true })) return chunk.choices[0].text;
  },
  async refused() {
    const bodies = {
      temperature: { ...common, temperature: -1 },
      model: { ...common, model: "gpt-3.5-turbo-instruct" },
      prompt: { ...common, prompt: "\u0001" },
    };
    const errors = {};
    for (const [name, body] of Object.entries(bodies))
      await client.completions.create(body).catch((error) => {
        errors[name] = { class: error.constructor.name, status: error.status, param: error.param, message: error.message };
      });
    return errors;
  },
};

const results = {};
for (const [name, call] of Object.entries(calls))
  results[name] = await call().catch((error) => `${error.constructor.name}: ${error.message}`);
console.log(JSON.stringify(results));
