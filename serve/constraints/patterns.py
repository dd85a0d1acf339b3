"""What a caller may ask of a generated text, and why that can be refused."""

from dataclasses import dataclass
from typing import Literal

REGEX_BYTES = 16 << 10  # of UTF-8, at most
CHOICES_BYTES = 64 << 10  # all texts together
MAX_CHOICES = CHOICES_BYTES
SCHEMA_BYTES = 64 << 10

Kind = Literal["regex", "choices", "json_schema"]


class ConstraintError(ValueError):
    """A constraint cannot be used. `part` is "regex", "choices", "json_schema" or "terminator"."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(part, message)  # what a copy, in another process too, is made of
        self.part = part

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True)
class Pattern:
    """What a text must match.

    `value` is a regular expression, the tuple of the choices, or the text of a JSON Schema. `terminator` is one symbol,
    "" for none, or None: the model's end symbols, else "\\n" if the model has it.

    Raises ConstraintError for a value that is too large, and for no choices or too many.
    """

    kind: Kind
    value: str | tuple[str, ...]
    terminator: str | None = None

    def __post_init__(self) -> None:
        texts = (self.value,) if isinstance(self.value, str) else self.value
        if self.kind == "choices" and not texts:
            raise ConstraintError("choices", "give at least one choice")
        if len(texts) > MAX_CHOICES:
            raise ConstraintError("choices", f"there are {len(texts):,} choices; at most {MAX_CHOICES:,} are allowed")
        most = {"regex": REGEX_BYTES, "choices": CHOICES_BYTES, "json_schema": SCHEMA_BYTES}[self.kind]
        size = sum(map(len, texts))  # bytes, at least
        if size <= most:
            size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if size > most:
            what = {"regex": "the regex has", "choices": "the choices have", "json_schema": "the JSON Schema has"}
            raise ConstraintError(self.kind, f"{what[self.kind]} more than {most:,} bytes of UTF-8")
