"""The patterns of the guide to constraints: they have the states that it says, and texts match them."""

import json
import re
from collections.abc import Iterator

import pytest
from random_models import make_run, save_bundle
from servers import ROOT, Server, run_server

from rill.serve.constraints.build import build
from rill.serve.constraints.compiler import MAX_ENTRIES, MAX_STATES, SECONDS
from rill.serve.constraints.jobs import Job
from rill.serve.constraints.patterns import Pattern

GUIDE = ROOT / "docs" / "guide" / "constraints.md"
ASCII = ("\n", *map(chr, range(32, 127)))
STATES = {
    name: int(states) for name, states in re.findall(r"^\| `(\w+)` \| (\d+) \| [\d.]+ \|$", GUIDE.read_text(), re.M)
}


def constraints() -> dict[str, str | dict[str, object]]:
    """What the blocks of the ten patterns define."""
    _, _, section = GUIDE.read_text().partition("\n## Ten patterns\n")
    section, _, _ = section.partition("\n## ")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return {name: names[name] for name in STATES}  # type: ignore[misc]


CONSTRAINTS = constraints()


@pytest.fixture(scope="module")
def ascii_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bundles") / "ascii"
    save_bundle(make_run(ASCII), folder)
    with run_server(folder) as server:
        yield server


def test_there_are_ten():
    assert len(STATES) == 10


@pytest.mark.parametrize("name", STATES)
def test_states_are_those_of_the_table(name):
    value = CONSTRAINTS[name]
    pattern = Pattern("regex", value) if isinstance(value, str) else Pattern("json_schema", json.dumps(value))
    automaton = build(Job(pattern, ASCII, (0,), MAX_STATES, MAX_ENTRIES, SECONDS))
    assert automaton.states == STATES[name]


@pytest.mark.parametrize("name", STATES)
def test_a_random_model_writes_what_matches(ascii_server, name):
    value, bounded = CONSTRAINTS[name], name in ("date", "uuid", "log_line", "where", "password", "person", "tune")
    with ascii_server.client() as client:
        for seed in range(3):
            kind = {"regex": value} if isinstance(value, str) else {"json_schema": value}
            text = client.generate("A", max_chars=400, seed=seed, **kind)
            written = "".join(text)
            if bounded:
                assert text.finish_reason == "STOP"
            assert text.usage.matches or text.finish_reason == "LENGTH"
            if isinstance(value, str):
                assert bool(re.fullmatch(value, written)) == text.usage.matches
            else:
                assert json.loads(written).keys() == value["properties"].keys()
