// The request that the page would make, for other programs. Each makes the same text as the page.
//
// `request`: { model, prompt, token, settings, isProtected }. `token` (standard base64, or empty) takes the place of the
// prompt. A bearer token never stands in a snippet: it comes from the environment, as $RILL_TOKEN.

import { toUrlAlphabet } from "./base64.js";
import { completionFields, FREE, pythonParameters } from "./constraint.js";
import { samplingOf } from "./settings.js";
import { json, python, pythonString, shellWord } from "./quoting.js";

const INDENT = "  ";

/** `curl` on the gateway; `base` is its address, with a / at the end. */
export function curl(request, base) {
  const lines = [
    `curl -N ${shellWord(`${base}v1/completions`)}`,
    "-H 'content-type: application/json'",
    ...(request.isProtected ? ['-H "authorization: Bearer $RILL_TOKEN"'] : []),
    `-d ${shellWord(json(completion(request), INDENT))}`,
  ];
  return lines.join(" \\\n  ");
}

/** Python with the package `openai`. */
export function openai(request, base) {
  const { model, prompt, max_tokens, temperature, top_p, seed, stop, stream, ...others } = completion(request);
  const key = request.isProtected ? 'os.environ["RILL_TOKEN"]' : '"none"';
  const named = { model, prompt, max_tokens, temperature, top_p, seed, stop, stream };
  const values = Object.entries(named).filter(([, value]) => value !== undefined);
  const extra = Object.values(others).some((value) => value !== undefined);
  return [
    ...(request.isProtected ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${pythonString(`${base}v1`)}, api_key=${key})`,
    "chunks = client.completions.create(",
    ...values.map(([name, value]) => `    ${name}=${python(value)},`),
    ...(extra ? [`    extra_body=${python(others)},`] : []),
    ")",
    "for chunk in chunks:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].text, end="", flush=True)',
  ].join("\n");
}

/** Python with Rill's client; `target` is the gRPC address of a server. */
export function rill(request, target) {
  const { model, prompt, token, settings } = request;
  const values = {
    ...(token ? {} : { model: model || undefined }),
    max_chars: settings.length,
    ...snakeCase({ ...samplingOf(settings), seed: seedOf(settings), constraint: undefined }),
    ...pythonParameters(settings.constraint, token !== ""),
    stop: settings.stop?.length ? settings.stop : undefined,
    chars_per_second: settings.pace || undefined,
  };
  const security = request.isProtected ? ', security=Security(token=os.environ["RILL_TOKEN"])' : "";
  const lines = Object.entries(values).filter(([, value]) => value !== undefined);
  return [
    ...(token ? ["import base64"] : []),
    ...(request.isProtected ? ["import os"] : []),
    ...(token || request.isProtected ? [""] : []),
    `from rill import ${request.isProtected ? "Client, Security" : "Client"}`,
    "",
    `with Client(${pythonString(target)}${security}) as client:`,
    "    pieces = client.generate(",
    token ? `        resume_token=base64.b64decode(${pythonString(token)}),` : `        ${pythonString(prompt)},`,
    ...lines.map(([name, value]) => `        ${name}=${python(value)},`),
    "    )",
    "    for piece in pieces:",
    '        print(piece, end="", flush=True)',
  ].join("\n");
}

/** `grpcurl` on a server, which describes its API by reflection. */
export function grpcurl(request, target) {
  const { model, prompt, token, settings } = request;
  const message = {
    model: token ? undefined : model || undefined,
    ...(token ? { resume_token: token } : { prompt }),
    max_chars: settings.length || undefined,
    sampling: samplingMessage(settings, token),
    stop: settings.stop?.length ? settings.stop : undefined,
    chars_per_second: settings.pace || undefined,
  };
  const lines = [
    "grpcurl -plaintext",
    ...(request.isProtected ? ['-H "authorization: Bearer $RILL_TOKEN"'] : []),
    `-d ${shellWord(json(message, INDENT))}`,
    `${shellWord(target)} rill.v1.TextGeneration/Generate`,
  ];
  return lines.join(" \\\n  ");
}

/** The body for OpenAI's completions, with the names that Rill adds to them. */
function completion({ model, prompt, token, settings }) {
  const { temperature, topP, topK, minP, constraint, stop, pace, length } = settings;
  return {
    model,
    prompt: token ? "" : prompt,
    max_tokens: length || Number.MAX_SAFE_INTEGER, // which has no word for a text without an end
    temperature: temperature ?? undefined,
    top_p: topP ?? undefined,
    seed: seedOf(settings),
    stop: stop?.length ? stop : undefined,
    stream: true,
    top_k: topK ?? undefined,
    min_p: minP ?? undefined,
    ...completionFields(constraint, token !== ""),
    chars_per_second: pace || undefined,
    resume_token: token ? toUrlAlphabet(token) : undefined,
  };
}

/** The Sampling message; only a text that continues from a token has a constraint to lose. */
function samplingMessage(settings, token) {
  const { constraint, ...others } = samplingOf(settings);
  const isSet = constraint !== undefined && (token !== "" || settings.constraint !== FREE);
  return { ...snakeCase(others), constraint: isSet ? snakeCase(constraint) : undefined };
}

function seedOf({ seed }) {
  return seed === null ? undefined : BigInt(seed);
}

function snakeCase(values) {
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), value]),
  );
}
