"""The `rill` command: it finds the program that is asked for, and loads no other."""

import os
import sys
from importlib import import_module

from rill.programs import PROGRAMS, version
from rill.programs import run as run_program

# In the order of the help. Each client command is a module with `add_arguments(parser)` and `run(options)`.
ABOUT = {
    "train": "train a model on a text",
    "export": "export trained models to ONNX bundles",
    "serve": "serve bundles over gRPC",
    "bench": "measure how fast a bundle is, in process and over gRPC",
    "generate": "print text as a model generates it",
    "chat": "write a text in turns with a model",
    "score": "report how probable a model finds a text",
    "batch": "generate the texts of many prompts, from a file into a file",
    "models": "list what a server serves",
    "verify": "check that a bundle's texts are the same alone, in a crowd, chunked and resumed",
}
CLIENTS = {
    "generate": "rill.cli.generate",
    "chat": "rill.cli.chat.command",
    "score": "rill.cli.score",
    "batch": "rill.cli.batch.command",
    "models": "rill.cli.models",
    "verify": "rill.cli.verify.command",
}
HELP = f"""usage: rill COMMAND [ARGUMENTS]

Small recurrent character models: train them, export them to ONNX, serve them, and stream text from them.

{"".join(f"  {name:9} {line}{chr(10)}" for name, line in ABOUT.items())}
  rill COMMAND --help describes a command, rill --version prints the version.
  To begin with:  rill generate "ROMEO:" --bundle bundles/demo
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status.

    Client commands: 1 for a server's error, 2 for wrong usage, 130 for Ctrl-C, 143 for SIGTERM.
    """
    _open_closed_streams()
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in PROGRAMS:
        return run_program(name, rest)
    if name in CLIENTS:
        try:
            return _run_client(name, rest)
        except KeyboardInterrupt:
            return 130
    if name in ("help", "-h", "--help"):
        return _print(HELP)
    if name == "--version":
        return _print(f"rill {version()}\n")
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
        print(f"error: {error} ({error.code.name})", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        return _end_output(error)
    return status


def _open_closed_streams() -> None:
    """Open the null device as each standard stream that the caller has closed (`rill … >&-`); Python has None there."""
    for name, flags, mode in (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, encoding="utf-8", closefd=False))


def _print(text: str) -> int:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        return _end_output(error)
    return 0


def _end_output(error: OSError) -> int:
    """Return the exit status after `error` in writing; nothing more can be written to stdout, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the reader has had enough
        return 0
    print(f"error: cannot write{f' {error.filename}' * bool(error.filename)}: {error.strerror}", file=sys.stderr)
    return 1


def _usage_error(name: str) -> str:
    if not name:
        return HELP
    from difflib import get_close_matches  # noqa: PLC0415  # for a typo only

    close = get_close_matches(name, ABOUT, 1)
    hint = f"did you mean rill {close[0]}?" if close else "rill help lists the commands"
    return f"error: there is no command {name!r}; {hint}"
