"""How a client authenticates itself and its servers: TLS, certificates, and a bearer token."""

from dataclasses import dataclass, field
from functools import partial

import grpc
import grpc.aio

from rill.addresses import is_local
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["TextGeneration"].methods]


@dataclass(frozen=True)
class Security:
    """How to connect. By default connections are in plain text and anonymous.

    `tls` trusts the certificate authorities of this system, `root_certificates` (PEM) other ones instead. `certificate`
    is the client's own key and certificate chain (PEM), for servers that require one. Both imply TLS. `token` is a
    bearer token; in plain text it is sent to this machine only, unless `plaintext_token` is set. Raises ValueError for
    values that make no sense.
    """

    tls: bool = False
    root_certificates: bytes | None = field(default=None, repr=False)
    certificate: tuple[bytes, bytes] | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)
    plaintext_token: bool = False

    def __post_init__(self) -> None:
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise ValueError("a bearer token must be printable ASCII without spaces")
        if self.root_certificates == b"":  # unlike None, which means plain text
            raise ValueError("root_certificates (--tls-ca) has no certificate of an authority")

    def channel(self, address: str, options: list[tuple[str, int]]) -> grpc.Channel:
        """Return a channel to HOST:PORT. Raises ValueError if the token would be sent there in plain text."""
        if credentials := self._credentials(address):
            return grpc.secure_channel(address, credentials, options)
        return grpc.insecure_channel(address, options)

    def aio_channel(self, address: str, options: list[tuple[str, int]]) -> grpc.aio.Channel:
        """Return a channel for asyncio; see `channel`."""
        if credentials := self._credentials(address):
            return grpc.aio.secure_channel(address, credentials, options)
        return grpc.aio.insecure_channel(address, options)

    def stub(self, channel: grpc.Channel | grpc.aio.Channel) -> TextGenerationStub:
        """Return the service on a channel; its calls carry the token."""
        stub = TextGenerationStub(channel)
        if self.token:
            for name in METHODS:
                call = partial(getattr(stub, name), metadata=(("authorization", f"Bearer {self.token}"),))
                setattr(stub, name, call)
        return stub

    def _credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """Return None for plain text. Raises ValueError."""
        if self.tls or self.root_certificates or self.certificate:
            key, chain = self.certificate or (None, None)
            return grpc.ssl_channel_credentials(self.root_certificates, key, chain)
        if self.token and not self.plaintext_token and not is_local(address):
            raise ValueError(
                f"the bearer token would go to {address} in plain text, readable on the way: use TLS "
                "(--tls, or --tls-ca FILE for an authority of your own), or allow it with --plaintext-token"
            )
        return None


PLAIN = Security()
