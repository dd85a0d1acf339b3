"""N-gram tables in training: their configuration, the model's input, the context, and runs that carry both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rill.ngrams import row_of, rows_of
from rill.train.command import main
from rill.train.config import ModelConfig
from rill.train.errors import ConfigError
from rill.train.nets.cells import State
from rill.train.nets.initialization import initialize
from rill.train.nets.model import CharacterModel
from rill.train.nets.recurrent import run_layers

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
