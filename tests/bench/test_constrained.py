"""Constrained texts beside plain ones: the patterns that are drawn, random tables, and the command."""

import json
import re

import numpy as np
import pytest

from rill.bench import constrained
from rill.bench.constrained_step import tables
from rill.bench.workload import MOST_STATES, Workload, drawn_constraints, plain
from rill.vocabulary import Vocabulary

LETTERS = Vocabulary(("<unk>", "\n", *"abcdefgh.*[]\\^-"))
LONG = Vocabulary(("<start>", "<end>", "Cl", "C", "l", "["), tokenizer="longest", start="<start>", ends=("<end>",))


@pytest.mark.parametrize("vocabulary", [LETTERS, LONG])
def test_patterns_are_different_and_never_end(vocabulary):
    found = drawn_constraints(vocabulary, 64)
    assert found == drawn_constraints(vocabulary, 64)
    patterns = [one.regex for one in found]
    assert len(set(patterns)) == 64
    for pattern in patterns:
        assert pattern.endswith(")*")
        assert re.fullmatch(pattern, "")
        assert "<" not in pattern
        lengths = [int(length) for length in re.findall(r"\{(\d+)\}", pattern)]
        assert 1 < sum(lengths) < MOST_STATES
    assert all(one.terminator == "" and one.HasField("terminator") for one in found)


def test_texts_have_one_pattern_after_the_other():
    found = drawn_constraints(LETTERS, 3)
    workload = Workload("m", plain(5), LETTERS, constraints=found)
    requests = [workload.request() for _ in range(6)]
    assert {one.sampling.constraint.regex for one in requests[:3]} == {one.regex for one in found}
    assert requests[0].sampling.constraint == requests[3].sampling.constraint
    assert not Workload("m", plain(5), LETTERS).request().sampling.HasField("constraint")


def test_tables_have_a_way_on_everywhere():
    found = tables(LONG, 50)
    allowed = found["allowed"]
    assert allowed.shape == (50, 6)
    assert set(np.unique(allowed)) == {-np.inf, 0}
    assert (allowed == 0).any(axis=1).all()
    assert (allowed[:, [0, 1]] == -np.inf).all()
    assert found["transitions"].shape == (300,)
    assert found["transitions"].max() < 50


@pytest.mark.long
def test_the_command_compares(tiny_folder, tmp_path, capsys):
    found = tmp_path / "found.json"
    arguments = ["--bundle", str(tiny_folder), "--streams", "4", "--patterns", "4", "--pairs", "2", "--seconds", "0.3"]
    assert constrained.main([*arguments, "--rows", "1", "8", "--states", "20", "--json", str(found)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "graph, 1 rows, 20 states",
        "graph, 8 rows, 20 states",
        "server, 4 streams, 4 patterns",
    ]
    written = json.loads(found.read_text())
    assert [one["ratio"] > 0 for one in written["graph"]] == [True, True]
    assert written["server"][0]["speed_ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rows", "0"], "--rows must be at least 1, not 0"),
        (["--pairs", "0"], "--pairs must be at least 1, not 0"),
        (["--seconds", "nan"], "--seconds must be more than 0 and at most 600, not nan"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        constrained.main(["--bundle", "x", *arguments])
    assert sentence in capsys.readouterr().err
