"""The tables of docs/design/constraints.md are true."""

import re
from pathlib import Path

import pytest

from rill.serve.constraints import compiler, dialect, json_schema, language, patterns
from rill.serve.constraints.build import build
from rill.serve.constraints.jobs import Job
from rill.serve.constraints.patterns import ConstraintError, Pattern

PAGE = (Path(__file__).parents[3] / "docs/design/constraints.md").read_text(encoding="utf-8")
TEXTS = [*map(chr, range(32, 127)), "\n", "é", "•"]
FRAGMENTS = {"(…)": "(a)", "(?:…)": "(?:a)", "(?P<name>…)": "(?P<name>a)", "(?#…)": "a(?#b)"}


def rows(beginning: str) -> list[list[str]]:
    """The cells of a table, of which the first line begins so."""
    lines = PAGE[PAGE.index(beginning) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def code(cell: str) -> list[str]:
    return [part.replace("\\|", "|") for part in re.findall(r"`([^`]+)`", cell)]


def compiled(pattern: str) -> None:
    build(Job(Pattern("regex", pattern), TEXTS, (), 8192, 1 << 21, 1.0))


def test_supported_constructs() -> None:
    for constructs, meaning in rows("| construct |"):
        for construct in code(constructs):
            pattern = FRAGMENTS.get(construct, construct)
            if "count" in meaning or "without `?`" in meaning:
                pattern = "a" + pattern
            compiled(pattern)


def test_refused_constructs() -> None:
    for constructs, _ in rows("| refused |"):
        for construct in code(constructs):
            with pytest.raises(ConstraintError, match="at position"):
                compiled(construct)


def test_keywords_and_formats() -> None:
    table = rows("| keywords |")
    named = {each for keywords, _ in table for each in code(keywords)}
    known = {each for keywords in json_schema.KEYWORDS.values() for each in keywords}
    assert named == {"type", *json_schema.ALTERNATIVES, *json_schema.ANNOTATIONS, *known}
    [formats] = [code(meaning) for keywords, meaning in table if "`format`" in keywords]
    assert formats == list(json_schema.FORMATS)


def test_bounds() -> None:
    numbers = [meaning for _, meaning in rows("| bound |")]
    assert numbers[:6] == [
        f"{patterns.REGEX_BYTES >> 10} KiB of UTF-8",
        f"{patterns.CHOICES_BYTES >> 10} KiB",
        f"{language.MAX_LENGTH:,}",
        f"{dialect.MAX_DEPTH}; {json_schema.MAX_DEPTH}",
        f"{compiler.MAX_STATES:,}",
        f"{compiler.MAX_ENTRIES:,}",
    ]
