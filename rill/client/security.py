"""How a client authenticates itself and its servers: TLS, certificates, and a bearer token."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
import grpc.aio

from rill.addresses import is_local
from rill.client.connection import Options, options_for
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

TLS_SCHEME = "https://"
_KINDS: dict[str, tuple[type, ...]] = {
    "root_certificates": (bytes, type(None)),
    "certificate": (tuple, type(None)),
    "token": (str,),
    "server_name": (str,),
}
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["TextGeneration"].methods]


@dataclass(frozen=True)
class Security:
    """How to connect. By default connections are in plain text and anonymous.

    `tls` trusts the certificate authorities of this system, `root_certificates` (PEM) other ones instead. `certificate`
    is the client's own key and certificate chain (PEM), for servers that require one. `server_name` is the name in the
    server's certificate, where that is not the host of the address. All of them imply TLS, as an address https://HOST
    does. `token` is a bearer token; in plain text it is sent to this machine only, unless `plaintext_token` is set, and
    never through a proxy. Raises ValueError for values that make no sense.
    """

    tls: bool = False
    root_certificates: bytes | None = field(default=None, repr=False)
    certificate: tuple[bytes, bytes] | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)
    plaintext_token: bool = False
    server_name: str = ""

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            kind = type(getattr(self, name))
            if not issubclass(kind, kinds):
                raise TypeError(f"{name} must be {' or '.join(one.__name__ for one in kinds)}, not {kind.__name__}")
        if self.certificate and [type(part) for part in self.certificate] != [bytes, bytes]:
            raise TypeError("certificate must be two of bytes: the private key and the certificate chain, in PEM")
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise ValueError("a bearer token must be printable ASCII without spaces")
        if self.root_certificates == b"":  # unlike None, which means plain text
            raise ValueError("root_certificates (--tls-ca) has no certificate of an authority")
        if not re.fullmatch(r"[\w.:-]*", self.server_name, re.ASCII):
            raise ValueError(f"server_name (--tls-server-name) must be a host name, not {self.server_name!r}")

    def channel(self, address: str, options: Options) -> grpc.Channel:
        """Return a channel to a canonical address (`rill.addresses`).

        Raises ValueError if the token would be sent there in plain text.
        """
        place, credentials, options = self._connection(address, options)
        if credentials:
            return grpc.secure_channel(place, credentials, options)
        return grpc.insecure_channel(place, options)

    def aio_channel(self, address: str, options: Options) -> grpc.aio.Channel:
        """Return a channel for asyncio; see `channel`."""
        place, credentials, options = self._connection(address, options)
        if credentials:
            return grpc.aio.secure_channel(place, credentials, options)
        return grpc.aio.insecure_channel(place, options)

    def with_token(self, token: str, addresses: Sequence[str]) -> "Security":
        """Return the same with another token, to use the channels to these addresses. Raises ValueError."""
        other = replace(self, token=token)
        for address in addresses:
            other._connection(address, ())
        return other

    def stub(self, channel: grpc.Channel | grpc.aio.Channel) -> TextGenerationStub:
        """Return the service on a channel; its calls carry the token."""
        stub = TextGenerationStub(channel)
        if self.token:
            for name in METHODS:
                setattr(stub, name, partial(_authorized, getattr(stub, name), f"Bearer {self.token}"))
        return stub

    def _connection(self, address: str, options: Options) -> tuple[str, grpc.ChannelCredentials | None, Options]:
        """Return where to connect, with which credentials (None: in plain text) and options. Raises ValueError."""
        place = address.removeprefix(TLS_SCHEME)
        implied = self.root_certificates or self.certificate or self.server_name
        if not (self.tls or implied or place != address):
            if self.token and not self.plaintext_token and not is_local(address):
                raise ValueError(
                    f"the bearer token would go to {address} in plain text, readable on the way: use TLS "
                    "(--tls, or --tls-ca FILE for an authority of your own), or allow it with --plaintext-token"
                )
            is_direct = bool(self.token) or self.plaintext_token
            return place, None, [*options, *options_for(place, is_direct)]
        key, chain = self.certificate or (None, None)
        credentials = grpc.ssl_channel_credentials(self.root_certificates, key, chain)
        names = ("grpc.ssl_target_name_override", "grpc.default_authority") if self.server_name else ()
        return place, credentials, [*options, *options_for(place), *((name, self.server_name) for name in names)]


def _authorized(
    method: Callable[..., Any], authorization: str, *request: Any, metadata: Sequence[tuple[str, str]] = (), **rest: Any
) -> Any:
    """Make a call with one more pair of metadata."""
    return method(*request, metadata=(*metadata, ("authorization", authorization)), **rest)


PLAIN = Security()
