"""The server's TLS certificates: checked when read, and read again for the next connection after they change."""

import logging
import threading
from datetime import UTC, datetime

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from rill.reloaded_files import ReloadedFiles
from rill.serve.access.secret_files import read_file, warn_if_others_may_read
from rill.serve.errors import StartError

log = logging.getLogger("rill")


class Certificates:
    """The server's certificate chain and key in PEM; with `client_ca`, clients need a certificate it has issued.

    Raises StartError.
    """

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._lock = threading.Lock()
        self._files = ReloadedFiles([path for path in (cert, key, client_ca) if path], self._read, StartError)
        warn_if_others_may_read("--tls-key", key)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials to listen with."""
        return grpc.dynamic_ssl_server_credentials(
            self._files.content,
            self._renewed,  # type: ignore[arg-type]  # None is documented, but missing in the stubs
            require_client_authentication=bool(self._client_ca),
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificates if they have changed, else None. gRPC calls it at each connection, in any thread."""
        with self._lock:
            return self._files.content if self._files.renew() else None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, key = read_file("--tls-cert", self._cert), read_file("--tls-key", self._key)
        certificate = _certificate("--tls-cert", self._cert, chain)
        if _public(_private_key(self._key, key).public_key()) != _public(certificate.public_key()):
            raise StartError(f"--tls-key {self._key} does not belong to the certificate in --tls-cert {self._cert}")
        _warn_if_not_valid_now("--tls-cert", self._cert, certificate)
        if not self._client_ca:
            return grpc.ssl_server_certificate_configuration([(key, chain)])
        authorities = read_file("--tls-client-ca", self._client_ca)
        _warn_if_not_valid_now(
            "--tls-client-ca", self._client_ca, _certificate("--tls-client-ca", self._client_ca, authorities)
        )
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authorities)


def _certificate(flag: str, path: str, pem: bytes) -> x509.Certificate:
    """Return the first certificate of a chain. Raises StartError."""
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise StartError(f"{flag} {path} contains no PEM certificate (-----BEGIN CERTIFICATE-----)") from None


def _private_key(path: str, pem: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise StartError(f"--tls-key {path} is encrypted with a password: decrypt it with openssl pkey") from None
    except ValueError:
        raise StartError(f"--tls-key {path} contains no PEM private key (-----BEGIN PRIVATE KEY-----)") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise StartError(f"--tls-key {path} is neither an RSA nor an ECDSA key; gRPC supports no others")
    return key


def _public(key: PublicKeyTypes) -> bytes:
    """Return a key as bytes that can be compared."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _warn_if_not_valid_now(flag: str, path: str, certificate: x509.Certificate) -> None:
    """Log a warning if the certificate is not valid now. It can be renewed, and clocks can be wrong."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        log.warning("%s %s expired on %s", flag, path, f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M UTC}")
    elif now < certificate.not_valid_before_utc:
        log.warning(
            "%s %s is not valid before %s", flag, path, f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M UTC}"
        )
