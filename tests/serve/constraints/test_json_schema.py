"""JSON Schemas: every text of an automaton is JSON that is valid by the schema; what is not supported is named."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from rill.serve.constraints.automaton import FORBIDDEN, Automaton
from rill.serve.constraints.build import build
from rill.serve.constraints.integers import between
from rill.serve.constraints.jobs import Job
from rill.serve.constraints.json_schema import FORMATS, KEYWORDS
from rill.serve.constraints.patterns import SCHEMA_BYTES, ConstraintError, Pattern

TEXTS = [*map(chr, range(32, 127)), "\n", "\t", "é", "١"]


def compiled(schema: Any, texts: list[str] = TEXTS) -> Automaton:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return build(Job(Pattern("json_schema", text), texts, (), 8192, 1 << 21, 5.0))


def texts_of(automaton: Automaton, count: int, texts: list[str] = TEXTS) -> list[str]:
    """Random texts of an automaton, most of them short."""
    chance = random.Random(1)
    distance = np.where(automaton.accepting, 0, 1 << 20)
    allowed = automaton.transitions != FORBIDDEN
    for _ in range(automaton.states):
        following = np.where(allowed, distance[automaton.transitions], 1 << 20).min(axis=1) + 1
        if (following >= distance).all():
            break
        distance = np.minimum(distance, following)
    found = []
    for _ in range(count):
        state, text = 0, ""
        while not (automaton.matches(state) and (automaton.is_final[state] or chance.random() < 0.3)):
            row = automaton.transitions[state]
            ways = np.flatnonzero(row != FORBIDDEN).tolist()
            if len(text) > 30:
                ways = [way for way in ways if distance[row[way]] < distance[state]] or ways
            way = chance.choice(ways)
            text += texts[way]
            state = int(row[way])
        found.append(text)
    return found


SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"type": "number"}}},
    {
        "type": "object",
        "properties": {each: {"type": "integer"} for each in "abcde"},
        "required": ["b", "d"],
        "additionalProperties": False,
    },
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {'a"b\\\n': {"const": 'x"\\\té/'}}, "required": ['a"b\\\n']},
    {"type": "array", "items": {"enum": ["x", 1, None, True, 1.5, {"k": [1, {}]}, []]}, "minItems": 1, "maxItems": 3},
    {"type": "array", "items": {"type": "integer"}},
    {"type": "array", "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"const": 0}, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "maxItems": 1},
    {"type": "array", "prefixItems": [{"type": "integer"}], "minItems": 2},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": '^[^,]{1,8}$'},
    {"type": "string", "pattern": r'("|\\|\n|\w)+'},
    {"type": "string", "pattern": "a|bc"},
    *({"type": "string", "format": name} for name in FORMATS),
    {"type": "integer", "minimum": -12, "exclusiveMaximum": 345},
    {"type": "integer", "exclusiveMinimum": 0.5},
    {"type": ["integer", "null"]},
    {"type": "number"},
    {"enum": [1, "a", None], "type": ["string", "null"]},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]},
    {"oneOf": [{"type": "integer"}, {"type": "string"}, {"const": None}]},
    {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"enum": ["b", "c"]}}, "required": ["kind"]},
        ]
    },
    {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/n"}}, "n": {}}},
    {"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"type": "boolean"}}},
    {},
    True,
    {"title": "t", "description": "d", "type": "object"},
    {"minLength": 3, "maximum": 4},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_texts_are_valid(schema: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for text in texts_of(compiled(schema), 25):
        validator.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (SCHEMAS[0], '{"name": "Jo\\"", "age": 3}'),
        (SCHEMAS[0], '{"name":"é"}'),
        (SCHEMAS[1], '{"b":null, "c":-1.5e+3}'),
        (SCHEMAS[1], "{}"),
        (SCHEMAS[2], '{"b":1,"d":2,"e":0}'),
        ({"type": "string", "format": "date"}, '"2024-02-29"'),
        ({"type": "string", "format": "date-time"}, '"2024-02-28T23:59:59.5+01:00"'),
        ({"type": "string", "format": "email"}, '"a.b+c@example.co.uk"'),
        ({}, '[1, {"a": 2}]'),
        ({"type": "string", "pattern": r"\d"}, '"١"'),
    ],
)
def test_these_are_texts(schema: Any, text: str) -> None:
    automaton = compiled(schema)
    assert automaton.matches(automaton.after(0, map(TEXTS.index, text)))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 30_000, "too many parts inside one another|not valid JSON"),
        ('{"type": "integer", "type": "string"}', "repeats the name 'type'"),
        ('{"const": NaN}', "NaN is not a number"),
        ('{"const": 1e999}', "at #/const: a number is too large"),
        (f'{{"const": {"9" * 5000}}}', "not valid JSON"),
        ("3", "at #: a schema is an object, true or false"),
        ({"not": {}}, "at #: the keyword 'not' is not supported"),
        ({"properties": {"a": {"uniqueItems": True}}}, "at #/properties/a: the keyword 'uniqueItems'"),
        ({"items": {"multipleOf": 2}}, "at #/items: the keyword 'multipleOf'"),
        ({"type": "text"}, "the type 'text' is none of string"),
        ({"type": []}, "no types"),
        ({"type": None}, "the type None"),
        ({"properties": []}, "at #/properties: it is not an object"),
        ({"required": ["a"], "properties": {"b": {}}}, "'a' is not among the properties"),
        ({"type": "object", "required": "a"}, "not a list of names"),
        ({"type": "string", "format": "hostname"}, "the format 'hostname' is none of date"),
        ({"type": "string", "pattern": "a", "maxLength": 2}, "'pattern' beside another keyword"),
        ({"type": "string", "pattern": "(?=a)"}, "at #/pattern: the pattern has a look-ahead at position 0"),
        ({"type": "string", "pattern": "a^"}, "at #/pattern: the pattern has the anchor"),
        ({"type": "string", "minLength": -1}, "not a whole number from 0"),
        ({"type": "string", "minLength": 3, "maxLength": 1}, "'minLength' is more than 'maxLength'"),
        ({"type": "string", "minLength": 10_000}, "is longer than 65,536 characters"),
        ({"type": "integer", "minimum": "1"}, "at #/minimum: it is not a number"),
        ({"type": "number", "minimum": 2}, "'minimum' is supported for the type 'integer' only"),
        ({"type": "integer", "minimum": 2, "exclusiveMaximum": 2}, "no integer is in the range"),
        ({"type": "array", "items": False, "minItems": 1}, "no items for 'minItems'"),
        ({"type": "array", "items": 3}, "at #/items: a schema is an object"),
        ({"enum": []}, "at #/enum: it is not a list"),
        ({"enum": [1], "type": "string"}, "no value has the type"),
        ({"anyOf": [{"type": "integer"}], "type": "integer"}, "'type' beside 'anyOf'"),
        ({"allOf": [{}, {}]}, "'allOf' of more than one"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may match both 0 and 1"),
        ({"$ref": "other.json"}, "is not in this document"),
        ({"$ref": "#/$defs/a"}, "nothing is at '#/\\$defs/a'"),
        ({"$ref": "#anchor"}, "begins with #/"),
        ({"$ref": "#"}, "'#' refers to itself"),
        ({"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}, "refers to itself"),
        ({"properties": {"a": False}}, "false allows no value"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message) as error:
        compiled(schema)
    assert error.value.part == "json_schema"
    assert "\n" not in str(error.value)


def test_depth_and_doubling() -> None:
    schema: Any = {"type": "integer"}
    for _ in range(20):
        schema = {"type": "object", "properties": {"a": schema}}
    compiled(schema)
    with pytest.raises(ConstraintError, match="more than 20 schemas inside one another"):
        compiled({"items": schema})
    doubling = {str(n): {"type": "array", "prefixItems": [{"$ref": f"#/$defs/{n + 1}"}] * 6} for n in range(8)}
    with pytest.raises(ConstraintError, match="is longer than"):
        compiled({"$defs": {**doubling, "8": {"type": "string"}}, "$ref": "#/$defs/0"})
    with pytest.raises(ConstraintError, match="bytes of UTF-8"):
        Pattern("json_schema", " " * SCHEMA_BYTES + "{}")


def test_a_model_without_some_characters() -> None:
    letters = ["{", "}", '"', ":", "a", "b", "1", ","]
    schema = {"properties": {"a": {"const": 1}, "c": {"const": 1}, "b": {"const": "é"}}}
    assert set(texts_of(compiled(schema, letters), 20, letters)) == {"{}", '{"a":1}'}
    with pytest.raises(ConstraintError, match=r"no symbol of the model has 'c'"):
        compiled({**schema, "required": ["c"]}, letters)
    with pytest.raises(ConstraintError, match="no symbol of the model has '\\['"):
        compiled({"type": "array"}, letters)
    strings = set(texts_of(compiled({"type": "string", "pattern": "."}, letters), 50, letters))
    assert strings == {f'"{each}"' for each in "{}:ab1,"}  # no backslash: no quote inside


def test_ranges_of_integers() -> None:
    chance = random.Random(2)
    texts = [*"0123456789-"]
    for _ in range(12):
        low, high = sorted(chance.choice([chance.randint(-130, 130), chance.randint(-9, 9)]) for _ in range(2))
        automaton = build(Job(Pattern("regex", between(low, high)), texts, (), 8192, 1 << 21, 1.0))
        for number in range(-140, 141):
            state = 0
            for each in str(number):
                state = int(automaton.transitions[state, texts.index(each)])
                if state == FORBIDDEN:
                    break
            assert (state != FORBIDDEN and automaton.matches(state)) == (low <= number <= high)


def test_keywords_are_told_apart() -> None:
    names = [keyword for keywords in KEYWORDS.values() for keyword in keywords]
    assert len(names) == len(set(names))
