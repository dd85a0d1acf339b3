"""Weights that a model computes from others are computed; a model of another kind is refused for its true reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from rill.export.errors import ForeignError
from rill.export.foreign.run import run_of_state_dict
from rill.vocabulary import Vocabulary

V, H, E = 12, 8, 6
VOCABULARY = Vocabulary(tuple("abcdefghijkl"))


class Poet(nn.Module):
    def __init__(self, hidden=H):
        super().__init__()
        torch.manual_seed(2)
        self.emb, self.rnn, self.fc = nn.Embedding(V, E), nn.GRU(E, hidden, batch_first=True), nn.Linear(hidden, V)

    def forward(self, tokens):
        return self.fc(self.rnn(self.emb(tokens))[0])


def old_weight_norm(model):
    nn.utils.weight_norm(model.fc)
    model.fc.weight_g.data *= 3


def weight_norm(model):
    parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    parametrizations.weight_norm(model.fc, dim=1)
    model.fc.parametrizations.weight.original0.data *= 2


def weight_norm_of_all(model):
    nn.utils.weight_norm(model.fc, dim=None)
    nn.utils.weight_norm(model.emb)
    model.fc.weight_g.data *= 2


def spectral_norm(model):
    parametrizations.spectral_norm(model.fc)
    parametrizations.spectral_norm(model.rnn, "weight_hh_l0", n_power_iterations=5)


def old_spectral_norm(model):
    nn.utils.spectral_norm(model.fc)


def pruning(model):
    prune.l1_unstructured(model.fc, "weight", 0.5)
    prune.random_unstructured(model.rnn, "weight_hh_l0", 0.3)


@pytest.mark.filterwarnings("ignore")  # PyTorch's, about the older forms
@pytest.mark.parametrize(
    "change", [old_weight_norm, weight_norm, weight_norm_of_all, spectral_norm, old_spectral_norm, pruning]
)
def test_what_the_model_computes_is_folded(change):
    model = Poet()
    change(model)
    tokens = torch.randint(V, (2, 9))
    model(tokens)  # in training: one step of the power iteration
    model.eval()
    run = run_of_state_dict(model.state_dict(), VOCABULARY)
    assert run.notes
    with torch.no_grad():
        torch.testing.assert_close(run.build()(tokens)[0], model(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("is_inside", [False, True])
def test_weight_drop_is_undone(is_inside):
    model = Poet()
    weights = model.state_dict()
    weights["rnn.weight_hh_l0_raw"] = weights.pop("rnn.weight_hh_l0")
    if is_inside:  # as fastai has it: a copy as it was dropped out last
        weights = {name.replace("rnn.", "rnn.module."): value for name, value in weights.items()}
        weights["rnn.weight_hh_l0_raw"] = weights.pop("rnn.module.weight_hh_l0_raw")
        weights["rnn.module.weight_hh_l0"] = F.dropout(weights["rnn.weight_hh_l0_raw"], 0.5)
    run = run_of_state_dict(weights, VOCABULARY)
    assert "weight drop undone" in run.notes[0]
    assert torch.equal(run.weights["rnn.weight_hh_l0"], model.rnn.weight_hh_l0)


@pytest.mark.filterwarnings("ignore")  # PyTorch's, about the older forms
def test_a_hint_of_old_never_exports_the_direction_alone():
    """The norm cannot be dropped: it is part of the weight before any rename."""
    model = Poet()
    old_weight_norm(model)
    with pytest.raises(ForeignError, match=r"has no tensor 'fc\.weight_g' to rename"):
        run_of_state_dict(model.state_dict(), VOCABULARY, {"fc.weight_g": ""})


class Orthogonal:
    def __call__(self, model):
        parametrizations.orthogonal(model.rnn, "weight_hh_l0")


def parts(**modules):
    return nn.ModuleDict(modules).state_dict()


def with_(**tensors):
    return Poet().state_dict() | {name.replace("__", "."): value for name, value in tensors.items()}


def changed(change):
    model = Poet()
    change(model)
    return model.state_dict()


REFUSED = [
    (
        parts(
            encoder=nn.Embedding(V, E),
            rnns=nn.ModuleList([nn.LSTM(E, 10), nn.LSTM(10, 10), nn.LSTM(10, E)]),
            decoder=nn.Linear(E, V),
        ),
        "has layers of different widths, 10, 10, 6 units",
    ),
    (
        parts(emb=nn.Embedding(V, E), inp=nn.Linear(E, H), rnn=nn.GRU(H, H), fc=nn.Linear(H, V)),
        r"inp\.weight \(8, 6\) lies between the embedding emb\.weight \(12, 6\) and the gru: a further linear layer",
    ),
    (
        parts(emb=nn.Embedding(V, 40), inp=nn.Linear(40, 20), rnn=nn.LSTM(20, H), fc=nn.Linear(H, V)),
        r"inp\.weight \(20, 40\) lies between the embedding emb\.weight \(12, 40\) and the lstm",
    ),
    (
        parts(emb=nn.Embedding(V, E), rnn=nn.GRU(E, H), mid=nn.Linear(H, 5), fc=nn.Linear(5, V)),
        r"mid\.weight \(5, 8\) lies between the gru and the output layer fc\.weight \(12, 5\)",
    ),
    (
        parts(emb=nn.Embedding(V, E), rnn=nn.GRU(E, H), mid=nn.Linear(H, H), fc=nn.Linear(H, V)),
        r"no model here uses: mid\.weight \(8, 8\), mid\.bias \(8,\) \(a further linear layer or embedding\)",
    ),
    (with_(emb__weight=torch.ones(V + 1, E)), r"emb\.weight \(13, 6\) has 13 rows, but the output layer fc\.weight"),
    (
        with_(fc__weight=torch.ones(V + 2, H), fc__bias=torch.ones(V + 2)),
        r"emb\.weight \(12, 6\) has 12 rows, but the output layer fc\.weight \(14, 8\) has 14",
    ),
    (
        with_(emb__weight=torch.ones(V + 1, E), fc__weight=torch.ones(V + 1, H), fc__bias=torch.ones(V + 1)),
        r"a model of 13 symbols, but the vocabulary has 12; if a row is padding .* say --end '<pad>'$",
    ),
    (with_(fc__weight=torch.ones(H, V)), r"fc\.weight \(8, 12\) has a column for each symbol"),
    (with_(h0=torch.zeros(1, 1, H)), r"\(a learned initial state\)"),
    (with_(ln__weight=torch.ones(H), ln__bias=torch.ones(H)), r"\(normalisation\)"),
    (with_(bn__running_mean=torch.ones(H), bn__weight=torch.ones(H)), r"\(batch normalisation\)"),
    (with_(attn__weight=torch.ones(H, H)), r"\(attention\)"),
    (with_(conv__weight=torch.ones(H, H, 3)), r"\(a convolution\)"),
    (changed(Orthogonal()), r"a parametrization that is not known here; call .*remove_parametrizations"),
    (with_(fc__weight_g=torch.ones(3, 1), fc__weight_v=torch.ones(V, H)), r"which are not of one weight norm"),
    (with_(fc__weight_orig=torch.ones(V, H)), r"has fc\.weight_orig, of which the model computes fc\.weight in a way"),
    (
        parts(enc=nn.TransformerEncoderLayer(H, 2), fc=nn.Linear(H, V)),
        "it seems to be a transformer, which has no recurrent state",
    ),
    (parts(conv=nn.Conv1d(E, H, 3), fc=nn.Linear(H, V)), "it seems to be a convolutional model"),
    (
        parts(i2h=nn.Linear(V + H, H), i2o=nn.Linear(V + H, V)),
        "it seems to have a cell of its own, made of linear layers",
    ),
    (
        {"gru/kernel": torch.ones(E, 3 * H), "gru/recurrent_kernel": torch.ones(H, 3 * H)},
        "names of Keras or TensorFlow",
    ),
    (parts(encoder=nn.GRU(E, H), decoder=nn.GRU(E, H)), "two models that work together cannot be expressed here"),
]


@pytest.mark.parametrize(("weights", "message"), REFUSED)
def test_the_true_reason(weights, message):
    with pytest.raises(ForeignError, match=message) as caught:
        run_of_state_dict(weights, VOCABULARY)
    # Nothing that can be copied exports another model: each rename has a name to be chosen.
    told = str(caught.value)
    assert "\n" not in told
    assert all(part.startswith("NAME=") for part in told.split("--rename ")[1:]), told


def test_a_tied_model_has_one_matrix():
    weights = parts(emb=nn.Embedding(V, E), inp=nn.Linear(E, H), rnn=nn.GRU(H, H), fc=nn.Linear(H, V))
    rename = {"fc.weight": "embedding.weight,linear.weight", "emb.weight": "", "inp.weight": "", "inp.bias": ""}
    with pytest.raises(
        ForeignError, match=r"has emb\.weight \(12, 6\), inp\.weight \(8, 6\) beside fc\.weight, so that is"
    ):
        run_of_state_dict(weights, VOCABULARY, rename)
    del weights["emb.weight"], weights["inp.weight"]
    run = run_of_state_dict(weights, VOCABULARY, {"fc.weight": "embedding.weight,linear.weight", "inp.bias": ""})
    assert run.notes == ("dropped by --rename: inp.bias",)
