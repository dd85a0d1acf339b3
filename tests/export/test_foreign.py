"""Models that Rill did not train: made from their state dicts they give the same results, or are refused clearly."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rill.bundle import read_bundle
from rill.export.errors import ForeignError, UnsupportedError
from rill.export.foreign.files import load_state_dict_file
from rill.export.foreign.run import export_state_dict, foreign_run, run_of_state_dict
from rill.export.foreign.vocabularies import load_vocabulary_file
from rill.train.record.run import Run
from rill.vocabulary import Vocabulary

KINDS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
V, H, E = 11, 8, 5
SYMBOLS = tuple("abcdefghijk")
few = settings(max_examples=60, deadline=None, derandomize=True)


class Foreign(nn.Module):
    """A typical model with names of its own. `width` 0 means one-hot input."""

    def __init__(
        self,
        cell: str = "gru",
        symbols: int = V,
        hidden: int = H,
        width: int = E,
        layers: int = 1,
        bias: bool = True,
        names: tuple[str, str, str] = ("char_emb", "brain", "fc_out"),
    ) -> None:
        super().__init__()
        torch.manual_seed(symbols * 100 + hidden)
        self.symbols, self.names = symbols, names
        if width:
            self.add_module(names[0], nn.Embedding(symbols, width))
        self.add_module(names[1], KINDS[cell](width or symbols, hidden, layers, bias=bias, batch_first=True))
        self.add_module(names[2], nn.Linear(hidden, symbols, bias=bias))

    def forward(self, tokens: Tensor) -> Tensor:
        embed, brain, out = (getattr(self, name, None) for name in self.names)
        return out(brain(embed(tokens) if embed else F.one_hot(tokens, self.symbols).float())[0])


def vocabulary(symbols: int = V) -> Vocabulary:
    return Vocabulary(tuple(map(chr, range(97, 97 + symbols))))


def taken(weights: dict[str, Tensor], symbols: int = V, **options: object) -> Run:
    return run_of_state_dict(weights, vocabulary(symbols), **options)


def assert_same(run: Run, model: Callable[[Tensor], Tensor]) -> None:
    tokens = torch.randint(len(run.vocabulary), (3, 17), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(run.build()(tokens)[0], model(tokens), rtol=0, atol=1e-6)


def write_vocabulary(folder: Path, content: object = SYMBOLS) -> Path:
    path = folder / "vocabulary.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [0, E])
@pytest.mark.parametrize("cell", KINDS)
def test_a_file_becomes_the_same_model(
    cell: str, width: int, bias: bool, layers: int, suffix: str, tmp_path: Path
) -> None:
    model = Foreign(cell, width=width, bias=bias, layers=layers)
    path = tmp_path / f"weights.{suffix}"
    save = torch.save if suffix == "pt" else safetensors.torch.save_file
    save(model.state_dict(), path)
    run = foreign_run(path, write_vocabulary(tmp_path))
    sizes = (run.model.cell, run.model.layers, run.model.hidden, run.model.embedding, run.model.bias)
    assert sizes == (cell, layers, H, width, bias)
    assert run.vocabulary.symbols == SYMBOLS
    assert run.notes == (() if bias else ("not in the checkpoint, so zeros: linear.bias",))
    assert_same(run, model)


@few
@given(
    cell=st.sampled_from(sorted(KINDS)),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5), st.integers(1, 3)),
    bias=st.booleans(),
    order=st.randoms(use_true_random=False),
    names=st.sampled_from([("encoder", "rnn", "decoder"), ("wte", "l", "lm_head"), ("embedding", "rnn", "linear")]),
)
def test_known_names_settle_every_size(
    cell: str, sizes: tuple[int, int, int, int], bias: bool, order: object, names: tuple[str, str, str]
) -> None:
    symbols, hidden, width, layers = sizes
    model = Foreign(cell, symbols, hidden, width, layers, bias, names)
    weights = list(model.state_dict().items())
    order.shuffle(weights)
    assert_same(taken(dict(weights), symbols), model)


@few
@given(sizes=st.tuples(*[st.integers(1, 5)] * 3), bias=st.booleans())
def test_other_names_are_never_mistaken(sizes: tuple[int, int, int], bias: bool) -> None:
    symbols, hidden, width = sizes
    model = Foreign("gru", symbols, hidden, width, bias=bias, names=("one", "two", "three"))
    if width == hidden:
        with pytest.raises(ForeignError, match=r"is ambiguous: .*one\.weight .*three\.weight"):
            taken(model.state_dict(), symbols)
        assert_same(taken(model.state_dict(), symbols, rename={"three.weight": "linear.weight"}), model)
    else:
        assert_same(taken(model.state_dict(), symbols), model)


def test_names_are_free_where_shapes_decide() -> None:
    model = Foreign(names=("one", "two", "three"))
    run = taken(model.state_dict())
    assert dict(run.sources)["linear.bias"] == "three.bias"
    assert_same(run, model)


def test_renames_come_first() -> None:
    model = Foreign(width=H, names=("head", "brain", "embedding"))  # perverse names
    weights = {name.replace("brain.weight_hh_l0", "brain.U"): value for name, value in model.state_dict().items()}
    rename = {
        "head.weight": "embedding.weight",
        "embedding.weight": "linear.weight",
        "brain.U": "rnn.weight_hh_l0",
    }
    assert_same(taken(weights, rename=rename), model)


class Cells(nn.Module):
    """Two GRUCells, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(V, E)
        self.cells = nn.ModuleList([nn.GRUCell(E, H), nn.GRUCell(H, H)])
        self.head = nn.Linear(H, V)

    def forward(self, tokens: Tensor) -> Tensor:
        states = [torch.zeros(len(tokens), H) for _ in self.cells]
        logits = []
        for token in tokens.unbind(1):
            x = self.embed(token)
            for index, cell in enumerate(self.cells):
                x = states[index] = cell(x, states[index])
            logits.append(self.head(x))
        return torch.stack(logits, 1)


def tables(width: int, *lengths: int) -> dict[str, Tensor]:
    """N-gram tables of these lengths, from 2-grams on."""
    torch.manual_seed(4)
    return {f"ngrams.{order}.weight": torch.randn(rows, width) for order, rows in enumerate(lengths, 2)}


@pytest.mark.parametrize("width", [0, E])
@pytest.mark.parametrize(("prefix", "lengths"), [("", (V**2,)), ("net.", (V**2, V**3, V**4, 30, 30))])
def test_ngram_tables_settle_their_sizes(width: int, prefix: str, lengths: tuple[int, ...]) -> None:
    own = tables(width or V, *lengths)
    run = taken(Foreign(width=width).state_dict() | {prefix + name: table for name, table in own.items()})
    assert (run.model.ngrams, run.model.ngram_rows) == (1 + len(lengths), 30 if len(lengths) > 1 else 8192)
    assert all(run.weights[name].equal(table) for name, table in own.items())
    assert run.build()(torch.tensor([[3, 1]]))[0].isfinite().all()


def test_ngram_tables_of_other_names_are_renamed() -> None:
    weights = Foreign().state_dict() | {"bigrams.weight": torch.randn(V**2, E), "pairs": torch.randn(V**2, E)}
    run = taken(weights, rename={"bigrams.weight": "ngrams.2.weight", "pairs": ""})
    assert run.model.ngrams == 2
    assert run.weights["ngrams.2.weight"].equal(weights["bigrams.weight"])


def test_numbered_cells_are_layers_by_number() -> None:
    model = Cells()
    weights = dict(reversed(model.state_dict().items()))  # by number, not by order
    run = taken(weights)
    assert run.model.layers == 2
    assert_same(run, model)


def test_one_cell() -> None:
    model = Cells()
    weights = {name: value for name, value in model.state_dict().items() if "cells.1" not in name}
    model.cells = model.cells[:1]
    assert_same(taken(weights), model)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_wrapped_checkpoints(key: str, tmp_path: Path) -> None:
    model = Foreign()
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    checkpoint = {
        key: model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "random": {"cpu": torch.ones(2)},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert_same(foreign_run(tmp_path / "last.ckpt", SYMBOLS), model)


def test_wrapped_modules() -> None:
    model = Foreign(width=H, names=("encoder", "gru", "decoder"))
    for wrapped in (
        nn.DataParallel(model).state_dict(),
        {f"_orig_mod.{name}": value for name, value in model.state_dict().items()},  # as torch.compile has them
        {name.replace("gru.", "gru._orig_mod."): value for name, value in model.state_dict().items()},
    ):
        run = taken(wrapped)
        assert set(run.sources.values()) == set(wrapped)
        assert_same(run, model)


def test_tied_ends_need_no_names() -> None:
    model = Foreign(width=H, names=("one", "two", "three"))
    model.three.weight = model.one.weight
    weights = model.state_dict()
    assert_same(taken(weights), model)
    del weights["one.weight"]  # as safetensors' save_model leaves it
    with pytest.raises(ForeignError, match=r"--rename three\.weight=embedding\.weight,linear\.weight"):
        taken(weights)
    assert_same(taken(weights, rename={"three.weight": "embedding.weight,linear.weight"}), model)


def test_a_bias_of_its_own_name_is_found() -> None:
    model = Foreign()
    weights = model.state_dict()
    weights["out_bias"] = weights.pop("fc_out.bias")
    assert_same(taken(weights), model)


def test_biases_that_are_partly_missing_are_zeros() -> None:
    model = Foreign(cell="lstm", layers=2)
    weights = model.state_dict()
    with torch.no_grad():
        weights.pop("brain.bias_hh_l1").zero_()
    run = taken(weights)
    assert run.notes == ("not in the checkpoint, so zeros: rnn.bias_hh_l1",)
    assert_same(run, model)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("update", ["keeps", "replaces"])
@pytest.mark.parametrize("reset", ["after", "before"])
def test_the_conventions_of_a_gru(reset: str, update: str, bias: bool) -> None:
    model = Foreign(width=0, bias=bias).double()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    W, U = np.split(weights["brain.weight_ih_l0"], 3), np.split(weights["brain.weight_hh_l0"], 3)
    zeros = np.zeros(3 * H)
    b, c = (np.split(weights.get(f"brain.bias_{side}_l0", zeros), 3) for side in ("ih", "hh"))

    def logits(tokens: list[int]) -> np.ndarray:
        h, rows = np.zeros(H), []
        for token in tokens:
            x = np.eye(V)[token]
            r = sigmoid(W[0] @ x + b[0] + U[0] @ h + c[0])
            z = sigmoid(W[1] @ x + b[1] + U[1] @ h + c[1])
            recurrent = r * (U[2] @ h + c[2]) if reset == "after" else U[2] @ (r * h) + c[2]
            n = np.tanh(W[2] @ x + b[2] + recurrent)
            h = z * h + (1 - z) * n if update == "keeps" else (1 - z) * h + z * n
            rows.append(weights["fc_out.weight"] @ h + weights.get("fc_out.bias", 0))
        return np.stack(rows)

    run = taken(model.state_dict(), reset=reset, update=update)
    assert run.model.reset == reset
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    with torch.no_grad():
        computed = run.build()(torch.tensor([tokens]))[0][0]
    np.testing.assert_allclose(computed.numpy(), logits(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_become_float32(dtype: torch.dtype) -> None:
    model = Foreign().to(dtype)
    run = taken(model.state_dict())
    assert all(weight.dtype == torch.float32 for weight in run.weights.values())
    assert run.notes == ()  # these doubles came from float32, so nothing is lost
    assert_same(run, model.float())


def test_rounding_is_noted() -> None:
    weights = Foreign().double().state_dict()
    weights["fc_out.weight"] += 1e-12
    assert taken(weights).notes == ("rounded to float32: fc_out.weight",)


def test_the_weights_are_copies() -> None:
    weights = Foreign().state_dict()
    run = taken(weights)
    weights["fc_out.weight"].zero_()
    assert run.weights["linear.weight"].any()


class Payload:
    """An object whose pickle, when loaded, creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_is_never_run(form: str, tmp_path: Path) -> None:
    """The weights beside a hostile object are read, and it does nothing."""
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    model = Foreign()
    content = {**model.state_dict(), "extra": Payload(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    if form != "pickle":
        torch.load(path, weights_only=False)  # shows that the payload works
        assert marker.exists()
        marker.unlink()
    run = foreign_run(path, SYMBOLS)
    assert run.notes == ("not weights, so not read: extra",)
    assert_same(run, model)
    assert not marker.exists()


def damaged(data: bytes) -> bytes:
    """The bytes with one of the weights changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("change", [damaged, lambda data: data[:-100], lambda data: b"", lambda data: b"no model here"])
def test_damaged_files(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(Foreign(hidden=64).state_dict(), path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ForeignError, match=r"weights\.pt is (damaged|empty$|a text, not weights)"):
        load_state_dict_file(path)


def test_a_cut_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(Foreign().state_dict())[:-4])
    with pytest.raises(ForeignError, match=r"weights\.safetensors is a damaged safetensors file"):
        load_state_dict_file(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=r"none\.pt cannot be read: No such file"):
        load_state_dict_file(tmp_path / "none.pt")
    with pytest.raises(ForeignError, match=r" is a folder; give the file in it that has the weights$"):
        load_state_dict_file(tmp_path)
    with pytest.raises(ForeignError, match=r"none\.json cannot be read: No such file"):
        load_vocabulary_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], r"holds one value of type list, not a state dict; save one with torch\.save"),
        ({"epoch": 3}, r"is not a state dict: it holds 'epoch' instead of tensors by name"),
        ({}, r"is not a state dict: it holds nothing instead"),
        ({"model": Foreign().state_dict(), "ema": Foreign("lstm").state_dict()}, r"several state dicts \(model, ema\)"),
    ],
)
def test_contents_that_are_not_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ForeignError, match=message):
        load_state_dict_file(tmp_path / "x.pt")


def with_tensors(**tensors: Tensor) -> dict[str, Tensor]:
    """A good state dict with tensors added or replaced; `__` in a name is a dot."""
    return Foreign().state_dict() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


REFUSED: list[tuple[dict[str, Tensor], str]] = [
    (
        {**Foreign().state_dict(), **nn.GRU(E, H, bidirectional=True).state_dict(prefix="brain.")},
        r"has brain\.weight_ih_l0_reverse: a bidirectional model reads ahead, so it cannot generate",
    ),
    (
        nn.LSTM(E, H, proj_size=4).state_dict(prefix="lstm."),
        r"has lstm\.weight_hr_l0: an LSTM with projections \(proj_size\)",
    ),
    (
        with_tensors(norm__weight=torch.ones(H), norm__bias=torch.ones(H)),
        r"no model here uses: norm\.weight \(8,\), norm\.bias \(8,\) \(normalisation\); a model that computes with "
        r"them cannot be exported; --rename NAME= drops what generating never uses$",
    ),
    (with_tensors(h0=torch.zeros(1, 1, H)), r"no model here uses: h0 \(1, 1, 8\)"),
    (with_tensors(norm__weight=torch.ones(V)), r"no model here uses: norm\.weight \(11,\)"),
    (with_tensors(mix__weight=torch.ones(H, H)), r"no model here uses: mix\.weight \(8, 8\)"),
    (
        with_tensors(other__weight=torch.ones(V, H)),
        r"is ambiguous: .*linear\.weight may be fc_out\.weight \(11, 8\) or other\.weight \(11, 8\); say which with "
        r"--rename NAME=embedding\.weight or --rename NAME=linear\.weight, as the model's forward uses them$",
    ),
    (
        Foreign(width=H, names=("one", "two", "three")).state_dict(),
        r"embedding\.weight may be one\.weight \(11, 8\) or three\.weight \(11, 8\), and linear\.weight may be",
    ),
    (
        Foreign(symbols=12).state_dict(),
        r"fc_out\.weight \(12, 8\) as linear\.weight, so a model of 12 symbols, but the "
        r"vocabulary has 11",
    ),
    (Foreign(symbols=12, width=0).state_dict(), r"a model of 12 symbols, but the vocabulary has 11"),
    (
        with_tensors(fc_out__weight=torch.ones(V, H, dtype=torch.int64)),
        r"has fc_out\.weight as torch\.int64; weights must",
    ),
    (with_tensors(fc_out__weight=torch.ones(V, H, dtype=torch.cfloat)), r"has fc_out\.weight as torch\.complex64"),
    (with_tensors(fc_out__weight=torch.ones(V, H).to_sparse()), r"has fc_out\.weight as torch\.sparse_coo"),
    (with_tensors(fc_out__weight=torch.ones(V, H, device="meta")), r"has fc_out\.weight as meta"),
    (with_tensors(fc_out__bias=torch.full((V,), torch.nan)), r"has fc_out\.bias, which holds NaN or infinity"),
    (with_tensors(fc_out__bias=torch.full((V,), -torch.inf)), r"has fc_out\.bias, which holds NaN or infinity"),
    (
        with_tensors(fc_out__bias=torch.full((V,), 1e300, dtype=torch.float64)),
        r"has fc_out\.bias, which holds values beyond float32",
    ),
    (
        with_tensors(fc_out__bias=torch.ones(V + 1)),
        r"has fc_out\.bias \(12,\) as linear\.bias, but .* has \(11,\) there",
    ),
    (
        with_tensors(brain__bias_hh_l0=torch.ones(H)),
        r"has brain\.bias_hh_l0 \(8,\) as rnn\.bias_hh_l0, but a gru of 8 units has \(24,\) there",
    ),
    (
        with_tensors(brain__weight_hh_l0=torch.ones(2 * H, H)),
        r"has brain\.weight_hh_l0 \(16, 8\) as .* \(3H, H\) for a GRU",
    ),
    (with_tensors(brain__weight_hh_l0=torch.ones(H, 3 * H)), r"has brain\.weight_hh_l0 \(8, 24\) as "),
    (with_tensors(brain__weight_hh_l0=torch.ones(0, 0)), r"has brain\.weight_hh_l0 \(0, 0\) as "),
    (with_tensors(brain__weight_hh_l0=torch.ones(24)), r"has brain\.weight_hh_l0 \(24,\) .* which is not a matrix"),
    (with_tensors(brain__weight_hh_l2=torch.ones(24, 8)), r"has no weight_ih of layer 1, but .* up to layer 2"),
    (
        with_tensors(aux__weight_ih_l0=torch.ones(24, 5)),
        r"several recurrent modules \(aux, brain\); if they are layers, .* --rename NAME=rnn\.weight_ih_l0 and so on",
    ),
    (with_tensors(brain__weight_ih=torch.ones(24, 5)), r"two tensors for rnn\.weight_ih_l0, "),
    (
        Foreign(names=("char_emb", "brain", "fc_out")).fc_out.state_dict(),
        r"has no recurrent weights under PyTorch's names",
    ),
    (
        {name: value for name, value in Foreign(width=H).state_dict().items() if "fc_out" not in name},
        r"has no matrices that fit .* if both ends share char_emb\.weight, give --rename",
    ),
    (
        {name: value for name, value in Foreign().state_dict().items() if "emb" not in name},
        r"has no matrices that fit as ends of a gru with 8 units that reads 5 numbers: .* fc_out\.weight \(11, 8\)$",
    ),
    (nn.GRU(E, H).state_dict(), r"has no matrices that fit .*; it has none$"),
    (
        with_tensors(ngrams__3__weight=torch.ones(V**3, E)),
        r"has no ngrams\.2\.weight, but ngrams\.3\.weight; a model here has all up to one$",
    ),
    (
        with_tensors(ngrams__2__weight=torch.ones(V)),
        r"has ngrams\.2\.weight \(11,\), which is not a matrix of one row or more$",
    ),
    (
        with_tensors(ngrams__2__weight=torch.ones(100, E)),
        r"has ngrams\.2\.weight \(100, 5\), but a gru of 8 units and 11 symbols has \(121, 5\) there$",
    ),
    (
        with_tensors(ngrams__2__weight=torch.ones(V**2, H)),
        r"has ngrams\.2\.weight \(121, 8\), but a gru of 8 units and 11 symbols has \(121, 5\) there$",
    ),
    (
        Foreign().state_dict() | tables(E, V**2, V**3, V**4, 30, 31),
        r"has ngrams\.6\.weight \(31, 5\), but a gru of 8 units and 11 symbols has \(30, 5\) there$",
    ),
    (
        Foreign().state_dict() | tables(E, V**2, V**3, V**4, 0, 0),
        r"has ngrams\.6\.weight \(0, 5\), which is not a matrix of one row or more$",
    ),
]


@pytest.mark.parametrize(("weights", "message"), REFUSED)
def test_refusals(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ForeignError, match=message) as caught:
        taken(weights)
    assert str(caught.value).startswith("<state dict> ")
    assert "\n" not in str(caught.value)


def test_two_layers_must_fit_each_other() -> None:
    model = Foreign(layers=2).state_dict()
    model["brain.weight_ih_l1"] = torch.ones(24, 7)
    with pytest.raises(
        ForeignError, match=r"has brain\.weight_ih_l1 \(24, 7\) as .*, but a gru of 8 units has \(24, 8\)"
    ):
        taken(model)


def test_dropped_tensors_are_ignored() -> None:
    model = Foreign()
    extra = {"norm.weight": torch.full((H,), torch.nan), "brain.weight_hh_l0_reverse": torch.ones(2, 2)}
    run = taken(model.state_dict() | extra, rename=dict.fromkeys(extra, ""))
    assert_same(run, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rename": {"nothing": "linear.weight"}},
            r"has no tensor 'nothing' to rename; it has char_emb\.weight \(11, 5\)",
        ),
        (
            {"rename": {"fc_out.weight": "head"}},
            r"cannot rename fc_out\.weight to 'head': the names are embedding\.weight",
        ),
        (
            {"rename": {"fc_out.weight": "linear.weight", "char_emb.weight": "linear.weight"}},
            r"has two tensors for linear\.weight, fc_out\.weight and char_emb\.weight",
        ),
        ({"rename": {"fc_out.bias": "linear.weight"}}, r"has no matrices that fit"),
        ({"reset": "never"}, r"reset must be after or before, not 'never'"),
        ({"update": "adds"}, r"update must be keeps or replaces, not 'adds'"),
    ],
)
def test_options_that_are_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(ForeignError, match=message):
        taken(Foreign().state_dict(), **options)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_conventions_are_about_grus(cell: str) -> None:
    weights = Foreign(cell).state_dict()
    with pytest.raises(ForeignError, match=rf"reset 'before' is for GRUs; {cell} has no reset gate"):
        taken(weights, reset="before")
    with pytest.raises(ForeignError, match=rf"update 'replaces' is for GRUs; {cell} has no update gate"):
        taken(weights, update="replaces")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", r"vocabulary\.json is not JSON"),
        ("[" * 100_000, r"vocabulary\.json is not JSON"),
        ({"a": True}, r"must hold the characters in id order, as a list, .* not an object with 'a'"),
        ("7", r"must hold the characters in id order, as a list, a string, {character: id} or {id: character}, not 7"),
        ([], r"has no symbols"),
        (["a", 7], r"7 at position 1 is not a string"),
        (["a", "b", "a"], r"'a' at position 2 is already at position 0"),
        (["a", "bc"], r"'bc' at position 1 is not one character"),
        ([""], r"'' at position 0 is not one character"),
        (["a", "\ud800"], r"'\\ud800' at position 1 is half a surrogate pair"),
    ],
)
def test_vocabularies_that_are_wrong(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=message):
        load_vocabulary_file(write_vocabulary(tmp_path, content))


def test_a_vocabulary_may_have_the_unknown_symbol(tmp_path: Path) -> None:
    read = load_vocabulary_file(write_vocabulary(tmp_path, ["\n", "<unk>", "é", "𝄞"]))
    assert read == Vocabulary(("\n", "<unk>", "é", "𝄞"))


def test_from_a_file_to_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Foreign()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    exported = export_state_dict(tmp_path / "mine.pt", write_vocabulary(tmp_path), tmp_path / "bundles")
    assert exported.folder == tmp_path / "bundles" / "mine"
    bundle = read_bundle(exported.folder)
    assert (bundle.name, bundle.vocabulary.symbols, bundle.precision) == ("mine", SYMBOLS, "fp32")
    session = onnxruntime.InferenceSession(bundle.graphs["model"], providers=["CPUExecutionProvider"])
    tokens = np.array([[3, 1, 4, 1, 5]])
    logits, _ = session.run(None, {"tokens": tokens, "state_h": np.zeros((1, 1, H), np.float32)})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(torch.from_numpy(tokens)).numpy(), rtol=0, atol=1e-5)
    monkeypatch.setattr("rill.export.pipeline.verify", lambda *_: exported.parity)  # once is enough
    again = export_state_dict(model.state_dict(), SYMBOLS, tmp_path / "bundles", "mine")
    assert again.unchanged


def test_names_of_bundles(tmp_path: Path) -> None:
    weights = Foreign().state_dict()
    with pytest.raises(ForeignError, match="a state dict has no name; give `name`"):
        export_state_dict(weights, SYMBOLS, tmp_path)
    for name in ("../up", "", "..", "a\\b"):
        with pytest.raises(UnsupportedError, match="cannot be the name of a bundle"):
            export_state_dict(weights, SYMBOLS, tmp_path, name)
