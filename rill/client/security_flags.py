"""Flags about the security of connections, and the files that they name.

A bearer token is never a flag, since every user can list processes.
"""

import argparse
import os
from pathlib import Path

from rill.client.security import Security
from rill.texts import read_lines

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


def security_of(options: argparse.Namespace) -> Security:
    """Read the files that the flags name, and the environment. Raises ValueError."""
    if bool(options.tls_cert) != bool(options.tls_key):
        raise ValueError("--tls-cert and --tls-key go together: a certificate and its private key, both in PEM")
    certificate = None
    if options.tls_cert:
        certificate = _read("--tls-key", options.tls_key), _read("--tls-cert", options.tls_cert)
    return Security(
        tls=options.tls,
        root_certificates=_read("--tls-ca", options.tls_ca) if options.tls_ca else None,
        certificate=certificate,
        token=_token(options.token_file),
        plaintext_token=options.plaintext_token,
        server_name=options.tls_server_name,
    )


def _token(path: str) -> str:
    if not path:
        return os.environ.get(TOKEN, "").strip()
    lines = map(str.strip, read_lines("--token-file", path))
    tokens = [line for line in lines if line and not line.startswith("#")]
    if len(tokens) != 1:
        raise ValueError(f"--token-file {path} must hold one token, on a line of its own; it has {len(tokens)}")
    return tokens[0]


def _read(flag: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be read: {error.strerror}") from None
