"""The `rill` command: it finds the program that is asked for, and loads no other."""

import os
import sys
from importlib import import_module

from rill.programs import PROGRAMS, version
from rill.programs import run as run_program
from rill.streams import end_output, run_with_streams

# In the order of the help. Each such command is a module with `add_arguments(parser)` and `run(options)`.
ABOUT = {
    "demo": "serve a small model that ships with Rill, over gRPC and HTTP, and say what to try",
    "train": "train a model on a text",
    "export": "export trained models to ONNX bundles",
    "serve": "serve bundles over gRPC",
    "http": "open servers to HTTP: OpenAI's completions, and a page in the browser",
    "bench": "measure how fast a bundle is, in process and over gRPC",
    "generate": "print text as a model generates it",
    "chat": "write a text in turns with a model",
    "score": "report how probable a model finds a text",
    "batch": "generate the texts of many prompts, or many samples of one, into a file",
    "models": "list what a server serves",
    "tokenizer": "write a model's vocabulary as a Hugging Face tokenizer folder",
    "page": "write a web page that runs a bundle's model in the browser",
    "verify": "check that a bundle's texts are the same alone, in a crowd, chunked and resumed",
}
CLIENTS = {
    "demo": "rill.cli.demo",
    "generate": "rill.cli.generate",
    "chat": "rill.cli.chat.command",
    "score": "rill.cli.score",
    "batch": "rill.cli.batch.command",
    "models": "rill.cli.models",
    "tokenizer": "rill.cli.tokenizer",
    "page": "rill.page.command",
    "verify": "rill.cli.verify.command",
}
# Statuses of errors that the user can mend; of others, the server's log may say more under the request's id.
SELF_EXPLAINED = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNAUTHENTICATED", "UNAVAILABLE")
HELP = f"""usage: rill COMMAND [ARGUMENTS]

Small recurrent character models: train them, export them to ONNX, serve them, and stream text from them.

{"".join(f"  {name:9} {line}{chr(10)}" for name, line in ABOUT.items())}
  rill COMMAND --help describes a command, rill --version prints the version.
  To begin with:  rill demo
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status.

    Client commands: 1 for a server's error, 2 for wrong usage, 130 for Ctrl-C, 143 for SIGTERM.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in PROGRAMS:
        return run_program(name, rest)
    return run_with_streams(lambda: _run(name, rest))


def _run(name: str, arguments: list[str]) -> int:
    if name in CLIENTS:
        try:
            return _run_client(name, arguments)
        except KeyboardInterrupt:
            return 130
    if name in ("help", "-h", "--help", "--version"):
        print(f"rill {version()}\n" if name == "--version" else HELP, end="")
        return 0
    print(_usage_error(name), file=sys.stderr)
    return 2


def _run_client(name: str, arguments: list[str]) -> int:
    # Before gRPC is imported, or it writes about its connections between the lines of the text.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import argparse  # noqa: PLC0415  # `rill serve` and `rill train` need neither this nor gRPC

    from rill.client.errors import ServerError  # noqa: PLC0415

    command = import_module(CLIENTS[name])
    parser = argparse.ArgumentParser(
        prog=f"rill {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    try:
        status: int = command.run(parser.parse_args(arguments))
        sys.stdout.flush()
    except ServerError as error:
        asked = "" if error.code.name in SELF_EXPLAINED or not error.request_id else f", request id {error.request_id}"
        print(f"error: {error} ({error.code.name}{asked})", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        return end_output(error)
    return status


def _usage_error(name: str) -> str:
    if not name:
        return HELP
    from difflib import get_close_matches  # noqa: PLC0415  # for a typo only

    close = get_close_matches(name, ABOUT, 1)
    hint = f"did you mean rill {close[0]}?" if close else "rill help lists the commands"
    return f"error: there is no command {name!r}; {hint}"
