"""A second address of a server, on loopback, for the gateway that the server starts itself.

Both sides prove that they have one key, which is made for the server's lifetime and never leaves its memory and that of
the gateway. So the gateway need not trust the server's certificate, whoever issued it and however often it is renewed,
and has one where clients must; and nobody else is let in this way.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from rill.addresses import join
from rill.serve.errors import StartError

HOST = "127.0.0.1"
CLOCKS_APART = timedelta(days=366)  # a clock may be set right later
LIFETIME = timedelta(days=36_500)


@dataclass(frozen=True)
class Identity:
    """A private key and its certificate, PEM, for both sides."""

    key: bytes
    certificate: bytes


@dataclass(frozen=True)
class PrivateListener:
    """Where the gateway is let in, and whom it and the server trust. Port 0: a free one."""

    identity: Identity
    port: int = 0

    @property
    def address(self) -> str:
        """Where a gateway connects, if the port is given."""
        return join(HOST, self.port)

    def bind(self, server: grpc.aio.Server) -> str:
        """Let `server` listen there, too; return the address. Raises StartError."""
        pair = (self.identity.key, self.identity.certificate)
        credentials = grpc.ssl_server_credentials([pair], self.identity.certificate, require_client_auth=True)
        try:
            return join(HOST, server.add_secure_port(self.address, credentials))
        except RuntimeError:
            raise StartError(f"cannot listen on {self.address} for the HTTP gateway") from None


def make_identity() -> Identity:
    """Make a new key, and a certificate for HOST that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rill serve, for its gateway")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_APART)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(pem, certificate.public_bytes(Encoding.PEM))
