"""`rill serve --http-port`: a gateway that begins, listens, drains and ends with its server."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx
import psutil
import pytest
from servers import ROOT, wait_until

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
def pair(tiny_folder):
    with run_pair(tiny_folder, "--drain-seconds", 1.2) as running:
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
def test_several_processes_have_one_gateway(tiny_folder):
    with run_pair(tiny_folder, "--engines", 2, "--drain-seconds", 1.2) as running:
        assert running.get().status_code == 200
        gateway = running.gateway()
        running.process.terminate()
        assert running.process.wait(timeout=20) == 0
        assert not gateway.is_running()


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
