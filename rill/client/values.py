"""Check the values of parameters before any call, as they come from programs: NumPy's numbers and Decimals are numbers.

Each function returns the value as a message holds it. Raises TypeError or ValueError, which name the parameter.
"""

import json
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

LARGEST_FLOAT32, SMALLEST_FLOAT32 = float.fromhex("0x1.fffffep127"), float.fromhex("0x1p-149")
MOST_CHARS = 2**62 - 1  # that a request may ask for
MOST_ALTERNATIVES = 20
LONGEST_ID = 128  # characters of a request id
LONGEST_TIMEOUT = 1e9  # seconds, 31 years: gRPC's clock ends not far beyond

_TEXTS = "must be a str or an iterable of str"


def whole(name: str, value: Any, highest: int, lowest: int = 0) -> int:
    """Return a whole number in this range."""
    try:
        if isinstance(value, bool):  # an int to Python, and a mistake here
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {_shown(value)}") from None
    if not lowest <= number <= highest:
        raise ValueError(f"{name} must be from {lowest} to {_power(highest)}, not {_shown(number)}")
    return number


def number(name: str, value: Any, lowest: float, highest: float, condition: str) -> float:
    """Return a number in this range, which `condition` describes; NaN is in none."""
    found = _float(name, value)
    if not lowest <= found <= highest:
        raise ValueError(f"{name} must be a number {condition}, not {_shown(value)}")
    return found


def temperature(value: Any) -> float:
    """Return a temperature."""
    return number("temperature", value, 0.0, LARGEST_FLOAT32, "from 0 to 3.4e38")


def top_k(value: Any) -> int:
    """Return a count of characters to keep."""
    return whole("top_k", value, 2**32 - 1)


def top_p(value: Any) -> float:
    """Return a mass to keep."""
    return number("top_p", value, SMALLEST_FLOAT32, 1.0, "above 0 and up to 1")


def min_p(value: Any) -> float:
    """Return a share of the largest probability."""
    return number("min_p", value, 0.0, 1.0, "from 0 to 1")


def seed(value: Any) -> int:
    """Return a seed."""
    return whole("seed", value, 2**64 - 1)


def logit_bias(value: Any) -> dict[str, float]:
    """Return biases by character; -inf bans one."""
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias must be a mapping of characters to numbers, not {_shown(value)}")
    return {text("logit_bias", character): _bias(character, bias) for character, bias in value.items()}


def _bias(character: str, value: Any) -> float:
    bias = _float(name := f"logit_bias[{character!r}]", value)
    if bias != -math.inf and not abs(bias) <= LARGEST_FLOAT32:
        raise ValueError(f"{name} must be a number that a float32 holds, or -inf, not {_shown(value)}")
    return bias


def alternatives(name: str, value: Any) -> int | None:
    """Return a count of alternatives to each character; None is none, and no log-probabilities."""
    return None if value is None else whole(name, value, MOST_ALTERNATIVES)


def chars_per_second(value: Any) -> float:
    """Return a pace; 0 is none."""
    return number("chars_per_second", value, 0.0, LARGEST_FLOAT32, "from 0 to 3.4e38")


def flag(name: str, value: Any) -> bool:
    """Return a truth value."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):  # NumPy's
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {_shown(value)}")


def text(name: str, value: Any) -> str:
    """Return a text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has half of a surrogate pair at position {error.start}") from None
    return str.__str__(value)  # of an Enum of str, not its name


def choices(value: Any) -> list[str]:
    """Return the texts to choose from, of which one may be empty."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"choices must be an iterable of str, such as ['yes', 'no'], not {_shown(value)}")
    found = [text(f"choices[{at}]", one) for at, one in enumerate(value)]
    if not found:
        raise ValueError("choices is empty; give at least one text")
    return found


def json_schema(value: Any) -> str:
    """Return a JSON Schema as JSON text, from such a text or from what `json.loads` makes of one."""
    if not isinstance(value, str | Mapping):
        raise TypeError(f"json_schema must be a dict or JSON text, not {_shown(value)}")
    try:
        schema = value if isinstance(value, str) else json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        found = json.loads(schema, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"json_schema is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise ValueError("json_schema is nested too deep") from None
    except (TypeError, ValueError) as error:  # a set, NaN, a circle
        raise type(error)(f"json_schema is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"json_schema must be a JSON object, not {_shown(found)}")
    return text("json_schema", schema)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def texts(name: str, value: Any) -> list[str]:
    """Return a list of texts; a str is one text, and not its characters."""
    if value is None:
        return []
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name} {_TEXTS}, not {_shown(value)}")
    found = [text(f"{name}[{at}]", one) for at, one in enumerate(value)]
    if "" in found:
        raise ValueError(f"{name}[{found.index('')}] is empty")
    return found


def data(name: str, value: Any) -> bytes:
    """Return bytes."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{name} must be bytes, not {_shown(value)}")
    return bytes(value)


def seconds(name: str, value: Any) -> float:
    """Return seconds, which may be infinite."""
    return number(name, value, 0.0, math.inf, "of at least 0")


def timeout(value: Any) -> float | None:
    """Return the seconds that a call may take; None means no limit, as do LONGEST_TIMEOUT and more."""
    if value is None:
        return None
    limit = seconds("timeout", value)
    return limit if limit < LONGEST_TIMEOUT else None


def request_id(value: Any) -> str:
    """Return an id that servers log as it is."""
    found = text("request_id", value)
    if not (0 < len(found) <= LONGEST_ID and all("!" <= character <= "~" for character in found)):
        raise ValueError(
            f"request_id must have 1 to {LONGEST_ID} characters of printable ASCII without spaces, not {_shown(value)}"
        )
    return found


def _float(name: str, value: Any) -> float:
    if not isinstance(value, str | bytes | bytearray | bool):
        try:
            return float(value)
        except OverflowError:  # an int above all floats
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} must be a number, not {_shown(value)}")


def _power(highest: int) -> str:
    """Write 2^64 - 1 as such."""
    bits = (highest + 1).bit_length() - 1
    return f"2^{bits} - 1" if highest == 2**bits - 1 and bits > 16 else str(highest)


def _shown(value: Any) -> str:
    """Return the value as a program has it, shortened."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"{'-' * (value < 0)}2^{value.bit_length() - 1} or more"
    try:
        shown = repr(value)
    except Exception:  # a stranger's
        shown = type(value).__name__
    return shown if len(shown) <= 60 else shown[:60] + "…"
