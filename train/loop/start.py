"""A run that continues another one on other text, perhaps with characters that the other never saw."""

from dataclasses import replace
from pathlib import Path

import torch

from rill.train.errors import ConfigError, CorpusError
from rill.train.nets.model import CharacterModel
from rill.train.record.run import Run, RunConfig, RunError, load_run
from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary


def load_start(start: str, folder: Path, stored: RunConfig | None) -> Run:
    """The run `start` to begin with; `stored` is what was begun from it in `folder`, where no checkpoint was reached.

    Raises ConfigError for a tagger, and RunError if `start` does not fit `stored`.
    """
    run = load_run(start)
    if run.model.task == "tag":
        raise ConfigError(f"{start} is a tagger; --from continues runs that predict the next character only")
    if stored is not None:
        same_model = replace(run.model, dropout=stored.model.dropout) == stored.model
        if not same_model or not set(run.vocabulary.symbols) <= set(stored.vocabulary.symbols):
            raise RunError(f"{start} has another model or vocabulary than what {folder} was started from")
    return run


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
            f"{run.folder} was not trained on {unseen} of the text's distinct characters: {error}; give"
            " --extend-vocabulary to add them"
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
