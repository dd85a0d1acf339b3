"""Export models of molecules as REINVENT, MOSES and char-rnn.pytorch store them.

    python examples/foreign_molecules.py molecules/

Trains a network of each shape for a moment, stores it as these programs do, and exports it; a published checkpoint of
the same kind takes the same arguments. Needs `pip install 'rill-text[train]'`. With the extra `serve`,
`rill batch --samples 10 --out some.smi --bundle molecules/bundles/reinvent` draws molecules.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from rill.export.foreign import export_state_dict

SMILES = ["CCO", "c1ccccc1Cl", "CC(=O)NCBr", "c1cc[nH]c1", "CCN(C)C", "OCC=O"]
TOKENS = ["C", "Cl", "Br", "N", "O", "[nH]", "(", ")", "1", "=", "c"]


def tokens(smiles: str) -> list[str]:
    """The tokens of a molecule."""
    return re.findall("|".join(re.escape(token) for token in sorted(TOKENS, key=len, reverse=True)), smiles)


def padded(texts: Iterable[list[str]], padding: str = "") -> list[list[str]]:
    """Texts of one length; without `padding`, by more of their last symbols."""
    texts = list(texts)
    longest = max(map(len, texts))
    return [text + [padding or text[-1]] * (longest - len(text)) for text in texts]


def train(embedding: nn.Module, rnn: nn.Module, linear: nn.Module, texts: list[list[str]], symbols: list[str]) -> None:
    """Learn the texts by heart, more or less."""
    ids = torch.tensor([[symbols.index(symbol) for symbol in text] for text in texts])
    model = nn.ModuleList([embedding, rnn, linear])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        logits = linear(rnn(embedding(ids[:, :-1]))[0])
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def reinvent(folder: Path) -> Path:
    """REINVENT: a checkpoint whose "network" has these names; `^` begins a molecule and `$` ends it."""
    symbols = ["$", "^", *TOKENS]
    network = nn.ModuleDict(
        {
            "_embedding": nn.Embedding(len(symbols), 32),
            "_rnn": nn.GRU(32, 64, num_layers=3, batch_first=True),
            "_linear": nn.Linear(64, len(symbols)),
        }
    )
    train(*network.values(), padded(["^", *tokens(smiles), "$"] for smiles in SMILES), symbols)
    torch.save({"network": network.state_dict(), "max_sequence_length": 256}, folder / "reinvent.prior")
    # A prior made by REINVENT has its vocabulary inside: give None instead of `symbols`.
    return export_state_dict(
        folder / "reinvent.prior", symbols, folder / "bundles", tokenizer="smiles", start="^", ends=["$"], force=True
    ).folder


def moses(folder: Path) -> Path:
    """MOSES' CharRNN: characters, an LSTM, and four symbols of its own; padding ends a text as `<eos>` does."""
    symbols = [*sorted(set("".join(SMILES))), "<bos>", "<eos>", "<pad>", "<unk>"]
    network = nn.ModuleDict(
        {
            "embedding_layer": nn.Embedding(len(symbols), len(symbols), padding_idx=symbols.index("<pad>")),
            "lstm_layer": nn.LSTM(len(symbols), 64, num_layers=3, batch_first=True),
            "linear_layer": nn.Linear(64, len(symbols)),
        }
    )
    train(*network.values(), padded((["<bos>", *smiles, "<eos>"] for smiles in SMILES), "<pad>"), symbols)
    torch.save(network.state_dict(), folder / "moses.pt")
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    return export_state_dict(
        folder / "moses.pt", ids, folder / "bundles", start="<bos>", ends=["<eos>", "<pad>"], force=True
    ).folder


def char_rnn(folder: Path) -> Path:
    """char-rnn.pytorch: plain characters; a molecule ends with the newline that the next one begins after."""
    symbols = ["\n", *sorted(set("".join(SMILES)))]
    network = nn.ModuleDict(
        {
            "encoder": nn.Embedding(len(symbols), 64),
            "rnn": nn.GRU(64, 64, num_layers=2, batch_first=True),
            "decoder": nn.Linear(64, len(symbols)),
        }
    )
    train(*network.values(), padded(["\n", *smiles, "\n"] for smiles in SMILES), symbols)
    torch.save(network.state_dict(), folder / "char-rnn.pt")
    return export_state_dict(
        folder / "char-rnn.pt", symbols, folder / "bundles", start="\n", ends=["\n"], force=True
    ).folder


def main(folder: str = "molecules") -> None:
    """Make the three checkpoints and their bundles."""
    torch.manual_seed(0)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for make in (reinvent, moses, char_rnn):
        print(f"exported: {make(Path(folder))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
