"""What --tokenizer and --symbols say: how text is cut into symbols, and which symbols there are. Needs no PyTorch."""

import json
import re
from pathlib import Path

from rill.symbol_patterns import PatternError, compile_pattern
from rill.train.config import TrainingConfig
from rill.train.errors import ConfigError, did_you_mean
from rill.train.text.decoding import decode, memory_limit, read_bytes
from rill.vocabulary import CHARACTERS, LONGEST, MAX_SYMBOL, REGEX, UNKNOWN

# Bracket atoms, the two elements of two letters, and ring closures of several digits are one symbol each. Anything else
# that SMILES has is one character.
SMILES = r"\[[^\[\]]{1,200}\]|Br|Cl|%\d{2}|%\(\d{1,5}\)|[BCNOPSFIbcnops*\-=#$:/\\.~()0-9>]"
TOKENIZERS = {"chars": CHARACTERS, "longest": LONGEST, "smiles": REGEX + SMILES}
FORM = "chars, longest, regex, smiles or 'regex:PATTERN'"


def tokenizer_of(word: str, symbols: str = "") -> str:
    """The tokenizer, as rill.vocabulary.Vocabulary names it, that the `word` of --tokenizer means.

    The patterns of `regex` are in the file `symbols`: one a line, of which the first that fits is taken. Raises
    ConfigError, and CorpusError for a file that cannot be read.
    """
    if word == "regex":
        if not symbols:
            raise ConfigError(
                "--tokenizer regex needs a pattern: --tokenizer 'regex:PATTERN', --tokenizer smiles, or --symbols FILE"
                " with one pattern a line"
            )
        return REGEX + _patterns(symbols)
    if word in TOKENIZERS:
        return TOKENIZERS[word]
    if not word.startswith(REGEX):
        raise ConfigError(f"--tokenizer must be {FORM}, not {word!r}{did_you_mean(word, (*TOKENIZERS, 'regex'))}")
    try:
        compile_pattern(word.removeprefix(REGEX))
    except PatternError as error:
        raise ConfigError(f"--tokenizer {word!r}: {error}") from None
    return word


def _patterns(path: str) -> str:
    """The alternatives in a file, one a line, as one pattern."""
    patterns = []
    for number, line in enumerate(_text(path, "--symbols").split("\n"), start=1):
        if not line:
            continue
        try:
            compile_pattern(line)
        except PatternError as error:
            raise ConfigError(f"--symbols {path}, line {number}: {error}") from None
        patterns.append(line)
    if not patterns:
        raise ConfigError(f"--symbols {path} is empty; give the pattern of a symbol")
    pattern = "|".join(patterns)
    try:
        compile_pattern(pattern)
    except PatternError as error:
        raise ConfigError(f"--symbols {path}: its lines together: {error}") from None
    return pattern


def read_symbols(path: str, flag: str = "--symbols") -> tuple[str, ...]:
    """The symbols in a file: one a line, or a JSON list, in which a symbol may have a line end.

    Empty lines are left out. Raises ConfigError for what is not a list of different symbols, and CorpusError for a file
    that cannot be read.
    """
    text = _text(path, flag)
    symbols = _json_list(text, f"{flag} {path}")
    where = "entry" if symbols is not None else "line"
    entries = text.split("\n") if symbols is None else symbols
    found: dict[str, int] = {}
    for number, symbol in enumerate(entries, start=1):
        if not symbol:
            if where == "entry":
                raise ConfigError(f"{flag} {path}, entry {number}: a symbol cannot be empty")
            continue
        if symbol in found:
            raise ConfigError(f"{flag} {path}, {where} {number}: {symbol!r} is already {where} {found[symbol]}")
        if len(symbol) > MAX_SYMBOL:
            raise ConfigError(f"{flag} {path}, {where} {number}: a symbol has at most {MAX_SYMBOL} characters")
        found[symbol] = number
    if not found:
        raise ConfigError(f"{flag} {path} has no symbol; write one a line")
    return tuple(found)


def _json_list(text: str, source: str) -> list[str] | None:
    """The strings of a JSON list; None for lines, of which the first may be a bracket atom. Raises ConfigError."""
    if not re.match(r'\s*\[\s*"', text):
        return None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
        raise ConfigError(f"{source}: {error}") from None
    for number, symbol in enumerate(document, start=1):
        if not isinstance(symbol, str):
            raise ConfigError(f"{source}, entry {number}: a symbol must be a string, not {str(symbol)[:40]}")
    return list(document)


def _text(path: str, flag: str) -> str:
    if Path(path).is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give a file")
    if not Path(path).exists():
        raise ConfigError(f"{flag} {path}: no such file")
    return decode(read_bytes(Path(path), memory_limit()), f"{flag} {path}")


def check_symbols(training: TrainingConfig) -> None:
    """Raise ConfigError or CorpusError for a --tokenizer or --symbols that cannot be used. Reads no text."""
    if not training.start:
        tokenizer_and_list(training)


def tokenizer_and_list(training: TrainingConfig) -> tuple[str, tuple[str, ...]]:
    """The tokenizer of a new run, and the symbols that it lists. Raises ConfigError, CorpusError."""
    tokenizer = tokenizer_of(training.tokenizer, training.symbols)
    listed = read_symbols(training.symbols) if training.symbols and training.tokenizer != "regex" else ()
    if tokenizer == CHARACTERS:
        special = {UNKNOWN, training.start_symbol, training.end_symbol}
        for symbol in listed:
            if len(symbol) > 1 and symbol not in special:
                raise ConfigError(
                    f"--symbols {training.symbols} has {symbol!r}, which is not one character; give --tokenizer longest"
                )
    return tokenizer, listed
