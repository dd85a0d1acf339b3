"""How a client proves who it is, and whom it believes: TLS, certificates, and a bearer token."""

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
    """How to connect; without any of it in plain text, and without saying who one is.

    `tls` believes the authorities of this system, `root_certificates` (PEM) those instead. `certificate` is the
    client's own, where servers want one: its key and its chain (PEM). Either means TLS. `token` is a bearer token; in
    plain text it goes to this machine only, unless `plaintext_token`. Raises ValueError for what makes no sense.
    """

    tls: bool = False
    root_certificates: bytes | None = field(default=None, repr=False)
    certificate: tuple[bytes, bytes] | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)
    plaintext_token: bool = False

    def __post_init__(self) -> None:
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise ValueError("a bearer token is plain ASCII without spaces")
        if self.root_certificates == b"":  # not the same as None: nobody asked for plain text
            raise ValueError("there is no certificate of an authority (--tls-ca) that could be trusted")

    def channel(self, address: str, options: list[tuple[str, int]]) -> grpc.Channel:
        """A channel to HOST:PORT. Raises ValueError if the token would go there in plain text."""
        if credentials := self._credentials(address):
            return grpc.secure_channel(address, credentials, options)
        return grpc.insecure_channel(address, options)

    def aio_channel(self, address: str, options: list[tuple[str, int]]) -> grpc.aio.Channel:
        """The same for asyncio."""
        if credentials := self._credentials(address):
            return grpc.aio.secure_channel(address, credentials, options)
        return grpc.aio.insecure_channel(address, options)

    def stub(self, channel: grpc.Channel | grpc.aio.Channel) -> TextGenerationStub:
        """The service on a channel; its calls have the token."""
        stub = TextGenerationStub(channel)
        if self.token:
            for name in METHODS:
                call = partial(getattr(stub, name), metadata=(("authorization", f"Bearer {self.token}"),))
                setattr(stub, name, call)
        return stub

    def _credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """None for plain text. Raises ValueError."""
        if self.tls or self.root_certificates or self.certificate:
            key, chain = self.certificate or (None, None)
            return grpc.ssl_channel_credentials(self.root_certificates, key, chain)
        if self.token and not self.plaintext_token and not is_local(address):
            raise ValueError(
                f"the bearer token would go to {address} in plain text, for anybody on the way to read: use TLS "
                "(--tls, or --tls-ca FILE for an authority of your own), or say that it may (--plaintext-token)"
            )
        return None


PLAIN = Security()
