"""The files that the flags of `security_flags` name."""

import argparse
import os
from pathlib import Path

from rill.client.security import Security
from rill.client.security_flags import TOKEN
from rill.texts import read_lines


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
