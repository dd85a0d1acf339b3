"""The effect of the options of `rill train` on the text, a step, the length of a run and its final weights."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from random_models import SENTENCES
from torch import Tensor
from training import InterruptAfter, lines

from rill.train.command import main
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import CorpusError
from rill.train.loop.optimizer import make_optimizer, state_names
from rill.train.loop.trainer import Trainer
from rill.train.nets.initialization import initialize
from rill.train.nets.model import CharacterModel
from rill.train.record.folder import RunConfig
from rill.train.record.run import load_run
from rill.train.text.corpus import Corpus
from rill.train.text.data import _encode, text_data
from rill.train.text.held_out import HeldOutText, Measurement
from rill.train.text.split import TextSplit, read_texts
from rill.vocabulary import UnknownCharacterError, Vocabulary

TINY = ["--hidden", "8", "--batch", "4", "--window", "8", "--threads", "1", "--device", "cpu"]
EVENLY = ["--schedule", "constant", "--warmup", "0"]  # a step does not depend on the length of the run
pytestmark = pytest.mark.usefixtures("quick_training")


def train(text: Path, folder: Path, *options: str) -> Path:
    assert main(["--corpus", str(text), "--out", str(folder), *TINY, *options]) == 0
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one-line error of `rill train`."""
    assert main(list(arguments)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


# The text


def texts_of(text: str, **options: Any) -> TextSplit:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rill.train.text.split.read_corpus", lambda specs, *how: Corpus(["".join(specs)], 0))
        return read_texts(TrainingConfig(steps=1, corpus=(text,), **options))


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_letters_are_lower_case_words_with_single_spaces(text: str) -> None:
    prepared = texts_of(text, prepare="letters", validation=0.0).training
    assert set(prepared) <= set(" abcdefghijklmnopqrstuvwxyz")
    assert "  " not in prepared
    words = "".join(c if c.isascii() and c.isalpha() else " " for c in text).split()
    assert prepared.split() == [word.lower() for word in words]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_line_has_spaces_for_newlines(text: str) -> None:
    prepared = texts_of(text, prepare="line", validation=0.0).training
    assert "\n" not in prepared
    assert len(prepared) == len(text)
    assert all(new == old or (new, old) == (" ", "\n") for new, old in zip(prepared, text, strict=True))


def test_the_first_characters_are_trained_on_and_the_next_ones_held_out() -> None:
    text = "".join(map(chr, range(100, 200)))
    texts = texts_of(text, characters=30, validation_characters=20)
    assert (texts.training, texts.held_out, texts.alphabet) == (text[:30], text[30:50], text[:30])
    texts = texts_of(text, characters=30, validation=0.1)
    assert (texts.training, texts.held_out, texts.alphabet) == (text[:27], text[27:30], text[:30])
    texts = texts_of(text, characters=100, validation=0.0)
    assert (texts.training, texts.held_out) == (text, "")
    texts = texts_of("A, b" * 10, characters=3, validation_characters=4, prepare="letters")
    assert (texts.training, texts.held_out) == ("a b", "a ba")
    with pytest.raises(CorpusError, match="has 100 characters once prepared, but 101 are needed"):
        texts_of(text, characters=80, validation_characters=21)
    with pytest.raises(CorpusError, match="has 100 characters once prepared, but 101 are needed"):
        texts_of(text, characters=101)


def test_another_corpus_is_held_out_after_the_same_preparation() -> None:
    texts = texts_of("One\ntwo", validation_corpus=("Three\nfour",), prepare="letters", validation=0.5)
    assert (texts.training, texts.held_out, texts.alphabet) == ("one two", "three four", "one two")


@pytest.mark.parametrize(("min_count", "predicted"), [(1, 39), (2, 59)])
def test_unseen_characters_are_dropped_or_unknown(min_count: int, predicted: int) -> None:
    texts = texts_of("ab" * 50 + "abç" * 20, characters=100, validation_characters=60, min_count=min_count)
    training = TrainingConfig(steps=1, batch=1, window=8, characters=100, validation_characters=60, min_count=min_count)
    config = RunConfig(ModelConfig(), training, Vocabulary.of_text(texts.alphabet, min_count))
    data = text_data(config.training, config.vocabulary, texts, torch.device("cpu"))
    assert data.held_out
    assert data.held_out.characters == predicted
    assert ("(20 unseen dropped)" in data.description) == (min_count == 1)


def test_a_run_on_a_part_of_the_text(sentences: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Speak! " * 30)
    part = ["--steps", "2", "--characters", "200"]
    folder = train(sentences, tmp_path / "a", *part, "--validation-characters", "100")
    assert load_run(folder).vocabulary.symbols == tuple(sorted(set(SENTENCES)))
    assert summary(folder)["val_chars"] == 99
    folder = train(sentences, tmp_path / "b", *part, "--validation-corpus", str(other))
    assert summary(folder)["val_chars"] == 5 * 30 - 1  # neither "S" nor "!"
    folder = train(sentences, tmp_path / "c", *part, "--prepare", "line")
    assert load_run(folder).vocabulary.symbols == tuple(sorted(set(SENTENCES) - {"\n"}))
    assert summary(folder)["val_chars"] == 19


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--characters 2000", "error: the corpus TEXT has 1,040 characters once prepared, but 2,000 are needed"),
        ("--characters 900 --validation-characters 200", "has 1,040 characters once prepared, but 1,100 are needed"),
        ("--characters 900 --validation-characters 5", "error: the held-out text has 5 characters, too few"),
        ("--validation 0.0001", "error: the held-out text has 0 characters, too few"),
        ("--validation-characters 5", "error: validation_characters are the ones after the first --characters"),
        ("--characters -1", "error: characters must be a whole number of at least 0, not -1"),
        ("--characters 20", "error: 18 characters cannot be cut into 4 tracks"),
        ("--validation-corpus GREEK", "error: the held-out text has 0 characters, too few"),
        ("--validation-corpus nowhere.txt", "error: 'nowhere.txt' is neither a file"),
        ("--validation-corpus GREEK --characters 9 --validation-characters 9", "error: give validation_characters or"),
        ("--corpus GREEK --prepare letters", "error: the corpus has one distinct symbol, ' '"),
        ("--evaluate-every 2 --evaluate-epochs 1", "error: give evaluate_every (steps) or evaluate_epochs, not both"),
        ("--momentum 0.9", "error: momentum is for sgd and rmsprop; AdamW has its own"),
        ("--momentum 1 --optimizer sgd", "error: momentum must be a finite number, at least 0 and less than 1"),
        ("--schedule linear", "error: schedule must be cosine or constant, not 'linear'"),
        ("--precision fp16", "error: precision must be fp32 or bf16, not 'fp16'"),
        ("--keep all", "error: keep must be best or last, not 'all'"),
        ("--accumulate 0", "error: accumulate must be a whole number of at least 1, not 0"),
        ("--clip -1", "error: clip must be a finite number, at least 0, not -1.0"),
        ("--clip inf", "error: clip must be a finite number, at least 0, not inf"),
        ("--patience -1", "error: patience must be a whole number of at least 0, not -1"),
        ("--patience 2 --validation 0", "error: patience needs a validation loss; with validation 0 there is"),
        ("--evaluate-epochs -1", "error: evaluate_epochs must be a whole number of at least 0, not -1"),
        ("--recipe nonesuch", "error: there is no recipe 'nonesuch'; choose one of "),
        ("--recipe nonesuch.toml", "error: recipe nonesuch.toml cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, complaint: str
) -> None:
    greek = tmp_path / "greek.txt"
    greek.write_text("μῆνιν" * 100)
    words = [{"GREEK": str(greek)}.get(word, word) for word in options.split()]
    errors = refusal(capsys, "--corpus", str(sentences), "--out", str(tmp_path / "run"), *TINY, *words)
    assert complaint.replace("TEXT", str(sentences)) in errors
    assert not (tmp_path / "run").exists()


# A step


def first_weights(model: ModelConfig, symbols: int) -> CharacterModel:
    torch.manual_seed(0)
    return CharacterModel(model, symbols)


def tracks(ids: list[int], batch: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (B, length): the text cut into tracks, as by SequentialWindows."""
    length = (len(ids) - 1) // batch
    inputs = [ids[row * length : (row + 1) * length] for row in range(batch)]
    targets = [ids[row * length + 1 : (row + 1) * length + 1] for row in range(batch)]
    return torch.tensor(inputs), torch.tensor(targets)


def descend(
    model: CharacterModel, ids: list[int], steps: int, accumulate: int, rate: float, clip: float
) -> list[float]:
    """Plain gradient descent over windows of 8; returns the norm of each gradient."""
    inputs, targets = tracks(ids, 4)
    windows = list(zip(inputs.split(8, 1), targets.split(8, 1), strict=True))
    epoch = [windows[first : first + accumulate] for first in range(0, len(windows), accumulate)]
    norms: list[float] = []
    while True:
        state = None
        for part in epoch:
            nats = torch.zeros(())
            for window, expected in part:
                logits, state = model(window, state)
                nats = nats + F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum")
                state = tuple(half.detach() for half in state)
            characters = sum(expected.numel() for _, expected in part)
            gradients = torch.autograd.grad(nats / characters, list(model.parameters()))
            norms.append(math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)))
            shortened = min(1.0, clip / norms[-1]) if clip else 1.0
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(rate * shortened * gradient)
            if len(norms) == steps:
                return norms


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(
    ("steps", "accumulate", "rate", "clip"),
    [(2, 1, 100.0, 0.0), (2, 3, 100.0, 0.0), (2, 3, 100.0, 0.02), (35, 1, 1.0, 0.3), (12, 4, 1.0, 0.3)],
)
def test_gradient_descent_by_hand(
    sentences: Path, tmp_path: Path, cell: str, steps: int, accumulate: int, rate: float, clip: float
) -> None:
    """The weights move by the rate times the gradient, shortened only if it is longer than --clip.

    An epoch is 33 windows, in 33 or 9 steps; the state is zero at its start.
    """
    options = f"--cell {cell} --validation 0 --optimizer sgd --weight-decay 0 --sample-every 0".split()
    numbers = [
        "--steps",
        str(steps),
        "--accumulate",
        str(accumulate),
        "--learning-rate",
        str(rate),
        "--clip",
        str(clip),
    ]
    folder = train(sentences, tmp_path / "run", *options, *EVENLY, *numbers)
    vocabulary = load_run(folder).vocabulary
    model = first_weights(ModelConfig(cell=cell, hidden=8), len(vocabulary))
    norms = descend(model, vocabulary.encode(sentences.read_text()), steps, accumulate, rate, clip)
    assert max(norms) > (clip or 1)  # beyond --clip, or, without it, beyond what it is by default
    torch.testing.assert_close(load_run(folder).weights, dict(model.state_dict()), rtol=1e-4, atol=1e-5)


def test_two_accumulated_batches_are_one_of_twice_the_size(tmp_path: Path) -> None:
    """The same windows: (len - 8) // (8 * 4) = 64 batches of 4, or 32 of 8, in the order drawn for all of them."""
    text = tmp_path / "text.txt"
    text.write_text((SENTENCES * 30)[: 64 * 32 + 8])
    options = ["--sampling", "random", "--validation", "0", "--steps", "40", "--evaluate-every", "4", "--clip", "0.1"]
    options += ["--optimizer", "sgd", "--learning-rate", "1"]
    one = train(text, tmp_path / "one", *options, "--accumulate", "2")
    other = train(text, tmp_path / "other", *options, "--batch", "8")
    assert len(lines(one)) == 10
    for a, b in zip(lines(one), lines(other), strict=True):
        assert (a["chars"], a["epoch"]) == (b["chars"], b["epoch"])
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
    torch.testing.assert_close(load_run(one).weights, load_run(other).weights, rtol=1e-4, atol=1e-5)


def test_the_last_step_of_an_epoch_takes_the_batches_that_are_left(sentences: Path, tmp_path: Path) -> None:
    # 1,040 characters are 4 tracks of 259: 33 windows of 8, the last one of 3; 5 steps of 8 batches, the last of 1.
    options = ["--validation", "0", "--epochs", "2", "--accumulate", "8", "--evaluate-every", "5"]
    entries = lines(train(sentences, tmp_path / "run", *options))
    assert [(entry["step"], entry["epoch"], entry["chars"]) for entry in entries] == [(5, 1, 1036), (10, 2, 2072)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_optimizers_by_hand(name: str, momentum: float) -> None:
    config = TrainingConfig(steps=1, optimizer=name, momentum=momentum, learning_rate=0.5, weight_decay=0.1)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer([("weight", weight)], config)
    w, buffer, square = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    for gradient in (torch.tensor([0.3, -0.4]), torch.tensor([-0.1, 0.2]), torch.tensor([0.5, 0.0])):
        weight.grad = gradient.clone()
        optimizer.step()
        decayed = gradient + 0.1 * w
        square = 0.99 * square + 0.01 * decayed**2
        buffer = momentum * buffer + (decayed if name == "sgd" else decayed / (square.sqrt() + 1e-8))
        w = w - 0.5 * buffer
        torch.testing.assert_close(weight.detach(), w)


@pytest.mark.long
def test_training_does_not_load_the_compiler_of_pytorch(sentences: Path, tmp_path: Path) -> None:
    """Loading it takes as long as PyTorch itself."""
    code = """
import sys
from rill.train.command import main
assert main(sys.argv[1:]) == 0
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    words = ["--corpus", str(sentences), "--out", str(tmp_path / "run"), *TINY, "--steps", "2"]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")), st.integers(1, 2))
def test_texts_are_encoded_as_the_vocabulary_says(text: str, other: str, min_count: int) -> None:
    vocabulary = Vocabulary.of_text(text * min_count, min_count)
    known = other if min_count > 1 else "".join(c for c in other if c in text)
    for part in (text, known):
        assert _encode(vocabulary, part).tolist() == vocabulary.encode(part)
    if known != other:
        with pytest.raises(UnknownCharacterError):
            _encode(vocabulary, other)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop"])
def test_the_state_of_an_optimizer(name: str, momentum: float) -> None:
    config = TrainingConfig(steps=1, optimizer=name, momentum=0.0 if name == "adamw" else momentum)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([("weight", weight)], config)
    weight.grad = torch.ones(2)
    optimizer.step()
    remembered = optimizer.state_dict()["state"]
    assert set(remembered[0] if remembered else {}) == state_names(config)


def test_the_schedule_is_that_of_the_run(sentences: Path, tmp_path: Path) -> None:
    common = ["--steps", "10", "--evaluate-every", "1", "--sample-every", "0", "--learning-rate", "0.5"]
    constant = lines(train(sentences, tmp_path / "a", *common, *EVENLY))
    assert [entry["learning_rate"] for entry in constant] == [0.5] * 10
    warm = lines(train(sentences, tmp_path / "b", *common, "--schedule", "constant", "--warmup", "4"))
    assert [entry["learning_rate"] for entry in warm] == [0.125, 0.25, 0.375, *[0.5] * 7]
    cosine = lines(train(sentences, tmp_path / "c", *common, "--warmup", "0"))
    expected = [0.5 * (0.505 + 0.495 * math.cos(math.pi * step / 10)) for step in range(10)]
    assert [entry["learning_rate"] for entry in cosine] == pytest.approx(expected)


# Initial weights


def test_default_weights_are_pytorchs() -> None:
    drawn, model = first_weights(ModelConfig(hidden=8), 5), first_weights(ModelConfig(hidden=8), 5)
    initialize(model, "default")
    assert all(torch.equal(weight, drawn.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_normal_weights_have_a_standard_deviation_of_a_hundredth(cell: str) -> None:
    model = first_weights(ModelConfig(cell=cell, hidden=64, embedding=32, layers=2), 40)
    initialize(model, "normal")
    for name, weight in model.named_parameters():
        if "bias" in name:
            assert not weight.any(), name
        else:
            assert weight.std().item() == pytest.approx(0.01, rel=0.1), name
            assert abs(weight.mean().item()) < 1e-3, name


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_orthogonal_gates(cell: str, both_ways: bool) -> None:
    config = ModelConfig(
        cell=cell, hidden=6, layers=2, bidirectional=both_ways, task="tag" if both_ways else "generate"
    )
    model = first_weights(config, 5)
    initialize(model, "orthogonal")
    gates = {"gru": 3, "lstm": 4, "rnn": 1}[cell]
    for name, parameter in model.rnn.named_parameters():
        rows = parameter.detach().view(gates, 6, -1)
        if "weight_hh" in name:
            torch.testing.assert_close(rows @ rows.mT, torch.eye(6).expand(gates, 6, 6), atol=1e-5, rtol=0)
        elif "weight_ih" in name:
            assert rows.abs().max() <= math.sqrt(6 / (6 + rows.shape[2]))
        else:
            expected = torch.zeros(gates, 6, 1)
            if cell == "lstm" and "bias_ih" in name:
                expected[1] = 1.0  # the forget gate
            assert torch.equal(rows, expected)


@pytest.mark.parametrize("how", ["default", "normal", "orthogonal"])
def test_a_run_starts_with_the_requested_weights(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(0))
    folder = tmp_path / "run"
    assert main(["--corpus", str(sentences), "--out", str(folder), *TINY, "--initialization", how]) == 130
    model = first_weights(ModelConfig(hidden=8), len(set(SENTENCES)))
    initialize(model, how)
    assert all(torch.equal(load_run(folder).weights[name], weight) for name, weight in model.state_dict().items())


# Evaluations, and the weights that are kept


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Records each training batch: its step, its summed loss and its number of characters."""
    seen: list[tuple[int, float, int]] = []
    loss = Trainer._loss

    def recorded(trainer: Trainer, inputs: Tensor, targets: Tensor, state: Any) -> Any:
        result = loss(trainer, inputs, targets, state)
        seen.append((trainer.position.step + 1, result[0].item(), targets.numel()))
        return result

    monkeypatch.setattr(Trainer, "_loss", recorded)
    return seen


@pytest.mark.parametrize(
    ("options", "means"),
    [
        # 936 characters for training are 4 tracks of 233: 30 batches an epoch.
        ("--epochs 3 --evaluate-epochs 1", [(0, 30), (30, 60), (60, 90)]),
        ("--epochs 3 --evaluate-epochs 2", [(30, 60), (60, 90)]),
        ("--epochs 4 --evaluate-epochs 2 --accumulate 4", [(8, 16), (24, 32)]),
        ("--steps 70 --evaluate-epochs 1", [(0, 30), (30, 60), (60, 70)]),
        ("--epochs 3 --evaluate-every 40", [(0, 40), (40, 80), (80, 90)]),
        ("--steps 40 --sampling random --evaluate-epochs 1", [(0, 29), (29, 40)]),
    ],
)
def test_the_training_loss_is_a_mean_over_the_epoch_or_since_the_last_line(
    sentences: Path, tmp_path: Path, losses: list[tuple[int, float, int]], options: str, means: list[tuple[int, int]]
) -> None:
    folder = train(sentences, tmp_path / "run", *options.split(), "--sample-every", "0")
    entries = lines(folder)
    assert [entry["step"] for entry in entries] == [last for _, last in means]
    for entry, (before, last) in zip(entries, means, strict=True):
        part = [(nats, count) for step, nats, count in losses if before < step <= last]
        mean = sum(nats for nats, _ in part) / sum(count for _, count in part)
        assert entry["train_loss"] == pytest.approx(mean, rel=1e-5)
        assert entry["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert summary(folder)["train_loss"] == entries[-1]["train_loss"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the validation losses of the next evaluations; later ones are measured."""
    measure = HeldOutText.measure

    def script(*values: float) -> None:
        coming: Iterator[float] = iter(values)

        def measured(
            held_out: HeldOutText, model: CharacterModel, limit: int | None = None, stop: object = None
        ) -> Measurement:
            value = next(coming, None)
            return measure(held_out, model, limit) if value is None else Measurement(value, 1)

        monkeypatch.setattr(HeldOutText, "measure", measured)

    return script


def validation_loss(folder: Path, text: str) -> float:
    """The validation loss of model.safetensors, by one pass over all of `text`."""
    run = load_run(folder)
    ids = torch.tensor(run.vocabulary.encode(text))
    with torch.inference_mode():
        logits, _ = run.build()(ids[None, :-1])
    return F.cross_entropy(logits[0], ids[1:]).item()


COMMON = ["--evaluate-every", "3", "--sample-every", "0", "--learning-rate", "0.02", *EVENLY]


@pytest.mark.parametrize(
    ("options", "values", "stopped", "kept"),
    [
        ("--patience 2", (3.0, 2.0, 2.5, 2.4), 12, 6),
        ("--patience 2", (3.0, 2.0, 2.0, 2.0), 12, 6),  # an equal loss is not an improvement
        ("--patience 2", (3.0, 2.0, 2.5, 1.9, 2.2, 2.1), 18, 12),
        ("--patience 1", (3.0, 3.1), 6, 3),
        ("--patience 2 --keep last", (3.0, 2.0, 2.5, 2.4), 12, 12),
        ("--patience 9", (3.0, 2.0, 2.5, 2.4, 2.3, 2.6, 2.2), 21, 6),
        ("", (3.0, 2.0, 2.5, 2.4, 2.3, 2.6, 2.2), 21, 6),
        ("--keep last", (3.0, 2.0, 2.5, 2.4, 2.3, 2.6, 2.2), 21, 21),
    ],
)
def test_patience_and_the_weights_that_are_kept(
    sentences: Path,
    tmp_path: Path,
    scripted: Callable[..., None],
    options: str,
    values: tuple[float, ...],
    stopped: int,
    kept: int,
) -> None:
    scripted(*values)
    folder = train(sentences, tmp_path / "run", *COMMON, "--steps", "21", *options.split())
    assert [entry["val_loss"] for entry in lines(folder)] == list(values)
    assert (summary(folder)["steps"], summary(folder)["step"]) == (stopped, kept)
    scripted()
    shorter = train(sentences, tmp_path / "shorter", *COMMON, "--steps", str(kept), "--keep", "last")
    assert (folder / "model.safetensors").read_bytes() == (shorter / "model.safetensors").read_bytes()
    assert summary(folder)["val_loss"] == pytest.approx(validation_loss(folder, (SENTENCES * 10)[-104:]), rel=1e-5)


# Precision


VARIANTS = [
    "--cell gru",
    "--cell gru --reset before",
    "--cell gru --embedding 5 --layers 2 --dropout 0.1",
    "--cell lstm",
    "--cell lstm --embedding 5 --layers 2",
    "--cell rnn --no-bias",
    "--residual --layers 3",
    "--cell lstm --scratch",
]


@pytest.mark.parametrize("options", VARIANTS)
def test_bfloat16_trains_nearly_as_well(sentences: Path, tmp_path: Path, options: str) -> None:
    common = [*options.split(), "--steps", "12", "--evaluate-every", "6", "--sample-every", "0", *EVENLY]
    exact = train(sentences, tmp_path / "fp32", *common)
    rounded = train(sentences, tmp_path / "bf16", *common, "--precision", "bf16")
    assert load_run(rounded).weights.keys() == load_run(exact).weights.keys()  # and f32, or they were not loaded
    for a, b in zip(lines(exact), lines(rounded), strict=True):
        assert a["train_loss"] != b["train_loss"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=0.01)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=0.01)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("shape", [{"embedding": 4, "layers": 2}, {"residual": True, "layers": 2}])
def test_under_autocast_kernels_get_bfloat16_and_no_autocast(
    monkeypatch: pytest.MonkeyPatch, cell: str, shape: dict[str, Any]
) -> None:
    """PyTorch's autocast would pass float16 to cuDNN's recurrent kernels, whatever dtype was requested."""
    name = "rnn_tanh" if cell == "rnn" else cell
    kernel = getattr(torch, name)
    calls = []

    def watched(x: Tensor, state: Any, weights: list[Tensor], *options: Any) -> Any:
        assert not torch.is_autocast_enabled("cpu")
        parts = state if isinstance(state, list) else [state]
        calls.append({tensor.dtype for tensor in (x, *parts, *weights)})
        return kernel(x, state, weights, *options)

    monkeypatch.setattr(torch, name, watched)
    model = first_weights(ModelConfig(cell=cell, hidden=8, **shape), 5)
    tokens = torch.randint(5, (3, 9))
    with torch.no_grad():  # on a CPU, training uses other kernels
        expected, _ = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = model(tokens)
            assert torch.is_autocast_enabled("cpu")
    half = len(calls) // 2
    assert calls == [{torch.float32}] * half + [{torch.bfloat16}] * half
    assert half
    assert {logits.dtype, *(part.dtype for part in state)} == {torch.bfloat16}
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.02)


# Recipes


RECIPE = """
wants = "sentences"
[model]
hidden = 6
[training]
prepare = "line"
characters = 800
validation_characters = 100
batch = 4
window = 8
epochs = 2
evaluate_epochs = 1
sample_every = 0
keep = "last"
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mine.toml in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def stored(folder: str) -> dict[str, Any]:
    config = json.loads((Path(folder) / "config.json").read_text())
    return config["model"] | config["training"]


def test_a_recipe_supplies_omitted_values(recipe: Path, sentences: Path) -> None:
    assert main(["--recipe", "mine.toml", "--corpus", str(sentences), "--window", "9"]) == 0
    values = stored("runs/mine")
    expected = {
        "recipe": "mine.toml",
        "corpus": [str(sentences)],
        "hidden": 6,
        "prepare": "line",
        "epochs": 2,
        "steps": None,
    }
    assert values.items() >= expected.items()
    assert (values["window"], values["batch"], values["keep"], values["evaluate_epochs"]) == (9, 4, "last", 1)
    assert "\n" not in load_run("runs/mine").vocabulary.symbols
    assert summary(Path("runs/mine"))["val_chars"] == 99


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--hidden 5 --keep best", {"hidden": 5, "keep": "best", "epochs": 2}),
        ("--steps 3", {"steps": 3, "epochs": None, "evaluate_epochs": 1}),
        ("--max-minutes 0.001", {"max_minutes": 0.001, "epochs": None, "steps": None}),
        ("--epochs 1", {"epochs": 1, "steps": None}),
        ("--evaluate-every 50", {"evaluate_every": 50, "evaluate_epochs": 0}),
        ("--validation 0.2", {"validation": 0.2, "validation_characters": 0, "characters": 800}),
        ("--validation-corpus TEXT", {"validation_characters": 0, "characters": 800}),
        ("--validation-characters 50", {"validation_characters": 50}),
        ("--optimizer sgd --momentum 0.5", {"optimizer": "sgd", "momentum": 0.5, "validation_characters": 100}),
    ],
)
def test_an_option_wins_over_the_recipe(recipe: Path, sentences: Path, options: str, expected: dict[str, Any]) -> None:
    words = [{"TEXT": str(sentences)}.get(word, word) for word in options.split()]
    assert main(["--recipe", "mine.toml", "--corpus", str(sentences), "--out", "run", *words]) == 0
    assert stored("run").items() >= expected.items()


def test_a_recipe_without_a_text_asks_for_it(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--recipe", "mine.toml") == "error: recipe mine.toml needs --corpus: sentences\n"
    recipe.write_text("[model]\nhidden = 4\n")
    assert refusal(capsys, "--recipe", "mine.toml") == "error: recipe mine.toml needs --corpus\n"
    assert "timemachine-gru needs --corpus: The Time Machine" in refusal(capsys, "--recipe", "timemachine-gru")
    assert not Path("runs").exists()


@pytest.mark.parametrize("key", ["recipe = 'other'", "corpus_sha256 = ''", "start = 'runs/mine'"])
def test_a_recipe_cannot_set_what_only_a_run_sets(recipe: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    recipe.write_text(f"[training]\n{key}\n")
    assert f"[training] has unknown keys: {key.split(maxsplit=1)[0]!r}" in refusal(capsys, "--recipe", "mine.toml")


def test_a_run_by_recipe_is_resumed_with_and_without_its_name(
    recipe: Path, sentences: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ["--recipe", "mine.toml", "--corpus", str(sentences), "--hidden", "5"]
    assert main([*begin, "--out", "whole"]) == 0
    cuts = iter([InterruptAfter(3), InterruptAfter(3), InterruptAfter(3), InterruptAfter(10**6)])
    monkeypatch.setattr("rill.train.loop.train.Interrupt", lambda: next(cuts))
    assert main([*begin, "--resume"]) == 130
    assert main(["--recipe", "mine.toml", "--resume"]) == 130  # the run's own --hidden counts, not the recipe's
    assert main(["--out", "runs/mine", "--resume"]) == 130
    Path("other.toml").write_text(RECIPE)
    errors = refusal(capsys, "--recipe", "other.toml", "--out", "runs/mine", "--resume")
    assert "runs/mine was started with hidden 5, not 6; leave the option (or --recipe) out to continue it" in errors
    errors = refusal(capsys, "--recipe", "mine.toml", "--window", "9", "--resume")
    assert "runs/mine was started with window 8, not 9" in errors
    assert main([*begin, "--resume"]) == 0
    for name in ("model.safetensors", "samples.txt"):
        assert (Path("runs/mine") / name).read_bytes() == (Path("whole") / name).read_bytes()
    assert lines(Path("runs/mine")) == lines(Path("whole"))


def test_a_published_recipe_by_name(sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [
        "--hidden",
        "8",
        "--characters",
        "600",
        "--validation-characters",
        "100",
        "--batch",
        "4",
        "--epochs",
        "1",
    ]
    assert main(["--recipe", "timemachine-gru", "--corpus", str(sentences), *options]) == 0
    assert stored("runs/timemachine-gru")["prefix"] == ["time traveller"]
    assert load_run("runs/timemachine-gru").vocabulary.unknown_id == 0
    assert "time traveller" in Path("runs/timemachine-gru/samples.txt").read_text()


# Divergence


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors(entry)


@pytest.mark.parametrize(
    ("options", "good_steps"),
    [
        ("--optimizer sgd --learning-rate 1e8 --clip 0", True),
        ("--optimizer sgd --learning-rate 1e8 --clip 0 --momentum 0.9 --validation 0", True),
        ("--optimizer sgd --learning-rate 1e38", False),
        ("--optimizer rmsprop --learning-rate 1e38 --clip 0", False),
        ("--optimizer adamw --learning-rate 1e38 --precision bf16", False),
    ],
)
def test_an_absurd_rate_stops_the_run_and_saves_nothing_of_it(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, good_steps: bool
) -> None:
    folder = tmp_path / "run"
    every = ["--steps", "99", "--evaluate-every", "1", "--sample-every", "0", *EVENLY]
    errors = refusal(capsys, "--corpus", str(sentences), "--out", str(folder), *TINY, *options.split(), *every)
    assert re.match("error: (the (loss|weights) diverged|the validation loss became (inf|nan)) at step [0-9]+", errors)
    assert ("; the last good checkpoint is kept; " in errors) == good_steps
    assert errors.endswith("start again in another --out with a smaller --learning-rate or a tighter --clip\n")
    saved = [torch.load(path, weights_only=True) for path in folder.glob("trainer*.pt")]
    assert bool(saved) == good_steps
    if good_steps:
        saved.append(load_run(folder).weights)
    assert all(tensor.isfinite().all() for tensor in tensors(saved))
