"""`rill score` of a model with symbols of several characters, a start and an end."""

import json
from math import fsum

import pytest

from rill.cli.main import main

TEXT = "c1cc[nH]Cl"
SYMBOLS = ["c", "1", "c", "c", "[nH]", "Cl"]


@pytest.fixture
def score(molecule_server, tmp_path, capsys):
    """Run `rill score` on a text; returns its status, output and errors."""

    def run(*flags, text=TEXT):
        file = tmp_path / "text"
        file.write_text(text)
        status = main(["score", str(file), "--target", molecule_server.target, *flags])
        return status, *capsys.readouterr()

    return run


def test_rows_are_of_symbols(score):
    status, output, errors = score("--per-char")
    *rows, total = output.splitlines()
    assert (status, errors) == (0, "")
    assert [json.loads(row.split("\t")[1]) for row in rows] == SYMBOLS
    assert [int(row.split("\t")[0]) for row in rows] == list(range(6))
    assert total.startswith("6 symbols: ")
    assert " bits per symbol, perplexity " in total


def test_the_end_is_one_more_row_and_counts(score):
    status, output, _ = score("--per-char", "--json", "--include-end")
    *lines, total = map(json.loads, output.splitlines())
    assert status == 0
    assert [symbol for line in lines for symbol in line["symbols"]] == [*SYMBOLS, "<end>"]
    logprobs = [logprob for line in lines for logprob in line["logprobs"]]
    assert (total["chars"], total["logprob"]) == (7, pytest.approx(fsum(logprobs)))
    alone = json.loads(score("--json")[1])
    assert (alone["chars"], alone["logprob"]) == (6, pytest.approx(fsum(logprobs[:-1])))
    assert json.loads(score("--json", "--include-end", text="")[1])["chars"] == 1


def test_what_cannot_be_cut_is_one_line(score):
    status, output, errors = score("--per-char", text="c1[nH")
    assert (status, output) == (1, "")
    assert errors.startswith("error: text: character '[' (U+005B) at position 2 does not begin a symbol")


def test_a_model_without_an_end_has_none_to_add(server, tmp_path, capsys):
    file = tmp_path / "text"
    file.write_text("To be")
    assert main(["score", str(file), "--target", server.target, "--include-end"]) == 1
    assert capsys.readouterr().err.startswith("error: include_end: model 'tiny' has no end symbol")
