"""What a text must match, in vLLM's fields and OpenAI's: read as the Constraint of rill.proto."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rill.gateway.api.fields import Fields, shown, text
from rill.gateway.errors import ApiError
from rill.v1 import rill_pb2 as pb

MOST_CHARACTERS = 2**16  # of an expression, a schema, or all choices together, as in servers
MOST_CHOICES = 2**16

_NONE_GIVEN = "give one of choice, regex and json"
_NO_GRAMMARS = "is not supported: give a regular expression, choices or a JSON schema"
_NO_BARE_JSON = "is not supported: it has no schema; give a JSON schema"
_ONE_LAYOUT = "is not supported: JSON is written in one way here"
# vLLM's fields that change a constraint in a way that is not possible here, and the values with which they do not.
_REFUSED: dict[str, tuple[Any, str]] = {
    "grammar": (None, _NO_GRAMMARS),
    "structural_tag": (None, _NO_GRAMMARS),
    "json_object": (False, _NO_BARE_JSON),
    "whitespace_pattern": (None, _ONE_LAYOUT),
    "disable_any_whitespace": (False, _ONE_LAYOUT),
    "disable_additional_properties": (False, "is not supported: say so in the schema, by additionalProperties"),
}
_REFUSED_BESIDE: dict[str, tuple[Any, str]] = {  # names that vLLM had before `structured_outputs`
    "guided_grammar": (None, _NO_GRAMMARS),
    "guided_json_object": (False, _NO_BARE_JSON),
    "guided_whitespace_pattern": (None, _ONE_LAYOUT),
    "structural_tag": (None, _NO_GRAMMARS),
}


@dataclass(frozen=True)
class Requested:
    """A constraint, and the names that its parts have in the request, by those of rill.proto."""

    message: pb.Constraint
    names: Mapping[str, str]


def constraint_of(fields: Fields, continues: bool) -> Requested | None:
    """Read the fields of a constraint; `continues`: whether a token may have one. Raises ApiError.

    An explicit `response_format` of type text removes the token's.
    """
    found: list[Requested] = []
    if "structured_outputs" in fields:
        found.append(_structured(fields.object("structured_outputs")))
    found += _guided(fields)
    response_format, is_text = _response_format(fields.object("response_format"))
    found += response_format
    given = [next(iter(one.names.values())) for one in found]
    if len(found) > 1:
        fields.fail(given[1], f"{given[0]} and {given[1]} are two constraints; a text has one")
    if "terminator" in fields:
        terminator = fields.text("terminator")
        if not found:
            fields.fail("terminator", "terminator belongs to a constraint, and there is none")
        found[0].message.terminator = terminator
    if found:
        return found[0]
    return Requested(pb.Constraint(), {}) if is_text and continues else None


def _structured(fields: Fields) -> Requested:
    found = _kinds(fields)
    for name, (allowed, reason) in _REFUSED.items():
        _refuse(fields, name, allowed, reason)
    fields.ignore("disable_fallback")  # there is one backend
    fields.refuse_others()
    if not found:
        fields.fail_whole(f"structured_outputs has no constraint: {_NONE_GIVEN}")
    if len(found) > 1:
        fields.fail_whole(f"structured_outputs has {len(found)} constraints; a text has one: {_NONE_GIVEN}")
    return found[0]


def _guided(fields: Fields) -> list[Requested]:
    """Read the fields that vLLM had before `structured_outputs`."""
    found = _kinds(fields, "guided_")
    for name, (allowed, reason) in _REFUSED_BESIDE.items():
        _refuse(fields, name, allowed, reason)
    fields.ignore("guided_decoding_backend")  # there is one
    return found


def _response_format(fields: Fields) -> tuple[list[Requested], bool]:
    """Read OpenAI's field; tell whether it says that the text is free."""
    if not fields:
        return [], False
    kind = fields.text("type")
    if kind == "json_schema":
        given = fields.object("json_schema")
        given.ignore("name", "description", "strict")  # a text matches in any case
        if "schema" not in given:
            given.fail("schema", "response_format.json_schema.schema is missing: a JSON schema")
        found = [_schema(given.path("schema"), given.take("schema"))]
        given.refuse_others()
    elif kind == "text":
        found = []
    elif kind == "json_object":
        fields.fail_whole(f"response_format of type json_object {_NO_BARE_JSON}, as type json_schema")
    elif kind == "structural_tag":
        fields.fail_whole(f"response_format of type structural_tag {_NO_GRAMMARS}")
    else:
        fields.fail("type", f"response_format.type must be json_schema or text, not {shown(kind)}")
    fields.refuse_others()
    return found, kind == "text"


def _kinds(fields: Fields, prefix: str = "") -> list[Requested]:
    readers: dict[str, Callable[[str, Any], Requested]] = {"choice": _choices, "regex": _regex, "json": _schema}
    return [
        read(fields.path(prefix + name), found)
        for name, read in readers.items()
        if (found := fields.take(prefix + name)) is not None
    ]


def _regex(name: str, found: Any) -> Requested:
    regex = text(name, found)
    _check_size(name, len(regex))
    return Requested(pb.Constraint(regex=regex), {"regex": name})


def _choices(name: str, found: Any) -> Requested:
    if not isinstance(found, list):
        raise ApiError(400, f"{name} must be a list of texts, not {shown(found)}", name)
    if not found:
        raise ApiError(400, f"{name} is an empty list: no text would match", name)
    if len(found) > MOST_CHOICES:
        raise ApiError(400, f"{name} has {len(found)} texts; at most {MOST_CHOICES} are allowed", name)
    texts = [text(f"{name}[{at}]", one) for at, one in enumerate(found)]
    _check_size(name, sum(map(len, texts)))
    return Requested(pb.Constraint(choices=pb.Constraint.Choices(text=texts)), {"choices": name})


def _schema(name: str, found: Any) -> Requested:
    """Read a schema: an object, or its JSON text."""
    if isinstance(found, dict):
        try:
            found = json.dumps(found, ensure_ascii=False, allow_nan=False)
        except (ValueError, RecursionError):  # 1e999, or nested almost too deep to be read
            raise ApiError(400, f"{name} has a number beyond all floats, or is nested too deep", name) from None
    elif not isinstance(found, str):
        message = f"{name} must be a JSON schema: an object, or its JSON text, not {shown(found)}"
        raise ApiError(400, message, name)
    schema = text(name, found)
    _check_size(name, len(schema))
    return Requested(pb.Constraint(json_schema=schema), {"json_schema": name})


def _check_size(name: str, characters: int) -> None:
    if characters > MOST_CHARACTERS:
        message = f"{name} has {characters} characters; at most {MOST_CHARACTERS} are allowed"
        raise ApiError(400, message, name)


def _refuse(fields: Fields, name: str, allowed: Any, reason: str) -> None:
    found = fields.take(name)
    if found is not None and found is not allowed:
        fields.fail(name, f"{fields.path(name)} {reason}")
