"""The input of `rill batch`: a file with one JSON object a line, the prompt of a text and its parameters.

    {"prompt": "ROMEO:"}
    {"prompt": "JULIET:", "id": "juliet-1", "max_chars": 200, "temperature": 0.7, "seed": 7, "stop": ["ROMEO:"]}
    {"prompt": "NURSE:", "n": 3}
    {"prompt": "born ", "regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}

The file may have millions of lines. It is read twice, line by line: first to check all of it, then to generate.
Or there is no file, and every text has the same request but for its seed (`samples`).
"""

import codecs
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rill.cli.batch.line_breaks import possible_breaks
from rill.cli.batch.numbering import Numbering
from rill.client import values
from rill.client.requests import generate_request
from rill.client.seeds import seed_of
from rill.client.values import LARGEST_FLOAT32, MOST_CHARS, SMALLEST_FLOAT32
from rill.v1 import rill_pb2 as pb

LONGEST_LINE = 64 * 2**20  # bytes: a file without line ends is not read whole
MOST_STOPS = 32  # as in rill.proto
MOST_SAMPLES = 1_000_000  # of one line
MOST_BIASED = 10_000  # symbols of several characters that are kept until the model is known
MOST_CONSTRAINTS, CONSTRAINT_BYTES = 256, 4 * 2**20  # that are tried before the first text


class PromptError(ValueError):
    """The input cannot be used; the message names the file, the line and the key."""


class Checked(NamedTuple):
    """An input that has been read to its end.

    `breaks` has the first line whose texts may have line breaks, as far as its request says, for each of LINE_BREAKS;
    `biased` the first line that names a symbol of several characters, for the first MOST_BIASED of them; `constraints`
    the first line of each constraint with its biases, a Sampling without the rest, for the first MOST_CONSTRAINTS.
    """

    numbering: Numbering
    digest: str  # SHA-256, in hexadecimal
    breaks: Mapping[str, int]
    biased: Mapping[str, int]
    constraints: Mapping[bytes, int]


class Prompt(NamedTuple):
    """A text to generate, of a line that counts from 1. The request has a seed.

    `sample` counts the texts of the line from 0; None where the line does not say how many it has. Texts with the same
    `shared`, the very object, differ in their seeds alone.
    """

    line: int
    id: str | int
    request: pb.GenerateRequest
    sample: int | None = None
    shared: pb.GenerateRequest | None = None


# ---- checks of values: each returns the value, or raises ValueError


def _whole(lowest: int, highest: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int:  # True is an int
            raise ValueError(f"must be a whole number, not {_shown(value)}")
        if not lowest <= value <= highest:
            raise ValueError(f"must be from {lowest} to {highest}, not {_shown(value)}")
        return value

    return check


def _number(is_allowed: Callable[[float], bool], condition: str) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not is_allowed(value):
            raise ValueError(f"must be a number {condition}, not {_shown(value)}")
        return float(value)

    return check


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"must be a text, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half of a surrogate pair at position {error.start}") from None
    return value


def _id(value: Any) -> str | int:
    return _text(value) if isinstance(value, str) else _whole(-(2**63), 2**63 - 1)(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"must be true or false, not {_shown(value)}")
    return value


def _stop(value: Any) -> list[str]:
    if type(value) is str:  # one text, as in OpenAI's requests
        value = [value]
    if type(value) is not list:
        raise ValueError(f"must be a text or a list of texts, not {_shown(value)}")
    if len(value) > MOST_STOPS:
        raise ValueError(f"has {len(value)} texts; at most {MOST_STOPS} are allowed")
    if "" in value:
        raise ValueError("has an empty text")
    return [_text(stop) for stop in value]


def _logit_bias(value: Any) -> dict[str, float]:
    if type(value) is not dict:
        raise ValueError(f"must be an object of symbols and numbers, not {_shown(value)}")
    biases = {}
    for character, bias in value.items():
        if not _text(character):
            raise ValueError("has an empty symbol")
        try:
            biases[character] = _bias(-math.inf if bias == "-inf" else bias)
        except ValueError as error:
            raise ValueError(f"{_shown(character)}: {error}") from None
    return biases


def _choices(value: Any) -> list[str]:
    if type(value) is not list or not value:
        raise ValueError(f"must be a list of texts, and not empty, not {_shown(value)}")
    return [_text(choice) for choice in value]


def _json_schema(value: Any) -> str:
    if type(value) not in (str, dict):
        raise ValueError(f"must be an object, or a text that has one, not {_shown(value)}")
    try:
        return values.json_schema(value)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("json_schema ")) from None


_bias = _number(lambda x: x == -math.inf or abs(x) <= LARGEST_FLOAT32, 'that a float32 holds, or "-inf"')

# The parameters of `rill.client.requests.generate_request`, "id" and "n".
KEYS: dict[str, Callable[[Any], Any]] = {
    "prompt": _text,
    "id": _id,
    "n": _whole(1, MOST_SAMPLES),
    "max_chars": _whole(1, MOST_CHARS),  # an endless text would never be complete
    "temperature": _number(lambda x: 0 <= x <= LARGEST_FLOAT32, "of at least 0"),
    "top_k": _whole(0, 2**32 - 1),
    "top_p": _number(lambda x: SMALLEST_FLOAT32 <= x <= 1, "above 0 and up to 1"),
    "min_p": _number(lambda x: 0 <= x <= 1, "from 0 to 1"),
    "seed": _whole(0, 2**64 - 1),
    "stop": _stop,
    "include_stop": _flag,
    "logit_bias": _logit_bias,
    "regex": _text,
    "choices": _choices,
    "json_schema": _json_schema,
    "terminator": _text,
    "unconstrained": _flag,  # although the flags have a constraint
}
CONSTRAINTS = ("regex", "choices", "json_schema")  # a text has one
_OURS = ("id", "n")  # not of `generate_request`


def _shown(value: Any) -> str:
    """Return the value as JSON, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + "…"


# ---- lines and files


def check(path: Path, defaults: Mapping[str, Any], on_line: Callable[[int], None] = lambda size: None) -> Checked:
    """Read a whole file, to find its faults before any text is generated. Raises PromptError.

    `defaults` are the parameters of lines that omit them; `on_line` gets the size of each line, in bytes.
    """
    digest, numbering = hashlib.sha256(), Numbering()
    breaks: dict[str, int] = {}
    biased: dict[str, int] = {}
    constraints = Constraints()
    for number, raw in enumerate(_lines(path), 1):
        line = _line(path, number, raw, defaults)
        try:
            numbering.add_line(line.samples or 1)
        except ValueError as error:
            raise PromptError(f"{path}, line {number}: {error}") from None
        for character in possible_breaks(line.request):
            breaks.setdefault(character, number)
        for symbol in _long_symbols(line.request):
            if len(biased) < MOST_BIASED:
                biased.setdefault(symbol, number)
        constraints.add(line.request.sampling, number)
        digest.update(raw)
        on_line(len(raw))
    return Checked(numbering, digest.hexdigest(), breaks, biased, constraints.lines)


def read(
    path: Path, checked: Checked, defaults: Mapping[str, Any], is_wanted: Callable[[int], bool]
) -> Iterator[Prompt]:
    """Yield the texts of a file whose numbers are wanted. Raises PromptError at the end if the file has changed."""
    digest, numbering = hashlib.sha256(), checked.numbering
    for number, raw in enumerate(_lines(path), 1):
        digest.update(raw)
        if number <= numbering.lines:
            wanted = [at for at, text in enumerate(numbering.texts_of(number)) if is_wanted(text)]
            if wanted:
                yield from _line(path, number, raw, defaults).prompts(wanted)
    if digest.hexdigest() != checked.digest:
        raise PromptError(f"{path} changed after it was checked: its texts do not belong together")


class Samples:
    """An input without a file: `count` texts of one prompt. Text k has the seed of line k of a file of such lines."""

    def __init__(self, prompt: str, count: int, defaults: Mapping[str, Any]) -> None:
        self._base: int = defaults.get("seed", 0)
        self._request = _request({**defaults, "prompt": prompt, "seed": 0})
        digest = hashlib.sha256(json.dumps({"samples": count, "prompt": prompt}).encode()).hexdigest()
        breaks, biased = possible_breaks(self._request), _long_symbols(self._request)
        constraints = Constraints()
        constraints.add(self._request.sampling, 1)
        self.checked = Checked(
            Numbering(count), digest, dict.fromkeys(breaks, 1), dict.fromkeys(biased, 1), constraints.lines
        )

    def read(self, is_wanted: Callable[[int], bool]) -> Iterator[Prompt]:
        """Yield the texts whose numbers are wanted."""
        for text in range(self.checked.numbering.texts):
            if is_wanted(text):
                seeded = _seeded(self._request, seed_of(self._base, text + 1))
                yield Prompt(text + 1, text + 1, seeded, shared=self._request)


class Constraints:
    """The first line of each constraint, together with its biases: they may leave nothing to choose."""

    def __init__(self) -> None:
        self.lines: dict[bytes, int] = {}
        self._bytes = 0
        self._last = b""

    def add(self, sampling: pb.Sampling, line: int) -> None:
        """Add that of a line, if it has one."""
        if not sampling.HasField("constraint"):
            return
        tried = pb.Sampling(constraint=sampling.constraint, logit_bias=sampling.logit_bias)
        raw = tried.SerializeToString(deterministic=True)
        if raw == self._last or raw in self.lines:
            return
        self._last, self._bytes = raw, self._bytes + len(raw)
        if len(self.lines) < MOST_CONSTRAINTS and (self._bytes <= CONSTRAINT_BYTES or not self.lines):
            self.lines[raw] = line


class _Line(NamedTuple):
    """A line of the file; `samples` is None where it does not say how many."""

    line: int
    id: str | int
    request: pb.GenerateRequest
    samples: int | None

    def prompts(self, wanted: Sequence[int]) -> Iterator[Prompt]:
        """Yield these samples. The first has the line's seed, as the first of OpenAI's `n` has the request's."""
        if self.samples is None:
            yield Prompt(self.line, self.id, self.request)
            return
        seed = self.request.sampling.seed
        for index in wanted:
            seeded = _seeded(self.request, seed_of(seed, index) if index else seed)
            yield Prompt(self.line, self.id, seeded, index, self.request)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines as they are, line ends included, without empty ones at the end."""
    try:
        with path.open("rb") as file:
            number, blank = 1, b""  # the first empty line since the last one with content
            while raw := file.readline(LONGEST_LINE):
                if len(raw) == LONGEST_LINE:
                    raise PromptError(f"{path}, line {number}: is longer than {LONGEST_LINE:,} bytes")
                if number == 1 and (raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in raw[:2]):
                    raise PromptError(f"{path} is UTF-16; save it as UTF-8")
                number += 1
                if not raw.strip():
                    blank = blank or raw
                    continue
                if blank:
                    yield blank
                yield raw
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}") from None


def _line(path: Path, number: int, raw: bytes, defaults: Mapping[str, Any]) -> _Line:
    try:
        given = _checked_object(raw)
        parameters = {**defaults, **given}
        _settle_constraint(parameters, given)
    except ValueError as error:
        raise PromptError(f"{path}, line {number}: {error}") from None
    except RecursionError:  # of the parser, or of the quotation in the message
        raise PromptError(f"{path}, line {number}: is nested too deep") from None
    parameters.setdefault("seed", 0)
    if "seed" not in given:
        parameters["seed"] = seed_of(parameters["seed"], number)
    return _Line(number, parameters.pop("id", number), _request(parameters), parameters.get("n"))


def _settle_constraint(parameters: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Keep one constraint: the line's own, or none if it says so, else that of the flags. Raises ValueError."""
    names = [name for name in (*CONSTRAINTS, "unconstrained") if given.get(name, False) is not False]
    if len(names) > 1:
        raise ValueError(f'has "{names[0]}" and "{names[1]}"; a text has one constraint')
    parameters.pop("unconstrained", None)
    if names:
        for name in CONSTRAINTS:
            if name not in names:
                parameters.pop(name, None)
    if not any(name in parameters for name in CONSTRAINTS):
        if "terminator" in given:
            raise ValueError('has a "terminator", and no "regex", "choices" or "json_schema"')
        parameters.pop("terminator", None)


def _request(parameters: Mapping[str, Any]) -> pb.GenerateRequest:
    return generate_request(**{name: value for name, value in parameters.items() if name not in _OURS})


def _long_symbols(request: pb.GenerateRequest) -> list[str]:
    return [symbol for symbol in request.sampling.logit_bias if len(symbol) > 1]


def _seeded(request: pb.GenerateRequest, seed: int) -> pb.GenerateRequest:
    seeded = pb.GenerateRequest()
    seeded.CopyFrom(request)
    seeded.sampling.seed = seed
    return seeded


def _checked_object(raw: bytes) -> dict[str, Any]:
    """Return the keys and values of a line. Raises ValueError for the first fault."""
    try:
        found = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from None
    if type(found) is not dict:
        raise ValueError(f'must be an object like {{"prompt": "…"}}, not {_shown(found)}')
    if "prompt" not in found:
        raise ValueError('has no "prompt"')
    return {key: _checked_value(key, value) for key, value in found.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has {_shown(next(name for name in names if names.count(name) > 1))} twice")
    return found


def _checked_value(key: str, value: Any) -> Any:
    if key not in KEYS:
        raise ValueError(f"unknown key {_shown(key)}; the keys are {', '.join(KEYS)}")
    try:
        return KEYS[key](value)
    except ValueError as error:
        raise ValueError(f'"{key}" {error}') from None
