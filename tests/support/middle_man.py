"""A stand-in for a proxy: it passes HTTP/2 on frame by frame, and breaks the calls that it is told to break."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7
END_STREAM, END_HEADERS = 1, 4
PREFACE = 24  # bytes that a client sends before its first frame
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 2, 7, 8, 11


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body


def headers(*pairs: tuple[str, str]) -> bytes:
    """Header fields in HPACK, each a literal that no table remembers."""
    return b"".join(b"\0" + b"".join(bytes([len(part)]) + part.encode() for part in pair) for pair in pairs)


def reset(code: int) -> Callable[[int], bytes]:
    """RST_STREAM: what nginx and Envoy make of a backend that is lost."""
    return lambda stream: frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def end_without_trailers(stream: int) -> bytes:
    """What HAProxy makes of it, where the request is complete."""
    return frame(DATA, END_STREAM, stream)


def end_and_reset(stream: int) -> bytes:
    """What HAProxy makes of it, where more requests may follow."""
    return frame(DATA, END_STREAM, stream) + reset(CANCEL)(stream)


def page(status: int, *more: tuple[str, str]) -> Callable[[int], bytes]:
    """An HTTP answer of the proxy's own. Without a body: gRPC forgets the status if one arrives with it."""
    fields = headers((":status", str(status)), ("content-type", "text/html"), *more)
    return lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, fields)


def status_only(code: int, *more: tuple[str, str]) -> Callable[[int], bytes]:
    """A gRPC status of the proxy's own, before any message."""
    first = ((":status", "200"), ("content-type", "application/grpc"), ("grpc-status", str(code)))
    fields = headers(*first, ("grpc-message", "of the proxy"), *more)
    return lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, fields)


def trailers(code: int, *more: tuple[str, str]) -> Callable[[int], bytes]:
    """A gRPC status of the proxy's own, after the messages that it has passed on."""
    fields = headers(("grpc-status", str(code)), ("grpc-message", "of the proxy"), *more)
    return lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, fields)


def hang_up(stream: int) -> bytes:
    """Close the connection without a word."""
    raise ConnectionAbortedError


def stay_silent(stream: int) -> bytes:
    """Pass nothing on any more."""
    return b""


@dataclass
class Break:
    """How a call ends: with `end`, in place of the message number `after`, or before any answer if that is 0."""

    end: Callable[[int], bytes]
    after: int = 0


@dataclass
class MiddleMan:
    """Passes connections on to `target`. The calls break as `breaks` says, in order; None and later ones do not.

    With `marks`, the initial metadata of all calls get an x-request-id, as proxies add one.
    """

    target: str
    breaks: Sequence[Break | None] = ()
    marks: bool = False
    calls: int = 0
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets, self._connections = [self._listener], list[_Connection]()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            _close(each)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                host, _, port = self.target.rpartition(":")
                try:
                    server = socket.create_connection((host, int(port)))
                except OSError:
                    _close(client)
                    continue
                self._sockets += [client, server]
                self._connections.append(_Connection(self, client, server))

    def cut(self, end: Callable[[int], bytes]) -> None:
        """End all calls that are open, as at the end of an idle time."""
        for connection in self._connections:
            connection.cut(Break(end))

    def next_break(self) -> Break | None:
        """How the call that begins now is to break."""
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
        return self.breaks[number] if number < len(self.breaks) else None


class _Connection:
    """One connection, two threads."""

    def __init__(self, owner: MiddleMan, client: socket.socket, server: socket.socket) -> None:
        self._owner, self._client, self._server = owner, client, server
        self._lock = threading.Lock()  # of what is written to the client
        self._breaks: dict[int, Break | None] = {}  # of each stream
        self._messages: dict[int, int] = {}  # DATA frames of each stream
        self._broken: set[int] = set()  # and those that ended by themselves
        for pump in (self._requests, self._answers):
            threading.Thread(target=self._run, args=(pump,), daemon=True).start()

    def cut(self, found: Break) -> None:
        with suppress(OSError):  # it may have been closed
            for stream in set(self._breaks) - self._broken:
                self._end(stream, found)
                self._server.sendall(reset(CANCEL)(stream))

    def _run(self, pump: Callable[[], None]) -> None:
        with suppress(OSError, EOFError):
            pump()
        _close(self._client)
        _close(self._server)

    def _requests(self) -> None:
        self._server.sendall(_read(self._client, PREFACE))
        for kind, stream, data in _frames(self._client):
            if kind == HEADERS and stream not in self._breaks:
                self._breaks[stream] = found = self._owner.next_break()
                if found and not found.after:
                    self._end(stream, found)
            # What belongs to a broken call is passed on: the tables of header compression are shared.
            self._server.sendall(data)

    def _answers(self) -> None:
        for kind, stream, whole in _frames(self._server):
            data, found = whole, self._breaks.get(stream)
            if kind == DATA and found and stream not in self._broken:
                self._messages[stream] = self._messages.get(stream, 0) + 1
                if self._messages[stream] > found.after:
                    self._end(stream, found)
                    self._server.sendall(reset(CANCEL)(stream))
            if stream not in self._broken or kind not in (DATA, HEADERS, RST_STREAM):
                is_last = kind in (DATA, HEADERS) and data[4] & END_STREAM
                if kind == HEADERS and self._owner.marks and not is_last:
                    data = frame(kind, data[4], stream, data[9:] + headers(("x-request-id", "of-the-proxy")))
                with self._lock:
                    self._client.sendall(data)
                if kind == RST_STREAM or is_last:
                    self._broken.add(stream)

    def _end(self, stream: int, found: Break) -> None:
        self._broken.add(stream)
        with self._lock:
            self._client.sendall(found.end(stream))


def _frames(source: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """The kind and the stream of each frame, and all of its bytes."""
    while True:
        head = _read(source, 9)
        yield (
            head[3],
            struct.unpack(">I", head[5:9])[0] & 0x7FFFFFFF,
            head + _read(source, int.from_bytes(head[:3], "big")),
        )


def _read(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := source.recv(count - len(data))):
            raise EOFError
        data += more
    return data


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
