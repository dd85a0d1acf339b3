"""Train a model in plain PyTorch, export it with Rill, and generate text from it.

    python examples/foreign_model.py poet/

Writes poet/bundles/poet. Needs `pip install 'rill-text[train]'`. With the extra `serve`,
`rill generate "the " --bundle poet/bundles/poet` streams text from it.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from rill.export.foreign import export_state_dict

TEXT = "the wind blows over the sea and the sea sings to the wind, and the night is long.\n" * 20


class Poet(nn.Module):
    """Any names will do: cell, sizes and biases are inferred from the weights."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.chars = nn.Embedding(symbols, 16)
        self.memory = nn.GRU(16, 64, batch_first=True)
        self.to_char = nn.Linear(64, symbols)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, T, V) for the ids (B, T)."""
        hidden, _ = self.memory(self.chars(ids))
        return self.to_char(hidden)


def main(folder: str = "poet") -> None:
    """Train for a few seconds, then export; the bundle is verified against PyTorch before it is written."""
    torch.manual_seed(0)
    characters = sorted(set(TEXT))
    ids = torch.tensor([characters.index(character) for character in TEXT])
    poet = Poet(len(characters))
    optimizer = torch.optim.Adam(poet.parameters(), lr=0.01)
    for _ in range(60):
        starts = torch.randint(len(ids) - 65, (16,))
        windows = torch.stack([ids[start : start + 65] for start in starts])
        loss = nn.functional.cross_entropy(poet(windows[:, :-1]).transpose(1, 2), windows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained: loss {loss.item():.3f}")

    exported = export_state_dict(poet.state_dict(), characters, Path(folder, "bundles"), "poet", force=True)
    print(f"exported: {exported.folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
