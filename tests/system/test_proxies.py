"""Real proxies in front of two replicas, set up as docs/operations/proxies.md says."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack

import grpc
import pytest
from servers import ROOT, started, wait_until

from rill.client.errors import ServerError
from rill.client.sync import Client

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PAGE = ROOT / "docs" / "operations" / "proxies.md"
WHOLE = {"prompt": "To be", "seed": 5, "max_chars": 3000}
NGINX = """daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_shutdown_timeout 1s;
events {{}} http {{ access_log off; {paths} {server} }}"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Proxy:
    """HAProxy or nginx with the documented configuration: `idle` seconds, other addresses, and `changes` to it."""

    def __init__(self, kind, folder, replicas, idle="60s", changes=()):
        self._program = shutil.which(kind, path=f"{os.environ['PATH']}:/usr/sbin")
        if not self._program:
            pytest.skip(f"{kind} is not installed")
        self.kind, self.port, self._file = kind, free_port(), folder / "proxy.conf"
        blocks = dict(
            zip(("haproxy", "nginx"), re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.M | re.S), strict=True)
        )
        text = blocks[kind]
        for old, new in [
            ("0.0.0.0:50050", f"127.0.0.1:{self.port}"),
            ("listen 50050", f"listen 127.0.0.1:{self.port}"),
            ("10.0.0.5:50051", replicas[0]),
            ("10.0.0.6:50051", replicas[1]),
            (" 10m", f" {idle}"),
            *changes,
        ]:
            text = text.replace(old, new)
        if kind == "nginx":
            names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in names)
            text = NGINX.format(folder=folder, paths=paths, server=text)
        self._file.write_text(text)
        self._folder, self._processes = folder, []

    def start(self, *more):
        command = (
            [self._program, "-f", self._file, *more]
            if self.kind == "haproxy"
            else [self._program, "-p", self._folder, "-c", self._file]
        )
        with (self._folder / "proxy.log").open("a") as log:
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
        self._processes.append(process)
        wait_until(lambda: self.is_up() or process.poll() is not None)
        assert process.poll() is None, (self._folder / "proxy.log").read_text()

    def is_up(self):
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def reload(self):
        """As an init system does it: HAProxy's next process tells the last one to finish, nginx's main one is told."""
        if self.kind == "nginx":
            self._processes[-1].send_signal(signal.SIGHUP)
        else:
            self.start("-sf", self._processes[-1].pid)

    def kill(self):
        """All of its processes."""
        for process in self._processes:
            if process.poll() is None:
                try:
                    subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False, capture_output=True)
                finally:
                    process.wait(10)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


@pytest.fixture
def replicas(tiny_folder, key):
    with ExitStack() as stack:
        yield [stack.enter_context(started(tiny_folder, key)) for _ in range(2)]


@pytest.fixture(scope="module")
def whole(server):
    with server.client() as client:
        return "".join(client.generate(**WHOLE))


BOTH = pytest.mark.parametrize("kind", ["haproxy", "nginx"])


def proxy_of(kind, folder, replicas, **options):
    return Proxy(kind, folder, [replica.target for replica in replicas], **options)


def busy(replicas):
    """The replica that streams."""
    for replica in replicas:
        with replica.client() as client:
            if client.models().streams_running:
                return replica
    raise AssertionError("none streams")


def read(client, disturb, pace=1500):
    """WHOLE, disturbed in the middle."""
    made, undisturbed = "", [disturb]
    for piece in client.generate(**WHOLE, chars_per_second=pace):
        made += piece
        if len(made) > 1100 and undisturbed:
            undisturbed.pop()()
    assert not undisturbed
    return made


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_a_replica_that_ends(kind, number, tmp_path, replicas, whole):
    with proxy_of(kind, tmp_path, replicas) as proxy, Client(f"127.0.0.1:{proxy.port}") as client:
        assert read(client, lambda: busy(replicas).process.send_signal(number)) == whole


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "writing"])
def test_a_session_whose_replica_ends(kind, number, is_idle, tmp_path, replicas, server):
    def talk(session, end):
        session.feed("To be")
        made = "".join(session.generate(max_chars=50))
        if is_idle:
            end()
        for piece in session.generate(max_chars=900, chars_per_second=1500):
            if len(made) < 300 <= len(made + piece) and not is_idle:
                end()
            made += piece
        return made, session.feed("or not").logprob, session.position

    with server.client() as client, client.interact(seed=7) as session:
        expected = talk(session, lambda: None)
    with (
        proxy_of(kind, tmp_path, replicas) as proxy,
        Client(f"127.0.0.1:{proxy.port}") as client,
        client.interact(seed=7) as session,
    ):
        assert talk(session, lambda: busy(replicas).process.send_signal(number)) == expected


@BOTH
def test_a_score_whose_replica_is_killed(kind, tmp_path, replicas, server):
    text = "To be or not to be. " * 2_000
    with server.client() as client:
        total = list(client.score(text))[-1].total.logprob
    with proxy_of(kind, tmp_path, replicas) as proxy, Client(f"127.0.0.1:{proxy.port}") as client:
        messages = client.score(text)
        count = len(next(messages).logprobs)
        busy(replicas).process.send_signal(signal.SIGKILL)
        for message in messages:
            assert message.position == count
            count += len(message.logprobs)
        assert (count, message.total.logprob) == (len(text), total)


@BOTH
@pytest.mark.parametrize("how", ["reload", "kill"])
def test_a_proxy_that_is_replaced(kind, how, tmp_path, replicas, whole):
    with proxy_of(kind, tmp_path, replicas) as proxy, Client(f"127.0.0.1:{proxy.port}") as client:

        def kill():
            proxy.kill()
            threading.Timer(0.5, proxy.start).start()

        assert read(client, proxy.reload if how == "reload" else kill) == whole


@BOTH
def test_idle_times(kind, tmp_path, replicas, whole):
    """A session between two actions, and a text that comes more slowly than the proxy waits."""
    with proxy_of(kind, tmp_path, replicas, idle="1s") as proxy, Client(f"127.0.0.1:{proxy.port}") as client:
        with client.interact(seed=5) as session:
            session.feed("To be")
            made = "".join(session.generate(max_chars=100))
            time.sleep(2.5)
            made += "".join(session.generate(max_chars=100))
        with replicas[0].client() as direct:
            assert made == "".join(direct.generate("\nTo be", seed=5, max_chars=200))
        slowly = "".join(client.generate("To be", seed=5, max_chars=4, chars_per_second=0.4))
        assert slowly == whole[:4]


@BOTH
def test_no_replica_yet(kind, tiny_folder, key, tmp_path, whole):
    ports = [free_port(), free_port()]
    with (
        Proxy(kind, tmp_path, [f"127.0.0.1:{port}" for port in ports]) as proxy,
        Client(f"127.0.0.1:{proxy.port}") as client,
        ExitStack() as stack,
    ):
        starter = threading.Timer(1.0, lambda: stack.enter_context(started(tiny_folder, key, ports[0])))
        starter.start()
        try:
            assert "".join(client.generate(**WHOLE)) == whole
        finally:
            starter.join()


def test_a_text_that_is_too_large_for_nginx(tmp_path, replicas):
    small = [("client_max_body_size 64m", "client_max_body_size 1k")]
    with proxy_of("nginx", tmp_path, replicas, changes=small) as proxy, Client(f"127.0.0.1:{proxy.port}") as client:
        began = time.monotonic()
        with pytest.raises(ServerError) as caught:
            list(client.score("To be " * 1000))
        assert caught.value.code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
        assert time.monotonic() - began < 25


@BOTH
def test_both_replicas_are_used(kind, tmp_path, replicas):
    with proxy_of(kind, tmp_path, replicas) as proxy, ExitStack() as stack:
        clients = [stack.enter_context(Client(f"127.0.0.1:{proxy.port}")) for _ in range(4)]
        sessions = [stack.enter_context(client.interact()) for client in clients]
        assert len(sessions) == 4
        for replica in replicas:
            with replica.client() as client:
                assert client.models().streams_running == 2
