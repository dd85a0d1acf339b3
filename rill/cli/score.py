"""`rill score`: how probable a model finds a text.

    rill score book.txt
    rill score - --per-char < book.txt

Files are UTF-8 and are read as a corpus is: without a byte order mark, every line end as one newline.
"""

import argparse
import json
import math
import shutil
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb

DRAWN_EVERY = 0.2  # seconds


def add_score(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `rill`."""
    score = commands.add_parser("score", parents=[shared], help="say how probable a model finds a text")
    score.set_defaults(run=_score, retry_seconds=0.0)
    score.add_argument("text", type=_text, metavar="FILE", help="the text, in UTF-8; - is standard input")
    score.add_argument("--model", default="", help="a served model's name (default: the server's first)")
    score.add_argument("--per-char", action="store_true", help="the log-probability of every character too, in nats")


def _text(path: str) -> str:
    try:
        with open(0 if path == "-" else path, encoding="utf-8-sig", closefd=path != "-") as file:
            return file.read()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise argparse.ArgumentTypeError(f"{path} is not UTF-8: byte {byte:#04x} at offset {error.start}") from None


def _score(client: Client, options: argparse.Namespace) -> None:
    messages = client.score(options.text, model=options.model, timeout=options.timeout)
    total = pb.ScoreResponse.Total()
    for message in messages if options.per_char else _with_progress(messages, len(options.text)):
        total = message.total
        if options.per_char and message.logprobs:
            print(_line(message) if options.json else _rows(message, options.text))
    values = {"chars": total.chars, "logprob": total.logprob}
    values |= {"bits_per_char": total.bits_per_char, "perplexity": total.perplexity}
    if options.json:
        print(json.dumps(values | {"resume_token": b64encode(total.resume_token).decode()}))
    else:
        print(
            f"{total.chars:,} characters: {total.logprob:,.3f} nats, "
            f"{total.bits_per_char:.4f} bits per character, perplexity {total.perplexity:.4f}"
        )


def _line(message: pb.ScoreResponse) -> str:
    return json.dumps({"position": message.position, "logprobs": list(message.logprobs)})


def _rows(message: pb.ScoreResponse, text: str) -> str:
    """A row for each character: its position, itself as JSON has it, its log-probability."""
    positions = range(message.position, message.position + len(message.logprobs))
    rows = zip(positions, message.logprobs, strict=True)
    return "\n".join(f"{at}\t{json.dumps(text[at], ensure_ascii=False)}\t{logprob:.6f}" for at, logprob in rows)


def _with_progress(messages: Iterator[pb.ScoreResponse], chars: int) -> Iterator[pb.ScoreResponse]:
    """The same messages; meanwhile a bar on the terminal, if the text takes long."""
    started = drawn = time.monotonic()
    is_drawn = False
    try:
        for message in messages:
            now, done = time.monotonic(), message.position + len(message.logprobs)
            if done and now - drawn > DRAWN_EVERY and sys.stderr.isatty():
                drawn, is_drawn = now, True
                print(f"\r{_bar(done, chars, now - started)}", end="", file=sys.stderr, flush=True)
            yield message
    finally:
        if is_drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _bar(done: int, chars: int, seconds: float) -> str:
    """One line; shorter than the terminal is wide."""
    speed = done / seconds
    left = math.ceil((chars - done) / speed)
    said = f" {done:,} of {chars:,} characters, {speed:,.0f} a second, {left:,} s left "
    width = max(min(shutil.get_terminal_size().columns - len(said) - 1, 40), 0)
    return "█" * (width * done // chars) + "░" * (width - width * done // chars) + said
