"""Real proxies in front of a gateway, set up as docs/operations/http.md says."""

import json
import os
import re
import shutil
import socket
import subprocess
import time

import httpx
import pytest
from gateways import run_gateway
from servers import ROOT, wait_until
from websockets.sync.client import connect

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "operations" / "http.md"
NGINX = """daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}} http {{ access_log off; {paths} {server} }}"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(params=["nginx", "haproxy"])
def proxied(request, server, tmp_path):
    """The address of a proxy before a gateway of the shared server."""
    program = shutil.which(request.param, path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip(f"{request.param} is not installed")
    port, file = free_port(), tmp_path / "proxy.conf"
    with run_gateway(server.target, "--allowed-host", "text.example.com") as gateway:
        blocks = re.findall(r"^(nginx|HAProxy) \([\d.]+\):\n\n```\n(.*?)^```", PAGE.read_text(), re.M | re.S)
        text = {name.lower(): block for name, block in blocks}[request.param]
        for old, new in [
            ("127.0.0.1:8080", f"127.0.0.1:{gateway.port}"),
            ("listen 8000", f"listen 127.0.0.1:{port}"),
            ("0.0.0.0:8000", f"127.0.0.1:{port}"),
        ]:
            text = text.replace(old, new)
        if request.param == "nginx":
            names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            paths = " ".join(f"{name}_temp_path {tmp_path}/{name};" for name in names)
            text = NGINX.format(folder=tmp_path, paths=paths, server=text)
        file.write_text(text)
        arguments = ["-f", file] if request.param == "haproxy" else ["-p", tmp_path, "-c", file]
        with (
            (tmp_path / "log").open("w") as log,
            subprocess.Popen([program, *arguments], stdout=log, stderr=log) as proxy,
        ):
            try:
                wait_until(lambda: is_ready(port) or proxy.poll() is not None)
                assert proxy.poll() is None, (tmp_path / "log").read_text()
                yield f"127.0.0.1:{port}"
            finally:
                proxy.terminate()


def is_ready(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.HTTPError:
        return False


def test_events_and_frames_arrive_when_they_are_sent(proxied):
    headers = {"host": "text.example.com", "origin": "https://text.example.com"}
    fields = {"prompt": "the ", "max_tokens": 40, "stream": True, "chars_per_second": 20}
    arrived = []
    with httpx.stream("POST", f"http://{proxied}/v1/completions", json=fields, headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        arrived = [time.monotonic() for line in answer.iter_lines() if line]
    assert arrived[-1] - arrived[0] > 1  # and not all of them together
    with connect(f"ws://{proxied}/v1/interact", origin=f"http://{proxied}", proxy=None) as socket_:
        socket_.send(json.dumps({"open": {}}))
        assert "opened" in json.loads(socket_.recv(timeout=20))


def test_a_page_of_another_site_reaches_nothing(proxied):
    headers = {"origin": "https://evil.example"}
    assert httpx.post(f"http://{proxied}/v1/completions", json={}, headers=headers).status_code == 403
    assert httpx.get(f"http://{proxied}/v1/models", headers={"host": "evil.example"}).status_code == 421
