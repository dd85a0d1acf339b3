"""What a client says about a connection that fails."""

import socket
import threading
from contextlib import contextmanager, suppress

import grpc
import pytest

from rill.client.connection import explain
from rill.client.errors import ServerError
from rill.client.sync import Client


def failure(target):
    with Client(target, retry_seconds=0) as client, pytest.raises(ServerError) as caught:
        client.models(timeout=20)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    return str(caught.value)


@contextmanager
def program(answer):
    """A program that is not a server of ours; yields HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        connection.recv(1)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("target", ["127.0.0.1:1", "[::1]:1", "unix-abstract:rill-nobody"])
def test_nothing_listens(target):
    assert failure(target) == (
        f"no server listens at {target} (connection refused): "
        "start one there (rill serve BUNDLE), or give the address of one that is running"
    )


def test_there_is_no_socket(tmp_path):
    assert f"no server listens at unix:{tmp_path}/x (there is no such socket): start one" in failure(f"{tmp_path}/x")


def test_there_is_no_such_host():
    assert failure("nobody.invalid:1") == "there is no host nobody.invalid, or its name cannot be resolved now"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"+OK\r\n" * 20])
def test_another_program_listens(answer):
    with program(answer) as target:
        text = failure(target)
    assert "what listens there is not a gRPC server" in text or "the server closes new connections" in text
    assert target in text


def test_other_messages_remain():
    for message in ("Socket closed", "no such model", "Connection refused", ""):
        assert explain(message) == message
    assert explain("Received http2 header with status: 404").startswith("what listens there is a web server or a proxy")
    assert explain("Received http2 header with status: 503").startswith("the proxy there reaches no server (")
