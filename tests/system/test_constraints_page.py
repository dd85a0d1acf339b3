"""The patterns of docs/guide/constraints.md: each compiles, with as many states as the page says, and is matched."""

import asyncio
import json
import re
from pydoc_data.topics import topics

import pytest
from servers import ROOT

from rill.serve.constraints.compiler import Compiler
from rill.serve.constraints.patterns import Pattern
from rill.vocabulary import Vocabulary

PAGE = (ROOT / "docs/guide/constraints.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (`.+`|see below) \| ([\d,]+) \| \d+ \|$", PAGE, re.MULTILINE)
SYMBOLS = Vocabulary(tuple(sorted(set("".join(topics.values())))))
EXAMPLES = {
    "date": "1984-02-31",
    "e-mail": "ada.lovelace@rill.example",
    "UUID": "123e4567-e89b-12d3-a456-426614174000",
    "row of CSV, four fields": 'a,"b, ""c""",,d',
    "log line": "2026-11-30 12:00:00 INFO rill.serve: listening",
    "SQL condition": "WHERE name = 'Ada' AND age >= 36",
    "password with a digit": "correct7horse",
    "bar of music (ABC)": "^FGA2B,c'|",
    "molecule without rings (SMILES)": "CC(=O)OCC(Cl)Br",
    "JSON of four members, by a schema": '{"name":"f","kind":"class","line":12,"async":false}',
}


def pattern_of(cell: str) -> Pattern:
    if cell == "see below":
        (schema,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
        return Pattern("json_schema", json.dumps(json.loads(schema)))
    return Pattern("regex", cell.strip("`").replace("\\|", "|"))


def test_the_page_has_ten_patterns():
    assert [name for name, _, _ in ROWS] == list(EXAMPLES)


@pytest.fixture(scope="module")
def automata():
    async def compiled():
        compiler = Compiler()
        try:
            return {name: await compiler.compile(SYMBOLS, pattern_of(cell)) for name, cell, _ in ROWS}
        finally:
            await compiler.close()

    return asyncio.run(compiled())


@pytest.mark.parametrize(("name", "cell", "states"), ROWS)
def test_a_pattern_has_as_many_states_as_the_page_says(automata, name, cell, states):
    automaton, text = automata[name], EXAMPLES[name]
    assert f"{automaton.states:,}" == states
    assert automaton.matches(automaton.after(0, map(SYMBOLS.id_of, text)))
    if cell != "see below":
        assert re.fullmatch(pattern_of(cell).value, text)
