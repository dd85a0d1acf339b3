"""The data of a run as tensors: batches to train on, and held-out data."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rill.train.config import TrainingConfig
from rill.train.text.cutting import UNSEEN, Numbers, require_known
from rill.train.text.held_out import HeldOut, HeldOutSequences, HeldOutText
from rill.train.text.lines import MAX_LINE, HeldOutLines, LineBatches, LineTexts
from rill.train.text.split import SequenceSplit, TextSplit, known_characters
from rill.train.text.symbols import CutSplit
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
    windows = _windows(_to_device(_encode(vocabulary, texts.training), device), training)
    known = known_characters(texts.held_out, vocabulary)
    held_out = None
    if training.holds_out:
        held_out = HeldOutText(_encode(vocabulary, known).to(device), training.window)
    dropped = len(texts.held_out) - len(known)
    return Data(
        windows,
        held_out,
        f"{_files(texts)}{len(texts.training) + len(texts.held_out):,} characters, {len(vocabulary):,} distinct,"
        f" {held_out.characters if held_out else 0:,} held out{f' ({dropped:,} unseen dropped)' if dropped else ''}",
        texts.notes,
        texts.held_out if training.held_out != "tail" else "",
    )


def _windows(ids: Tensor, training: TrainingConfig) -> Windows:
    if training.sampling == "random":
        return RandomWindows(ids, training.batch, training.window, training.seed)
    return SequentialWindows(ids, training.batch, training.window)


def _files(texts: TextSplit) -> str:
    return f"{texts.files:,} file{'s' if texts.files > 1 else ''}, " if texts.files else ""


def symbol_data(
    training: TrainingConfig, vocabulary: Vocabulary, texts: TextSplit, cut: CutSplit, device: torch.device
) -> Data:
    """The data of a run whose text is cut into the symbols of `vocabulary`. Raises CorpusError if there is too little.

    Symbols of the held-out text that the vocabulary lacks are dropped; with --lines, the lines that have them.
    """
    ids, held_out_ids = cut.training.encode(vocabulary), cut.held_out.encode(vocabulary)
    require_known(cut.training, vocabulary, ids, texts.where)
    drawn = texts.held_out if training.held_out != "tail" else ""
    if training.lines:
        return _line_data(training, vocabulary, texts, (ids, held_out_ids), device)._replace(drawn=drawn)
    windows = _windows(_to_device(torch.from_numpy(ids.astype(np.int64)), device), training)
    known = held_out_ids[held_out_ids != UNSEEN]
    held_out = None
    if training.holds_out:
        held_out = HeldOutText(torch.from_numpy(known.astype(np.int64)).to(device), training.window)
    dropped = len(held_out_ids) - len(known)
    return Data(
        windows,
        held_out,
        f"{_files(texts)}{len(ids) + len(held_out_ids):,} symbols, {len(vocabulary):,} distinct,"
        f" {held_out.characters if held_out else 0:,} held out{f' ({dropped:,} unseen dropped)' if dropped else ''}",
        texts.notes,
        drawn,
    )


def _line_data(
    training: TrainingConfig,
    vocabulary: Vocabulary,
    texts: TextSplit,
    ids: tuple[Numbers, Numbers],
    device: torch.device,
) -> Data:
    lines, held_out_lines = (LineTexts(each, vocabulary) for each in ids)
    windows = LineBatches(lines, training.batch, training.window, training.seed)
    held_out = HeldOutLines(held_out_lines, device) if training.holds_out else None
    notes = texts.notes
    if cut_off := lines.cut_off + held_out_lines.cut_off:
        notes += (f"lines of which only the first {MAX_LINE:,} symbols are read: {cut_off:,}",)
    if longer := int((lines.lengths > training.window).sum()):
        notes += (f"lines that are longer than --window {training.window} and learned in several windows: {longer:,}",)
    if held_out_lines.left_out:
        notes += (
            f"held-out lines with symbols that the vocabulary lacks, which are left out: {held_out_lines.left_out:,}",
        )
    return Data(
        windows,
        held_out,
        f"{_files(texts)}{len(lines) + len(held_out_lines):,} lines of {lines.symbols + held_out_lines.symbols:,}"
        f" symbols, {len(vocabulary):,} distinct, {len(held_out_lines) if held_out else 0:,} lines held out,"
        f" {windows.padding:.1%} padding",
        notes,
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
