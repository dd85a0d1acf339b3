"""A gateway process before a real server."""

import subprocess
import sys

import httpx
from servers import ROOT


def test_it_lists_the_models(gateway):
    answer = httpx.get(f"{gateway.url}/v1/models")
    assert answer.status_code == 200
    assert [model["object"] for model in answer.json()["data"]] == ["model"]


def test_it_answers_while_it_lives(gateway):
    assert httpx.get(f"{gateway.url}/health").status_code == 200


def test_it_ends_with_its_parent_s_pipe():
    command = [sys.executable, "-W", "error", "-P", "-m", "rill.gateway", "--port", "0", "--end-with-stdin"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline().startswith("rill: http on http://127.0.0.1:")
        assert process.communicate(timeout=20)[0] == ""
        assert process.returncode == 0
