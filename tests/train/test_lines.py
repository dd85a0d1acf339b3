"""Training on lines, each a text of its own, and on symbols of several characters."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training import InterruptAfter, assert_same_run, lines

from rill.train.command import main
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.nets.model import CharacterModel
from rill.train.nets.sample import generate
from rill.train.record.folder import load_config
from rill.train.record.run import load_run
from rill.train.text.cutting import cut_text
from rill.train.text.held_out import TRACKS
from rill.train.text.lines import HeldOutLines, LineBatches, LineTexts
from rill.train.text.split import read_texts
from rill.train.text.windows import IGNORED
from rill.vocabulary import UNKNOWN, Vocabulary

TINY = ["--hidden", "8", "--batch", "4", "--threads", "1", "--device", "cpu", "--lines"]
MOLECULES = ["CCO", "Clc1ccccc1", "C[nH]C", "BrCC(Cl)Br", "N", "C%10CC%10", "O=C=O", "CC(C)C", "c1cc[nH]c1", "CN", "OO"]
pytestmark = pytest.mark.usefixtures("quick_training")


def train(corpus: Path, folder: Path, *options: str) -> Path:
    assert main(["--corpus", str(corpus), "--out", str(folder), *TINY, *options]) == 0
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one-line error of `rill train`."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


@pytest.fixture
def molecules(tmp_path: Path) -> Path:
    path = tmp_path / "molecules.smi"
    path.write_text("\n".join(MOLECULES) + "\n")
    return path


def line_texts(texts: list[str], vocabulary: Vocabulary) -> LineTexts:
    text = "".join(f"{line}\n" for line in texts)
    return LineTexts(cut_text(text, vocabulary.tokenizer, lines=True).encode(vocabulary), vocabulary)


WORDS = Vocabulary(("<start>", "<end>", *"abc"), start="<start>", ends=("<end>",))


def shown(vocabulary: Vocabulary, inputs: torch.Tensor, targets: torch.Tensor) -> list[str]:
    """The text of each row, which begins with the start and ends with the end symbol; padding has no row."""
    found = []
    for read, expected in zip(inputs.tolist(), targets.tolist(), strict=True):
        length = sum(target != IGNORED for target in expected)
        assert all(target == IGNORED for target in expected[length:])
        if length:
            assert read[0] == vocabulary.start_id
            assert read[1:length] == expected[: length - 1]
            assert expected[length - 1] == vocabulary.end_ids[0]
            found.append(vocabulary.decode(expected[:length]))
    return found


def test_every_line_once_an_epoch_among_lines_of_its_length() -> None:
    random = np.random.default_rng(0)
    texts = ["".join(random.choice([*"abc"], random.integers(0, 30))) for _ in range(1001)]
    batches = LineBatches(line_texts(texts, WORDS), 8, 64, seed=3)
    assert len(batches) == 126
    epochs = [[shown(WORDS, *batches.batch(epoch, index)) for index in range(len(batches))] for epoch in range(2)]
    for epoch in epochs:
        assert sorted(text for batch in epoch for text in batch) == sorted(texts)
        assert sorted(map(len, epoch))[:2] == [1, 8]
    assert epochs[0] != epochs[1]
    assert batches.padding < 0.1
    again = LineBatches(line_texts(texts, WORDS), 8, 64, seed=3)
    assert [shown(WORDS, *again.batch(1, index)) for index in range(len(batches))] == epochs[1]
    other = LineBatches(line_texts(texts, WORDS), 8, 64, seed=4)
    assert [shown(WORDS, *other.batch(1, index)) for index in range(len(batches))] != epochs[1]


def test_held_out_lines_are_measured_from_start_to_end() -> None:
    random = np.random.default_rng(1)
    texts = ["".join(random.choice([*"abc"], size)) for size in random.integers(0, 700, 40)]
    held_out = HeldOutLines(line_texts(texts, WORDS), torch.device("cpu"))
    torch.manual_seed(0)
    model = CharacterModel(ModelConfig(hidden=8), len(WORDS)).eval()
    nats = []
    for text in texts:
        ids = torch.tensor([[0, *WORDS.encode(text), 1]])
        nats.append(F.cross_entropy(model(ids[:, :-1])[0][0], ids[0, 1:], reduction="sum").item())
    total = sum(map(len, texts)) + len(texts)
    measured = held_out.measure(model)
    assert measured.loss == pytest.approx(sum(nats) / total, rel=1e-5)
    assert measured.characters == held_out.characters == total
    part = held_out.measure(model, 100)
    assert part == held_out.measure(model, 100)
    assert 100 * TRACKS <= part.characters == held_out.part(100) < 100 * TRACKS + 701
    assert 0 < held_out.measure(model, stop=lambda: True).characters < total


def test_the_loss_of_a_step_is_that_of_each_symbol(molecules: Path, tmp_path: Path) -> None:
    """Padding, the order and the window do not matter: one step reads all lines, each from the zero state."""
    options = ["--batch", "16", "--steps", "1", "--validation", "0", "--tokenizer", "smiles"]
    whole = train(molecules, tmp_path / "whole", *options)
    parts = train(molecules, tmp_path / "parts", *options, "--window", "3")
    config = load_config(whole)
    vocabulary = config.vocabulary
    torch.manual_seed(config.training.seed)
    model = CharacterModel(config.model, len(vocabulary))
    nats, count = 0.0, 0
    for line in MOLECULES:
        ids = torch.tensor([[vocabulary.start_id, *vocabulary.encode(line), *vocabulary.end_ids]])
        nats += F.cross_entropy(model(ids[:, :-1])[0][0], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    for folder in (whole, parts):
        (entry,) = lines(folder)
        assert entry["train_loss"] == pytest.approx(nats / count, rel=1e-5)
        assert entry["chars"] == count


def test_molecules(molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(
        molecules,
        tmp_path / "run",
        "--tokenizer",
        "smiles",
        "--steps",
        "5",
        "--validation",
        "0.2",
        "--sample-every",
        "0",
    )
    output = capsys.readouterr().out
    vocabulary = load_run(folder).vocabulary
    assert vocabulary.symbols[:2] == ("<start>", "<end>")
    assert list(vocabulary.symbols[2:]) == sorted(vocabulary.symbols[2:])
    assert {"Cl", "Br", "[nH]", "%10"} <= set(vocabulary.symbols)
    assert not {"l", "r", "[", "\n"} & set(vocabulary.symbols)
    assert (vocabulary.start, vocabulary.ends) == ("<start>", ("<end>",))
    assert vocabulary.tokenizer.startswith("regex:")
    assert "11 lines of 61 symbols" in output
    assert re.search(r"lines held out, \d+\.\d% padding", output)
    held_out = (folder / "held_out.txt").read_text().splitlines()
    assert set(held_out) < set(MOLECULES)
    samples = (folder / "samples.txt").read_text().split("\n")
    assert samples[0].startswith("--- step ")
    assert len(samples) == 1 + 8 + 2
    training = load_config(folder).training
    assert (training.window, training.held_out, training.lines) == (256, "lines", True)


@pytest.mark.parametrize("options", [["--steps", "12"], ["--epochs", "4", "--cell", "lstm", "--ngrams", "2"]])
def test_a_resumed_run_equals_an_uninterrupted_one(
    molecules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    options = [*options, "--window", "4", "--tokenizer", "smiles", "--dropout", "0.2", "--validation", "0.2"]
    whole = train(molecules, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        patch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(5))
        assert main(["--corpus", str(molecules), "--out", str(tmp_path / "cut"), *TINY, *options]) == 130
    assert main(["--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same_run(whole, tmp_path / "cut")


def test_samples_end_at_the_end_symbol() -> None:
    vocabulary = Vocabulary(("<start>", "<end>", UNKNOWN, "a"), start="<start>", ends=("<end>",))
    model = CharacterModel(ModelConfig(hidden=4), 4).eval()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(torch.tensor([99.0, 0.0, 99.0, 2.0]))  # the start symbol and <unk> are never chosen
    texts = {generate(model, vocabulary, "a", 50, seed=seed) for seed in range(30)}
    assert all(set(text) <= {"a"} for text in texts)
    lengths = sorted(map(len, texts))
    assert lengths[0] == 0
    assert 8 < lengths[-1] < 50


def test_longest_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, symbols = tmp_path / "log.txt", tmp_path / "symbols.txt"
    corpus.write_text("ERROR at a\nOK a\n\nERROR OK\n" * 5)
    symbols.write_text("ERROR\nOK\n \na\n")
    message = refusal(
        capsys, "--corpus", corpus, "--out", tmp_path / "run", *TINY, "--tokenizer", "longest", "--symbols", symbols
    )
    assert message == (
        f"error: {corpus}, line 1, position 7: no symbol of --symbols {symbols} fits 't'; add it there, or <unk> for"
        " what is not listed\n"
    )
    assert not (tmp_path / "run").exists()
    symbols.write_text(json.dumps(["ERROR", "OK", " ", "a", "t", "<end>"]))
    folder = train(
        corpus, tmp_path / "run", "--tokenizer", "longest", "--symbols", str(symbols), "--steps", "2", "--start", "^"
    )
    vocabulary = load_config(folder).vocabulary
    assert vocabulary.symbols == ("^", "ERROR", "OK", " ", "a", "t", "<end>")
    assert vocabulary.encode("ERROR at") == [1, 3, 4, 5]
    assert "empty lines, which are left out: 5" in capsys.readouterr().out
    assert main(["--out", str(folder), "--resume"]) == 0  # the file is not needed any more


def test_rare_symbols_are_unknown(tmp_path: Path) -> None:
    corpus = tmp_path / "text.smi"
    corpus.write_text("CCCl\nC[13C]C\nCCl\n" * 3 + "C[nH]!\n")
    options = ["--min-count", "3", "--tokenizer", "smiles", "--validation", "0", "--steps", "1", "--batch", "10"]
    folder = train(corpus, tmp_path / "run", *options)
    vocabulary = load_config(folder).vocabulary
    assert vocabulary.symbols == ("<unk>", "<start>", "<end>", "C", "Cl", "[13C]")
    assert lines(folder)[0]["chars"] == 3 * (3 + 3 + 2) + len(vocabulary.encode("C[nH]!")) + 10


def test_longer_symbols_without_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("the cat [sat]\n" * 40)
    tiny = TINY[:-1]
    pattern = r"regex:\[[a-z]{1,9}\]|the|[a-z \n]"
    options = ["--steps", "3", "--window", "8"]
    assert main(["--corpus", str(corpus), "--out", str(tmp_path / "run"), *tiny, "--tokenizer", pattern, *options]) == 0
    assert "320 symbols, 7 distinct" in capsys.readouterr().out
    assert load_config(tmp_path / "run").vocabulary.symbols == ("\n", " ", "[sat]", "a", "c", "t", "the")
    message = refusal(
        capsys, "--corpus", corpus, "--out", tmp_path / "x", *tiny, "--tokenizer", "regex:[a-z ]|\\[sat\\]"
    )
    assert f"{corpus}, line 1, position 13: '\\n' does not begin a symbol" in message
    assert "give --lines, or let the pattern match it" in message


def test_mistakes_are_one_sentence_with_the_place(
    molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.smi"
    other.write_text("CC\r\n\r\nC!C\r\n")
    out = tmp_path / "out"
    smiles = ["--corpus", molecules, other, "--out", out, *TINY, "--tokenizer", "smiles"]
    message = refusal(capsys, *smiles)
    assert message.startswith(
        f"error: {other}, line 3, position 1: '!' does not begin a symbol that --tokenizer smiles"
    )
    characters = ["--corpus", molecules, "--out", out, *TINY]
    message = refusal(capsys, *characters, "--end", "%")
    assert message.startswith(
        f"error: {molecules}, line 6, position 1: the text has '%', which is the name of a special"
    )
    for arguments, expected in [
        (["--tokenizer", "longest"], "tokenizer longest needs symbols"),
        (["--tokenizer", "regex"], "tokenizer regex needs patterns"),
        (["--tokenizer", "regex:C+"], "which has no bound; write a count such as {1,64} at position 1"),
        (["--tokenizer", "chers"], "did you mean chars?"),
        (["--symbols", tmp_path / "none.txt"], "none.txt: no such file"),
        (["--symbols", molecules], "which is not one character; give --tokenizer longest"),
        (["--sampling", "random"], "lines are shuffled in any case"),
        (["--prepare", "line"], "leaves no lines"),
        (["--characters", "5"], "cuts a text anywhere"),
        (["--start", ""], "cannot be empty"),
        (["--prefix", "!"], "--prefix '!'"),
        (["--validation", "0.001"], "cannot be held out; use another --validation"),
    ]:
        assert expected in refusal(capsys, *characters, *arguments)
    assert "for lines, each a text of its own" in refusal(capsys, *characters[:-1], "--start", "^")
    empty = tmp_path / "empty.smi"
    empty.write_text("\n\n")
    assert "only empty lines" in refusal(capsys, "--corpus", empty, "--out", out, *TINY)
    assert not out.exists()


def test_held_out_lines_of_another_corpus(molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.smi"
    other.write_text("CC\nC[Si]C\n\nOCl\n")
    folder = train(
        molecules, tmp_path / "run", "--tokenizer", "smiles", "--steps", "2", "--validation-corpus", str(other)
    )
    output = " ".join(capsys.readouterr().out.split())
    assert "2 lines held out" in output
    assert "held-out lines with symbols that the vocabulary lacks, which are left out: 1" in output
    assert not (folder / "held_out.txt").exists()
    assert json.loads((folder / "summary.json").read_text())["val_chars"] == 3 + 3


def test_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("lines", "data"):
        monkeypatch.setattr(f"rill.train.text.{module}.MAX_LINE", 100)
    corpus = tmp_path / "text.txt"
    corpus.write_text("a" * 1000 + "\n" + "ab\n" * 20 + "b" * 30)
    folder = train(corpus, tmp_path / "run", "--epochs", "1", "--window", "8", "--validation", "0")
    output = " ".join(capsys.readouterr().out.split())
    assert "lines of which only the first 100 symbols are read: 1" in output
    assert "longer than --window 8 and learned in several windows: 2" in output
    assert lines(folder)[-1]["chars"] == 100 + 20 * 3 + 31


def test_repeated_held_out_lines_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("same\n" * 50)
    train(corpus, tmp_path / "run", "--steps", "1")
    assert "5 of the 5 held-out lines are also trained on" in " ".join(capsys.readouterr().out.split())


def test_another_run_on_lines(molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tokenizer", "smiles", "--steps", "2", "--validation", "0"]
    first = train(molecules, tmp_path / "first", *options)
    others = tmp_path / "others.smi"
    others.write_text("FC[Si]\nCC\n" * 4)
    again = ["--corpus", str(others), "--from", str(first), "--steps", "2", "--validation", "0", "--batch", "4"]
    message = refusal(capsys, *again, "--out", tmp_path / "more")
    assert f"{others}, line 1, position 0: {first} was not trained on 'F'" in message
    assert main([*again, "--out", str(tmp_path / "more"), "--extend-vocabulary"]) == 0
    config = load_config(tmp_path / "more")
    assert config.vocabulary.symbols[:2] == ("<start>", "<end>")
    assert {"F", "[Si]", "Cl"} <= set(config.vocabulary.symbols)
    assert (config.training.lines, config.training.tokenizer, config.training.window) == (True, "smiles", 256)
    assert "was trained with lines True, not False" not in refusal(
        capsys, *again, "--out", tmp_path / "y", "--start", "^"
    )
    plain = tmp_path / "plain"
    assert main(["--corpus", str(molecules), "--out", str(plain), *TINY[:-1], "--window", "4", "--steps", "1"]) == 0
    message = refusal(capsys, "--corpus", molecules, "--from", plain, "--out", tmp_path / "x", "--lines")
    assert "was trained with lines False, not True; its symbols stay" in message


def test_other_runs_keep_their_configuration() -> None:
    stored = TrainingConfig(steps=1).to_json()
    assert not stored.keys() & {"lines", "tokenizer", "symbols", "start_symbol", "end_symbol"}


def test_a_folder_is_split_by_lines(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(f"\n{number} one\n\n\n{number} two")
    options: dict[str, Any] = {"steps": 1, "corpus": (str(tmp_path),), "lines": True}
    for held_out in ("lines", "documents", "tail"):
        texts = read_texts(TrainingConfig(held_out=held_out, **options))
        both = sorted((texts.training + texts.held_out).split("\n")[:-1])
        assert both == sorted(f"{number} {word}" for number in range(20) for word in ("one", "two"))
        assert len(texts.held_out.split("\n")) - 1 == pytest.approx(4, abs=1)
        assert texts.where("7 two", 3) == f"{tmp_path / '07.txt'}, line 5, position 3"


def test_the_loss_falls(tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("".join(f"item {number % 7} of {number % 5}\n" for number in range(200)))
    folder = train(
        corpus, tmp_path / "run", "--hidden", "24", "--batch", "8", "--epochs", "5", "--learning-rate", "0.02"
    )
    assert lines(folder)[-1]["val_loss"] < 1.2
