"""The fast path for training on a CPU is `nn.GRU`, in outputs and gradients."""

import pytest
import torch
import torch.nn.functional as F

from train.config import ModelConfig
from train.errors import ConfigError
from train.model import CharacterModel

V, H, B, T = 11, 16, 3, 9


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("embedding", [0, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_training_forward_and_gradients_equal_nn_gru(layers: int, embedding: int, bias: bool) -> None:
    torch.manual_seed(1)
    model = CharacterModel(ModelConfig(layers=layers, embedding=embedding, bias=bias, hidden=H), V).double()
    tokens = torch.randint(0, V, (B, T))
    start = torch.randn(layers, B, H, dtype=torch.float64, requires_grad=True)
    weights, state_weights = torch.randn(B, T, V).double(), torch.randn(layers, B, H).double()

    def gradients(logits: torch.Tensor, h: torch.Tensor) -> list[torch.Tensor]:
        value = (logits * weights).sum() + (h * state_weights).sum()
        return list(torch.autograd.grad(value, [start, *model.parameters()]))

    logits, (h,) = model(tokens, (start,))
    x = F.one_hot(tokens, V).double() if model.embedding is None else model.embedding(tokens)
    outputs, expected_h = model.rnn(x, start)
    expected = model.linear(outputs)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(h, expected_h, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(logits, h), gradients(expected, expected_h), rtol=0, atol=1e-11)


def test_inference_equals_training_forward() -> None:
    model = CharacterModel(ModelConfig(layers=2, hidden=H), V)
    tokens = torch.randint(0, V, (B, T))
    trained, (h,) = model(tokens)
    with torch.inference_mode():
        inferred, (inferred_h,) = model(tokens)
    torch.testing.assert_close(trained, inferred)
    torch.testing.assert_close(h, inferred_h)


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
        ({"cell": "lstm", "reset": "before"}, "reset 'before' is about GRUs; lstm has no reset gate"),
        ({"residual": 1}, "residual must be true or false, not 1"),
        ({"bidirectional": True}, "a bidirectional model reads ahead, so it can tag but not generate"),
        ({"task": "translate"}, "task must be generate or tag, not 'translate'"),
        ({"layers": 0}, "layers must be a whole number of at least 1, not 0"),
        ({"hidden": True}, "hidden must be a whole number of at least 1, not True"),
        ({"dropout": 1.0}, r"dropout must be a finite number, at least 0 and less than 1, not 1\.0"),
        ({"dropout": float("nan")}, "dropout must be a finite number"),
        ({"bias": 1}, "bias must be true or false"),
        ({"hiden": 3}, "ModelConfig does not know 'hiden'"),
    ],
)
def test_impossible_models_are_refused(option: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ModelConfig.from_json(option)
