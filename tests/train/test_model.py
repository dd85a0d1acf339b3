"""Every model computes its equations, by fused kernels, by our own backward passes, or written out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rill.train.config import ModelConfig
from rill.train.errors import ConfigError
from rill.train.nets.cells import State
from rill.train.nets.initialization import initialize
from rill.train.nets.model import CharacterModel

V, H, B, T = 11, 16, 3, 9


MODELS = [
    {},
    {"layers": 3},
    {"layers": 2, "bias": False, "embedding": 7},
    {"layers": 4, "residual": True},
    {"hidden": 5, "layers": 2},  # fewer units than symbols: an LSTM's first layer has a backward pass of ours
    {"hidden": 5, "bias": False, "residual": True, "layers": 3},
    {"task": "tag", "bidirectional": True, "layers": 2},
    {"task": "tag", "bidirectional": True, "layers": 3, "residual": True, "embedding": 7, "bias": False},
]
CELLS = [{"cell": "gru"}, {"cell": "gru", "reset": "before"}, {"cell": "lstm"}, {"cell": "rnn"}]


def double_model(config: dict[str, Any], scratch: bool = False) -> CharacterModel:
    torch.manual_seed(1)
    return CharacterModel(ModelConfig(**{"hidden": H, **config}), V, scratch=scratch).double()


def random_state(model: CharacterModel) -> State:
    return tuple(torch.randn_like(part).requires_grad_() for part in model.initial_state(B))


@pytest.mark.parametrize("config", MODELS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_outputs_and_gradients_equal_the_written_out_equations(cell: dict[str, Any], config: dict[str, Any]) -> None:
    model, written_out = double_model(config | cell), double_model(config | cell, scratch=True)
    tokens, start = torch.randint(0, V, (B, T)), random_state(model)
    weights = [torch.randn(B, T, V).double(), *(torch.randn_like(part) for part in start)]

    def outputs_and_gradients(model: CharacterModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        logits, state = model(tokens, start)
        value = sum((part * weight).sum() for part, weight in zip((logits, *state), weights, strict=True))
        return [logits, *state], list(torch.autograd.grad(value, [*start, *model.parameters()]))

    outputs, gradients = outputs_and_gradients(model)
    expected, expected_gradients = outputs_and_gradients(written_out)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-11)
    with torch.no_grad():
        logits, state = model(tokens, start)
    torch.testing.assert_close([logits, *state], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [m for m in MODELS if "residual" not in m], ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_without_residuals_the_layers_are_pytorchs(cell: str, config: dict[str, Any]) -> None:
    model = double_model(config | {"cell": cell}, scratch=True)
    tokens, start = torch.randint(0, V, (B, T)), random_state(model)
    x = F.one_hot(tokens, V).double() if model.embedding is None else model.embedding(tokens)
    outputs, state = model.rnn(x, start if cell == "lstm" else start[0])
    logits, own_state = model(tokens, start)
    torch.testing.assert_close(logits, model.linear(outputs), rtol=0, atol=1e-12)
    torch.testing.assert_close(own_state, state if cell == "lstm" else (state,), rtol=0, atol=1e-12)


def test_residual_sums_are_the_contracts() -> None:
    """Layer 2 reads h_1, layer 3 x_2 + h_2, the output layer x_3 + h_3; here each layer is a separate module."""
    model = double_model({"layers": 3, "residual": True})
    layers = []
    for index in range(3):
        layer = nn.GRU(V if index == 0 else H, H, batch_first=True).double()
        for name, parameter in layer.named_parameters():
            parameter.data = getattr(model.rnn, f"{name[:-1]}{index}").data
        layers.append(layer)
    tokens = torch.randint(0, V, (B, T))
    h_1, _ = layers[0](F.one_hot(tokens, V).double())
    h_2, _ = layers[1](h_1)
    h_3, last = layers[2](h_1 + h_2)
    logits, (state,) = model(tokens)
    torch.testing.assert_close(logits, model.linear(h_1 + h_2 + h_3), rtol=0, atol=1e-12)
    torch.testing.assert_close(state[2:], last, rtol=0, atol=1e-12)


def test_a_tagger_reads_ahead_only_if_it_is_bidirectional() -> None:
    for bidirectional in (False, True):
        model = double_model({"task": "tag", "bidirectional": bidirectional})
        tokens = torch.randint(0, V, (1, T))
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % V
        same = torch.equal(model(tokens)[0][:, 0], model(other)[0][:, 0])
        assert same is not bidirectional


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_state_of_another_cell_is_refused(cell: dict[str, Any]) -> None:
    model = double_model(cell)
    parts = 1 if cell["cell"] == "lstm" else 2
    with pytest.raises(ValueError, match=f"the state of a {cell['cell']} model cannot have {parts} parts"):
        model(torch.zeros(B, T, dtype=torch.int64), (torch.zeros(1, B, H).double(),) * parts)


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("how", ["default", "normal", "orthogonal"])
def test_initializations(cell: dict[str, Any], how: str) -> None:
    model = CharacterModel(ModelConfig(hidden=32, layers=2, **cell), V)
    before = model.rnn.weight_hh_l1.clone()
    initialize(model, how)
    w, bias = model.rnn.weight_hh_l1, model.rnn.bias_ih_l1
    if how == "default":
        assert torch.equal(w, before)
    elif how == "normal":
        assert w.std().item() == pytest.approx(0.01, rel=0.1)
        assert not bias.any()
    else:
        for gate in torch.split(w, 32):
            torch.testing.assert_close(gate @ gate.T, torch.eye(32), atol=1e-5, rtol=0)
        forget = torch.split(bias, 32)[1] if cell["cell"] == "lstm" else torch.ones(1)
        assert (forget == 1).all()


def test_state_chains_over_calls() -> None:
    model = CharacterModel(ModelConfig(layers=2, hidden=H, embedding=5), V)
    tokens = torch.randint(0, V, (B, T))
    whole, (h,) = model(tokens)
    first, state = model(tokens[:, :4])
    second, (chained,) = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(chained, h)


@pytest.mark.parametrize(("layers", "differs"), [(1, True), (3, True)])
def test_dropout_acts_in_training_only(layers: int, differs: bool) -> None:
    model = CharacterModel(ModelConfig(layers=layers, hidden=H, dropout=0.5), V)
    tokens = torch.randint(0, V, (B, T))
    assert torch.equal(model(tokens)[0], model(tokens)[0]) is not differs
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_parameters_carry_pytorchs_names() -> None:
    names = set(CharacterModel(ModelConfig(layers=2, embedding=4, bias=False), V).state_dict())
    weights = {f"rnn.weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)}
    assert names == {"embedding.weight", "linear.weight", "linear.bias"} | weights


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"cell": "elman"}, "cell must be gru, lstm or rnn, not 'elman'"),
        ({"reset": "never"}, "reset must be after or before, not 'never'"),
        ({"cell": "lstm", "reset": "before"}, "reset 'before' is for GRUs; lstm has no reset gate"),
        ({"residual": 1}, "residual must be true or false, not 1"),
        ({"bidirectional": True}, "a bidirectional model reads ahead, so it can tag but not generate"),
        ({"task": "translate"}, "task must be generate or tag, not 'translate'"),
        ({"layers": 0}, "layers must be a whole number of at least 1 and at most 1000, not 0"),
        ({"hidden": True}, "hidden must be a whole number of at least 1 and at most 1048576, not True"),
        ({"dropout": 1.0}, r"dropout must be a finite number, at least 0 and less than 1, not 1\.0"),
        ({"dropout": float("nan")}, "dropout must be a finite number"),
        ({"bias": 1}, "bias must be true or false"),
        ({"hiden": 3}, "ModelConfig has no field 'hiden'; did you mean hidden?"),
    ],
)
def test_impossible_models_are_refused(option: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ModelConfig.from_json(option)
