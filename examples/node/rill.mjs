// A client of rill.v1 by @grpc/grpc-js. The proto file is loaded as it is: nothing is generated.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const PROTO = fileURLToPath(new URL("../../protos/rill.proto", import.meta.url));
// Seeds have 64 bits, and a number of JavaScript 53: longs are strings of digits in both directions.
const definition = loadSync(PROTO, { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true });
const { TextGeneration } = grpc.loadPackageDefinition(definition).rill.v1;

export const { status } = grpc;

/** Connect to HOST:PORT; `ca` is a file with authorities (PEM), and makes the connection TLS. */
export function connect(target, { ca } = {}) {
  return new TextGeneration(target, ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure());
}

/** Make the metadata of a call: an id that the server logs, and the bearer token if it asks for one. */
export function metadata({ id = randomBytes(8).toString("hex"), token } = {}) {
  const made = new grpc.Metadata();
  made.set("x-request-id", id);
  if (token) made.set("authorization", `Bearer ${token}`);
  return made;
}

/** Split a message's text into what the model counts: code points, not UTF-16 units, or the longer symbols that it has. */
export function symbolsOf({ text, symbol_lengths }) {
  const characters = [...text];
  let end = 0;
  return symbol_lengths.length ? symbol_lengths.map((length) => characters.slice(end, (end += length)).join("")) : characters;
}

/**
 * Yield the messages of a text, with every character once.
 *
 * When a server is lost, the text continues at the next client from the last resume token, or from the prompt with the
 * same seed. Leaving the loop, or aborting `signal`, cancels the call and frees its slot. `seconds` is the deadline of
 * the whole. Throws the last error, whose `code` is one of `status`, after `tries` failures without a character between.
 */
export async function* generate(clients, request, { meta = metadata(), signal, seconds, tries = 20 } = {}) {
  const deadline = seconds === undefined ? Infinity : Date.now() + 1000 * seconds;
  let [begin, end] = [undefined, 0]; // positions in the stream: of its first symbol, and delivered
  let again = { resume_every: 256, ...request }; // the request that continues from what has arrived
  for (let failures = 0; ; ) {
    const call = clients[failures % clients.length].Generate(again, meta, { deadline });
    call.on("error", () => {}); // the loop below throws it; after `cancel` nobody waits for it
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel);
    if (signal?.aborted) cancel();
    try {
      for await (const message of call) {
        const symbols = symbolsOf(message);
        const position = Number(message.position);
        if (begin === undefined) {
          [begin, end] = [position, position];
          again = { ...again, sampling: { ...again.sampling, seed: message.seed } };
        }
        const known = Math.max(end - position, 0); // delivered before
        if (message.resume_token.length) {
          const left = BigInt(request.max_chars ?? 0) && BigInt(request.max_chars) - BigInt(position + symbols.length - begin);
          again = { ...again, prompt: "", resume_token: message.resume_token, max_chars: String(left) };
        }
        if (symbols.length > known) [end, failures] = [position + symbols.length, 0];
        const isLast = ["FINISH_REASON_LENGTH", "FINISH_REASON_STOP"].includes(message.finish_reason);
        if (symbols.length > known || isLast) {
          const [symbol_lengths, logprobs] = [message.symbol_lengths.slice(known), message.logprobs.slice(known)];
          yield { ...message, text: symbols.slice(known).join(""), symbol_lengths, logprobs };
        }
        if (isLast) return;
      }
      return;
    } catch (error) {
      failures += 1;
      if (signal?.aborted || !isLost(error) || failures >= tries) throw error;
      await sleep(Math.min(50 * failures, 1000));
    } finally {
      signal?.removeEventListener("abort", cancel);
      call.cancel();
    }
  }
}

/** Tell whether a server has gone away. One that refuses a request marks its status with the request's id. */
function isLost(error) {
  const isOfServer = Boolean(error.metadata?.get("x-request-id").length);
  return error.code === status.UNAVAILABLE || (!isOfServer && [status.UNKNOWN, status.INTERNAL, status.CANCELLED].includes(error.code));
}
