"""The body of a request as JSON, and its fields. Raises ApiError, which names the field and says what is wrong."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

from starlette.requests import Request

from rill.gateway.errors import ApiError

LARGEST_EXACT = 2**53  # of the whole numbers that JSON may write as 16.0


async def fields_of(request: Request) -> "Fields":
    """Read the body of a request: one JSON object."""
    found = parsed(await request.body())
    if not isinstance(found, dict):
        raise ApiError(400, f"the body must be a JSON object, not {shown(found)}")
    return Fields(found)


def parsed(body: bytes) -> Any:
    """Return the value of a JSON text, which must be what the standard says: no NaN, no name twice."""
    try:
        text = body.decode()
        if text.startswith("\ufeff"):
            raise ApiError(400, "the body begins with a byte order mark; JSON has none")
        return json.loads(text, parse_constant=_not_a_number, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        if not text.strip():
            raise ApiError(400, "the body is empty; it must be a JSON object") from None
        raise ApiError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deep") from None
    except ValueError:  # Python's limit
        raise ApiError(400, "the body has a number with more than 4,300 digits") from None


def _not_a_number(name: str) -> NoReturn:
    raise ApiError(400, f"the body is not JSON: {name} is not a number there")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ApiError(400, f"the body has {shown(name)} twice", _encodable(name))
            seen.add(name)
    return found


class Fields:
    """The fields of an object; those that are null are absent, as OpenAI's clients mean it.

    Each method takes a field, and `refuse_others` looks whether one is left. `within` names the field that has the
    object.
    """

    def __init__(self, values: Mapping[str, Any], within: str = "") -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: set[str] = set()
        self._within = within

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def names(self) -> list[str]:
        """The fields that are left."""
        return list(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def take(self, name: str) -> Any:
        """Return the value of a field, which the caller checks; None if it is absent."""
        self._known.add(name)
        return self._values.pop(name, None)

    def ignore(self, *names: str) -> None:
        """Accept fields that change nothing here, whatever they are."""
        for name in names:
            self.take(name)

    def allow_only(self, values: Mapping[str, Any], reason: str) -> None:
        """Accept fields with these values, which change nothing here; `reason` says why not with others."""
        for name, allowed in values.items():
            found = self.take(name)
            if found is not None and (found != allowed or isinstance(found, bool) != isinstance(allowed, bool)):
                self.fail(name, f"{self.path(name)} {reason}")

    def text(self, name: str, default: str = "") -> str:
        """Return a text that UTF-8 can hold."""
        found = self.take(name)
        return default if found is None else text(self.path(name), found)

    def flag(self, name: str) -> bool:
        """Return true or false; false if it is absent."""
        found = self.take(name)
        if found is not None and not isinstance(found, bool):
            self.fail(name, f"{self.path(name)} must be true or false, not {shown(found)}")
        return bool(found)

    def whole(self, name: str, lowest: int, highest: int) -> int | None:
        """Return a whole number in this range."""
        found = self.take(name)
        return None if found is None else whole(self.path(name), found, lowest, highest)

    def number(self, name: str, lowest: float, highest: float, condition: str) -> float | None:
        """Return a number in this range, which `condition` describes."""
        found = self.take(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not lowest <= found <= highest:
            self.fail(name, f"{self.path(name)} must be a number {condition}, not {shown(found)}")
        return float(found)

    def object(self, name: str) -> "Fields":
        """Return the fields of an object; none if it is absent."""
        found = self.take(name)
        if found is not None and not isinstance(found, dict):
            self.fail(name, f"{self.path(name)} must be an object, not {shown(found)}")
        return Fields(found or {}, self.path(name))

    def refuse_others(self) -> None:
        """Refuse a field that nobody asked for: a typo would otherwise change a text unseen."""
        for name in self._values:
            near = get_close_matches(name[:100], self._known, n=1)
            question = f'; do you mean "{near[0]}"?' if near else ""
            self.fail(name, f"unknown field {shown(self.path(name))}{question}")

    def fail(self, name: str, message: str) -> NoReturn:
        """Raise the error of a field."""
        raise ApiError(400, message, _encodable(self.path(name)))

    def fail_whole(self, message: str) -> NoReturn:
        """Raise the error of the object that the fields are in."""
        raise ApiError(400, message, self._within)

    def path(self, name: str) -> str:
        """Return the name of a field, with those of the objects that it is in."""
        return f"{self._within}.{name}" if self._within else name


def whole(name: str, value: Any, lowest: int, highest: int) -> int:
    """Return a whole number in this range; 16.0 is one, as some languages write 16."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_EXACT:
        value = int(value)
    if type(value) is not int:  # True is an int to Python
        raise ApiError(400, f"{name} must be a whole number, not {shown(value)}", _field(name))
    if not lowest <= value <= highest:
        most = "2^64 - 1" if highest == 2**64 - 1 else "2^62 - 1" if highest == 2**62 - 1 else str(highest)
        raise ApiError(400, f"{name} must be from {lowest} to {most}, not {shown(value)}", _field(name))
    return value


def text(name: str, value: Any) -> str:
    """Return a text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise ApiError(400, f"{name} must be a text, not {shown(value)}", _field(name))
    with encodable(name):
        value.encode()
    return value


@contextmanager
def encodable(name: str) -> Iterator[None]:
    """Name the half of a surrogate pair that a text has: a `\\ud800` in JSON."""
    try:
        yield
    except UnicodeEncodeError as error:
        message = f"{name} has half of a surrogate pair at position {error.start}"
        raise ApiError(400, message, _field(name)) from None


def texts(name: str, values: Iterable[Any]) -> list[str]:
    """Return texts that are not empty."""
    found = [text(f"{name}[{at}]", value) for at, value in enumerate(values)]
    if "" in found:
        raise ApiError(400, f"{name}[{found.index('')}] is empty", name)
    return found


def shown(value: Any) -> str:
    """Return a value as JSON, shortened."""
    if isinstance(value, str):
        return json.dumps(value[:60], ensure_ascii=False) + "…" * (len(value) > 60)
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{'-' * (value < 0)}2^{value.bit_length() - 1} or more"
    if isinstance(value, float) and not math.isfinite(value):  # 1e999
        return "a number beyond all floats"
    if isinstance(value, list | dict):
        return ("a list" if isinstance(value, list) else "an object") if value else json.dumps(value)
    return json.dumps(value)


def _field(name: str) -> str:
    """Return the field of a name like `prompt[3]`."""
    return name.partition("[")[0]


def _encodable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
