"""Report how probable a model finds a text.

    rill score book.txt --bundle bundles/demo
    rill score - --per-char < book.txt
    tail -f app.log | rill score - --per-line --above 4

Files are UTF-8, or UTF-16 with a byte order mark, and are read as a corpus is: every line end as one newline.
"""

import argparse
import json
import time
from base64 import b64encode
from collections.abc import Iterator

from rill.cli.flags import add_connection, add_timeout, connected
from rill.cli.json_output import json_of
from rill.cli.models import find_generator, has_characters
from rill.cli.progress import ProgressBar
from rill.cli.score_lines import add_line_arguments, check_line_options, run_per_line
from rill.client.sync import Client
from rill.texts import read_text
from rill.v1 import rill_pb2 as pb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("text", metavar="FILE", help="the text, in UTF-8; - is standard input")
    parser.add_argument("--per-char", action="store_true", help="also print each character's log-probability, in nats")
    parser.add_argument(
        "--include-end", action="store_true", help="add that the text ends there; the model must have an end symbol"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: with --per-char one line a message")
    add_line_arguments(parser)
    add_timeout(parser)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError and ValueError."""
    check_line_options(options)
    if options.per_line:
        return run_per_line(options)
    try:
        text = read_text(options.text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    total = pb.ScoreResponse.Total()
    with (
        connected(options) as connection,
        Client(**connection._asdict()) as client,
    ):
        is_cut = options.per_char and not has_characters(_model(client, options))
        messages = client.score(
            text,
            model=options.model,
            top_logprobs=0 if is_cut or (options.per_char and options.include_end) else None,
            include_end=options.include_end,
            timeout=options.timeout,
        )
        for message in messages if options.per_char else _with_progress(messages, len(text)):
            total = message.total
            if options.per_char and message.logprobs:
                symbols = [entry.character for entry in message.top]
                print(_line(message, symbols) if options.json else _rows(message, symbols or text))
    values = {"chars": total.chars, "logprob": total.logprob}
    values |= {"bits_per_char": total.bits_per_char, "perplexity": total.perplexity}
    if options.json:
        print(json.dumps(values | {"resume_token": b64encode(total.resume_token).decode()}))
    else:
        unit = "character" if total.chars == len(text) else "symbol"
        print(
            f"{total.chars:,} {unit}s: {total.logprob:,.3f} nats, "
            f"{total.bits_per_char:.4f} bits per {unit}, perplexity {total.perplexity:.4f}"
        )
    return 0


def _model(client: Client, options: argparse.Namespace) -> pb.ModelInfo:
    return find_generator(client.models(timeout=options.timeout), options.model)


def _line(message: pb.ScoreResponse, symbols: list[str]) -> str:
    line = {"position": message.position, "logprobs": list(message.logprobs)}
    return json_of(line | {"symbols": symbols} if symbols else line)


def _rows(message: pb.ScoreResponse, text: str | list[str]) -> str:
    """Format a row for each character: its position, itself as JSON has it, its log-probability.

    `text` is the whole text, or the symbols of the message where they may not be its characters.
    """
    first = message.position
    symbols = text[first : first + len(message.logprobs)] if isinstance(text, str) else text
    rows = enumerate(zip(symbols, message.logprobs, strict=True), first)
    return "\n".join(f"{at}\t{json_of(symbol)}\t{logprob:.6f}" for at, (symbol, logprob) in rows)


def _with_progress(messages: Iterator[pb.ScoreResponse], chars: int) -> Iterator[pb.ScoreResponse]:
    """Yield the same messages, under a bar."""
    started = time.monotonic()
    with ProgressBar(chars) as bar:
        for message in messages:
            if scored := message.position + len(message.logprobs):
                speed = scored / (time.monotonic() - started)
                bar.show(scored, f"{scored:,} of {chars:,} characters  {speed:,.0f} characters/s")
            yield message
