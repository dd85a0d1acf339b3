"""The vocabulary and the weights of a run that starts from another run, perhaps with characters new to it."""

import torch

from rill.train.errors import CorpusError
from rill.train.nets.model import CharacterModel
from rill.train.record.run import Run
from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary


def vocabulary_from(run: Run, text: str, min_count: int, extend: bool) -> Vocabulary:
    """The vocabulary of `run`; with `extend`, joined by the characters of `text` that it lacks, all sorted.

    Without `extend`, raises CorpusError for characters that `run` has not seen, unless its vocabulary has `<unk>`.
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
            f"{run.folder} was not trained on {unseen} of the text's distinct characters: {error}; give"
            " --extend-vocabulary to add them"
        ) from None
    return old


@torch.no_grad()
def copy_weights(model: CharacterModel, vocabulary: Vocabulary, run: Run) -> None:
    """Copy the weights of `run` into `model`, symbol by symbol; those of new symbols keep their initial values."""
    device = model.linear.weight.device
    new_ids = torch.tensor([vocabulary.id_of(symbol) for symbol in run.vocabulary.symbols], device=device)
    for name, parameter in model.named_parameters():
        weight = run.weights[name].to(parameter.device)
        if name in ("embedding.weight", "linear.weight", "linear.bias"):
            parameter[new_ids] = weight
        elif name == "rnn.weight_ih_l0" and model.embedding is None:  # one column per symbol
            parameter[:, new_ids] = weight
        else:
            parameter.copy_(weight)
