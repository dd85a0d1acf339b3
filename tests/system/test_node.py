"""The client in examples/node, by @grpc/grpc-js, against real servers."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable

import outside
import pytest
from servers import ROOT, run_server, started, wait_until

from rill import Client

EXAMPLE = ROOT / "examples" / "node"
SEED = 2**64 - 1  # more than a number of JavaScript holds


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[str]]:
    """Start `node examples/node/PROGRAM ARGUMENTS`, in a copy that has its packages."""
    modules = outside.node_modules("grpc-js", json.loads((EXAMPLE / "package.json").read_text())["dependencies"])
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(EXAMPLE, copy / "examples" / "node", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "protos", copy / "protos")
    (copy / "node_modules").symlink_to(modules)

    def start(program: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["node", f"examples/node/{program}", *map(str, arguments)],
            cwd=copy,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end; return the exit status and what it printed."""
    with process:
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def python_text(target: str, prompt: str, **parameters: object) -> str:
    with Client(target) as client:
        return "".join(client.generate(prompt, temperature=0.7, **parameters))


def test_a_seed_of_64_bits_gives_the_text_of_the_python_client(start, server, tmp_path):
    token = tmp_path / "token"
    arguments = ["é ROM", "--seed", SEED, "--max-chars", 300, "--save-token", token]
    status, text, errors = finished(start("generate.mjs", server.target, *arguments))
    assert (status, errors) == (0, f"\n300 characters by the last call, seed {SEED}\n")
    assert text == python_text(server.target, "é ROM", max_chars=300, seed=SEED)
    continued = python_text(server.target, "", max_chars=100, resume_token=token.read_bytes())
    assert text + continued == python_text(server.target, "é ROM", max_chars=400, seed=SEED)


def test_a_refusal_is_one_line(start, server):
    status, text, errors = finished(start("generate.mjs", server.target, "\x01"))
    assert (status, text) == (1, "")
    assert re.fullmatch(r"\nINVALID_ARGUMENT: prompt: character '\\x01' \(U\+0001\) at position 0 is not .*\n", errors)


def test_a_deadline_ends_an_endless_text(start, server):
    status, text, errors = finished(start("generate.mjs", server.target, "a", "--max-chars", 0, "--seconds", 0.5))
    assert status == 1
    assert errors.startswith("\nDEADLINE_EXCEEDED: ")
    assert text


def test_ctrl_c_cancels_the_call_and_frees_its_slot(start, server):
    with server.client() as client:
        process = start("generate.mjs", server.target, "a", "--max-chars", 0)
        assert process.stdout.read(10)
        assert client.models().streams_running == 1
        process.send_signal(signal.SIGINT)
        status, _, errors = finished(process)
        assert (status, errors) == (1, "\nCANCELLED: Cancelled on client\n")
        wait_until(lambda: client.models().streams_running == 0)


@pytest.mark.long
def test_a_text_goes_on_when_its_server_is_killed(start, tiny_folder, tmp_path):
    key, length = tmp_path / "key", 60_000
    key.write_bytes(bytes(range(32)))
    with started(tiny_folder, key) as first, started(tiny_folder, key) as second:
        targets = f"{first.target},{second.target}"
        with start("generate.mjs", targets, "a", "--seed", SEED, "--max-chars", length) as process:
            text = process.stdout.read(1000)
            first.process.kill()
            text += process.stdout.read()
            errors = process.stderr.read()
        assert (process.returncode, len(text)) == (0, length)
        count = re.fullmatch(rf"\n(\d+) characters by the last call, seed {SEED}\n", errors)
        assert count
        assert int(count[1]) < length  # the first server had begun
        assert text == python_text(second.target, "a", max_chars=length, seed=SEED)


def test_interact(start, server):
    status, printed, errors = finished(start("interact.mjs", server.target, "ROMEO"))
    assert (status, errors) == (0, "")
    found = re.fullmatch(
        r"> ROMEO   \(seed 7; (-\d+\.\d\d) nats a character\)\n"
        r"(.*)\n\[paused after (\d+) characters; a token of (\d+) bytes\]\n(.*)\n",
        printed,
        re.DOTALL,
    )
    assert found
    _, text, position, size, rest = found.groups()
    assert len(text) == int(position) >= 200
    assert int(size) > 100
    assert len(rest) == 50
    with Client(server.target) as client, client.interact(temperature=0.3, seed=7) as session:
        session.feed("ROMEO\n")
        assert text.startswith("".join(session.generate(max_chars=100)))


@pytest.mark.long
def test_it_sends_the_token_and_the_id(start, tiny_folder, tmp_path):
    (tmp_path / "tokens").write_text("secret-token-of-a-user\n")
    with run_server(tiny_folder, "--auth-token-file", tmp_path / "tokens") as locked:
        arguments = ["generate.mjs", locked.target, "a", "--max-chars", 20]
        status, text, errors = finished(start(*arguments))
        assert (status, text) == (1, "")
        assert errors.startswith("\nUNAUTHENTICATED: ")
        status, text, _ = finished(start(*arguments, "--id", "order-66", RILL_TOKEN="secret-token-of-a-user"))
        assert (status, len(text)) == (0, 20)
        _, log = locked.stop()
    assert "order-66" in log
