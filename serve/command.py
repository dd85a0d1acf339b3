"""The `rill` command: text from a server, in the terminal.

rill generate "To be" --max-chars 400 --temperature 0.8 --seed 7
rill generate --target HOST:PORT --max-chars 0 | head -c 1000
rill models
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict

from protos import rill_pb2 as pb
from serve.client import Client, ServerError, generate_request


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 for the server's errors, 2 for wrong usage, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    run: Callable[[Client, argparse.Namespace], None] = options.run
    try:
        with Client(options.target) as client:
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
        print(f"error: cannot write: {error.strerror}", file=sys.stderr)
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

    generate = commands.add_parser("generate", parents=[shared], help="print a text as it is made")
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", nargs="?", default="", help="what the model reads first")
    generate.add_argument("--model", default="", help="a served model's name (default: the server's first)")
    generate.add_argument("--max-chars", type=int, default=400, help="characters; 0 is endless (default: 400)")
    for name, kind, text in [
        ("temperature", float, "0 is greedy (default: 1)"),
        ("top-k", int, "keep the k most probable characters; 0 is off (default: off)"),
        ("top-p", float, "keep the most probable characters up to this mass (default: 1, off)"),
        ("min-p", float, "keep characters with this share of the largest probability (default: off)"),
        ("seed", int, "the same seed gives the same text (default: the server draws one)"),
    ]:
        generate.add_argument(f"--{name}", type=kind, help=text)
    generate.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="C=X",
        help="add X to a character's logit; -inf bans it",
    )
    generate.add_argument("--chars-per-second", type=float, default=0.0, help="pace (default: as fast as it comes)")
    generate.add_argument("--stats", action="store_true", help="say on stderr how fast the text came, and its seed")

    models = commands.add_parser("models", parents=[shared], help="list what is served")
    models.set_defaults(run=_models)
    return parser


def _seconds(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {text!r}")
    return float(text)


def _bias(text: str) -> tuple[str, float]:
    character, separator, value = text[:1], text[1:2], text[2:]
    if separator != "=":
        raise argparse.ArgumentTypeError(f"must be CHARACTER=NUMBER, not {text!r}")
    return character, float(value)


def _generate(client: Client, options: argparse.Namespace) -> None:
    names = ("model", "max_chars", "temperature", "top_k", "top_p", "min_p", "seed", "chars_per_second")
    parameters = {name: getattr(options, name) for name in names}
    request = generate_request(options.prompt, logit_bias=dict(options.logit_bias), **parameters)
    started = time.monotonic()
    first, seed = 0.0, 0
    for message in client.stream(request, timeout=options.timeout):
        first = first or time.monotonic()
        seed = message.seed or seed
        print(_line(message) if options.json else message.text, end="\n" if options.json else "", flush=True)
        if options.stats and message.finish_reason:
            count, seconds = message.usage.generated_chars, time.monotonic() - first
            print(
                f"\n{count:,} characters (seed {seed}): the first {1000 * (first - started):.1f} ms after the call, "
                f"then {(count - 1) / seconds:,.0f} characters/s",
                file=sys.stderr,
            )
    if not options.json and not options.stats and sys.stdout.isatty():
        print()


def _line(message: pb.GenerateResponse) -> str:
    """A message as one line of JSON, with the field names of rill.proto; numbers stay numbers."""
    line: dict[str, Any] = {"text": message.text, "position": message.position}
    if message.position == 0:
        line["seed"] = message.seed
    if message.finish_reason:
        line["finish_reason"] = pb.FinishReason.Name(message.finish_reason).removeprefix("FINISH_REASON_")
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
