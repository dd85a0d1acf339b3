"""The `rill` command: text from a server, in the terminal.

rill generate "To be" --max-chars 400 --temperature 0.8 --seed 7
rill generate --target HOST:PORT --max-chars 0 | head -c 1000
rill generate "To be" --save-token here.token && rill generate --resume-token here.token
rill chat --temperature 0.7
rill score book.txt
rill models --target text.example.com:50051 --tls --token-file token
rill batch prompts.jsonl --out texts.jsonl
rill verify bundles/shakespeare
"""

import os

# Before gRPC is imported, or it writes about its connections between the lines of the text.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import argparse
import json
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from rill.cli.batch.command import add_batch
from rill.cli.chat.command import add_chat
from rill.cli.flags import add_sampling
from rill.cli.score import add_score
from rill.cli.security_flags import add_security, security_of
from rill.cli.token_file import read_token, write_token
from rill.cli.verify.command import add_verify
from rill.client.errors import ServerError
from rill.client.requests import finish_reason, generate_request
from rill.client.retry import RETRY_SECONDS
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 for the server's errors, 2 for wrong usage, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        if "command" in options:
            status: int = options.command(options)
            return status
        run: Callable[[Client, argparse.Namespace], None] = options.run
        security = security_of(options)
        with Client(options.target, retry_seconds=options.retry_seconds, security=security) as client:
            run(client, options)
            sys.stdout.flush()
    except ServerError as error:
        print(f"error: {error} ({error.code.name})", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has had enough; nothing more can be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: cannot write{f' {error.filename}' * bool(error.filename)}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--target", default="127.0.0.1:50051", metavar="HOST:PORT[,HOST:PORT…]", help="the server")
    shared.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up after so long")
    shared.add_argument("--json", action="store_true", help="print JSON: a line for each message")
    add_security(shared)

    generate = commands.add_parser("generate", parents=[shared], help="print a text as it is made")
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", nargs="?", default="", help="what the model reads first")
    generate.add_argument("--model", default="", help="a served model's name (default: the server's first)")
    generate.add_argument("--max-chars", type=int, default=400, help="characters; 0 is endless (default: 400)")
    generate.add_argument("--seed", type=int, help="the same seed gives the same text (default: the server draws one)")
    add_sampling(generate)
    generate.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities, and those of N alternatives"
    )
    generate.add_argument(
        "--resume-token", type=read_token, default=b"", metavar="FILE", help="continue from what --save-token wrote"
    )
    generate.add_argument(
        "--save-token", type=_new_file, metavar="FILE", help="write the last resume token there, after Ctrl-C too"
    )
    generate.add_argument(
        "--resume-every",
        type=int,
        metavar="N",
        help="a token every N characters (default: 1024; with --save-token 64, so that Ctrl-C leaves a late one)",
    )
    generate.add_argument(
        "--retry-seconds",
        type=float,
        default=RETRY_SECONDS,
        metavar="SECONDS",
        help="how long to try to continue a stream that broke; 0 is not at all (default: %(default)g)",
    )
    generate.add_argument("--chars-per-second", type=float, default=0.0, help="pace (default: as fast as it comes)")
    generate.add_argument("--stats", action="store_true", help="say on stderr how fast the text came, and its seed")

    add_score(commands, shared)

    models = commands.add_parser("models", parents=[shared], help="list what is served")
    models.set_defaults(run=_models, retry_seconds=RETRY_SECONDS)

    add_batch(commands)
    add_chat(commands)
    add_verify(commands)
    return parser


def _seconds(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {text!r}")
    return float(text)


def _new_file(path: str) -> Path:
    """Checked before the text, not after it."""
    if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {path}")
    return Path(path)


def _generate(client: Client, options: argparse.Namespace) -> None:
    text = _Text()
    try:
        for message in client.stream(_request(options), timeout=options.timeout):
            print(_line(message, text.count == 0) + "\n" if options.json else message.text, end="", flush=True)
            text.add(message)
        if options.stats:
            print(text.stats(), file=sys.stderr)
        elif not options.json and sys.stdout.isatty():
            print()
    finally:
        if options.save_token:
            text.save_token(options.save_token)


def _request(options: argparse.Namespace) -> pb.GenerateRequest:
    names = ["model", "max_chars", "temperature", "top_k", "top_p", "min_p", "seed", "chars_per_second"]
    names += ["stop", "include_stop", "logprobs", "resume_token", "resume_every"]
    parameters = {name: getattr(options, name) for name in names}
    if options.resume_every is None:
        parameters["resume_every"] = 64 if options.save_token else 1024
    return generate_request(options.prompt, logit_bias=dict(options.logit_bias), **parameters)


class _Text:
    """What came so far: how much, how fast, and the last token."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first, self.count, self.seed = 0.0, 0, 0
        self.token, self.token_count = b"", 0

    def add(self, message: pb.GenerateResponse) -> None:
        self.first = self.first or time.monotonic()
        self.seed = message.seed or self.seed
        self.count += len(message.text)
        if message.resume_token:
            self.token, self.token_count = message.resume_token, self.count

    def stats(self) -> str:
        """One sentence; a message's usage would be about the last call only, and a text may take several."""
        seconds = time.monotonic() - self.first
        return (
            f"\n{self.count:,} characters (seed {self.seed}): the first {1000 * (self.first - self.started):.1f} ms "
            f"after the call, then {max(self.count - 1, 0) / seconds:,.0f} characters/s"
        )

    def save_token(self, path: Path) -> None:
        """Write the last token."""
        if not self.token:
            print(f"\nno resume token came; {path} is as it was", file=sys.stderr)
            return
        write_token(path, self.token)
        if self.count > self.token_count:
            print(f"\n{path} continues after {self.token_count:,} of these {self.count:,} characters", file=sys.stderr)


def _line(message: pb.GenerateResponse, first: bool) -> str:
    """A message as one line of JSON, with the field names of rill.proto; numbers stay numbers."""
    line: dict[str, Any] = {"text": message.text, "position": message.position}
    if first:
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
        line["usage"] = {field.name: getattr(message.usage, field.name) for field in message.usage.DESCRIPTOR.fields}
    return json.dumps(line, ensure_ascii=False)


def _models(client: Client, options: argparse.Namespace) -> None:
    response = client.models(timeout=options.timeout)
    if options.json:
        print(json.dumps(MessageToDict(response, preserving_proto_field_name=True), ensure_ascii=False))
        return
    for model in response.models:
        print(
            f"{model.name}: {model.cell} {model.layers} x {model.hidden}, {model.vocabulary_size} symbols, "
            f"{model.precision}, {model.provider}, {model.state_bytes} bytes a stream, {model.model_id[:12]}"
        )
    print(
        f"streams: {response.streams_running} running, {response.streams_waiting} waiting, "
        f"{response.streams_parked} parked" + (" (draining)" if response.draining else "")
    )
