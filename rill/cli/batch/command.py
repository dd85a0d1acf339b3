"""Generate the texts of many prompts, from a file into a file.

    rill batch prompts.jsonl --out texts.jsonl --bundle bundles/shakespeare
    rill batch prompts.jsonl --out texts.jsonl --target HOST:PORT,HOST:PORT --max-chars 200

prompts.jsonl has one JSON object a line: {"prompt": "ROMEO:"}, and any of "id", "max_chars", "temperature", "top_k",
"top_p", "min_p", "seed", "stop", "include_stop" and "logit_bias" that should differ from the flags. texts.jsonl gets a
line for each, in the same order, when all are complete; until then texts.jsonl.part has those that are. After Ctrl-C, a
crash or a lost server, the same command continues. With --out - or a pipe, a line is written as soon as all before it
are, and nothing continues. A prompt that is refused has an "error" instead of a "text".
Exit status: 0 all lines have a text, 1 some were refused or the servers failed, 2 wrong usage or input, 130 Ctrl-C.
"""

import argparse
import asyncio
import hashlib
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rill.cli.batch.input import KEYS, Checked, check, read
from rill.cli.batch.output import BatchOutput, Fingerprint
from rill.cli.batch.runner import Batch, Servers
from rill.cli.flags import Connection, add_connection, add_sampling, connected
from rill.cli.progress import ProgressBar
from rill.files import STDOUT, output_file

RETRY_SECONDS = 300.0  # a run of hours outlives a server that is replaced
WATCH_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("prompts", type=_input, metavar="PROMPTS.jsonl", help="one JSON object a line")
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="TEXTS.jsonl", help="where the texts go; - is standard output"
    )
    parser.add_argument("--streams", type=_streams, default=1024, help="texts generated at a time (default: 1024)")
    add_connection(parser, RETRY_SECONDS)
    texts = parser.add_argument_group("defaults for input lines that omit a value")
    texts.add_argument("--max-chars", type=int, default=400, help="characters (default: 400)")
    texts.add_argument("--seed", type=int, default=0, help="a line's seed is made of this and its number (default: 0)")
    add_sampling(texts)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError, OSError, and ValueError for unusable input."""
    defaults = _defaults(options)
    checked = _check(options.prompts, defaults)
    with connected(options) as connection:
        try:
            return asyncio.run(_batch(options, connection, defaults, checked))
        except asyncio.CancelledError:  # SIGTERM
            return 143


async def _batch(
    options: argparse.Namespace, connection: Connection, defaults: dict[str, Any], checked: Checked
) -> int:
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    target, security, retry_seconds, connect_seconds = connection
    servers = Servers(target, options.model, retry_seconds, security, connect_seconds)
    try:
        return await _generate(options, servers, defaults, checked)
    finally:
        await servers.close()


async def _generate(options: argparse.Namespace, servers: Servers, defaults: dict[str, Any], checked: Checked) -> int:
    parameters = hashlib.sha256(json.dumps(defaults, sort_keys=True).encode()).hexdigest()
    model_id = await servers.model_id()
    with BatchOutput(options.out, checked.lines, Fingerprint(checked.digest, parameters, model_id)) as output:
        if output.is_complete:
            _report(f"{output.out} is complete: {_count(output)}")
            return 1 if output.refused else 0
        if output.torn:
            _report(f"{output.part}: removed an incomplete last line")
        if output.done:
            _report(f"{output.part}: continuing after {output.done:,} of {checked.lines:,} lines")
        prompts = read(options.prompts, checked, defaults, output.is_wanted)
        batch = Batch(servers, prompts, output, min(options.streams, checked.lines))
        started = time.monotonic()
        try:
            await _with_progress(batch, output, checked.lines)
            model_id_after = await servers.model_id()
        except BaseException:
            if output.is_resumable:
                lines = f"{output.done:,} of {checked.lines:,} lines"
                _report(f"{output.part} has {lines}; the same command continues from it")
            raise
        if model_id_after != model_id:
            raise ValueError(
                "the servers' model was replaced during the run: "
                + (f"{output.part} has texts of both; remove it" if output.is_resumable else "the texts are of both")
            )
        output.finish()
        seconds = max(time.monotonic() - started, 1e-3)
        speed = f"{batch.characters:,} characters in {seconds:.1f} s ({batch.characters / seconds:,.0f} a second)"
        _report(f"{'standard output' if output.out == STDOUT else output.out}: {_count(output)}; {speed}")
        return 1 if output.refused else 0


async def _with_progress(batch: Batch, output: BatchOutput, lines: int) -> None:
    """Run the batch under a bar."""
    running, started = asyncio.create_task(batch.run()), time.monotonic()
    with ProgressBar(lines, output.done) as bar:
        try:
            while not running.done():
                speed = batch.characters / max(time.monotonic() - started, WATCH_SECONDS)
                bar.show(output.done, f"{output.done:,} of {lines:,} texts  {speed:,.0f} characters/s")
                await asyncio.wait([running], timeout=WATCH_SECONDS)
        finally:
            running.cancel()
            await asyncio.wait([running])
    running.result()


def _check(path: Path, defaults: dict[str, Any]) -> Checked:
    """Read the whole input once, under a bar. Raises PromptError."""
    bytes_read = 0
    with ProgressBar(path.stat().st_size) as bar:

        def on_line(size: int) -> None:
            nonlocal bytes_read
            bytes_read += size
            bar.show(bytes_read, f"checking {path}")

        return check(path, defaults, on_line)


def _defaults(options: argparse.Namespace) -> dict[str, Any]:
    """Collect the parameters that the flags give. Raises ValueError as for a line of the input."""
    given = {name: getattr(options, name) for name in KEYS if getattr(options, name, None) is not None}
    given["logit_bias"] = dict(options.logit_bias)
    defaults = {}
    for name, value in given.items():
        try:
            defaults[name] = KEYS[name](value)
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')} {error}") from None
    return defaults


def _count(output: BatchOutput) -> str:
    refused = f", {output.refused:,} refused (their lines say why)" if output.refused else ""
    texts = output.done - output.refused
    return f"{texts:,} {'text' if texts == 1 else 'texts'}{refused}"


def _report(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _input(path: str) -> Path:
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a file; the input is read twice, so it cannot be a pipe")
    return Path(path)


def _streams(text: str) -> int:
    if not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1,000,000, not {text}")
    return int(text)
