"""Where a server listens: what the options name, all of it and nothing else, or a sentence with the cause."""

import errno
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from servers import ROOT, run_server

from rill.client.sync import Client
from rill.serve.config import ServerConfig, options_of
from rill.serve.errors import StartError
from rill.serve.operate import ports
from rill.serve.operate.ports import bind, is_exposed, require_free, reserved


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@contextmanager
def server_at(host, port=0, engines=1):
    """A server of nothing that listens there; yields the address that it tells clients."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", int(engines > 1))])
    address = bind(ServerConfig(host=host, port=port, engines=engines), server.add_insecure_port)
    server.start()
    try:
        yield address
    finally:
        server.stop(0).wait()


def answers(host, address):
    try:
        socket.create_connection((host, int(address.rpartition(":")[2])), 5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "shown", "ipv4", "ipv6"),
    [
        ("127.0.0.1", "127.0.0.1", True, False),
        ("0.0.0.0", "0.0.0.0", True, False),
        ("::", "[::]", True, True),
        ("::1", "[::1]", False, True),
        ("[::1]", "[::1]", False, True),
        ("LocalHost", "LocalHost", True, True),
    ],
)
@needs_ipv6
def test_what_is_named_and_nothing_else(host, shown, ipv4, ipv6):
    with server_at(host) as address:
        assert address.rpartition(":")[0] == shown
        assert (answers("127.0.0.1", address), answers("::1", address)) == (ipv4, ipv6)
        with pytest.raises(StartError, match="in use by another program"):
            require_free(ServerConfig(host=host, port=int(address.rpartition(":")[2])))


@needs_ipv6
def test_several_processes_keep_to_ipv4_too():
    with ExitStack() as stack:
        port = stack.enter_context(reserved(ServerConfig(host="0.0.0.0", port=0, engines=4)))
        for _ in range(4):
            address = stack.enter_context(server_at("0.0.0.0", port, engines=4))
            assert (answers("127.0.0.1", address), answers("::1", address)) == (True, False)


@needs_ipv6
def test_several_processes_do_not_mix_with_another_program(monkeypatch):
    monkeypatch.setattr(ports, "TURN_SECONDS", 0)
    with server_at("::1") as address, pytest.raises(StartError, match=r"\[::\]:\d+ is in use"):
        require_free(ServerConfig(host="0.0.0.0", port=int(address.rpartition(":")[2]), engines=2))


@needs_ipv6
def test_the_port_at_ipv6_stays_free_for_others():
    with server_at("0.0.0.0") as address, server_at("::1", int(address.rpartition(":")[2])):
        assert answers("127.0.0.1", address)
        assert answers("::1", address)


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("203.0.113.7", "it is not an address of this machine"),
        ("2001:db8::1", "it is not an address of this machine"),
        ("nobody.invalid", "there is no host of that name"),
    ],
)
def test_hosts_that_are_not_here(host, cause):
    with pytest.raises(StartError, match=f"cannot listen on {host}: {cause}"):
        require_free(ServerConfig(host=host, port=0))


def test_permission_denied_is_not_called_in_use(monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ports, "_hold", refuse)
    with pytest.raises(StartError, match=r"127\.0\.0\.1:80: permission denied: ports below 1024 need privileges"):
        require_free(ServerConfig(port=80))


def test_a_port_in_use_is_told_at_once_in_one_line(tiny_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for engines in (1, 2):
            done = subprocess.run(
                [sys.executable, "-m", "rill.serve", tiny_folder, "--port", str(port), "--engines", str(engines)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
            )
            assert done.returncode == 2
            assert done.stderr == (
                f"error: cannot listen on 127.0.0.1:{port}: in use by another program: "
                "stop it, or choose another --port (0 takes a free one)\n"
            )


def test_unix_socket(tiny_folder, tmp_path):
    path = tmp_path / "a socket"
    with run_server(tiny_folder, "--host", f"unix:{path}") as running:
        assert running.target == f"unix:{tmp_path}/a%20socket"
        assert stat.S_ISSOCK(path.stat().st_mode)
        for target in (running.target, str(path)):
            with Client(target) as client:
                assert len("".join(client.generate("a", max_chars=5))) == 5
        with pytest.raises(StartError, match="in use by a server that is running"):
            require_free(ServerConfig(host=str(path)))
        status, log = running.stop()
    assert status == 0
    assert "WARNING" not in log
    assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "s"))
    with server_at(f"{tmp_path}/s"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


def test_other_files_are_not_replaced_by_sockets(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    for host, cause in [
        (f"unix:{tmp_path}/file", "exists and is not a socket; it is left as it is"),
        (f"unix:{tmp_path}/link", "exists and is not a socket; it is left as it is"),
        (f"unix:{tmp_path}", "exists and is not a socket; it is left as it is"),
        (f"unix:{tmp_path}/none/s", "there is no such folder"),
    ]:
        with pytest.raises(StartError, match=cause):
            require_free(ServerConfig(host=host))
    assert (tmp_path / "link").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_abstract_socket():
    host = f"unix-abstract:rill-{os.getpid()}"
    with server_at(host) as address:
        assert address == host
        with pytest.raises(StartError, match=f"cannot listen on {host}: in use"):
            require_free(ServerConfig(host=host))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--host", "0.0.0.0:50051"], "--host '0.0.0.0:50051' must be a host without its port"),
        (["--host", "http://localhost"], "--host 'http://localhost' must be a host name or an IP address, without a"),
        (["--host", "*"], "--host '*' is not a host: use :: for all"),
        (["--host", ""], "--host '' is not a host name"),
        (["--host", f"unix:/{'x' * 107}"], "Unix sockets have at most 107"),
        (["--host", "unix:s", "--engines", "2"], "--engines needs a port, which processes can share"),
        (["--port", "9", "--metrics-port", "9"], "--port and --metrics-port must differ, and are both 9"),
        (["--metrics-host", "unix:s"], "--metrics-host 'unix:s' is not an IPv6 address"),
    ],
)
def test_options_that_name_no_address(flags, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        options_of(["bundle", *flags], None)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_who_can_reach_it():
    assert [is_exposed(host) for host in ("localhost", "::1", "unix:s", "unix-abstract:s", "/s")] == [False] * 5
    assert [is_exposed(host) for host in ("0.0.0.0", "::", "text.example.com")] == [True] * 3
