"""The commands of the README and of the guide run as printed, in the order printed, in one clean shell."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ROOT

# In the order in which a reader meets them; each page may use what the pages before it have made.
PAGES = [
    "docs/guide/demo.md",
    "README.md",
    *(f"docs/guide/{name}.md" for name in ("client", "chat", "batch", "export", "constraints")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"from rill import .*\n\nwith Client\(")
COMMAND = re.compile(r"(?:\$ )?((?:rill|make|source|printf|pip|curl|\$BIN/rill) .*)")
SERVERS = re.compile(r"(?:\.venv/bin/)?rill (?:serve|demo)\b")
RECORDED = "1. Train: "  # opens what `make demo` printed
INSTALL = re.compile(r"pip install (\S+)")
PROSE = "The river runs by the old mill, and the miller counts the sacks; none of them is his own.\n"


def commands_of(page: str) -> Iterator[str]:
    """Each command in the blocks that name no language, without its prompt sign; whole programs of Python, too."""
    for language, block in FENCE.findall((ROOT / page).read_text()):
        if language == "python" and PROGRAM.match(block):
            yield f"python - <<'END'\n{block}END"
        elif not language and not block.startswith(RECORDED):
            for line in block.replace("\\\n", " ").splitlines():
                found = COMMAND.fullmatch(line)
                if found and not line.startswith("rill: "):
                    yield found[1]


def last_words_of_make_demo() -> list[str]:
    """The commands that `make demo` ends with, as it prints them."""
    _, _, end = (ROOT / "scripts" / "demo").read_text().partition("\nNext, in ")
    lines = end.replace("\\\\\n", " ").splitlines()
    return [found[1].replace("$BIN", ".venv/bin") for line in lines if (found := COMMAND.fullmatch(line.strip()))]


def test_the_extras_that_the_readme_installs_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = [found[1] for command in commands_of("README.md") if (found := INSTALL.match(command))]
    assert installed[0] == "."
    named = [re.fullmatch(r"'rill-text\[([\w,-]+)\]'", word) for word in installed if word != "."]
    assert named
    assert all(found and set(found[1].split(",")) <= set(extras) for found in named), installed


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, and what a reader brings: a book, notes, a text to score, prompts."""
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("this checkout has no .venv of its own (make test-long creates it)")
    folder = tmp_path / "rill"
    made = shutil.ignore_patterns(".venv", ".git", "runs", "bundles", "dist", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=made)  # with its times: make finds .venv up to date
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "notes").mkdir()
    (folder / "book.txt").write_text(PROSE * 60)
    (folder / "notes" / "mill.md").write_text(PROSE * 20)
    (folder / "scene.txt").write_text("ROMEO:\nBut soft, what light\n")
    (folder / "midsummer.txt").write_text("LYSANDER:\nThe course of true love never did run smooth.\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "ROMEO:"}\n{"prompt": "JULIET:"}\n')
    return folder


def script_of(pages: list[str]) -> str:
    """A program for bash: each command, shown before it runs; a server keeps running, as in another terminal."""
    lines = [
        "set -euo pipefail",
        "trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT",
        'curl() { command curl --fail-with-body "$@"; }',  # an answer that is an error ends the walk
    ]
    for page in pages:
        lines.append(f"echo '# {page}'")
        for command in commands_of(page):
            lines += run(command)
            if command == "make demo":
                lines += [line for last in last_words_of_make_demo() for line in run(last)]
    return "\n".join(lines) + "\n"


def run(command: str) -> list[str]:
    """Lines for bash that show and run a command; a server takes the place of the one before, which had its port."""
    shown = "'" + command.replace("'", "'\\''") + "'"
    lines = [f"printf '$ %s\\n' {shown}"]
    if command.startswith("pip "):
        lines.append("source .venv/bin/activate")  # which has it; tests/install installs
    elif SERVERS.match(command):
        lines.append('[ -z "${server-}" ] || { kill $server; wait $server || true; }')
        lines.append(f": > serving; {command.partition('  #')[0]} > serving & server=$!")
        lines.append("until [ -s serving ]; do kill -0 $server; sleep 0.1; done; cat serving")
    elif command.startswith("rill page"):
        lines.append(f"if command -v npm > /dev/null; then {command.partition('  #')[0]}; fi")
    elif "rill chat" in command:
        lines.append(f"printf 'ROMEO:\\n' | {command}")
    else:
        lines.append(command)
    return lines


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_readme_and_the_guide_run_as_printed(checkout, tmp_path):
    for port in (50051, 8080):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port}, which the README uses, is taken on this machine")
    if not shutil.which("curl"):
        pytest.skip("needs curl, which the README uses")
    (tmp_path / "home").mkdir()
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "LANG": "C.UTF-8"}
    with subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-c", script_of(PAGES)],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            printed, _ = shell.communicate(timeout=1140)
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGTERM)
    (tmp_path / "printed.txt").write_text(printed)
    assert shell.returncode == 0, printed[-4000:]
    assert "Traceback" not in printed
    (listening,) = re.findall(r"^rill: listening on .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert listening in printed.splitlines()
