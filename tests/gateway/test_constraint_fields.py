"""vLLM's and OpenAI's fields of what a text must match, as the constraint that a server gets."""

import json

import grpc
import pytest

from rill.client.errors import ServerError
from rill.gateway.api.fields import Fields
from rill.gateway.api.parameters import completion_of
from rill.gateway.errors import ApiError
from rill.v1 import rill_pb2 as pb

SCHEMA = {"type": "object", "properties": {"å": {"type": "integer"}}, "required": ["å"]}
SCHEMA_TEXT = json.dumps(SCHEMA, ensure_ascii=False)


def read(**fields):
    return completion_of(Fields({"prompt": "a", **fields}))


def refusal(**fields):
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value


def choices(*texts):
    return pb.Constraint(choices=pb.Constraint.Choices(text=texts))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"structured_outputs": {"regex": "[0-9]+"}}, pb.Constraint(regex="[0-9]+")),
        ({"structured_outputs": {"choice": ["yes", "n\u00f6"]}}, choices("yes", "n\u00f6")),
        ({"structured_outputs": {"json": SCHEMA}}, pb.Constraint(json_schema=SCHEMA_TEXT)),
        ({"structured_outputs": {"json": SCHEMA_TEXT}}, pb.Constraint(json_schema=SCHEMA_TEXT)),
        ({"guided_regex": ""}, pb.Constraint(regex="")),
        ({"guided_choice": ["a", ""]}, choices("a", "")),
        ({"guided_json": {}}, pb.Constraint(json_schema="{}")),
        ({"guided_regex": "a*", "terminator": ";"}, pb.Constraint(regex="a*", terminator=";")),
        ({"guided_regex": "a*", "terminator": ""}, pb.Constraint(regex="a*", terminator="")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "description": "y", "strict": True, "schema": SCHEMA},
                }
            },
            pb.Constraint(json_schema=SCHEMA_TEXT),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "guided_regex": None},
            pb.Constraint(json_schema=SCHEMA_TEXT),
        ),
        # What clients fill in that send all fields.
        (
            {
                "structured_outputs": {
                    **dict.fromkeys(
                        ("json", "choice", "grammar", "json_object", "structural_tag", "whitespace_pattern")
                    ),
                    **dict.fromkeys(("disable_fallback", "disable_any_whitespace"), False),
                    "disable_additional_properties": False,
                    "regex": "a",
                },
                "guided_decoding_backend": "xgrammar",
                "response_format": {"type": "text"},
            },
            pb.Constraint(regex="a"),
        ),
    ],
)
def test_a_constraint_is_read(fields, expected):
    found = read(**fields).constraint
    assert found.message == expected


@pytest.mark.parametrize(
    "fields", [{}, {"structured_outputs": None}, {"response_format": {"type": "text"}}, {"response_format": {}}]
)
def test_a_text_may_be_free(fields):
    assert read(**fields).constraint is None


def test_an_explicit_text_removes_the_constraint_of_a_token():
    assert read(resume_token="AAAA", response_format={"type": "text"}).constraint.message == pb.Constraint()
    assert read(resume_token="AAAA").constraint is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"guided_regex": 5}, "guided_regex", "guided_regex must be a text, not 5"),
        ({"guided_regex": "\ud800"}, "guided_regex", "guided_regex has half of a surrogate pair at position 0"),
        ({"guided_choice": "yes"}, "guided_choice", 'guided_choice must be a list of texts, not "yes"'),
        ({"guided_choice": []}, "guided_choice", "guided_choice is an empty list: no text would match"),
        ({"guided_choice": ["a", 1]}, "guided_choice", "guided_choice[1] must be a text, not 1"),
        (
            {"guided_choice": ["a"] * 65_537},
            "guided_choice",
            "guided_choice has 65537 texts; at most 65536 are allowed",
        ),
        ({"guided_choice": ["a" * 40_000] * 2}, "guided_choice", "guided_choice has 80000 characters; at most 65536"),
        ({"guided_regex": "a" * 65_537}, "guided_regex", "guided_regex has 65537 characters; at most 65536 are"),
        ({"guided_json": {"const": "a" * 65_536}}, "guided_json", "guided_json has 65549 characters; at most 65536"),
        ({"guided_choice": [None]}, "guided_choice", "guided_choice[0] must be a text, not null"),
        (
            {"guided_json": True},
            "guided_json",
            "guided_json must be a JSON schema: an object, or its JSON text, not true",
        ),
        ({"guided_json": {"minimum": 1e999}}, "guided_json", "guided_json has a number beyond all floats"),
        ({"guided_json": {"\udfff": 1}}, "guided_json", "guided_json has half of a surrogate pair at position 2"),
        ({"structured_outputs": "a"}, "structured_outputs", 'structured_outputs must be an object, not "a"'),
        ({"structured_outputs": {}}, "structured_outputs", "structured_outputs has no constraint: give one of"),
        ({"structured_outputs": {"regex": None}}, "structured_outputs", "structured_outputs has no constraint"),
        (
            {"structured_outputs": {"regex": ["a"]}},
            "structured_outputs.regex",
            "structured_outputs.regex must be a text",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs",
            "structured_outputs has 2 constraints; a text has one",
        ),
        (
            {"structured_outputs": {"grammar": "root ::= 'a'"}},
            "structured_outputs.grammar",
            "structured_outputs.grammar is not supported: give a regular expression, choices or a JSON schema",
        ),
        (
            {"structured_outputs": {"json_object": True}},
            "structured_outputs.json_object",
            "structured_outputs.json_object is not supported: it has no schema",
        ),
        (
            {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            "structured_outputs.whitespace_pattern is not supported: JSON is written in one way here",
        ),
        (
            {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
            "structured_outputs.disable_additional_properties",
            "structured_outputs.disable_additional_properties is not supported: say so in the schema",
        ),
        (
            {"structured_outputs": {"regexp": "a"}},
            "structured_outputs.regexp",
            'unknown field "structured_outputs.regexp"; do you mean "regex"?',
        ),
        ({"guided_grammar": "x"}, "guided_grammar", "guided_grammar is not supported: give a regular expression"),
        ({"structural_tag": {}}, "structural_tag", "structural_tag is not supported"),
        ({"guided_regexp": "x"}, "guided_regexp", 'unknown field "guided_regexp"; do you mean "guided_regex"?'),
        (
            {"guided_regex": "a", "guided_choice": ["a"]},
            "guided_regex",
            "guided_choice and guided_regex are two constraints; a text has one",
        ),
        (
            {
                "structured_outputs": {"regex": "a"},
                "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
            },
            "response_format.json_schema.schema",
            "structured_outputs.regex and response_format.json_schema.schema are two constraints",
        ),
        ({"terminator": ";"}, "terminator", "terminator belongs to a constraint, and there is none"),
        ({"guided_regex": "a", "terminator": 1}, "terminator", "terminator must be a text, not 1"),
        (
            {"guided_regex": "a", "min_tokens": 1},
            "min_tokens",
            "min_tokens is not supported together with a constraint",
        ),
        ({"response_format": "json"}, "response_format", 'response_format must be an object, not "json"'),
        (
            {"response_format": {"type": "json_object"}},
            "response_format",
            "response_format of type json_object is not supported: it has no schema; give a JSON",
        ),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "response_format of type structural_tag"),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type",
            "response_format.type must be json_schema or text",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.schema",
            "response_format.json_schema.schema is missing",
        ),
        (
            {"response_format": {"type": "json_schema", "schema": {}}},
            "response_format.json_schema.schema",
            "response_format.json_schema.schema is missing",
        ),
    ],
)
def test_what_cannot_be_is_named(fields, param, message):
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(message)


def test_the_error_of_a_server_names_the_field_of_the_request():
    error = ServerError(grpc.StatusCode.INVALID_ARGUMENT, "regex: a reference at position 4 is not supported")
    error.field = "sampling.constraint.regex"
    completion = read(structured_outputs={"regex": r"(a)\1"})
    found = ApiError.from_server(error, completion.names)
    assert (found.status, found.param) == (400, "structured_outputs.regex")
    assert found.message == "structured_outputs.regex: a reference at position 4 is not supported"
