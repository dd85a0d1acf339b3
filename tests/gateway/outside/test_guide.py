"""The snippets of the guide for HTTP clients run as they stand, but for the gateway's address and the model's name."""

import re
import shutil
import subprocess
from collections.abc import Callable

import outside
import pytest
from gateways import Gateway
from servers import ROOT, Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

GUIDE = ROOT / "docs" / "guide" / "http-clients.md"
PROMPT = "ROMEO"


@pytest.fixture(scope="module")
def snippet(gateway: Gateway) -> Callable[[str], str]:
    """Return the first blocks of code of a section."""
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL))

    def snippet(section: str, count: int = 1) -> str:
        blocks = re.findall(r"^```\w+\n(.*?)^```", sections[section], re.MULTILINE | re.DOTALL)
        changed = "".join(blocks[:count]).replace("http://127.0.0.1:8080", gateway.url).replace('"demo"', '"tiny"')
        assert gateway.url in changed
        return changed.replace("ROMEO:", PROMPT)  # which the small model knows

    return snippet


def text_of(server: Server, **parameters: object) -> str:
    with server.client() as client:
        return "".join(client.generate(PROMPT, max_chars=200, **parameters))


def test_curl(snippet, server, tmp_path):
    if not shutil.which("curl"):
        pytest.skip("there is no curl on this machine")
    done = subprocess.run(["sh", "-c", snippet("curl")], capture_output=True, text=True, timeout=60, check=True)
    *events, last = done.stdout.strip().split("\n\n")
    assert last == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events)


def test_python(snippet, server, tmp_path):
    environment = outside.python("openai", outside.OPENAI)
    assert environment.run("python", "-c", snippet("Python"), cwd=tmp_path).stdout == text_of(server, seed=7)


def test_python_with_a_constraint(snippet, tmp_path):
    environment = outside.python("openai", outside.OPENAI)
    said = environment.run("python", "-c", snippet("Python", 2), cwd=tmp_path).stdout
    assert said.endswith(("Ay. True\n", "No. True\n"))


def test_javascript(snippet, tmp_path):
    (tmp_path / "node_modules").symlink_to(outside.node_modules("openai-npm", outside.OPENAI_NPM))
    (tmp_path / "snippet.mjs").write_text(snippet("JavaScript"))
    command = ["node", "snippet.mjs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout) == 200


def test_langchain(snippet, tmp_path):
    environment = outside.python("langchain", outside.LANGCHAIN)
    assert len(environment.run("python", "-c", snippet("LangChain"), cwd=tmp_path).stdout) == 201  # and a newline
