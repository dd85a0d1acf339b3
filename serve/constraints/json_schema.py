"""JSON Schemas as languages of JSON texts.

Every text of the language is valid JSON, and valid by the schema. It does not have all such texts: properties come in
the order of the schema and no others do, and there is no space outside of strings but one after a comma or a colon.
"""

import json
import math
from typing import Any, NoReturn
from urllib.parse import unquote

from rill.serve.constraints.characters import Characters
from rill.serve.constraints.dialect import DialectError, literal, read_regex
from rill.serve.constraints.integers import between
from rill.serve.constraints.language import EMPTY, Language, SizeError, either, one_of, repeat, sequence
from rill.serve.constraints.patterns import ConstraintError

MAX_DEPTH = 20  # schemas inside one another
ANY_DEPTH = 2  # arrays and objects inside one another where any value may be
MAX_COUNT = 10_000  # of minLength and the like
MAX_INTEGER = 10**18  # of minimum and the like
# What a value of each type may have to obey. A keyword of another type has no meaning for it.
KEYWORDS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": (),
    "boolean": (),
    "null": (),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
ALTERNATIVES = ("const", "enum", "anyOf", "oneOf", "allOf", "$ref")
ANNOTATIONS = (
    *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"),
    *("deprecated", "readOnly", "writeOnly"),
)
_DIGITS_BY_4 = "(0[48]|[2468][048]|[13579][26])"  # two of them; 00 is not among them
_DATE = (
    "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    "|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    f"|([0-9]{{2}}{_DIGITS_BY_4}|{_DIGITS_BY_4}00)-02-29"
)
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"({_DATE})T{_TIME}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "ipv4": rf"({_BYTE}[.]){{3}}{_BYTE}",
    "email": r"[A-Za-z0-9_+-]+([.][A-Za-z0-9_+-]+)*@([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?[.])+[A-Za-z]{2,}",
}
_NUMBER = r"-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?"
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PYTHON_TYPES = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


def read_schema(text: str, characters: Characters) -> Language:
    """Read a JSON Schema. Raises ConstraintError for one that is not valid or not supported."""
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        return _Reader(document, characters).read(document, "#", 0)
    except SizeError as error:
        raise ConstraintError("json_schema", f"the JSON Schema {error}") from None
    except RecursionError:
        raise ConstraintError("json_schema", "the JSON Schema has too many parts inside one another") from None
    except ConstraintError:
        raise
    except ValueError as error:
        raise ConstraintError("json_schema", f"the JSON Schema is not valid JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it repeats the name {next(name for name in names if names.count(name) > 1)!r}")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


class _Reader:
    def __init__(self, document: Any, characters: Characters) -> None:
        self._document, self._characters = document, characters
        # The characters that a string may have: `"`, for example, is written by two of the model.
        plain = {each for each in characters.members(characters.all) if each >= " " and each not in _ESCAPES}
        self._inner = Characters([*plain, *(each for each in _ESCAPES if not self._literal(_ESCAPES[each]).needs)])
        self._written: dict[int, Language] = {}  # by the mask of inner characters
        self._quote, self._space = self._literal('"'), repeat(self._literal(" "), 0, 1)
        self._comma = sequence([self._literal(","), self._space])
        self._colon = sequence([self._literal(":"), self._space])
        self._opened: list[str] = []  # the references that are being read
        self._read: dict[str, Language] = {}

    def read(self, schema: Any, at: str, depth: int) -> Language:
        """Read the schema at a place of the document."""
        if schema is True:
            return self._any(ANY_DEPTH)
        self._check(schema, at, depth)
        kinds = [keyword for keyword in ALTERNATIVES if keyword in schema]
        if kinds:
            return self._alternatives(schema, kinds[0], at, depth)
        parts = {
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda schema, at, depth: self._regex("true|false"),
            "null": lambda schema, at, depth: self._literal("null"),
            "array": self._array,
            "object": self._object,
        }
        types = self._types(schema, at)
        if len(types) == len(KEYWORDS):
            return self._any(ANY_DEPTH)
        return either(parts[each](schema, at, depth) for each in types)

    def _check(self, schema: Any, at: str, depth: int) -> None:
        if schema is False:
            _refuse(at, "false allows no value")
        if not isinstance(schema, dict):
            _refuse(at, "a schema is an object, true or false")
        if depth > MAX_DEPTH:
            _refuse(at, f"there are more than {MAX_DEPTH} schemas inside one another")
        known = {"type", *ALTERNATIVES, *ANNOTATIONS, *(each for keywords in KEYWORDS.values() for each in keywords)}
        for keyword in schema:
            if keyword not in known:
                _refuse(at, f"the keyword {keyword!r} is not supported")
        kinds = [keyword for keyword in ALTERNATIVES if keyword in schema]
        if kinds:
            allowed = {kinds[0], *ANNOTATIONS, *(["type"] if kinds[0] in ("const", "enum") else [])}
            for keyword in schema:
                if keyword not in allowed:
                    _refuse(at, f"{keyword!r} beside {kinds[0]!r} is not supported")

    def _types(self, schema: dict[str, Any], at: str) -> list[str]:
        """The types that a schema allows; one that does not say so has those of its keywords, or all."""
        given = schema.get("type")
        if given is None and "type" not in schema:
            return [each for each, keywords in KEYWORDS.items() if schema.keys() & set(keywords)] or list(KEYWORDS)
        types = given if isinstance(given, list) else [given]
        for each in types:
            if not isinstance(each, str) or each not in KEYWORDS:
                _refuse(at, f"the type {each!r} is none of {', '.join(KEYWORDS)}")
        if not types:
            _refuse(at, "'type' has no types")
        return list(dict.fromkeys(types))

    def _alternatives(self, schema: dict[str, Any], keyword: str, at: str, depth: int) -> Language:
        value, here = schema[keyword], f"{at}/{keyword}"
        if keyword == "$ref":
            return self._reference(value, here, depth)
        if keyword == "const":
            return self._constants([value], schema, here)
        if not isinstance(value, list) or not value:
            _refuse(here, "it is not a list with at least one element")
        if keyword == "enum":
            return self._constants(value, schema, here)
        if keyword == "allOf" and len(value) > 1:
            _refuse(here, "'allOf' of more than one schema is not supported")
        if keyword == "oneOf":
            for number, part in enumerate(value):
                for other in range(number):
                    if not self._apart(part, value[other], here):
                        _refuse(here, f"a value may match both {other} and {number}; use anyOf if it may")
        return either([self.read(part, f"{here}/{number}", depth + 1) for number, part in enumerate(value)])

    def _reference(self, reference: Any, at: str, depth: int) -> Language:
        target = self._resolve(reference, at)
        if reference in self._opened:
            _refuse(at, f"{reference!r} refers to itself: values inside one another without end are not supported")
        if reference not in self._read:
            self._opened.append(reference)
            self._read[reference] = self.read(target, reference, depth + 1)
            self._opened.pop()
        return self._read[reference]

    def _resolve(self, reference: Any, at: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            _refuse(at, f"{reference!r} is not in this document: a reference begins with #")
        target = self._document
        for name in reference[1:].split("/")[1:]:
            key = unquote(name).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                _refuse(at, f"nothing is at {reference!r}")
        if reference != "#" and not reference.startswith("#/"):
            _refuse(at, f"{reference!r} is not supported: a reference is # or begins with #/")
        return target

    def _apart(self, one: Any, other: Any, at: str, left: int = MAX_DEPTH) -> bool:
        """Whether no value matches both schemas, as far as this can be seen."""
        one, other = self._followed(one, at), self._followed(other, at)
        if not left or not isinstance(one, dict) or not isinstance(other, dict):
            return False
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not any(value == each for value in values for each in others)
        if {"anyOf", "oneOf", "allOf"} & (one.keys() | other.keys()):
            return False
        common = self._all_types(one, values, at) & self._all_types(other, others, at)
        if common != {"object"} or values is not None or others is not None:
            return not common
        return any(
            self._apart(_properties(one)[name], _properties(other)[name], at, left - 1)
            for name in _required(one) & _required(other) & _properties(one).keys() & _properties(other).keys()
        )

    def _followed(self, schema: Any, at: str) -> Any:
        """The schema that a reference stands for."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = self._resolve(schema["$ref"], at)
        return None

    def _all_types(self, schema: dict[str, Any], values: list[Any] | None, at: str) -> set[str]:
        types = set(self._types(schema, at) if values is None else [_type_of(value) for value in values])
        return types | ({"integer"} if "number" in types else set())

    def _constants(self, values: list[Any], schema: dict[str, Any], at: str) -> Language:
        types = set(self._types(schema, at) if "type" in schema else KEYWORDS)
        if "number" in types:
            types.add("integer")
        kept = [value for value in values if _type_of(value) in types]
        if not kept:
            _refuse(at, "no value has the type")
        return either([self._value(value, at) for value in kept])

    def _value(self, value: Any, at: str) -> Language:
        """A text of one value."""
        if isinstance(value, str):
            return self._quoted(literal(value, self._inner))
        if isinstance(value, list):
            return self._bracketed("[]", self._listed([self._value(each, at) for each in value]))
        if isinstance(value, dict):
            members = [self._member(name, self._value(each, at)) for name, each in value.items()]
            return self._bracketed("{}", self._listed(members))
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(at, "a number is too large")
        return self._literal(json.dumps(value))

    def _string(self, schema: dict[str, Any], at: str, depth: int) -> Language:
        low, high = _counts(schema, "minLength", "maxLength", at)
        given = [keyword for keyword in ("pattern", "format") if keyword in schema]
        if not given:
            return self._quoted(repeat(one_of(self._inner.all, "a character for a string"), low, high))
        if len(given) > 1 or "minLength" in schema or "maxLength" in schema:
            _refuse(at, f"{given[0]!r} beside another keyword for the same string is not supported")
        value = schema[given[0]]
        if not isinstance(value, str):
            _refuse(f"{at}/{given[0]}", "it is not a string")
        if given[0] == "format" and value not in FORMATS:
            _refuse(f"{at}/format", f"the format {value!r} is none of {', '.join(FORMATS)}")
        try:
            return self._quoted(read_regex(FORMATS[value] if given[0] == "format" else value, self._inner))
        except DialectError as error:
            _refuse(f"{at}/pattern", f"the pattern {error}")

    def _integer(self, schema: dict[str, Any], at: str, depth: int) -> Language:
        lows, highs = [], []
        for keyword in KEYWORDS["integer"]:
            if keyword not in schema:
                continue
            value = schema[keyword]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_INTEGER:
                _refuse(f"{at}/{keyword}", f"it is not a number from {-MAX_INTEGER:,} to {MAX_INTEGER:,}")
            if keyword.endswith("inimum"):
                lows.append(math.floor(value) + 1 if "exclusive" in keyword else math.ceil(value))
            else:
                highs.append(math.ceil(value) - 1 if "exclusive" in keyword else math.floor(value))
        low, high = max(lows, default=None), min(highs, default=None)
        if low is not None and high is not None and low > high:
            _refuse(at, "no integer is in the range")
        return self._regex(between(low, high))

    def _number(self, schema: dict[str, Any], at: str, depth: int) -> Language:
        for keyword in KEYWORDS["integer"]:
            if keyword in schema:
                _refuse(at, f"{keyword!r} is supported for the type 'integer' only")
        return self._regex(_NUMBER)

    def _array(self, schema: dict[str, Any], at: str, depth: int) -> Language:
        low, high = _counts(schema, "minItems", "maxItems", at)
        given = schema.get("prefixItems", [])
        if not isinstance(given, list):
            _refuse(f"{at}/prefixItems", "it is not a list")
        given = given if high is None else given[:high]
        prefix = [self.read(each, f"{at}/prefixItems/{number}", depth + 1) for number, each in enumerate(given)]
        items = schema.get("items", not prefix or low > len(prefix))
        if items is False:
            if low > len(prefix):
                _refuse(at, f"there are no items for 'minItems' {low}")
            return self._bracketed("[]", self._listed(prefix))
        item = self._any(ANY_DEPTH - 1) if items is True else self.read(items, f"{at}/items", depth + 1)
        following = sequence([self._comma, item])
        if prefix:
            more = repeat(following, max(low - len(prefix), 0), None if high is None else high - len(prefix))
            return self._bracketed("[]", sequence([self._listed(prefix), more]))
        if high == 0:
            return self._literal("[]")
        inner = sequence([item, repeat(following, max(low - 1, 0), None if high is None else high - 1)])
        return self._bracketed("[]", inner if low else repeat(inner, 0, 1))

    def _object(self, schema: dict[str, Any], at: str, depth: int) -> Language:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            _refuse(f"{at}/properties", "it is not an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            _refuse(f"{at}/required", "it is not a list of names")
        others = schema.get("additionalProperties", True)
        if not properties and not required and others is not False:
            value = (
                self._any(ANY_DEPTH - 1)
                if others is True
                else self.read(others, f"{at}/additionalProperties", depth + 1)
            )
            return self._map(value)
        for name in required:
            if name not in properties:
                _refuse(f"{at}/required", f"{name!r} is not among the properties")
        if isinstance(others, dict):
            self._check(others, f"{at}/additionalProperties", depth + 1)
        elif not isinstance(others, bool):
            _refuse(f"{at}/additionalProperties", "a schema is an object, true or false")
        members = []
        for name, each in properties.items():
            language = self._member(name, self.read(each, f"{at}/properties/{name}", depth + 1))
            if name in required or not language.needs:
                members.append((language, name in required))
        return self._bracketed("{}", self._members(members))

    def _members(self, members: list[tuple[Language, bool]]) -> Language:
        """The members of an object, of which the optional ones may be missing, with commas between those that are."""
        following = EMPTY  # what may be behind the first member that is there
        beginnings: list[Language] = []
        for language, is_required in reversed(members):
            beginnings = [sequence([language, following])] + ([] if is_required else beginnings)
            after_comma = sequence([self._comma, language])
            following = sequence([after_comma if is_required else repeat(after_comma, 0, 1), following])
        if any(is_required for _, is_required in members):
            return either(beginnings)
        return either([*beginnings, EMPTY])

    def _any(self, depth: int) -> Language:
        """Any value, with at most so many arrays and objects inside one another."""
        string = self._quoted(repeat(one_of(self._inner.all, "a character for a string"), 0, None))
        scalars = [string, self._regex(_NUMBER), self._regex("true|false|null")]
        if not depth:
            return either(scalars)
        value = self._any(depth - 1)
        inner = repeat(sequence([value, repeat(sequence([self._comma, value]), 0, None)]), 0, 1)
        return either([*scalars, self._bracketed("[]", inner), self._map(value)])

    def _map(self, value: Language) -> Language:
        name = self._quoted(repeat(one_of(self._inner.all, "a character for a string"), 0, None))
        member = sequence([name, self._colon, value])
        inner = sequence([member, repeat(sequence([self._comma, member]), 0, None)])
        return self._bracketed("{}", repeat(inner, 0, 1))

    def _member(self, name: str, value: Language) -> Language:
        return sequence([self._quoted(literal(name, self._inner)), self._colon, value])

    def _listed(self, parts: list[Language]) -> Language:
        return sequence(each for number, part in enumerate(parts) for each in [self._comma] * bool(number) + [part])

    def _bracketed(self, brackets: str, inner: Language) -> Language:
        return sequence([self._literal(brackets[0]), inner, self._literal(brackets[1])])

    def _quoted(self, inner: Language) -> Language:
        """A string of JSON with a text of inner characters."""
        if inner.needs:
            return inner
        pieces: list[str | int] = []
        size = 0
        for piece in inner.pieces:
            pieces += [piece] if isinstance(piece, str) else self._spelled(piece).pieces
        depth = inner.depth + 1
        size = inner.size * max([1, *(self._spelled(each).size for each in inner.pieces if isinstance(each, int))])
        return sequence([self._quote, Language(tuple(pieces), size, depth), self._quote])

    def _spelled(self, mask: int) -> Language:
        """Inner characters as they are written in a string."""
        if mask not in self._written:
            plain, escaped = 0, []
            for character in self._inner.members(mask):
                if character in _ESCAPES:
                    escaped.append(self._literal(_ESCAPES[character]))
                else:
                    plain |= self._characters.between(ord(character), ord(character))
            self._written[mask] = either([one_of(plain, ""), *escaped]) if escaped else one_of(plain, "")
        return self._written[mask]

    def _literal(self, text: str) -> Language:
        return literal(text, self._characters)

    def _regex(self, pattern: str) -> Language:
        return read_regex(pattern, self._characters)


def _refuse(at: str, message: str) -> NoReturn:
    raise ConstraintError("json_schema", f"the JSON Schema cannot be used, at {at[:200]}: {message}")


def _counts(schema: dict[str, Any], low: str, high: str, at: str) -> tuple[int, int | None]:
    for keyword in (low, high):
        value = schema.get(keyword, 0)
        if isinstance(value, bool) or value not in range(MAX_COUNT + 1):
            _refuse(f"{at}/{keyword}", f"it is not a whole number from 0 to {MAX_COUNT:,}")
    least, most = int(schema.get(low, 0)), schema.get(high)
    if most is not None and least > most:
        _refuse(at, f"{low!r} is more than {high!r}")
    return least, None if most is None else int(most)


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """The values that a schema lists, or None."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _required(schema: dict[str, Any]) -> set[str]:
    required = schema.get("required")
    return {each for each in required if isinstance(each, str)} if isinstance(required, list) else set()


def _type_of(value: Any) -> str:
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    if isinstance(value, int) and not isinstance(value, bool):
        return "integer"
    return next(name for name, python_type in _PYTHON_TYPES.items() if isinstance(value, python_type))
