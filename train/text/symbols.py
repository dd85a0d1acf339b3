"""The vocabulary of a run whose symbols are cut from its text, or listed by --symbols."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rill.train.config import TrainingConfig
from rill.train.errors import ConfigError, CorpusError
from rill.train.text.cutting import CutText, cut_text
from rill.train.text.split import TextSplit
from rill.train.text.tokenizers import read_symbols, tokenizer_and_list
from rill.vocabulary import LONGEST, UNKNOWN, Vocabulary

SHOWN = 20  # of the symbols that a list lacks


@dataclass(frozen=True)
class CutSplit:
    """A split text as symbols. `listed` holds the symbols of --symbols, if they are given."""

    training: CutText
    held_out: CutText
    listed: tuple[str, ...]
    where: Callable[[str, int], str]
    shared: bool  # whether the vocabulary has the symbols of the held-out text, too

    @property
    def alphabet(self) -> list[CutText]:
        """The texts whose symbols are the vocabulary."""
        return [self.training, self.held_out] if self.shared else [self.training]


def has_symbols(training: TrainingConfig) -> bool:
    """Whether the vocabulary of a run is more than the characters of its text."""
    return training.lines or training.tokenizer != "chars" or bool(training.symbols)


def cut_split(texts: TextSplit, training: TrainingConfig, known: Vocabulary | None, extend: bool) -> CutSplit:
    """Cut `texts` by the tokenizer of the vocabulary that is `known`, or of `training`.

    With `extend`, --symbols adds to what is known. Raises ConfigError, CorpusError.
    """
    if known is None:
        tokenizer, listed = tokenizer_and_list(training)
    else:
        added = read_symbols(training.symbols) if extend and training.symbols else ()
        tokenizer, listed = known.tokenizer, tuple(dict.fromkeys([*known.symbols, *added]))
    special = {UNKNOWN, *((known.start, *known.ends) if known else (training.start_symbol, training.end_symbol))}
    symbols = tuple(symbol for symbol in listed if symbol not in special)
    return CutSplit(
        cut_text(texts.training, tokenizer, symbols, training.lines),
        cut_text(texts.held_out, tokenizer, symbols, training.lines),
        listed,
        texts.where,
        shared=len(texts.alphabet) > len(texts.training),
    )


def new_vocabulary(cut: CutSplit, training: TrainingConfig) -> Vocabulary:
    """The vocabulary of a new run: the listed symbols in their order, else those of the text, sorted.

    With --lines, the start and the end symbol come before them, and `<unk>` first of all, unless they are listed.
    Raises ConfigError, CorpusError.
    """
    special = [UNKNOWN] * (training.min_count > 1)
    special += [training.start_symbol, training.end_symbol] if training.lines else []
    counts = _counts(cut.alphabet)
    if cut.listed:
        kept = [
            symbol
            for symbol in cut.listed
            if training.min_count <= 1 or symbol in special or counts[symbol] >= training.min_count
        ]
        if training.min_count <= 1 and UNKNOWN not in cut.listed:
            _require_listed(cut, training, set(kept) - set(special))
    else:
        if training.min_count <= 1:
            _require_fit(cut, training)
        fits = {symbol for text in cut.alphabet for symbol in text.symbols if text.fits(symbol)}
        kept = sorted(symbol for symbol in fits & counts.keys() if counts[symbol] >= training.min_count)
    if training.lines:
        _refuse_special(cut, special)
    symbols = tuple(dict.fromkeys([*(each for each in special if each not in kept), *kept]))
    ends = (training.end_symbol,) if training.lines else ()
    try:
        return Vocabulary(symbols, cut.training.tokenizer, training.start_symbol if training.lines else "", ends)
    except ValueError as error:
        source = f"--symbols {training.symbols}" if cut.listed else f"the corpus {' '.join(training.corpus)}"
        raise ConfigError(f"{source}: {error}") from None


def extended_vocabulary(cut: CutSplit, known: Vocabulary, training: TrainingConfig) -> Vocabulary:
    """`known`, joined by the symbols of the text that it lacks; all sorted, but the special ones first."""
    counts = _counts(cut.alphabet)
    fits = {symbol for text in cut.alphabet for symbol in text.symbols if text.fits(symbol)}
    special = [UNKNOWN] * (known.unknown_id is not None or training.min_count > 1)
    special += [known.start] * bool(known.start) + [end for end in known.ends if end != known.start]
    new = {symbol for symbol in fits & counts.keys() if counts[symbol] >= training.min_count} - set(special)
    if known.tokenizer == LONGEST:
        new |= set(cut.listed)
    symbols = sorted((new | set(known.symbols)) - set(special))
    return Vocabulary((*special, *symbols), known.tokenizer, known.start, known.ends)


def recut(cut: CutSplit, vocabulary: Vocabulary) -> CutSplit:
    """`cut` by the symbols of `vocabulary`, where the longest one of others was taken."""
    symbols = vocabulary.text_symbols
    if vocabulary.tokenizer != LONGEST or set(symbols) == set(cut.listed) - vocabulary.special_symbols:
        return cut
    training, held_out = (cut_text(each.text, LONGEST, symbols, each.lines) for each in (cut.training, cut.held_out))
    return replace(cut, training=training, held_out=held_out)


def _counts(texts: Sequence[CutText]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.counts)
    return counts


def _require_fit(cut: CutSplit, training: TrainingConfig) -> None:
    """Raise CorpusError for the first code point that does not begin a symbol."""
    for text in cut.alphabet:
        index = text.first(lambda symbol, text=text: not text.fits(symbol) and (symbol != "\n" or not text.lines))  # type: ignore[misc]
        if index is None:
            continue
        symbol = text.symbols[text.numbers[index]]
        lines = "; give --lines, or let the pattern match it" if symbol == "\n" else ""
        raise CorpusError(
            f"{cut.where(text.text, text.position_of(index))}: {symbol!r} does not begin a symbol that --tokenizer"
            f" {training.tokenizer[:60]} matches{lines or '; --min-count 2 reads it as <unk>'}"
        )


def _require_listed(cut: CutSplit, training: TrainingConfig, listed: set[str]) -> None:
    """Raise CorpusError for the first code point that no listed symbol fits."""
    for text in cut.alphabet:
        index = text.first(lambda symbol, text=text: symbol not in listed and (symbol != "\n" or not text.lines))  # type: ignore[misc]
        if index is None:
            continue
        symbol = text.symbols[text.numbers[index]]
        missing = sorted({each for text in cut.alphabet for each in text.counts if each not in listed})
        all_of_them = " ".join(map(repr, missing[:SHOWN])) + (" …" if len(missing) > SHOWN else "")
        raise CorpusError(
            f"{cut.where(text.text, text.position_of(index))}: no symbol of --symbols {training.symbols} fits"
            f" {symbol!r}; add it there{f', and all of {all_of_them}' if len(missing) > 1 else ''}, or <unk> for what"
            " is not listed"
        )


def _refuse_special(cut: CutSplit, special: Sequence[str]) -> None:
    """Raise CorpusError for a special symbol that occurs in the text."""
    for text in cut.alphabet:
        index = text.first(lambda symbol: symbol in special and symbol != "\n")
        if index is None:
            continue
        symbol = text.symbols[text.numbers[index]]
        raise CorpusError(
            f"{cut.where(text.text, text.position_of(index))}: the text has {symbol!r}, which is the name of a special"
            " symbol; give other names with --start and --end"
        )
