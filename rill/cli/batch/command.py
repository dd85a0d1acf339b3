"""`rill batch`: the texts of many prompts, from a file into a file.

    rill batch prompts.jsonl --out texts.jsonl --target HOST:PORT,HOST:PORT --max-chars 200
    rill batch prompts.jsonl --out texts.jsonl --bundle bundles/shakespeare

prompts.jsonl has one JSON object a line: {"prompt": "ROMEO:"}, and whatever of "id", "max_chars", "temperature",
"top_k", "top_p", "min_p", "seed", "stop", "include_stop" and "logit_bias" is to differ from the flags. texts.jsonl gets
one line for each, in the same order, as soon as all are complete; texts.jsonl.part has those that are, meanwhile. After
Ctrl-C, a crash or a lost server the same command goes on. A prompt that is refused has an "error" in place of a "text".
Exit status: 0 all lines have a text, 1 some were refused or the servers failed, 2 wrong usage or input, 130 Ctrl-C.
"""

import argparse
import asyncio
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rill.cli.batch.input import KEYS, Checked, check, read
from rill.cli.batch.output import Run, Texts
from rill.cli.batch.runner import Batch, Servers, Source
from rill.cli.flags import add_sampling
from rill.cli.security_flags import add_security, security_of
from rill.client.errors import ServerError
from rill.serve.errors import ServeError, StartError

TARGET = "127.0.0.1:50051"
RETRY_SECONDS = 300.0  # a run of hours outlives a server that is replaced
WATCH_SECONDS = 0.1


def add_batch(commands: Any) -> None:
    """Make `batch` one of the commands of `rill`."""
    parser = commands.add_parser(
        "batch",
        help="make the texts of many prompts, from a file into a file",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    parser.add_argument("prompts", type=_input, metavar="PROMPTS.jsonl", help="one JSON object a line")
    parser.add_argument("--out", type=_output, required=True, metavar="TEXTS.jsonl", help="where the texts go")
    parser.add_argument("--target", metavar="HOST:PORT[,HOST:PORT…]", help=f"servers (default: {TARGET})")
    parser.add_argument("--model", help="with --target: a served model's name (default: the server's first)")
    parser.add_argument("--bundle", metavar="FOLDER", help="make the texts in this process, instead of on a server")
    parser.add_argument("--device", help="with --bundle: auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--streams", type=_streams, default=1024, help="texts in the making at a time (default: 1024)")
    parser.add_argument(
        "--retry-seconds",
        type=float,
        default=RETRY_SECONDS,
        metavar="SECONDS",
        help="how long to try to reach a server before giving up (default: %(default)g)",
    )
    add_security(parser)
    texts = parser.add_argument_group("defaults of the lines that do not say")
    texts.add_argument("--max-chars", type=int, default=400, help="characters (default: 400)")
    texts.add_argument("--seed", type=int, default=0, help="a line's seed is made of this and its number (default: 0)")
    add_sampling(texts)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ValueError for input and files that do not fit, and OSError."""
    if options.bundle and (options.target or options.model):
        raise ValueError("batch takes either --bundle or --target, which --model goes with")
    if options.device and not options.bundle:
        raise ValueError("--device goes with --bundle")
    defaults = _defaults(options)
    checked = _check(options.prompts, defaults)
    try:
        return asyncio.run(_batch(options, defaults, checked))
    except asyncio.CancelledError:  # SIGTERM
        return 143
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ServerError, ServeError) as error:
        code = f" ({error.code.name})" if isinstance(error, ServerError) else ""
        print(f"error: {error}{code}", file=sys.stderr)
        return 1


async def _batch(options: argparse.Namespace, defaults: dict[str, Any], checked: Checked) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    parameters = hashlib.sha256(json.dumps(defaults, sort_keys=True).encode()).hexdigest()
    async with _source(options) as source:
        model_id = await source.model_id()
        with Texts(options.out, checked.lines, Run(checked.digest, parameters, model_id)) as texts:
            if texts.is_complete:
                _say(f"{texts.out} is complete: {_count(texts)}")
                return 1 if texts.refused else 0
            if texts.torn:
                _say(f"{texts.part}: cut a last line that was not whole")
            if texts.done:
                _say(f"{texts.part}: goes on after {texts.done:,} of {checked.lines:,} lines")
            prompts = read(options.prompts, checked, defaults, texts.is_wanted)
            batch = Batch(source, prompts, texts, min(options.streams, checked.lines))
            started = time.monotonic()
            try:
                await _watched(batch, texts, checked.lines)
                model_id_after = await source.model_id()
            except BaseException:
                _say(f"{texts.part} has {texts.done:,} of {checked.lines:,} lines; the same command goes on from there")
                raise
            if model_id_after != model_id:
                raise ValueError(
                    f"the servers' model was replaced meanwhile: {texts.part} has texts of both; remove it"
                )
            texts.finish()
            seconds = max(time.monotonic() - started, 1e-3)
            speed = f"{batch.characters:,} characters in {seconds:.1f} s ({batch.characters / seconds:,.0f} a second)"
            _say(f"{texts.out}: {_count(texts)}; {speed}")
            return 1 if texts.refused else 0


@asynccontextmanager
async def _source(options: argparse.Namespace) -> AsyncIterator[Source]:
    """What makes the texts. Raises StartError and ValueError."""
    if options.bundle:
        from rill.cli.batch.local import Local  # noqa: PLC0415  # a client needs no model runtime

        local = Local(options.bundle, options.device or "auto", options.streams)
        try:
            yield local
        finally:
            local.close()
        return
    servers = Servers(options.target or TARGET, options.model or "", options.retry_seconds, security_of(options))
    try:
        yield servers
    finally:
        await servers.close()


async def _watched(batch: Batch, texts: Texts, lines: int) -> None:
    """Run the batch under a bar."""
    from rill.cli.progress import Bar  # noqa: PLC0415  # for this command only

    running, started = asyncio.create_task(batch.run()), time.monotonic()
    with Bar(lines, texts.done) as bar:
        try:
            while not running.done():
                speed = batch.characters / max(time.monotonic() - started, WATCH_SECONDS)
                bar.show(texts.done, f"{texts.done:,} of {lines:,} texts  {speed:,.0f} characters/s")
                await asyncio.wait([running], timeout=WATCH_SECONDS)
        finally:
            running.cancel()
            await asyncio.wait([running])
    running.result()


def _check(path: Path, defaults: dict[str, Any]) -> Checked:
    """Read the input once, under a bar. Raises PromptError."""
    from rill.cli.progress import Bar  # noqa: PLC0415  # for this command only

    read_bytes = 0
    with Bar(path.stat().st_size) as bar:

        def told(size: int) -> None:
            nonlocal read_bytes
            read_bytes += size
            bar.show(read_bytes, f"checking {path}")

        return check(path, defaults, told)


def _defaults(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters that the flags give. Raises ValueError as for a line of the input."""
    given = {name: getattr(options, name) for name in KEYS if getattr(options, name, None) is not None}
    given["logit_bias"] = dict(options.logit_bias)
    defaults = {}
    for name, value in given.items():
        try:
            defaults[name] = KEYS[name](value)
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')} {error}") from None
    return defaults


def _count(texts: Texts) -> str:
    refused = f", {texts.refused:,} refused (each says why in its line)" if texts.refused else ""
    return f"{texts.done - texts.refused:,} texts{refused}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _input(path: str) -> Path:
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a file; it is read twice, so it cannot be a pipe")
    return Path(path)


def _output(path: str) -> Path:
    if Path(path).exists() and not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a file")
    if not Path(path).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(path).parent}")
    return Path(path)


def _streams(text: str) -> int:
    if not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1,000,000, not {text}")
    return int(text)
