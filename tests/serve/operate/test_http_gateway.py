"""`rill serve --http-port`: a gateway that begins, listens, drains and ends with its server."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx
import psutil
import pytest
from certificates import make_certificate
from servers import ROOT, wait_until

from rill.client.errors import ServerError
from rill.client.security import Security
from rill.client.sync import Client
from rill.serve.config import ServerConfig, options_of
from rill.serve.errors import StartError
from rill.serve.operate.ports import own_address, require_free
from rill.serve.operate.supervisor import serve_together

SERVE = (sys.executable, "-W", "error", "-m", "rill.serve", "--port", "0", "--http-port", "0")
TOKEN = "a-token-of-the-test"


@dataclass
class Pair:
    """A server and its gateway."""

    process: subprocess.Popen
    target: str
    url: str

    def gateway(self):
        (process,) = [
            child for child in psutil.Process(self.process.pid).children() if "rill.gateway" in child.cmdline()
        ]
        return process

    def get(self, path="/v1/models", **parameters):
        return httpx.get(f"{self.url}{path}", timeout=20, **parameters)


@contextmanager
def run_pair(*arguments, environment=None):
    """`rill serve ARGUMENTS --port 0 --http-port 0`, from its two lines on."""
    with subprocess.Popen(
        [*SERVE, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            target = re.match(r"rill: listening on (\S+) \(models: ", lines[0])
            url = re.fullmatch(r"rill: http on (https?://\S+:\d+)\n", lines[1])
            assert target, (lines, process.stderr.read())
            assert url, (lines, process.stderr.read())
            yield Pair(process, target[1], url[1])
        finally:
            process.kill()


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """A file with the key of resume tokens."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_bytes(bytes(32))
    return path


@pytest.fixture(scope="module")
def pair(tiny_folder, key):
    with run_pair(tiny_folder, "--resume-key-file", key) as running:
        yield running


def test_one_address_for_each_protocol(pair):
    with Client(pair.target) as client:
        assert [model.name for model in client.models().models] == ["tiny"]
    assert [model["id"] for model in pair.get().json()["data"]] == ["tiny"]
    assert pair.url.startswith("http://127.0.0.1:")


def test_a_killed_gateway_is_replaced_at_its_address(pair):
    first = pair.gateway()
    first.kill()
    line = next(line for line in pair.process.stderr if "gateway" in line)
    assert "ERROR the HTTP gateway ended with status -9; restarting it" in line

    def answers():
        try:
            return pair.get().status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers)
    assert pair.gateway().pid != first.pid


@pytest.mark.long
def test_a_signal_to_all_processes_restarts_nothing(tiny_folder):
    """As some init systems send it."""
    with run_pair(tiny_folder, "--drain-seconds", 30) as running, Client(running.target, retry_seconds=0) as client:
        stream = client.generate("a", max_chars=60, chars_per_second=30)  # for longer than until a restart
        next(stream)
        gateway = running.gateway()
        for process in (running.process, gateway):
            process.send_signal(signal.SIGTERM)
        assert sum(map(len, stream)) > 50
        assert running.process.wait(timeout=20) == 0
        assert "restarting" not in running.process.stderr.read()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_server(tiny_folder, number):
    with run_pair(tiny_folder) as running:
        gateway = running.gateway()
        running.process.send_signal(number)
        assert running.process.wait(timeout=20) == 0
        assert not gateway.is_running()
        assert not re.search(r"ERROR|Traceback", running.process.stderr.read())


@pytest.mark.long
def test_a_signal_while_the_gateway_loads_ends_both_at_once(tiny_folder):
    with subprocess.Popen([*SERVE, tiny_folder], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: bool(parent.children()))
        process.terminate()
        output, errors = process.communicate(timeout=20)  # until both have closed them
        assert (process.returncode, output) == (143, b"")
        assert b"Traceback" not in errors


def test_streams_over_http_end_with_a_token_when_the_server_drains(pair, tiny_folder, key):
    """They may finish, as those over gRPC; what is left continues elsewhere."""
    with run_pair(tiny_folder, "--drain-seconds", 1.2, "--resume-key-file", key) as running:
        asked = {"prompt": "To be", "max_tokens": 10**6, "seed": 3, "stream": True, "chars_per_second": 2000}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=asked, timeout=20) as answer:
            lines = answer.iter_lines()
            events = [next(lines)]
            running.process.terminate()
            events += [line for line in lines if line]
        assert running.process.wait(timeout=20) == 0
    *chunks, name, error = events
    assert (name, json.loads(error.removeprefix("data: "))["error"]["code"]) == ("event: error", "draining")
    choices = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    assert choices[-1]["choices"][0]["finish_reason"] is None
    token = choices[-1]["rill"]["resume_token"]
    text = "".join(choice["choices"][0]["text"] for choice in choices)
    assert len(text) > 100
    asked = {"resume_token": token, "max_tokens": 50}
    rest = httpx.post(f"{pair.url}/v1/completions", json=asked, timeout=20).json()["choices"][0]["text"]
    with Client(pair.target) as client:
        assert text + rest == "".join(client.generate("To be", max_chars=len(text) + 50, seed=3))


@pytest.mark.long
def test_tls_whatever_the_certificate_says_and_when_it_is_renewed(tiny_folder, tmp_path):
    """It is for another host, of an authority of its own."""
    authority = make_certificate("authority")
    make_certificate("server", authority, "rill.example").write(tmp_path, "server")
    (tmp_path / "authority.pem").write_bytes(authority.chain)
    flags = ("--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key")
    with run_pair(tiny_folder, *flags) as running:
        context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        context.check_hostname = False

        def certificate():
            with (
                socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as plain,
                context.wrap_socket(plain) as connection,
            ):
                return connection.getpeercert(binary_form=True)

        first = certificate()
        assert running.get(verify=context).status_code == 200
        make_certificate("server", authority, "rill.example").write(tmp_path, "server")
        wait_until(lambda: certificate() != first)
        assert running.get(verify=context).status_code == 200


def test_client_certificates_are_needed_for_http_too(tiny_folder, tmp_path):
    """The gateway has its own way to the server, and lets in only who could call the server."""
    authority = make_certificate("authority")
    (tmp_path / "authority.pem").write_bytes(authority.chain)
    make_certificate("server", authority).write(tmp_path, "server")
    chain, key = make_certificate("client", authority).write(tmp_path, "client")
    flags = ("--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key")
    with run_pair(tiny_folder, *flags, "--tls-client-ca", tmp_path / "authority.pem") as running:
        assert running.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        with pytest.raises(httpx.TransportError):
            running.get(verify=context)
        context.load_cert_chain(chain, key)
        assert running.get(verify=context).status_code == 200
        private = running.gateway().cmdline()[running.gateway().cmdline().index("--target") + 1]
        with (
            pytest.raises(ServerError),
            Client(private, security=Security(root_certificates=authority.chain)) as client,
        ):
            client.models()


def test_tokens_pass_through_and_it_ends_with_a_killed_server(tiny_folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    with run_pair(tiny_folder, "--auth-token-file", tokens, environment={"RILL_TOKEN": TOKEN}) as running:
        assert running.get().status_code == 401
        assert running.get(headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        gateway = running.gateway()
        assert TOKEN not in " ".join(gateway.cmdline())
        assert TOKEN not in str(gateway.environ())
        running.process.kill()
        assert psutil.wait_procs([gateway], timeout=20)[0]


@pytest.mark.long
def test_it_reaches_a_server_at_a_unix_socket(tiny_folder, tmp_path):
    with run_pair(tiny_folder, "--host", f"unix:{tmp_path}/s") as running:
        assert running.get().status_code == 200


@pytest.mark.parametrize(
    ("host", "address", "own"),
    [
        ("127.0.0.1", "127.0.0.1:7", "127.0.0.1:7"),
        ("0.0.0.0", "0.0.0.0:7", "127.0.0.1:7"),
        ("::", "[::]:7", "127.0.0.1:7"),
        ("localhost", "localhost:7", "127.0.0.1:7"),
        ("unix:/x", "unix:/x", "unix:/x"),
        ("unix-abstract:x", "unix-abstract:x", "unix-abstract:x"),
    ],
)
def test_its_own_address(host, address, own):
    assert own_address(ServerConfig(host=host), address) == own


@pytest.mark.long
def test_several_processes_share_what_one_gateway_gets(tiny_folder):
    with run_pair(tiny_folder, "--engines", 2, "--drain-seconds", 1.2, "--log-format", "json") as running:
        for _ in range(4):
            answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "a", "max_tokens": 5}, timeout=20)
            assert answer.status_code == 200
        gateway = running.gateway()
        running.process.terminate()
        assert running.process.wait(timeout=20) == 0
        assert not gateway.is_running()
        lines = [json.loads(line) for line in running.process.stderr.read().splitlines()]
        calls = [line["engine"] for line in lines if line["message"] == "call" and line["method"] == "Generate"]
        assert sorted(calls) == [1, 1, 2, 2]
        assert [line.get("part") for line in lines if line["message"] == "request"] == ["gateway"] * 4


async def test_a_port_in_use_is_refused_before_a_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = ServerConfig(bundles=["none"], port=0, http_port=port)
        with pytest.raises(
            StartError, match=f"^cannot listen on 127.0.0.1:{port}: in use .* choose another --http-port"
        ):
            require_free(config)
        with pytest.raises(StartError, match="choose another --http-port"):
            await serve_together(replace(config, engines=2))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--port 9", "--port and --http-port must differ, and are both 9"),
        ("--metrics-port 9", "--http-port and --metrics-port must differ, and are both 9"),
        ("--host 0.0.0.0 --port 9", "--port and --http-port must differ, and are both 9"),
        ("--http-host unix:/x", "--http-host 'unix:/x' is not an IPv6 address"),
        ("--http-allowed-host a:9", "--http-allowed-host 'a:9' must be a host without its port"),
        ("--http-cors example.com", "--http-cors example.com must be the origin of a page"),
        ("--http-host 10.0.0.1:80", "--http-host '10.0.0.1:80' must be a host without its port"),
    ],
)
def test_addresses_that_make_no_sense(flags, message, capsys):
    with pytest.raises(SystemExit):
        options_of(["bundle", "--http-port", "9", *flags.split()], None)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("check", [[], ["--check-config"]])
def test_says_how_to_install_what_is_missing(check, tmp_path):
    """Starlette cannot be found, and no bundle has been looked at."""
    hide = "import sys; sys.modules['starlette'] = None\nfrom rill.programs import run\n"
    program = f"{hide}sys.exit(run('serve', [{str(tmp_path)!r}, '--http-port', '0', *{check!r}]))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --http-port needs the package 'starlette'; install it with: pip install 'rill-text[serve,http]'\n"
    )
