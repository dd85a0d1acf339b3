"""The vocabulary and the weights of a run that starts from another run, perhaps with characters new to it."""

from dataclasses import replace

import torch
from torch import Tensor

from rill.ngrams import is_exact
from rill.train.errors import CorpusError
from rill.train.nets.model import CharacterModel
from rill.train.nets.ngrams import is_ngram_table, order_of
from rill.train.record.run import Run
from rill.train.text.symbols import CutSplit
from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary


def vocabulary_from(run: Run, text: str, min_count: int, extend: bool) -> Vocabulary:
    """The vocabulary of `run`; with `extend`, joined by the characters of `text` that it lacks, all sorted.

    Where `run` has n-gram tables, the new ones come last: ids determine the rows of n-grams, and a text begins after
    symbol 0. Raises CorpusError if n-grams that have a row each would have to share rows; without `extend`, for
    characters that `run` has not seen, unless its vocabulary has `<unk>`.
    """
    old = run.vocabulary
    if extend:
        new = set(Vocabulary.of_text(text, min_count).symbols)
        if run.model.ngrams > 1:
            return _extended_behind(run, new)
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


def _extended_behind(run: Run, new: set[str]) -> Vocabulary:
    old = run.vocabulary.symbols
    symbols = (*old, *sorted(new - set(old)))
    for order in range(2, run.model.ngrams + 1):
        if is_exact(order, len(old)) and not is_exact(order, len(symbols)):
            raise CorpusError(
                f"{run.folder} has a row for each {order}-gram of its {len(old)} symbols, which {len(symbols)} symbols"
                f" cannot have: the text brings too many new characters; leave rare ones out with --min-count"
            )
    return replace(run.vocabulary, symbols=symbols)


def refuse_unseen(run: Run, cut: CutSplit) -> None:
    """Raise CorpusError for a text that has symbols which `run` has not seen, unless its vocabulary has `<unk>`."""
    if run.vocabulary.unknown_id is not None:
        return
    for text in cut.alphabet:
        index = text.first(
            lambda symbol: run.vocabulary.id_of(symbol) is None and not (cut.training.lines and symbol == "\n")
        )
        if index is not None:
            symbol = text.symbols[text.numbers[index]]
            raise CorpusError(
                f"{cut.where(text.text, text.position_of(index))}: {run.folder} was not trained on {symbol!r}; give"
                " --extend-vocabulary to add what it lacks"
            )


@torch.no_grad()
def copy_weights(model: CharacterModel, vocabulary: Vocabulary, run: Run) -> None:
    """Copy the weights of `run` into `model`, symbol by symbol; those of new symbols keep their initial values, and
    so do n-gram tables that `run` lacks.
    """
    device = model.linear.weight.device
    new_ids = torch.tensor([vocabulary.id_of(symbol) for symbol in run.vocabulary.symbols], device=device)
    for name, parameter in model.named_parameters():
        if name not in run.weights and is_ngram_table(name):
            continue
        weight = run.weights[name].to(parameter.device)
        if is_ngram_table(name):
            if model.embedding is None:  # one column per symbol
                weight = parameter.new_zeros(len(weight), len(vocabulary)).index_copy(1, new_ids, weight)
            parameter[_rows(order_of(name), len(vocabulary), new_ids)] = weight
        elif name in ("embedding.weight", "linear.weight", "linear.bias"):
            parameter[new_ids] = weight
        elif name == "rnn.weight_ih_l0" and model.embedding is None:  # one column per symbol
            parameter[:, new_ids] = weight
        else:
            parameter.copy_(weight)


def _rows(order: int, symbols: int, new_ids: Tensor) -> Tensor | slice:
    """Where the rows of an n-gram table are in that of a vocabulary of so many `symbols`, which has `new_ids` for the
    old ones. The rows that n-grams share stay, because the ids do.
    """
    rows = new_ids
    if not is_exact(order, symbols):
        return slice(None)
    for _ in range(order - 1):  # numbers in base `symbols`
        rows = (rows[:, None] * symbols + new_ids).flatten()
    return rows
