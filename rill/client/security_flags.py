"""Flags about the security of connections; `security_files` reads what they name.

A bearer token is never a flag, since every user can list processes.
"""

import argparse

TOKEN = "RILL_TOKEN"  # in the environment


def add_security(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `security_of` reads."""
    group = parser.add_argument_group("security of connections to --target")
    group.add_argument("--tls", action="store_true", help="connect with TLS, and trust this system's authorities")
    for name, text in [
        ("tls-ca", "connect with TLS, and trust these authorities (PEM) instead"),
        ("tls-cert", "connect with TLS, and show this certificate (PEM) to servers that ask for one"),
        ("tls-key", "the private key (PEM) of --tls-cert"),
        ("token-file", f"a bearer token for servers that ask for one (default: environment variable {TOKEN})"),
    ]:
        group.add_argument(f"--{name}", default="", metavar="FILE", help=text)
    group.add_argument(
        "--tls-server-name",
        default="",
        metavar="NAME",
        help="connect with TLS, to a server whose certificate has this name instead of --target's",
    )
    group.add_argument("--plaintext-token", action="store_true", help="send the token without TLS to other machines")
