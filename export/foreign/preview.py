"""What a foreign model says: a sample of it, and bits per character of a text, by which a wrong vocabulary is seen.

The weights of a model fit any order of its symbols. In a wrong order it generates noise, and predicts a text of its own
kind worse than the frequencies of the characters alone would.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rill.export.errors import ForeignError
from rill.train.errors import CorpusError
from rill.train.nets.model import CharacterModel
from rill.train.nets.sample import generate
from rill.train.record.run import Run
from rill.train.text.corpus import load_corpus
from rill.train.text.cutting import UNSEEN, cut_text
from rill.train.text.held_out import HeldOutText
from rill.train.text.lines import HeldOutLines, LineTexts

SAMPLE = 100  # characters
TEMPERATURE = 0.5
MEASURED = 100_000  # characters of a text, at most


def preview(run: Run, text: str | Path | None) -> list[str]:
    """A sample, and what the model makes of the file `text`, if there is one. Raises ForeignError."""
    return [sample_note(run), *(text_notes(run, load_text(text), str(text)) if text is not None else [])]


def load_text(path: str | Path) -> str:
    """Read the text of --text. Raises ForeignError."""
    try:
        return load_corpus([f"{Path(path).parent}/{Path(path).name}"])  # a path, even if a corpus has its name
    except CorpusError as error:
        raise ForeignError(f"--text {path}: {error}") from None
    except OSError as error:
        raise ForeignError(f"--text {path} cannot be read: {error.strerror}") from None


def sample_note(run: Run) -> str:
    """A sentence with a sample of the model, on one line."""
    text = generate(run.build(), run.vocabulary, "", SAMPLE, TEMPERATURE)
    shown = json.dumps(text, ensure_ascii=not text.replace("\n", " ").isprintable())
    return f"sample (noise means that the vocabulary or a convention is wrong): {shown}"


def text_notes(run: Run, text: str, source: str) -> list[str]:
    """Sentences about the bits per character of `text`, and a warning if the model predicts it badly.

    Raises ForeignError for a text with which nothing can be measured.
    """
    vocabulary = run.vocabulary
    if vocabulary.start and vocabulary.ends:
        return _line_notes(run, text[: 2 * MEASURED], source)
    cut = cut_text(text[: 2 * MEASURED], vocabulary.tokenizer, vocabulary.text_symbols)
    known = [index for index in cut.encode(vocabulary).tolist() if index not in (UNSEEN, vocabulary.unknown_id)]
    read = len(cut.numbers)
    strange = read - len(known)
    known = known[:MEASURED]
    if len(known) < 100 or strange > read / 2:
        raise ForeignError(
            f"--text {source}: of its first {read:,} characters, {read - strange:,} are in the vocabulary, too few to "
            "measure; give a text of the kind that the model was trained on"
        )
    bits = _bits(run.build(), torch.tensor(known))
    by_frequency = _entropy(known)
    uniform = math.log2(len(vocabulary))
    notes = [
        f"{source}: {bits:.3f} bits per character over {len(known):,} characters (equally probable symbols: "
        f"{uniform:.3f}, by frequency alone: {by_frequency:.3f})"
    ]
    if strange:
        notes.append(f"{source}: {strange:,} of {read:,} characters are not in the vocabulary, and were left out")
    if bits > min(uniform, by_frequency):
        notes.append(_warning(source))
    return notes


def _line_notes(run: Run, text: str, source: str) -> list[str]:
    """Sentences about the bits per symbol of the lines of `text`, each from the start symbol to the end symbol."""
    vocabulary = run.vocabulary
    whole = text if text.endswith("\n") else text + "\n"
    cut = cut_text(whole, vocabulary.tokenizer, vocabulary.text_symbols, lines=True)
    ids = cut.encode(vocabulary)
    lines = LineTexts(ids, vocabulary)
    if lines.left_out >= len(lines):
        raise ForeignError(
            f"--text {source}: of its first {len(lines) + lines.left_out:,} lines, {len(lines):,} have only symbols of "
            "the vocabulary, too few to measure; give lines of the kind that the model was trained on"
        )
    measured = HeldOutLines(lines, torch.device("cpu")).measure(run.build())
    bits, uniform = measured.loss / math.log(2), math.log2(len(vocabulary))
    by_frequency = _entropy([index for index in ids.tolist() if index != UNSEEN])
    notes = [
        f"{source}: {bits:.3f} bits per symbol over {len(lines):,} lines, their ends included (equally probable "
        f"symbols: {uniform:.3f}, by frequency alone: {by_frequency:.3f})"
    ]
    if lines.left_out:
        notes.append(f"{source}: {lines.left_out:,} lines have other symbols, and were left out")
    if bits > min(uniform, by_frequency):
        notes.append(_warning(source))
    return notes


def _warning(source: str) -> str:
    return (
        f"WARNING: the model predicts {source} worse than frequencies alone do: the vocabulary may be in another order "
        "than in training, a convention (--reset, --update) may differ, or the text is of another kind"
    )


def _bits(model: CharacterModel, ids: Tensor) -> float:
    return HeldOutText(ids, 1).measure(model).loss / math.log(2)


def _entropy(ids: Sequence[int]) -> float:
    counts = Counter(ids)
    return -sum(count / len(ids) * math.log2(count / len(ids)) for count in counts.values())
