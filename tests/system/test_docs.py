"""What the documentation names exists: links, files, commands, options, imports; markdown has one sentence a line."""

import ast
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from servers import ROOT

from rill.cli.main import main

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("rill/demo/*.md"), *(ROOT / "docs").rglob("*.md")]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:serve|train|export|rill|bench|tests|scripts|examples|protos|docs)/[\w./-]*)`")
TWO_SENTENCES = re.compile(r"[\w)\]`\"%*][.!?] +(?=[A-Z`\"(\[])")
NOT_THE_END = re.compile(r"^(#+ |\s+)?(\d+\. )?|\bet al\. |\.\*\* ")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose_of(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text())


def anchors_of(page: Path) -> set[str]:
    """Each heading as a forge makes an anchor of it."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of each command in the page's code blocks, by lines and by what stands between pipes."""
    for language, block in FENCE.findall(page.read_text()):
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r"(\$ )?(rill|make|printf) ", line) or line.startswith("rill: "):
                continue
            for command in re.split(r" [|;] | && ", line.removeprefix("$ ")):
                yield shlex.split(command, comments=True)


@cache
def options_of(*command: str) -> frozenset[str]:
    """The options that `rill COMMAND --help` lists."""

    printed = io.StringIO()
    with redirect_stdout(printed):
        try:
            status: object = main([*command, "--help"])
        except SystemExit as ended:
            status = ended.code
    assert not status, command
    return frozenset(re.findall(r"(?<![\w-])--[a-z][a-z-]*", printed.getvalue()))


@every_page
def test_links_lead_somewhere(page):
    lost = []
    for link in LINK.findall(prose_of(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            lost.append(link)
    assert lost == []


@every_page
def test_files_that_are_named_exist(page):
    assert [name for name in FILE.findall(prose_of(page)) if not (ROOT / name).exists()] == []


@every_page
def test_a_line_has_one_sentence(page):
    lines = [line for line in prose_of(page).splitlines() if not line.startswith("|")]
    assert [line for line in lines if TWO_SENTENCES.search(NOT_THE_END.sub(" ", line))] == []


@every_page
def test_commands_and_their_options_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    unknown = []
    for program, *words in commands_of(page):
        if program == "make":
            unknown += [word for word in words if "=" not in word and word not in targets]
        elif program == "rill":
            names = [name for name in words[:1] if not name.startswith("-")]
            known = options_of(*names)
            options = [word.partition("=")[0] for word in words if word.startswith("--")]
            unknown += [f"{' '.join(names)} {option}" for option in options if option not in known]
    assert unknown == []


@every_page
def test_python_is_valid_and_imports_what_exists(page):
    lost = []
    for language, block in FENCE.findall(page.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rill"):
                module = import_module(str(node.module))
                lost += [name.name for name in node.names if not hasattr(module, name.name)]
    assert lost == []


def test_keys_of_the_example_configuration_are_options_of_the_server():
    blocks = FENCE.findall((ROOT / "docs" / "operations" / "README.md").read_text())
    (configuration,) = [block for language, block in blocks if language == "toml"]
    assert {f"--{key}" for key in tomllib.loads(configuration)} <= options_of("serve")
