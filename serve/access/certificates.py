"""The server's certificates: checked when they are read, and read again for the next connection when they change."""

import logging
import threading
from datetime import UTC, datetime

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from rill.serve.access.reloaded_files import ReloadedFiles, read_file, warn_if_others_may_read
from rill.serve.errors import StartError

log = logging.getLogger("rill")


class Certificates:
    """The server's certificate chain and key in PEM; with `client_ca`, clients need a certificate that it issued.

    Raises StartError.
    """

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._lock = threading.Lock()
        self._files = ReloadedFiles([path for path in (cert, key, client_ca) if path], self._read)
        warn_if_others_may_read("--tls-key", key)

    def credentials(self) -> grpc.ServerCredentials:
        """What a server listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self._files.content,
            self._renewed,  # type: ignore[arg-type]  # None is documented; the stubs do not know it
            require_client_authentication=bool(self._client_ca),
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at every new connection, in any thread: None if there is nothing new."""
        with self._lock:
            return self._files.content if self._files.renew() else None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, key = read_file("--tls-cert", self._cert), read_file("--tls-key", self._key)
        certificate = _certificate("--tls-cert", self._cert, chain)
        if _public(_private_key(self._key, key).public_key()) != _public(certificate.public_key()):
            raise StartError(f"--tls-key {self._key} does not fit the certificate in --tls-cert {self._cert}")
        _warn_of_its_time("--tls-cert", self._cert, certificate)
        if not self._client_ca:
            return grpc.ssl_server_certificate_configuration([(key, chain)])
        authorities = read_file("--tls-client-ca", self._client_ca)
        _warn_of_its_time(
            "--tls-client-ca", self._client_ca, _certificate("--tls-client-ca", self._client_ca, authorities)
        )
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authorities)


def _certificate(flag: str, path: str, pem: bytes) -> x509.Certificate:
    """The first of a chain. Raises StartError."""
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise StartError(f"{flag} {path} has no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None


def _private_key(path: str, pem: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise StartError(f"--tls-key {path} is encrypted with a password: decrypt it with openssl pkey") from None
    except ValueError:
        raise StartError(f"--tls-key {path} has no private key in PEM (-----BEGIN PRIVATE KEY-----)") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise StartError(f"--tls-key {path} is neither an RSA nor an elliptic-curve (ECDSA) key, which gRPC needs")
    return key


def _public(key: PublicKeyTypes) -> bytes:
    """In one form, so that two can be compared."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _warn_of_its_time(flag: str, path: str, certificate: x509.Certificate) -> None:
    """Log a warning if it is not valid now; it can be renewed, and clocks can be wrong."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        log.warning("%s %s has expired on %s", flag, path, f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M UTC}")
    elif now < certificate.not_valid_before_utc:
        log.warning("%s %s is valid from %s on", flag, path, f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M UTC}")
