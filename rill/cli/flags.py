"""Flags that commands of `rill` share: where the text comes from, and how its characters are chosen."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rill.cli.local_server import local_server
from rill.client import values
from rill.client.errors import ServerError
from rill.client.retry import RETRY_SECONDS
from rill.client.security import Security
from rill.client.security_files import security_of
from rill.client.security_flags import add_security
from rill.texts import read_text, text_argument

DEFAULT_TARGET = "127.0.0.1:50051"
LOOK_SECONDS = 3.0  # for a first server, unless --retry-seconds says for how long: it may just be starting
LOCAL_RETRY_SECONDS = 2.0  # nobody restarts a private server
CONSTRAINTS = {"regex": "--regex", "choices": "--choice", "json_schema": "--json-schema"}  # a text has one


class Connection(NamedTuple):
    """How a command reaches its servers: as the parameters of a client."""

    target: str
    security: Security
    retry_seconds: float
    connect_seconds: float | None = None


def add_connection(parser: argparse.ArgumentParser, retry_seconds: float = RETRY_SECONDS) -> None:
    """Add the flags that `connected` reads, and `--model`; `retry_seconds` is the default of --retry-seconds."""
    add_source(parser)
    parser.set_defaults(usual_retry_seconds=retry_seconds)
    parser.add_argument(
        "--bundle", metavar="FOLDER", help="use this bundle, on a private server that ends with the command"
    )
    parser.add_argument(
        "--retry-seconds",
        type=float,
        metavar="SECONDS",
        help="how long to look for a server when one is lost or full; 0: not at all (default: "
        f"{retry_seconds:g}, and {LOOK_SECONDS:g} where none listens when the command begins)",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the flags about running servers, and the device of private ones."""
    parser.add_argument(
        "--target", metavar="HOST:PORT[,HOST:PORT…]", help=f"the server, or several (default: {DEFAULT_TARGET})"
    )
    parser.add_argument("--model", default="", help="with --target: a served model's name (default: the first)")
    parser.add_argument("--device", help="with a bundle: auto, cpu, cuda or cuda:N (default: auto)")
    add_security(parser)


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[Connection]:
    """Choose the servers at --target, or start one of --bundle for the time inside the context. Raises ValueError."""
    check_source(options, options.bundle)
    is_usual = options.retry_seconds is None
    seconds = options.usual_retry_seconds if is_usual else options.retry_seconds
    if options.bundle:
        with local_server(options.bundle, "--device", options.device or "auto") as target:
            yield Connection(target, Security(), min(seconds, LOCAL_RETRY_SECONDS))
        return
    try:
        target, look_seconds = options.target or DEFAULT_TARGET, LOOK_SECONDS if is_usual else None
        yield Connection(target, security_of(options), seconds, look_seconds)
    except ServerError as error:
        if options.target or not str(error).startswith("no server listens"):
            raise
        hint = f"no server at {DEFAULT_TARGET}: start one (rill serve BUNDLE), or use --bundle FOLDER or --target"
        raise ServerError(error.code, hint) from None


def check_source(options: argparse.Namespace, bundle: object) -> None:
    """Raise ValueError for flags that exclude each other."""
    if bundle and options.target:
        raise ValueError("give either a bundle or --target, not both")
    if bundle and options.model:
        raise ValueError("--model goes with --target; a bundle is one model")
    for name in ("tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token_file", "plaintext_token"):
        if bundle and getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} goes with --target; a private server needs no security")
    if options.device and not bundle:
        raise ValueError("--device goes with a bundle; a server at --target has a device of its own")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add --timeout: SECONDS, or None."""
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up after so long (default: never)")


def add_sampling(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add flags with the names of `generate_request`; one that is not given is None, an empty list or False."""
    for name, kind, text in [
        ("temperature", float, "0 always takes the most probable character (default: 1)"),
        ("top-k", int, "keep the k most probable characters; 0 keeps all (default: 0)"),
        ("top-p", float, "keep the most probable characters up to this mass (default: 1, all)"),
        ("min-p", float, "keep characters of at least this share of the largest probability (default: 0, all)"),
    ]:
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="C=X",
        help="add X to the logit of character (symbol) C; -inf bans it; may be repeated",
    )
    parser.add_argument(
        "--stop",
        type=text_argument,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before TEXT appears; may be repeated",
    )
    parser.add_argument("--include-stop", action="store_true", help="end after the TEXT of --stop instead")
    _add_constraint(parser)


def _add_constraint(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--regex",
        type=text_argument,
        metavar="REGEX",
        help="the text matches this regular expression of Python as a whole; at --max-chars it may be incomplete",
    )
    parser.add_argument(
        "--choice",
        dest="choices",
        type=text_argument,
        action="append",
        metavar="TEXT",
        help="the text is this one, or another --choice; may be repeated",
    )
    parser.add_argument(
        "--json-schema", type=_schema, metavar="FILE", help="the text is JSON by the JSON Schema in FILE; - is stdin"
    )
    parser.add_argument(
        "--terminator",
        type=text_argument,
        metavar="TEXT",
        help="a symbol that may end a text that matches, where more may follow; '' is none (default: an end symbol of "
        "the model, else a newline)",
    )


def add_unconstrained(parser: argparse.ArgumentParser, flag: str) -> None:
    """Add the flag that goes with a resume token of `flag`."""
    parser.add_argument("--unconstrained", action="store_true", help=f"with {flag}: remove the constraint of the token")
    parser.set_defaults(token_flag=flag)


def constraint_of(options: argparse.Namespace, may_be_of_lines: bool = False) -> dict[str, Any]:
    """Return what the text must match, as parameters of `generate_request`. Raises ValueError.

    `may_be_of_lines`: what a terminator goes with may be in the lines of an input.
    """
    kinds = [flag for name, flag in CONSTRAINTS.items() if getattr(options, name) is not None]
    is_free = getattr(options, "unconstrained", False)
    if len(kinds) > 1:
        raise ValueError(f"give {kinds[0]} or {kinds[1]}, not both: a text has one constraint")
    if is_free and not getattr(options, options.token_flag.removeprefix("--").replace("-", "_")):
        raise ValueError(f"--unconstrained goes with {options.token_flag}: another text has no constraint")
    if is_free and kinds:
        raise ValueError(f"give {kinds[0]} or --unconstrained, not both")
    if options.terminator is not None and not kinds and not may_be_of_lines:
        raise ValueError("--terminator goes with --regex, --choice or --json-schema")
    names = [*CONSTRAINTS, "terminator"]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return given | ({"unconstrained": True} if is_free else {})


def _schema(path: str) -> str:
    text = read_text(path)
    try:
        return values.json_schema(text)
    except ValueError as error:
        where = "standard input" if path == "-" else path
        raise argparse.ArgumentTypeError(str(error).replace("json_schema", where, 1)) from None


def _bias(text: str) -> tuple[str, float]:
    text = text_argument(text)
    character, _, value = text.rpartition("=")  # the character may be one too
    if not character:
        raise argparse.ArgumentTypeError(f"must be CHARACTER=NUMBER, not {text!r}")
    return character, float(value)


def _seconds(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {text!r}")
    return float(text)
