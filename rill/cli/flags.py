"""The flags of `rill` that say how characters are chosen and where a text ends."""

import argparse


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Flags with the names of `rill.client.generate_request`; what is not given is None, an empty list or False."""
    for name, kind, text in [
        ("temperature", float, "0 is greedy (default: 1)"),
        ("top-k", int, "keep the k most probable characters; 0 is off (default: off)"),
        ("top-p", float, "keep the most probable characters up to this mass (default: 1, off)"),
        ("min-p", float, "keep characters with this share of the largest probability (default: off)"),
    ]:
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="C=X",
        help="add X to a character's logit; -inf bans it",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT appears; may be repeated"
    )
    parser.add_argument("--include-stop", action="store_true", help="end after the TEXT of --stop instead")


def _bias(text: str) -> tuple[str, float]:
    character, separator, value = text[:1], text[1:2], text[2:]
    if separator != "=":
        raise argparse.ArgumentTypeError(f"must be CHARACTER=NUMBER, not {text!r}")
    return character, float(value)
