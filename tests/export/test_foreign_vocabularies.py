"""Vocabularies in every form that people have them in: read in the order of their ids, or refused with a reason."""

import json
import pickle
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.export.errors import ForeignError
from rill.export.foreign.preview import load_text, sample_note, text_notes
from rill.export.foreign.run import export_state_dict, foreign_run
from rill.export.foreign.vocabularies import find_vocabularies, load_vocabulary_file, vocabulary_of
from rill.export.jobs import Checkpoint, Job
from rill.export.results import run_job
from rill.vocabulary import Vocabulary

few = settings(max_examples=50, deadline=None, derandomize=True)
SYMBOLS = tuple("abcdefghijk")
MODEL = torch.nn.ModuleDict({"rnn": torch.nn.GRU(11, 8), "fc": torch.nn.Linear(8, 11)})
WEIGHTS = MODEL.state_dict()
IDS = {symbol: index for index, symbol in enumerate(SYMBOLS)}
DIGITS = tuple("0123456789\n")  # symbols that look like ids


def read(tmp_path, content, name="v.json"):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / name).write_bytes(data)
    return load_vocabulary_file(tmp_path / name).symbols


@few
@given(
    symbols=st.lists(st.characters(exclude_categories=["Cs"]), unique=True, min_size=1, max_size=20), order=st.randoms()
)
def test_lists_strings_and_dicts_are_the_same_vocabulary(symbols, order):
    pairs = list(enumerate(symbols))
    order.shuffle(pairs)
    forms = [symbols, "".join(symbols), {symbol: index for index, symbol in pairs}, dict(pairs)]
    for form in [*forms, *(json.loads(json.dumps(form)) for form in forms)]:
        assert vocabulary_of(form, "v").symbols == tuple(symbols)


@pytest.mark.parametrize(
    "content",
    [
        {"char2idx": IDS, "idx2char": {str(index): symbol for symbol, index in IDS.items()}},
        {"model": {"type": "chars", "vocab": IDS}, "added_tokens": []},
        {"token_to_idx": {symbol: index + 1 for symbol, index in IDS.items()}},
        {"idx_to_token": {str(index + 1): symbol for symbol, index in IDS.items()}, "token_to_idx": {}},
        {"config": {"alphabet": "".join(SYMBOLS), "cell": "gru"}},
        {symbol: float(index) for symbol, index in IDS.items()},
        pickle.dumps(list(SYMBOLS)),
        pickle.dumps(IDS, protocol=4),
        pickle.dumps({"vocab": np.array(SYMBOLS)}),
        pickle.dumps(np.array(SYMBOLS, ">U1"), protocol=2),
        pickle.dumps(SimpleNamespace(itos=list(SYMBOLS), stoi=IDS)),
        b"\xef\xbb\xbf" + json.dumps(SYMBOLS).encode(),
    ],
)
def test_a_vocabulary_inside_something_else(content, tmp_path):
    assert read(tmp_path, content) == SYMBOLS


def test_digits_are_characters_or_ids(tmp_path):
    assert read(tmp_path, {symbol: index for index, symbol in enumerate(DIGITS)}) == DIGITS
    assert read(tmp_path, dict(enumerate(DIGITS))) == DIGITS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 0, "b": 2}, r"its ids are 0 to 2, but no symbol has the id 1"),
        (
            {"a": 1, "b": 2},
            r'ids are 1 to 2, but no symbol has the id 0; .*padding.* a name, such as "<pad>", and say --end "<pad>"',
        ),
        ({"1": "a", "2": "b"}, r"no symbol has the id 0"),
        ({"a": 0, "b": 0}, r"'a' and 'b' both have the id 0"),
        ({"a": -1, "b": 0}, r"'a' has the id -1; ids are 0 to V - 1"),
        ({"a": 0, "b": 2**30}, r"no symbol has the id 1"),
        ({"a": 0, "b": 10**30}, r"must hold the characters in id order"),
        ({"0": "a", "1": "a"}, r"'a' at position 1 is already at position 0"),
        ({"a": 0.5}, r"must hold the characters in id order, .* not an object with 'a'"),
        ({"a": None}, r"must hold the characters in id order"),
        ({}, r"must hold the characters in id order"),
        (None, r"must hold the characters in id order, .* not None"),
        (
            ["<pad>", "a"],
            r"'<pad>' at position 0 is not one character; --start or --end says",
        ),
        (
            {"a": 0, "<eos>": 1},
            r"'<eos>' at position 1 is not one character; --start or --end says",
        ),
        (["C", "Cl", "[nH]"], r"'Cl' at position 1 is not one character; give --tokenizer longest or"),
        *(
            (
                [unknown, "a"],
                rf"{re_escaped} at position 0 is not one character; --unknown .* says that it stands for unknown",
            )
            for unknown, re_escaped in [
                ("<UNK>", "'<UNK>'"),
                ("[UNK]", r"'\[UNK\]'"),
                ("UNK", "'UNK'"),
                ("<oov>", "'<oov>'"),
            ]
        ),
        ({"x": list("abc"), "y": list("acb")}, r"v\.json\['x'\] and .*v\.json\['y'\] are different vocabularies"),
        ({"seed": 1, "name": "poet"}, r"must hold the characters in id order"),
    ],
)
def test_vocabularies_that_are_wrong(content, message, tmp_path):
    with pytest.raises(ForeignError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_vocabularies_in_a_checkpoint_are_found():
    content = {
        "a": {"stoi": IDS},
        "b": (WEIGHTS, ["x", "y"]),
        "word": "cpu",
        "chars": "abc",
        "set": {"a", "b"},
        "n": [1, 2],
    }
    found = {each.where: "".join(each.symbols) for each in find_vocabularies(content)}
    assert found == {"['a']['stoi']": "abcdefghijk", "['b'][1]": "xy", "['chars']": "abc"}


def saved(tmp_path, **beside):
    torch.save({"state_dict": WEIGHTS, **beside}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_without_a_vocabulary_the_one_of_the_file_is_used(tmp_path):
    config = SimpleNamespace(itos=list(SYMBOLS))
    path = saved(tmp_path, args=config, stoi=IDS, other=list("abc"))
    run = foreign_run(path, None)
    assert run.vocabulary.symbols == SYMBOLS
    assert run.notes == ("the vocabulary is the one of 11 symbols at ['stoi'] in the file",)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({}, r"x\.pt has a model of 11 symbols and no vocabulary; give the characters in id order with --vocabulary"),
        ({"chars": list("abc")}, r"11 symbols and vocabularies of other sizes: 3 at \['chars'\]; give"),
        ({"set": set(SYMBOLS)}, r"11 symbols and no vocabulary"),
        ({"word": "uncopyright", "model_name": "ambidextrous"[:11]}, r"11 symbols and no vocabulary"),
        (
            {"a": list(SYMBOLS), "b": list(reversed(SYMBOLS))},
            r"x\.pt\['a'\] and .*\['b'\] are different vocabularies of 11",
        ),
        ({"itos": ["<pad>", *SYMBOLS[1:]]}, r"x\.pt\['itos'\]: '<pad>' at position 0 is not one character; --start"),
    ],
)
def test_a_vocabulary_is_not_guessed(beside, message, tmp_path):
    with pytest.raises(ForeignError, match=message):
        foreign_run(saved(tmp_path, **beside), None)


def test_another_vocabulary_in_the_file_is_warned_about(tmp_path):
    path = saved(tmp_path, itos=list(SYMBOLS))
    assert foreign_run(path, SYMBOLS).notes == ()
    assert foreign_run(path, [*SYMBOLS[:3], "e", "d", *SYMBOLS[5:]]).notes == (
        "WARNING: the file has another vocabulary, at ['itos'], where the id 3 is 'd'; "
        "leave out --vocabulary to use it",
    )


# ---- what the model says


class Cycle(torch.nn.Module):
    """A model that knows one text: after each symbol comes the next."""

    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.RNN(len(SYMBOLS), len(SYMBOLS))
        self.fc = torch.nn.Linear(len(SYMBOLS), len(SYMBOLS))
        with torch.no_grad():
            self.rnn.weight_ih_l0.copy_(torch.eye(len(SYMBOLS)) * 4)
            self.fc.weight.copy_(torch.eye(len(SYMBOLS)).roll(1, 0) * 9)
            for parameter in (self.rnn.weight_hh_l0, self.rnn.bias_ih_l0, self.rnn.bias_hh_l0, self.fc.bias):
                parameter.zero_()


def cycle(symbols, tmp_path):
    torch.save(Cycle().state_dict(), tmp_path / "cycle.pt")
    return foreign_run(tmp_path / "cycle.pt", symbols)


def test_a_shuffled_vocabulary_is_seen(tmp_path):
    text = "".join(SYMBOLS) * 50
    right, wrong = SYMBOLS, list(SYMBOLS)
    random.Random(1).shuffle(wrong)
    assert '"bcdefghijkabcdef' in sample_note(cycle(right, tmp_path))
    assert '"bcdefghijkabcdef' not in sample_note(cycle(wrong, tmp_path))
    (note,) = text_notes(cycle(right, tmp_path), text, "book.txt")
    assert note.startswith("book.txt: 0.0")
    assert note.endswith("over 550 characters (equally probable symbols: 3.459, by frequency alone: 3.459)")
    _, warning = text_notes(cycle(wrong, tmp_path), text, "book.txt")
    assert warning.startswith(
        "WARNING: the model predicts book.txt worse than frequencies alone do: the vocabulary may be"
    )


def test_texts_that_say_little(tmp_path):
    run = cycle(SYMBOLS, tmp_path)
    notes = text_notes(run, "abcdefghijk-" * 20, "book.txt")
    assert notes[1] == "book.txt: 20 of 240 characters are not in the vocabulary, and were left out"
    for text in ("abc", "x" * 1000 + "a" * 200):
        with pytest.raises(ForeignError, match="are in the vocabulary, too few to measure"):
            text_notes(run, text, "book.txt")
    with pytest.raises(ForeignError, match=r"--text .*none\.txt"):
        load_text(tmp_path / "none.txt")
    (tmp_path / "pydoc").write_text("of this folder")
    assert load_text(tmp_path / "pydoc") == "of this folder"


def test_a_sample_is_one_line(tmp_path):
    symbols = ("\n", "\u2028", "\x1b", "\u202e", '"', "é", "🙂", "\ue000", "\\", "a", "b")
    note = sample_note(cycle(symbols, tmp_path))
    assert note.isprintable()
    assert Vocabulary(symbols).start_id == 0


def test_the_command_and_the_function_say_it(tmp_path, monkeypatch, caplog):
    for module in ("results", "foreign.run"):
        monkeypatch.setattr(f"rill.export.{module}.export_loaded", lambda *_, **__: None)
    wrong = [*SYMBOLS[1:], SYMBOLS[0]][::-1]
    torch.save({"model": Cycle().state_dict(), "vocab": IDS}, tmp_path / "cycle.pt")
    (tmp_path / "book.txt").write_text("".join(SYMBOLS) * 50)
    job = Job("cycle.pt", "cycle", tmp_path, checkpoint=Checkpoint(tmp_path / "cycle.pt", text=tmp_path / "book.txt"))
    found, sample, bits = run_job(job, lambda _: None).notes
    assert found == "the vocabulary is the one of 11 symbols at ['vocab'] in the file"
    assert '"bcdefghijkabc' in sample
    assert "0.0" in bits

    with caplog.at_level("INFO", logger="rill.export"):
        export_state_dict(tmp_path / "cycle.pt", wrong, tmp_path, text=tmp_path / "book.txt")
    levels = [(record.levelname, record.getMessage().partition(": ")[2].split()[0]) for record in caplog.records]
    book = str(tmp_path / "book.txt") + ":"
    assert levels == [("WARNING", "WARNING:"), ("INFO", "sample"), ("INFO", book), ("WARNING", "WARNING:")]
    row = run_job(
        replace(job, checkpoint=Checkpoint(tmp_path / "cycle.pt", text=tmp_path / "none.txt")), lambda _: None
    )
    assert "--text" in row.error
