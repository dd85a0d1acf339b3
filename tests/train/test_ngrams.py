"""N-gram tables in training: their configuration, the model's input, the context, and runs that carry both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import make_run
from torch import Tensor
from training import InterruptAfter, assert_same_run

from rill.ngrams import row_of, rows_of
from rill.train.command import main
from rill.train.config import ModelConfig
from rill.train.errors import ConfigError, CorpusError
from rill.train.loop.start import copy_weights, vocabulary_from
from rill.train.nets.cells import State
from rill.train.nets.initialization import initialize
from rill.train.nets.model import CharacterModel
from rill.train.nets.recurrent import run_layers
from rill.train.record.folder import load_config
from rill.train.record.run import load_run
from rill.vocabulary import UNKNOWN

V, H, B, T = 7, 6, 3, 9


def test_a_model_without_tables_is_stored_as_before_there_were_any() -> None:
    assert not ModelConfig().to_json().keys() & {"ngrams", "ngram_rows"}
    section = json.loads(json.dumps(ModelConfig(ngrams=3).to_json()))
    assert (section["ngrams"], section["ngram_rows"]) == (3, 8192)
    assert ModelConfig.from_json(section) == ModelConfig(ngrams=3)
    assert ModelConfig.from_json(ModelConfig().to_json()).ngrams == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--ngrams 0", "ngrams must be a whole number of at least 1 and at most 8, not 0"),
        ("--ngrams 9", "ngrams must be a whole number of at least 1 and at most 8, not 9"),
        ("--ngrams 3 --ngram-rows 0", "ngram_rows must be a whole number of at least 1 and at most 16777216, not 0"),
        ("--ngram-rows 100", "ngram_rows is the size of n-gram tables; give ngrams, 2 or more, too"),
        ("--ngram-dropout 0.1", "ngram_dropout and ngram_decay are for n-gram tables; give --ngrams, 2 or more, too"),
        ("--ngrams 1 --ngram-decay 0", "ngram_dropout and ngram_decay are for n-gram tables; give --ngrams, 2 or"),
        ("--ngrams 2 --ngram-dropout 1", "ngram_dropout must be a finite number, at least 0 and less than 1, not 1.0"),
        ("--ngrams 2 --task tag", "n-gram tables are for models that predict the next symbol; a tagger has none"),
    ],
)
def test_options_that_describe_no_tables_are_refused(
    options: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--corpus", "x", "--out", str(tmp_path / "run"), *options.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {complaint}")
    assert not (tmp_path / "run").exists()


def test_a_stored_true_is_not_a_number_of_symbols() -> None:
    with pytest.raises(ConfigError, match="ngrams must be"):
        ModelConfig.from_json({"ngrams": True})


# The model


MODELS = [
    {},
    {"embedding": 5, "layers": 2},
    {"layers": 3, "residual": True, "bias": False},
    {"hidden": 9, "embedding": 4, "bias": False},
]
CELLS = [{"cell": "gru"}, {"cell": "gru", "reset": "before"}, {"cell": "lstm"}, {"cell": "rnn"}]


def random_model(scratch: bool = False, **config: Any) -> CharacterModel:
    """A model in float64 whose tables are not zero; hashed from order 3 on if there are no more than 50 rows."""
    torch.manual_seed(1)
    model = CharacterModel(ModelConfig(**{"hidden": H, "ngrams": 3, **config}), V, scratch=scratch).double()
    with torch.no_grad():
        for table in (model.ngrams or torch.nn.Module()).parameters():
            table.normal_()
    return model


def random_state(model: CharacterModel) -> State:
    *vectors, context = model.initial_state(B)
    return *(torch.randn_like(part).requires_grad_() for part in vectors), torch.randint(0, V, context.shape)


def plain_input(model: CharacterModel, tokens: Tensor, context: Tensor) -> Tensor:
    """The input of the first layer (T, B, I), symbol by symbol, by the definition of the tables."""
    steps = []
    for t in range(tokens.shape[1]):
        rows = []
        for row, last in zip(tokens, context.t(), strict=True):
            read = [*last.tolist(), *row[: t + 1].tolist()]
            own = F.one_hot(row[t], V).double() if model.embedding is None else model.embedding.weight[row[t]]
            for order in range(2, model.config.ngrams + 1):
                index = row_of(tuple(read[-order:]), V, model.config.ngram_rows)
                own = own + model.get_parameter(f"ngrams.{order}.weight")[index]
            rows.append(own)
        steps.append(torch.stack(rows))
    return torch.stack(steps)


@pytest.mark.parametrize("config", MODELS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize(("ngrams", "rows"), [(2, 8192), (3, 20), (7, 20)])
def test_outputs_and_gradients_are_those_of_the_definition(
    cell: dict[str, Any], config: dict[str, Any], ngrams: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rill.ngrams.EXACT_ROWS", V**2)  # order 2 exact, others hashed
    model = random_model(ngrams=ngrams, ngram_rows=rows, **cell, **config)
    assert [len(table) for table in model.ngrams.parameters()] == [V**2, *[rows] * (ngrams - 2)]
    tokens, start = torch.randint(0, V, (B, T)), random_state(model)
    weights = torch.randn(B, T, V).double()
    parameters = [*start[:-1], *model.parameters()]

    logits, (*state, context) = model(tokens, start)
    outputs, expected = run_layers(
        model.rnn, model.config, plain_input(model, tokens, start[-1]), start[:-1], training=False, scratch=True
    )
    expected_logits = model.linear(outputs.transpose(0, 1))
    torch.testing.assert_close([logits, *state], [expected_logits, *expected], rtol=0, atol=1e-12)
    assert context.equal(torch.cat([start[-1], tokens.t()])[-(ngrams - 1) :])
    assert context.dtype == torch.int64
    gradients = torch.autograd.grad((logits * weights).sum(), parameters)
    expected_gradients = torch.autograd.grad((expected_logits * weights).sum(), parameters)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, start)[0], expected_logits, rtol=0, atol=1e-12)
        model.scratch = True
        torch.testing.assert_close(model(tokens, start)[0], expected_logits, rtol=0, atol=1e-12)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.sampled_from([2, 3, 5]), st.sampled_from(CELLS))
@settings(max_examples=40, deadline=None)
def test_any_split_of_a_text_gives_the_same_logits(parts: list[int], ngrams: int, cell: dict[str, Any]) -> None:
    """The context is carried from one call to the next, also over calls that are shorter than it."""
    model = random_model(ngrams=ngrams, ngram_rows=30, **cell)
    tokens = torch.randint(0, V, (B, sum(parts)))
    whole, last = model(tokens)
    state: State | None = None
    logits = []
    for part in torch.split(tokens, parts, dim=1):
        more, state = model(part, state)
        logits.append(more)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)
    assert state is not None
    assert state[-1].equal(last[-1])


def test_a_text_begins_after_symbol_0() -> None:
    model = random_model(ngrams=4)
    state = model.initial_state(B)
    assert state[-1].equal(torch.zeros(3, B, dtype=torch.int64))
    tokens = torch.randint(0, V, (B, T))
    assert model(tokens, state)[0].equal(model(tokens)[0])


@pytest.mark.parametrize("how", ["default", "normal", "orthogonal"])
def test_a_model_begins_as_if_it_had_no_tables(how: str) -> None:
    logits = []
    for ngrams in (1, 4):
        torch.manual_seed(3)
        model = CharacterModel(ModelConfig(hidden=H, ngrams=ngrams), V)
        initialize(model, how)
        logits.append(model(torch.arange(V)[None])[0])
    torch.testing.assert_close(*logits)


def test_a_state_without_context_is_refused() -> None:
    model = random_model()
    with pytest.raises(ValueError, match="the state of a gru model cannot have 1 parts"):
        model(torch.zeros(B, T, dtype=torch.int64), model.initial_state(B)[:1])


def test_the_context_keeps_nothing_else_in_memory() -> None:
    """A view of all tokens would be stored with the checkpoint."""
    (_, context) = random_model(ngrams=2)(torch.zeros(1, 500, dtype=torch.int64))[1]
    assert context.untyped_storage().nbytes() == 8


def test_row_dropout_leaves_out_whole_rows_in_training_only() -> None:
    model = CharacterModel(ModelConfig(hidden=H, embedding=5, ngrams=2), V, ngram_dropout=0.75).double()
    assert model.ngrams is not None
    with torch.no_grad():
        model.ngrams.get_parameter("2.weight").fill_(1)
    ids = torch.randint(0, V, (1001, 50))
    torch.manual_seed(0)
    rows = model.ngrams(ids)
    assert set(rows.unique().tolist()) == {0, 4}
    assert rows.eq(rows[:, :, :1]).all()
    assert rows.mean().item() == pytest.approx(1, abs=0.05)
    assert model.eval().ngrams(ids).unique().tolist() == [1]


def test_tables_are_exact_where_there_are_few_symbols() -> None:
    shapes = {name: weight.shape for name, weight in random_model(ngrams=6, ngram_rows=99).named_parameters()}
    assert shapes["ngrams.5.weight"] == (V**5, V)
    assert shapes["ngrams.6.weight"] == (99, V)
    assert rows_of(6, V, 99) == 99


# Runs


TINY = ["--hidden", "8", "--batch", "4", "--window", "8", "--threads", "1", "--device", "cpu", "--sample-every", "0"]
TABLES = ["--ngrams", "3", "--ngram-rows", "50", "--ngram-dropout", "0.2", "--ngram-decay", "0.5"]
CUT = [*TINY, *TABLES, "--steps", "42", "--evaluate-every", "7"]  # epochs of 30 steps


@pytest.fixture(scope="module")
def start(quick_training: None, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with tables for 2-grams, all of which have a row, and 3-grams, which share rows."""
    return train(sentences, tmp_path_factory.mktemp("runs") / "start", *TABLES, "--steps", "20")


def train(text: Path, folder: Path, *options: str) -> Path:
    assert main(["--corpus", str(text), "--out", str(folder), *TINY, *options]) == 0
    return folder


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize("shape", [["--embedding", "4"], ["--cell", "lstm", "--sampling", "random"]], ids=str)
def test_a_run_is_cut_and_resumed_bit_by_bit(
    shape: list[str], sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(sentences, tmp_path / "whole", *CUT, *shape)
    assert load_run(whole).weights["ngrams.3.weight"].any()
    words = ["--corpus", str(sentences), "--out", str(tmp_path / "cut"), *CUT, *shape, "--resume"]
    for checks in (5, 13, 1, 14):
        with monkeypatch.context() as patch:
            patch.setattr("rill.train.loop.train.Interrupt", lambda checks=checks: InterruptAfter(checks))
            assert main(words) == 130
    assert main(words) == 0
    assert_same_run(whole, tmp_path / "cut")


@pytest.mark.usefixtures("quick_training")
def test_windows_read_the_context_that_the_one_before_left(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is zeros at the start of each epoch, and elsewhere the last symbols of the same track."""
    seen: list[tuple[Tensor, Tensor]] = []
    forward = CharacterModel.forward

    def watched(model: CharacterModel, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if model.training:
            seen.append((tokens, (state or model.initial_state(len(tokens)))[-1]))
        return forward(model, tokens, state)

    monkeypatch.setattr(CharacterModel, "forward", watched)
    train(sentences, tmp_path / "run", *TABLES, "--epochs", "2", "--accumulate", "2", "--precision", "bf16")
    per_epoch = len(seen) // 2
    for index, (_, context) in enumerate(seen):
        before = seen[index - 1][0].t()[-2:] if index % per_epoch else torch.zeros_like(context)
        assert context.equal(before)


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize("damage", ["negative", "too large", "dtype", "missing"])
def test_a_damaged_context_in_a_checkpoint_is_found(
    damage: str, sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", str(sentences), "--out", str(tmp_path / "run"), *CUT, "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(5))
        assert main(words) == 130
    path = tmp_path / "run" / "trainer.pt"
    content = torch.load(path, weights_only=True)
    *vectors, context = content["position"]["state"]
    damaged = {
        "negative": (torch.full_like(context, -1),),
        "too large": (torch.full_like(context, 1000),),
        "dtype": (context.float(),),
        "missing": (),
    }
    content["position"]["state"] = (*vectors, *damaged[damage])
    torch.save(content, path)
    (tmp_path / "run" / "trainer.previous.pt").unlink(missing_ok=True)
    capsys.readouterr()
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert "trainer.pt is damaged: " in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("quick_training")
def test_a_run_of_a_recipe_may_leave_out_its_tables(sentences: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tables.toml"
    recipe.write_text("[model]\nngrams = 3\nngram_rows = 70\n[training]\nngram_dropout = 0.3\nngram_decay = 0.2\n")
    words = ["--recipe", str(recipe), "--steps", "2"]
    config = load_config(train(sentences, tmp_path / "with", *words))
    assert (config.model.ngram_rows, config.training.ngram_dropout, config.training.ngram_decay) == (70, 0.3, 0.2)
    config = load_config(train(sentences, tmp_path / "without", *words, "--ngrams", "1"))
    assert config.model.ngrams == 1
    text = (tmp_path / "without" / "config.json").read_text()
    assert "ngram" not in text


@pytest.mark.usefixtures("quick_training")
def test_tables_are_added_to_a_trained_model(sentences: Path, start: Path, tmp_path: Path) -> None:
    """At first they are zero; those that the model has keep their rows."""
    plain = train(sentences, tmp_path / "plain", "--steps", "20")
    for before, words in ((plain, ["--ngrams", "2"]), (start, ["--ngrams", "4"])):
        run, grown = load_run(before), tmp_path / before.name / "grown"
        train(sentences, grown, "--from", str(before), *words, "--steps", "1", "--learning-rate", "1e-30")
        weights = load_run(grown).weights
        new = weights.keys() - run.weights.keys()
        assert new == {f"ngrams.{words[1]}.weight"}
        for name, weight in weights.items():
            torch.testing.assert_close(weight, run.weights.get(name, torch.zeros_like(weight)))


@pytest.mark.usefixtures("quick_training")
def test_tables_are_not_taken_from_a_trained_model(
    sentences: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, complaint in (("--ngrams 2", "ngrams 3, not 2"), ("--ngram-rows 60", "ngram_rows 50, not 60")):
        words = ["--corpus", str(sentences), "--out", str(tmp_path / "run"), "--from", str(start), "--steps", "1"]
        assert main([*words, *options.split()]) == 2
        assert capsys.readouterr().err == f"error: {start} has {complaint}\n"
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [{}, {"embedding": 5}], ids=str)
@pytest.mark.parametrize("exact_rows", [10, 300])
def test_an_extended_vocabulary_keeps_the_rows(
    shape: dict[str, Any], exact_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new symbols come last; a text of old ones means the same, whether n-grams have a row each or share them."""
    monkeypatch.setattr("rill.ngrams.EXACT_ROWS", exact_rows)
    run = make_run(tuple("hbfd"), hidden=6, ngrams=4 if exact_rows == 10 else 3, ngram_rows=30, **shape)
    vocabulary = vocabulary_from(run, "gbaa", 1, extend=True)
    assert vocabulary.symbols == tuple("hbfdag")
    model = CharacterModel(run.model, len(vocabulary))
    copy_weights(model, vocabulary, run)
    text = "dbfdhhdb"
    expected, _ = run.build()(torch.tensor([run.vocabulary.encode(text)]))
    logits, _ = model.eval()(torch.tensor([vocabulary.encode(text)]))
    torch.testing.assert_close(logits[..., : len(run.vocabulary)], expected)
    assert vocabulary_from(run, "aac", 2, extend=True).symbols == (*"hbfd", UNKNOWN, "a")


def test_rows_that_would_have_to_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rill.ngrams.EXACT_ROWS", 16)
    with pytest.raises(CorpusError, match=r"has a row for each 2-gram of its 4 symbols, which 6 symbols cannot have"):
        vocabulary_from(make_run(tuple("hbfd"), ngrams=2), "abc", 1, extend=True)


def test_a_complete_run_says_how_tables_are_added(
    sentences: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, way in (
        ("--ngrams 4", "it is trained further by rill train --from"),
        ("--ngrams 2", "to train another model, choose another --out; this one is trained further by"),
    ):
        assert main(["--corpus", str(sentences), "--out", str(start), "--resume", *options.split()]) == 2
        errors = capsys.readouterr().err
        assert f"is complete, without {options}; {way}" in errors
        assert errors.endswith(f" {options}\n") is (options == "--ngrams 4")
