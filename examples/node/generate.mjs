// Stream a text from a server, or from several.
//
//     node examples/node/generate.mjs 127.0.0.1:50051 "ROMEO:" --max-chars 400 --seed 18446744073709551615
//
// Needs `npm install` in examples/node, and a server: `rill serve bundles/demo`. Ctrl-C cancels the call.
// The variable RILL_TOKEN has the bearer token, if the server asks for one.

import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { connect, generate, metadata, status } from "./rill.mjs";

const options = {
  "max-chars": { type: "string", default: "400" }, // 0: endless
  temperature: { type: "string", default: "0.7" },
  seed: { type: "string" },
  seconds: { type: "string" }, // deadline
  ca: { type: "string" },
  id: { type: "string" },
  "save-token": { type: "string" }, // a file, from which `rill generate --resume-token` continues
};
const { values, positionals } = parseArgs({ options, allowPositionals: true });
const [targets = "127.0.0.1:50051", prompt = "ROMEO:"] = positionals;

const clients = targets.split(",").map((target) => connect(target, values));
const stopper = new AbortController();
process.once("SIGINT", () => stopper.abort());

const request = {
  prompt,
  max_chars: values["max-chars"],
  sampling: { temperature: Number(values.temperature), ...(values.seed && { seed: values.seed }) },
};
try {
  const meta = metadata({ id: values.id, token: process.env.RILL_TOKEN });
  const seconds = values.seconds && Number(values.seconds);
  let seed = "0"; // the first message of a call has it
  for await (const message of generate(clients, request, { meta, seconds, signal: stopper.signal })) {
    process.stdout.write(message.text);
    if (message.seed !== "0") seed = message.seed;
    if (values["save-token"] && message.resume_token.length) writeFileSync(values["save-token"], message.resume_token);
    if (message.usage) console.error(`\n${message.usage.generated_chars} characters by the last call, seed ${seed}`);
  }
} catch (error) {
  console.error(`\n${status[error.code]}: ${error.details}`);
  process.exitCode = 1;
} finally {
  for (const client of clients) client.close();
}
