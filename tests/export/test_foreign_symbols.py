"""Checkpoints of models of molecules by other programs, of the shapes that these publish: symbols, a start and ends."""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from rill.bundle import read_bundle
from rill.export.command import main
from rill.export.errors import ForeignError
from rill.export.foreign import export_state_dict
from rill.export.foreign.preview import text_notes
from rill.export.foreign.run import foreign_run
from rill.export.jobs import Symbols

REINVENT = ["$", "^", "C", "Cl", "Br", "N", "[nH]", "(", ")", "1", "c", "="]  # as it orders its tokens
MOSES = ["(", ")", "=", "1", "C", "N", "c", "n", "[", "]", "H", "<bos>", "<eos>", "<pad>", "<unk>"]
SMILES = "c1cc[nH]c1Cl\nCC(=N)Br\nClC\n"


class Vocabulary:
    """How REINVENT stores one: each token with its id, and each id with its token, in one dict."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens: dict[Any, Any] = {}
        for index, token in enumerate(tokens):
            self._tokens[token], self._tokens[index] = index, token


class Prior(nn.Module):
    """The network in a REINVENT prior."""

    def __init__(self) -> None:
        super().__init__()
        self._embedding = nn.Embedding(len(REINVENT), 8)
        self._rnn = nn.GRU(8, 12, num_layers=2, batch_first=True)
        self._linear = nn.Linear(12, len(REINVENT))


class CharRNN(nn.Module):
    """The network of MOSES: an LSTM behind an embedding as wide as the vocabulary, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_layer = nn.Embedding(len(MOSES), len(MOSES), padding_idx=MOSES.index("<pad>"))
        self.lstm_layer = nn.LSTM(len(MOSES), 12, num_layers=2, batch_first=True)
        self.linear_layer = nn.Linear(12, len(MOSES))


@pytest.fixture
def prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A REINVENT prior in a file, whose classes nobody can import when it is read."""
    module = ModuleType("reinvent_like")
    monkeypatch.setitem(sys.modules, "reinvent_like", module)
    stored = type("Vocabulary", (Vocabulary,), {"__module__": "reinvent_like"})
    module.Vocabulary = stored  # type: ignore[attr-defined]
    path = tmp_path / "prior.pt"
    torch.manual_seed(0)
    content = {
        "model_type": "Reinvent",
        "vocabulary": stored(REINVENT),
        "max_sequence_length": 256,
        "network": Prior().state_dict(),
        "network_params": {"num_layers": 2, "layer_size": 12, "cell_type": "gru", "embedding_layer_size": 8},
    }
    torch.save(content, path, pickle_module=pickle)
    monkeypatch.delitem(sys.modules, "reinvent_like")
    return path


def test_a_prior_of_reinvent(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.smi").write_text(SMILES)
    arguments = ["--from-state-dict", str(prior), "--tokenizer", "smiles", "--start", "^", "--end", "$"]
    assert main([*arguments, "--text", str(tmp_path / "some.smi"), "--out", str(tmp_path)]) == 0
    assert "bits per symbol over 3 lines, their ends included" in capsys.readouterr().out
    bundle = read_bundle(tmp_path / "prior")
    vocabulary = bundle.vocabulary
    assert (vocabulary.symbols, vocabulary.start, vocabulary.ends) == (tuple(REINVENT), "^", ("$",))
    assert (bundle.model["cell"], bundle.layers, bundle.hidden, bundle.model["embedding"]) == ("gru", 2, 12, 8)
    assert vocabulary.decode(vocabulary.encode("c1cc[nH]c1Cl")) == "c1cc[nH]c1Cl"


def test_a_char_rnn_of_moses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(CharRNN().state_dict(), tmp_path / "char_rnn.pt")
    ids = {symbol: index for index, symbol in reversed(list(enumerate(MOSES)))}  # in any order
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    exported = export_state_dict(
        tmp_path / "char_rnn.pt", tmp_path / "ids.json", tmp_path, start="<bos>", ends=("<eos>", "<pad>")
    )
    vocabulary = read_bundle(exported.folder).vocabulary
    assert vocabulary.symbols == tuple(MOSES)
    assert [vocabulary.symbols[each] for each in vocabulary.never_ids] == ["<bos>", "<unk>"]
    assert [vocabulary.symbols[each] for each in vocabulary.end_ids] == ["<eos>", "<pad>"]
    assert vocabulary.encode("C<") == [MOSES.index("C"), MOSES.index("<unk>")]


def test_an_unknown_symbol_of_another_name(tmp_path: Path) -> None:
    symbols = ["[UNK]", "a", "b", "<eos>"]
    model = nn.ModuleDict({"rnn": nn.RNN(4, 3, batch_first=True), "out": nn.Linear(3, 4)})
    exported = export_state_dict(model.state_dict(), symbols, tmp_path, "x", unknown="[UNK]", ends=("<eos>",))
    vocabulary = read_bundle(exported.folder).vocabulary
    assert vocabulary.symbols == ("<unk>", "a", "b", "<eos>")
    assert vocabulary.encode("abz") == [1, 2, 0]


@pytest.mark.parametrize(
    ("symbols", "how", "message"),
    [
        (REINVENT, Symbols(), r"'Cl' at position 3 is not one character; give --tokenizer longest or"),
        (REINVENT, Symbols("longest", "GO"), "start symbol 'GO' is not in the vocabulary"),
        (REINVENT, Symbols("longest", "^", ("EOS",)), "end symbol 'EOS' is not in the vocabulary"),
        (REINVENT, Symbols("longest", unknown="?"), r"unknown symbol '\?' is not in the vocabulary"),
        (REINVENT, Symbols("words"), "--tokenizer must be chars, longest"),
        (REINVENT, Symbols("regex:C*"), "has no bound"),
        (
            ["<unk>", "?", *REINVENT[:10]],
            Symbols("longest", unknown="?"),
            "'[?]' at position 1 is already at position 0",
        ),
        (["", *REINVENT[1:]], Symbols("longest"), "'' at position 0 .* cannot be empty"),
    ],
)
def test_wrong_symbols(prior: Path, symbols: list[str], how: Symbols, message: str) -> None:
    with pytest.raises(ForeignError, match=message):
        foreign_run(prior, symbols, symbols=how)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "regex"], "--tokenizer regex needs its pattern"),
        (["--tokenizer", "word"], "--tokenizer must be chars"),
        (["--tokenizer", "regex:a+"], "no bound"),
    ],
)
def test_wrong_options(
    prior: Path, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--from-state-dict", str(prior), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_are_for_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--start", "^", "--out", str(tmp_path)]) == 2
    assert "--start is about a checkpoint; use it with --from-state-dict" in capsys.readouterr().err


def test_lines_of_another_kind(prior: Path) -> None:
    run = foreign_run(prior, None, symbols=Symbols("smiles", "^", ("$",)))
    with pytest.raises(ForeignError, match="of its first 2 lines, 0 have only symbols of the vocabulary"):
        text_notes(run, "hello\nworld", "x.txt")
