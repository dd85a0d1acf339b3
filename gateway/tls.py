"""The gateway's own TLS: its certificate, which is read again for the next connection after it was renewed."""

import ssl
from pathlib import Path
from typing import NoReturn

from rill.gateway.config import GatewayConfig, StartError
from rill.reloaded_files import ReloadedFiles


class Certificates:
    """A certificate chain and its private key, in PEM, and whose certificates clients need. Raises StartError."""

    def __init__(self, config: GatewayConfig) -> None:
        self._cert, self._key, self._client_ca = config.http_tls_cert, config.http_tls_key, config.http_tls_client_ca
        files = [("--http-tls-cert", self._cert), ("--http-tls-key", self._key)]
        self._files = [*files, ("--http-tls-client-ca", self._client_ca)] if self._client_ca else files
        self._contexts = ReloadedFiles([path for _, path in self._files], self._read, StartError)

    def context(self) -> ssl.SSLContext:
        """Return a context to listen with; it uses the files as they are when a connection is made."""
        context = self._read()
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        self._contexts.renew()
        connection.context = self._contexts.content

    def _read(self) -> ssl.SSLContext:
        for flag, path in self._files:
            try:
                if not Path(path).is_file():
                    raise StartError(f"{flag} {path} {'is not a file' if Path(path).exists() else 'does not exist'}")
                Path(path).open("rb").close()
            except OSError as error:
                raise StartError(f"{flag} {path} cannot be read: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, self._refuse_password)
        except OSError as error:  # of ssl, or a file is being replaced
            reason = getattr(error, "reason", "")
            if reason == "KEY_VALUES_MISMATCH":
                raise StartError(
                    f"--http-tls-key {self._key} does not belong to the certificate in --http-tls-cert {self._cert}"
                ) from None
            raise StartError(
                f"--http-tls-cert {self._cert} and --http-tls-key {self._key} are not a certificate chain and its "
                f"private key in PEM: {reason or error}"
            ) from None
        if self._client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except OSError:
                raise StartError(f"--http-tls-client-ca {self._client_ca} contains no PEM certificate") from None
        return context

    def _refuse_password(self) -> NoReturn:
        raise StartError(f"--http-tls-key {self._key} is encrypted with a password: decrypt it with openssl pkey")
