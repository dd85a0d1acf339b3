"""A peer that steps a PyTorch model of the bundle's shape, with random weights: speed does not depend on them."""

import torch

from rill.bench.peers.service import CharacterLoop, NewText, main
from rill.bundle import Bundle
from rill.train.config import ModelConfig
from rill.train.nets.model import CharacterModel


class EagerText(CharacterLoop):
    """One stream: (1, 1) tokens, softmax, inverse of the cumulative distribution."""

    def __init__(self, model: CharacterModel, temperature: float, never: tuple[int, ...]) -> None:
        self._model, self._temperature, self._never = model, temperature, list(never)
        self._state = model.initial_state(1)

    @torch.inference_mode()
    def step(self, tokens: list[int], u: float) -> int:
        """See CharacterLoop: one call of the model."""
        logits, self._state = self._model(torch.tensor([tokens]), self._state)
        logits = logits[0, -1]
        if self._never:
            logits[self._never] = -torch.inf
        cumulative = torch.softmax(logits / self._temperature, dim=0).cumsum(dim=0)
        return int(torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp(max=len(cumulative) - 1))


def eager_texts(bundle: Bundle) -> NewText:
    """Make a model of the bundle's shape; returns what begins its streams."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same texts from every process
    model = CharacterModel(ModelConfig.from_json(bundle.model), len(bundle.vocabulary)).eval()
    return lambda temperature: EagerText(model, temperature, bundle.vocabulary.never_ids)


if __name__ == "__main__":
    main(eager_texts)
