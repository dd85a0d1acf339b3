"""What a run trains on and is measured on, as tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from rill.train.record.run import RunConfig
from rill.train.text.held_out import HeldOut, HeldOutText
from rill.train.text.split import Sequences, Texts, known_characters
from rill.train.text.tagging import HeldOutSequences, SequenceBatches
from rill.train.text.windows import RandomWindows, SequentialWindows, Windows

RESIDENT = 0.25  # of the free memory of a GPU: a text that needs more stays in the computer's


class Data(NamedTuple):
    """Batches to train on, and what is held out, if anything."""

    windows: Windows
    held_out: HeldOut | None
    description: str


def text_data(config: RunConfig, texts: Texts, device: torch.device) -> Data:
    """The data of a run that predicts the next character. Raises CorpusError if there is too little of it.

    Characters of the held-out text that the vocabulary lacks are dropped.
    """
    training, vocabulary = config.training, config.vocabulary
    ids = _place(torch.tensor(vocabulary.encode(texts.training)), device)
    windows: Windows
    if training.sampling == "random":
        windows = RandomWindows(ids, training.batch, training.window, training.seed)
    else:
        windows = SequentialWindows(ids, training.batch, training.window)
    known = known_characters(texts.held_out, vocabulary)
    held_out = None
    if training.holds_out:
        held_out = HeldOutText(torch.tensor(vocabulary.encode(known), device=device), training.window)
    dropped = len(texts.held_out) - len(known)
    return Data(
        windows,
        held_out,
        f"{len(texts.training) + len(texts.held_out):,} characters, {len(vocabulary):,} distinct,"
        f" {held_out.characters if held_out else 0:,} held out{f' ({dropped:,} unseen dropped)' if dropped else ''}",
    )


def tagged_data(config: RunConfig, sequences: Sequences, device: torch.device) -> Data:
    """The data of a tagger. Raises CorpusError for held-out symbols or labels that the training part lacks."""
    vocabulary, labels, options = config.vocabulary, config.labels, config.training
    training, held_out = sequences.training, sequences.held_out
    return Data(
        SequenceBatches(training, vocabulary, labels, options.batch, options.seed, device),
        HeldOutSequences(held_out, vocabulary, labels, device) if held_out else None,
        f"{len(training) + len(held_out):,} sequences, {len(vocabulary)} symbols, {len(labels)} labels,"
        f" {len(held_out):,} held out",
    )


def _place(ids: Tensor, device: torch.device) -> Tensor:
    """`ids` on the device, unless they would fill a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if ids.numel() * ids.element_size() > RESIDENT * free:
            return ids
    return ids.to(device)
