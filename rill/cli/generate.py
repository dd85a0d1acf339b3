"""Print text as a model generates it.

    rill generate "ROMEO:" --bundle bundles/demo
    rill generate "To be" --max-chars 400 --temperature 0.8 --seed 7
    rill generate --target HOST:PORT --max-chars 0 | head -c 1000
    rill generate --prompt-file scene.txt
    rill generate "It was in " --regex '1[0-9]{3}'
    rill generate "To be" --save-token here.token && rill generate --resume-token here.token

Without --bundle the text comes from a running server (`rill serve`). The stream of a server that drains or is lost
continues at the next address of --target.
"""

import argparse
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

from rill.cli.files import read_token, token_file, write_token
from rill.cli.flags import add_connection, add_sampling, add_timeout, add_unconstrained, connected, constraint_of
from rill.cli.json_output import json_of
from rill.client.requests import finish_reason, generate_request, matches
from rill.client.symbols import symbol_count, text_position
from rill.client.sync import Client
from rill.texts import read_text, text_argument
from rill.v1 import rill_pb2 as pb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("prompt", nargs="?", type=_prompt, help="text that the model reads first; - is standard input")
    parser.add_argument(
        "--prompt-file", type=read_text, metavar="FILE", help="a file with that text, in UTF-8; - is standard input"
    )
    parser.add_argument("--max-chars", type=int, default=400, help="characters (symbols); 0 is endless (default: 400)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text (default: the server draws one)")
    add_sampling(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, one line a message")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities, and those of N alternatives"
    )
    parser.add_argument(
        "--resume-token", type=read_token, default=b"", metavar="FILE", help="continue from what --save-token wrote"
    )
    add_unconstrained(parser, "--resume-token")
    parser.add_argument(
        "--save-token", type=token_file, metavar="FILE", help="write the last resume token to FILE, after Ctrl-C too"
    )
    parser.add_argument(
        "--resume-every",
        type=int,
        metavar="N",
        help="a token every N characters (default: 1024; with --save-token 64, so that Ctrl-C loses little)",
    )
    parser.add_argument(
        "--chars-per-second", type=float, default=0.0, help="pace; 0 is as fast as possible (default: 0)"
    )
    parser.add_argument("--stats", action="store_true", help="report seed and speed on standard error")
    add_timeout(parser)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError, ValueError and OSError."""
    if options.logprobs is not None and not options.json:
        raise ValueError("--logprobs goes with --json: a text alone does not show them")
    if options.prompt is not None and options.prompt_file is not None:
        raise ValueError("give either a prompt or --prompt-file, not both")
    request = _request(options)
    with (
        connected(options) as connection,
        Client(**connection._asdict()) as client,
    ):
        received = ReceivedText()
        try:
            for message in client.stream(request, timeout=options.timeout):
                output = json_line(message, received.count == 0) + "\n" if options.json else message.text
                print(output, end="", flush=True)
                received.add(message)
            if options.stats:
                print(received.stats(), file=sys.stderr)
            elif not options.json and sys.stdout.isatty():
                print()
            if received.matches is False and not options.json:
                print(received.no_match(options.max_chars), file=sys.stderr)
        finally:
            if options.save_token:
                received.save_token(options.save_token)
    return 0


def _request(options: argparse.Namespace) -> pb.GenerateRequest:
    names = ["model", "max_chars", "temperature", "top_k", "top_p", "min_p", "seed", "chars_per_second"]
    names += ["stop", "include_stop", "logprobs", "resume_token", "resume_every"]
    parameters = {name: getattr(options, name) for name in names}
    if options.resume_every is None:
        parameters["resume_every"] = 64 if options.save_token else 1024
    parameters |= constraint_of(options)
    return generate_request(
        options.prompt or options.prompt_file or "", logit_bias=dict(options.logit_bias), **parameters
    )


class ReceivedText:
    """How much has arrived, how fast, and the last resume token."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first, self.count, self.length, self.seed = 0.0, 0, 0, 0  # in symbols, and in code points
        self.token, self.token_count, self.token_length = b"", 0, 0
        self.reason = ""
        self.matches: bool | None = None

    def add(self, message: pb.GenerateResponse) -> None:
        """Count a message."""
        self.first = self.first or time.monotonic()
        self.seed = message.seed or self.seed
        self.count += symbol_count(message)
        self.length += len(message.text)
        if message.resume_token:
            self.token, self.token_count, self.token_length = message.resume_token, self.count, self.length
        if message.finish_reason:
            self.reason, self.matches = finish_reason(message.finish_reason), matches(message.usage)

    def no_match(self, max_chars: int) -> str:
        """Say why a text does not match its constraint."""
        end = f"--max-chars {max_chars} ended it" if self.reason == "LENGTH" else "a stop string ended it"
        return f"\nthe text does not match yet: {end} after {self.count:,} {self._unit}"

    def stats(self) -> str:
        """Return one sentence. A message's usage would describe the last call, and a text may take several."""
        seconds = time.monotonic() - self.first
        return (
            f"\n{self.count:,} {self._unit} (seed {self.seed}): the first {1000 * (self.first - self.started):.1f} ms "
            f"after the call, then {max(self.count - 1, 0) / seconds:,.0f} {self._unit}/s"
        )

    def save_token(self, path: Path) -> None:
        """Write the last token."""
        if not self.token:
            print(f"\nthe server sent no resume token; {path} is unchanged", file=sys.stderr)
            return
        write_token(path, self.token)
        if self.count > self.token_count:
            of_these = f"{self.token_count:,} of these {self.count:,} {self._unit}"
            if self.count != self.length:
                of_these += f" ({self.token_length:,} of {self.length:,} characters)"
            print(f"\n{path} continues after {of_these}", file=sys.stderr)

    @property
    def _unit(self) -> str:
        return "characters" if self.count == self.length else "symbols"


def json_line(message: pb.GenerateResponse, is_first: bool) -> str:
    """Format a message as one line of JSON, with the field names of rill.proto; numbers stay numbers."""
    line: dict[str, Any] = {"text": message.text, "position": message.position}
    if message.symbol_lengths or text_position(message) != message.position:
        line |= {"text_position": message.text_position, "symbol_lengths": list(message.symbol_lengths)}
    if is_first:
        line["seed"] = message.seed
    if message.resume_token:
        line["resume_token"] = b64encode(message.resume_token).decode()
    if message.logprobs:
        line["logprobs"] = [
            {
                "character": entry.character,
                "logprob": entry.logprob,
                "alternatives": [[other.character, other.logprob] for other in entry.alternatives],
            }
            for entry in message.logprobs
        ]
    if message.finish_reason:
        line["finish_reason"] = finish_reason(message.finish_reason)
    if message.HasField("usage"):
        names = [field.name for field in message.usage.DESCRIPTOR.fields if field.name != "matches"]
        line["usage"] = {name: getattr(message.usage, name) for name in names}
        if (known := matches(message.usage)) is not None:
            line["usage"]["matches"] = known
    return json_of(line)


def _prompt(argument: str) -> str:
    return read_text(argument) if argument == "-" else text_argument(argument)
