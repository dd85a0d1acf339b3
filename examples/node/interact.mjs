// Keep one live state: feed it, change the temperature in mid-text, pause, take a snapshot, go on.
//
//     node examples/node/interact.mjs 127.0.0.1:50051 "ROMEO:"
//
// Needs `npm install` in examples/node, and a server: `rill serve bundles/demo`.

import { connect, metadata, status, symbolsOf } from "./rill.mjs";

const [target = "127.0.0.1:50051", line = "ROMEO:"] = process.argv.slice(2);
const client = connect(target);
const call = client.Interact(metadata({ token: process.env.RILL_TOKEN }));
const events = call[Symbol.asyncIterator]();

/** Return the next event of this kind; print the text that arrives before it. */
async function next(kind) {
  for (;;) {
    const { value, done } = await events.next();
    if (done) throw new Error(`the call ended before the event ${kind}`);
    if (value.event === "output") process.stdout.write(value.output.text);
    if (value.event === kind) return value[kind];
  }
}

/** Print what is generated until so many characters have arrived. */
async function read(characters) {
  for (let count = 0; count < characters; ) count += symbolsOf(await next("output")).length;
}

try {
  call.write({ open: { sampling: { temperature: 0.3, seed: "7" } } });
  const { seed } = await next("opened");
  call.write({ feed: `${line}\n` });
  const { chars, logprob } = await next("fed");
  console.log(`> ${line}   (seed ${seed}; ${(logprob / Number(chars)).toFixed(2)} nats a character)`);

  call.write({ generate: { max_chars: "0", chars_per_second: 200 } }); // endless, until the pause
  await read(100);
  call.write({ update: { temperature: 1.2 } }); // from the next character on
  await read(100);
  call.write({ pause: {} });
  const { position } = await next("paused");
  call.write({ snapshot: {} });
  const snapshot = await next("snapshot");
  console.log(`\n[paused after ${position} characters; a token of ${snapshot.resume_token.length} bytes]`);

  call.write({ generate: { max_chars: "50" } });
  call.end(); // no more actions: the text is completed, and the call ends
  for (let event = await events.next(); !event.done; event = await events.next()) process.stdout.write(event.value.output.text);
  console.log();
} catch (error) {
  console.error(`\n${status[error.code] ?? "error"}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
