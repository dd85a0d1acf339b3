"""Generate the texts of many prompts, from a file into a file; or draw many samples of one prompt.

    rill batch prompts.jsonl --out texts.jsonl --bundle bundles/shakespeare
    rill batch prompts.jsonl --out texts.jsonl --target HOST:PORT,HOST:PORT --max-chars 200
    rill batch --samples 100000 --unique --out molecules.smi --bundle bundles/molecules

prompts.jsonl has one JSON object a line: {"prompt": "ROMEO:"}, and any of "id", "n", "max_chars", "temperature",
"top_k", "top_p", "min_p", "seed", "stop", "include_stop" and "logit_bias" that should differ from the flags. "n" texts
of a line have the "index" 0 to n - 1, and the seeds that OpenAI's `n` has over HTTP. One of "regex", "choices" (a list)
and "json_schema" is what the text must match, with a "terminator"; "unconstrained": true removes that of the flags.

TEXTS.jsonl gets a line for each text, in the same order: line, run, id, (index,) seed, text, chars, finish_reason,
(matches: whether it matches what it must; one that --max-chars ended may not,) and logprob, the sum of the natural
log-probabilities of the text's symbols by the model itself (temperature 1, no filters, no bias): that of an end symbol,
which is not in the text, is not in the sum. A prompt that is refused has an "error" instead of a text. X.parquet gets
the same as a table (package pyarrow, extra `parquet`), X.smi the texts alone, one a line.
The file appears when it is complete; until then X.part has what is. After Ctrl-C, a crash or a lost server, the
same command continues. With --out - or a pipe, a text is written as soon as all before it are, and nothing continues.
Exit status: 0 all have a text, 1 some were refused or the servers failed, 2 wrong usage or input, 130 Ctrl-C.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from rill.cli.batch.forms import TextLines, form_of
from rill.cli.batch.input import KEYS, Checked, Prompt, Samples, check, read
from rill.cli.batch.line_breaks import LINE_BREAKS, first_break
from rill.cli.batch.numbering import MOST_TEXTS
from rill.cli.batch.output import BatchOutput, Fingerprint
from rill.cli.batch.runner import Batch, RefusedError, Servers
from rill.cli.flags import CONSTRAINTS, Connection, add_connection, add_sampling, connected, constraint_of
from rill.cli.progress import ProgressBar
from rill.client.requests import sampling_message
from rill.files import STDOUT, output_file
from rill.texts import text_argument
from rill.v1 import rill_pb2 as pb

RETRY_SECONDS = 300.0  # a run of hours outlives a server that is replaced
WATCH_SECONDS = 0.1
TRIED_AT_ONCE = 16  # constraints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("prompts", type=_input, nargs="?", metavar="PROMPTS.jsonl", help="one JSON object a line")
    parser.add_argument(
        "--samples",
        type=_whole(MOST_TEXTS),
        metavar="N",
        help="draw N texts of one prompt instead, those of a file of N lines with this prompt",
    )
    parser.add_argument("--prompt", type=text_argument, metavar="TEXT", help="with --samples (default: none)")
    parser.add_argument(
        "--out",
        type=output_file,
        required=True,
        metavar="TEXTS.jsonl|.parquet|.smi",
        help="where the texts go; - is standard output, and any other name JSON lines",
    )
    parser.add_argument(
        "--unique",
        action="store_true",
        help="keep the first of equal texts, in the order of the input: of N samples fewer than N may be written. "
        "Texts are compared by digests of 64 bits: one of a million is dropped wrongly with a probability of 3e-8",
    )
    parser.add_argument(
        "--logprob",
        action=argparse.BooleanOptionalAction,
        help="write each text's log-probability (default: yes, but for .smi); without, the server has less to do",
    )
    parser.add_argument(
        "--streams", type=_whole(1_000_000), default=1024, help="texts generated at a time (default: 1024)"
    )
    add_connection(parser, RETRY_SECONDS)
    texts = parser.add_argument_group("parameters of samples, and defaults for input lines that omit a value")
    texts.add_argument("--max-chars", type=int, default=400, help="characters (default: 400)")
    texts.add_argument("--n", type=int, metavar="N", help="texts of a line (default: 1, without an index)")
    texts.add_argument("--seed", type=int, default=0, help="a line's seed is made of this and its number (default: 0)")
    add_sampling(texts)


class _Input(NamedTuple):
    """What is to be generated: `read` yields the texts whose numbers are wanted."""

    checked: Checked
    read: Callable[[Callable[[int], bool]], Iterator[Prompt]]


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError, OSError, and ValueError for unusable input."""
    form = form_of(options.out)
    if options.logprob and form is TextLines:
        raise ValueError(f"--logprob: {options.out} has texts alone; choose a name that ends with .jsonl or .parquet")
    defaults = _defaults(options)
    if options.logprob is not False and form is not TextLines:
        defaults["logprobs"] = 0
    given = _given(options, defaults)
    with connected(options) as connection:
        try:
            return asyncio.run(_batch(options, connection, defaults, given))
        except asyncio.CancelledError:  # SIGTERM
            return 143


def _given(options: argparse.Namespace, defaults: dict[str, Any]) -> _Input:
    """Check the input. Raises ValueError."""
    prompt = defaults.pop("prompt", None)
    if (options.prompts is None) == (options.samples is None):
        raise ValueError("give either PROMPTS.jsonl or --samples N")
    if options.samples is None:
        if prompt is not None:
            raise ValueError("--prompt goes with --samples; the lines of an input have theirs")
        checked = _check(options.prompts, defaults)
        return _Input(checked, lambda is_wanted: read(options.prompts, checked, defaults, is_wanted))
    if "n" in defaults:
        raise ValueError("--n goes with PROMPTS.jsonl; --samples says how many texts there are")
    samples = Samples(prompt or "", options.samples, defaults)
    return _Input(samples.checked, samples.read)


async def _batch(options: argparse.Namespace, connection: Connection, defaults: dict[str, Any], given: _Input) -> int:
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    target, security, retry_seconds, connect_seconds = connection
    servers = Servers(target, options.model, retry_seconds, security, connect_seconds)
    try:
        return await _generate(options, servers, defaults, given)
    finally:
        await servers.close()


async def _generate(options: argparse.Namespace, servers: Servers, defaults: dict[str, Any], given: _Input) -> int:
    numbering, digest, breaks, biased, constraints = given.checked
    parameters = defaults | ({"unique": True} if options.unique else {})
    model = await servers.served_model()
    _refuse_symbols(options, model, biased)
    if form_of(options.out) is TextLines:
        _refuse_line_breaks(options, model, breaks)
    run = Fingerprint(digest, sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest(), model.model_id)
    with BatchOutput(options.out, numbering, run, options.unique) as output:
        if output.is_complete:
            _report(f"{output.out} is complete: {_count(output)}")
            return 1 if output.refused else 0
        await _try_constraints(options, servers, constraints)
        if output.torn:
            _report(f"{output.part}: removed an incomplete last line")
        of_all = f"of {numbering.texts:,} {'lines' if numbering.lines == numbering.texts else 'texts'}"
        if output.done:
            _report(f"{output.part}: continuing after {output.done:,} {of_all}")
        prompts = given.read(output.is_wanted)
        batch = Batch(servers, prompts, output, min(options.streams, numbering.texts), bool(options.samples))
        started, before = time.monotonic(), output.done
        try:
            await _with_progress(batch, output, numbering.texts)
            model_after = await servers.served_model()
        except BaseException:
            if output.is_resumable and output.done:
                _report(f"{output.part} has {output.done:,} {of_all}; the same command continues from it")
            raise
        if model_after.model_id != model.model_id:
            raise ValueError(
                "the servers' model was replaced during the run: "
                + (f"{output.part} has texts of both; remove it" if output.is_resumable else "the texts are of both")
            )
        seconds = max(time.monotonic() - started, 1e-3)
        _finish(output, numbering.texts)
        speed = f"{batch.characters:,} characters in {seconds:.1f} s ({batch.characters / seconds:,.0f} a second"
        speed += f", {(output.done - before) / seconds:,.0f} texts a second)"
        _report(f"{'standard output' if output.out == STDOUT else output.out}: {_count(output)}; {speed}")
        return 1 if output.refused else 0


def _refuse_symbols(options: argparse.Namespace, model: pb.ModelInfo, biased: Mapping[str, int]) -> None:
    """Raise ValueError for a bias of several characters that are not one symbol of the model."""
    symbols = {*model.vocabulary}
    for symbol, line in biased.items():
        if symbol not in symbols:
            where = f'{options.prompts}, line {line}: "logit_bias"' if options.prompts else "--logit-bias"
            raise ValueError(f"{where}: {json.dumps(symbol, ensure_ascii=False)} is not a symbol of {model.name}")


async def _try_constraints(options: argparse.Namespace, servers: Servers, constraints: Mapping[bytes, int]) -> None:
    """Generate a character with each, so that a server refuses it now. Raises ValueError, and ServerError."""
    if not constraints:
        return
    given = constraint_of(options, may_be_of_lines=True)
    flags = sampling_message(**given).constraint if given.keys() & CONSTRAINTS.keys() else None
    at_once, tried = asyncio.Semaphore(TRIED_AT_ONCE), 0

    async def refusal(raw: bytes) -> RefusedError | None:
        nonlocal tried
        sampling = pb.Sampling.FromString(raw)
        async with at_once:
            bar.show(tried, f"trying {len(constraints):,} constraints")
            try:
                await servers.text(pb.GenerateRequest(max_chars=1, sampling=sampling), lambda count: None)
            except RefusedError as error:
                return error
            finally:
                tried += 1
        return None

    with ProgressBar(len(constraints)) as bar:
        refusals = await asyncio.gather(*map(refusal, constraints))
    for (raw, line), error in zip(constraints.items(), refusals, strict=True):
        if error:
            constraint = pb.Sampling.FromString(raw).constraint
            name = constraint.WhichOneof("kind")
            where = CONSTRAINTS[name] if constraint == flags else f'{options.prompts}, line {line}: "{name}"'
            raise ValueError(f"{where}: {str(error).removeprefix(f'{name}: ')}")


def _refuse_line_breaks(options: argparse.Namespace, model: pb.ModelInfo, breaks: Mapping[str, int]) -> None:
    """Raise ValueError where a text may have a line break, which would be two lines of OUT."""
    if (found := first_break(model, breaks)) is None:
        return
    line, symbol = found
    where = f"{options.prompts}, line {line}: " if options.prompts else ""
    way = f"end texts with --stop {_quoted(symbol)}" if symbol in LINE_BREAKS else "choose another form"
    raise ValueError(
        f"{where}{options.out} has a text a line, and the model may write line breaks ({symbol!r}); {way}, "
        "or write .jsonl or .parquet"
    )


def _quoted(symbol: str) -> str:
    return f"${symbol!r}"  # as bash and zsh read it


def _finish(output: BatchOutput, texts: int) -> None:
    """Write the output, under a bar."""
    with ProgressBar(texts) as bar:
        output.finish(lambda text: bar.show(text, f"writing {output.out}") if text % 1024 == 0 else None)


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
    constraint_of(options, may_be_of_lines=options.samples is None)
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
    where = "left out" if form_of(output.out) is TextLines else "their lines say why"
    refused = f", {output.refused:,} refused ({where})" if output.refused else ""
    dropped = f", {output.dropped:,} dropped (not unique)" if output.is_unique else ""
    texts = output.done - output.refused - output.dropped
    return f"{texts:,} {'text' if texts == 1 else 'texts'}{dropped}{refused}"


def _report(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _input(path: str) -> Path:
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a file; the input is read twice, so it cannot be a pipe")
    return Path(path)


def _whole(most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be from 1 to {most:,}, not {text}")
        return int(text)

    return count
