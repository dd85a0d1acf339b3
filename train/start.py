"""A run that continues another one on other text, perhaps with characters that the other never saw."""

import torch

from train.errors import CorpusError
from train.model import CharacterModel
from train.run import Run
from train.vocab import UNKNOWN, UnknownCharacterError, Vocabulary


def vocabulary_for(run: Run, text: str, min_count: int, extend: bool) -> Vocabulary:
    """The vocabulary of `run`; with `extend`, and the characters of `text` that it lacks, sorted in among the others.

    Raises CorpusError for unseen characters that would have to be added, unless `<unk>` stands in for them.
    """
    old = run.vocabulary
    if extend:
        new = set(Vocabulary.of_text(text, min_count).symbols)
        symbols = sorted((new | set(old.symbols)) - {UNKNOWN})
        return Vocabulary((UNKNOWN, *symbols) if old.unknown_id is not None or UNKNOWN in new else tuple(symbols))
    try:
        old.encode(text)
    except UnknownCharacterError as error:
        unseen = len(set(text) - set(old.symbols))
        raise CorpusError(
            f"the text has {unseen} characters that {run.folder} was not trained on: {error}; give --extend-vocabulary"
            " to add them"
        ) from None
    return old


@torch.no_grad()
def adopt_weights(model: CharacterModel, vocabulary: Vocabulary, run: Run) -> None:
    """Put the weights of `run` into `model`, symbol by symbol; what belongs to new symbols stays as it was drawn."""
    device = model.linear.weight.device
    new_ids = torch.tensor([vocabulary.id_of(symbol) for symbol in run.vocabulary.symbols], device=device)
    for name, parameter in model.named_parameters():
        weight = run.weights[name].to(parameter.device)
        if name in ("embedding.weight", "linear.weight", "linear.bias"):
            parameter[new_ids] = weight
        elif name == "rnn.weight_ih_l0" and model.embedding is None:  # a column a symbol
            parameter[:, new_ids] = weight
        else:
            parameter.copy_(weight)
