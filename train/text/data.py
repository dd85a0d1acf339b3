"""The data of a run as tensors: batches to train on, and held-out data."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rill.train.config import TrainingConfig
from rill.train.text.held_out import HeldOut, HeldOutSequences, HeldOutText
from rill.train.text.split import SequenceSplit, TextSplit, known_characters
from rill.train.text.windows import RandomWindows, SequenceBatches, SequentialWindows, Windows
from rill.vocabulary import Vocabulary

RESIDENT = 0.25  # of the free memory of a GPU: a text that needs more stays in main memory


class Data(NamedTuple):
    """Batches to train on, the held-out data, if any, a description and notes for the user, and the held-out text if it
    was drawn.
    """

    windows: Windows
    held_out: HeldOut | None
    description: str
    notes: tuple[str, ...] = ()
    drawn: str = ""


def text_data(training: TrainingConfig, vocabulary: Vocabulary, texts: TextSplit, device: torch.device) -> Data:
    """The data of a run that predicts the next character. Raises CorpusError if there is too little of it.

    Characters of the held-out text that the vocabulary lacks are dropped.
    """
    ids = _to_device(_encode(vocabulary, texts.training), device)
    windows: Windows
    if training.sampling == "random":
        windows = RandomWindows(ids, training.batch, training.window, training.seed)
    else:
        windows = SequentialWindows(ids, training.batch, training.window)
    known = known_characters(texts.held_out, vocabulary)
    held_out = None
    if training.holds_out:
        held_out = HeldOutText(_encode(vocabulary, known).to(device), training.window)
    dropped = len(texts.held_out) - len(known)
    files = f"{texts.files:,} file{'s' if texts.files > 1 else ''}, " if texts.files else ""
    return Data(
        windows,
        held_out,
        f"{files}{len(texts.training) + len(texts.held_out):,} characters, {len(vocabulary):,} distinct,"
        f" {held_out.characters if held_out else 0:,} held out{f' ({dropped:,} unseen dropped)' if dropped else ''}",
        texts.notes,
        texts.held_out if training.held_out != "tail" else "",
    )


def tagged_data(
    training: TrainingConfig,
    vocabulary: Vocabulary,
    labels: tuple[str, ...],
    sequences: SequenceSplit,
    device: torch.device,
) -> Data:
    """The data of a tagger. Raises CorpusError for symbols or labels that `vocabulary` or `labels` lacks."""
    held_out = sequences.held_out
    return Data(
        SequenceBatches(sequences.training, vocabulary, labels, training.batch, training.seed, device),
        HeldOutSequences(held_out, vocabulary, labels, device) if held_out else None,
        f"{len(sequences.training) + len(held_out):,} sequences, {len(vocabulary)} symbols, {len(labels)} labels,"
        f" {len(held_out):,} held out",
    )


def _encode(vocabulary: Vocabulary, text: str) -> Tensor:
    """The ids of `text`, (N,) int64: those of Vocabulary.encode, in a tenth of the time."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    ids = np.full(int(codes.max(initial=0)) + 1, -1 if vocabulary.unknown_id is None else vocabulary.unknown_id)
    for index, symbol in enumerate(vocabulary.symbols):
        if len(symbol) == 1 and ord(symbol) < len(ids):
            ids[ord(symbol)] = index
    encoded = ids[codes]
    if (encoded < 0).any():
        return torch.tensor(vocabulary.encode(text))  # raises UnknownCharacterError
    return torch.from_numpy(encoded)


def _to_device(ids: Tensor, device: torch.device) -> Tensor:
    """Move `ids` to the device, unless they would fill a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if ids.numel() * ids.element_size() > RESIDENT * free:
            return ids
    return ids.to(device)
