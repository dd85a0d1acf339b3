"""How the errors of servers are told to callers of HTTP."""

import json

import grpc
import pytest

from rill.client.errors import ServerError
from rill.client.origin import Origin
from rill.gateway.errors import ApiError

OTHER_MODEL = "RESUME_TOKEN_OTHER_MODEL"


def error_of(code, details="no", field="", **parameters):
    error = ServerError(code, details, **parameters)
    error.field = field
    return ApiError.from_server(error)


@pytest.mark.parametrize(
    ("field", "details", "param", "message"),
    [
        ("max_chars", "max_chars is 21; the limit is 20", "max_tokens", "max_tokens is 21; the limit is 20"),
        ("sampling.top_p", "top_p must be above 0", "top_p", "top_p must be above 0"),
        ("include_stop", "include_stop: no", "include_stop_str_in_output", "include_stop_str_in_output: no"),
        ("prompt", "prompt has 9 characters", "prompt", "prompt has 9 characters"),
    ],
)
def test_fields_have_the_names_of_the_caller(field, details, param, message):
    error = error_of(grpc.StatusCode.INVALID_ARGUMENT, details, field)
    assert (error.status, error.param, error.message) == (400, param, message)


@pytest.mark.parametrize(
    ("code", "reason", "status", "param", "word"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_EXPIRED", 400, "resume_token", "resume_token_expired"),
        (
            grpc.StatusCode.FAILED_PRECONDITION,
            "RESUME_TOKEN_OTHER_MODEL",
            409,
            "resume_token",
            "resume_token_other_model",
        ),
        (grpc.StatusCode.FAILED_PRECONDITION, "", 400, "model", None),
        (grpc.StatusCode.UNAUTHENTICATED, "", 401, None, "invalid_api_key"),
        (grpc.StatusCode.NOT_FOUND, "", 404, "model", "model_not_found"),
        (grpc.StatusCode.UNAVAILABLE, "", 503, None, None),
        (grpc.StatusCode.DATA_LOSS, "", 500, None, None),
    ],
)
def test_each_status_has_its_own(code, reason, status, param, word):
    error = error_of(code, reason=reason)
    assert (error.status, error.param, error.code) == (status, param, word)


def test_a_full_server_says_when_to_come_again():
    error = error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_seconds=1.2)
    assert (error.status, error.headers) == (429, {"retry-after": "2"})
    assert error_of(grpc.StatusCode.RESOURCE_EXHAUSTED).status == 413  # a message beyond gRPC's limit


def test_what_will_fail_again_is_not_to_be_repeated():
    for code, reason in [("FAILED_PRECONDITION", OTHER_MODEL), ("DATA_LOSS", "")]:
        assert error_of(grpc.StatusCode[code], reason=reason).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in error_of(grpc.StatusCode.INTERNAL, reason="ENGINE_ROUND_FAILED").headers


def test_a_message_may_quote_what_utf_8_cannot_hold():
    assert json.loads(ApiError(400, "half \ud800").json)["error"]["message"] == "half \ud800"


def test_an_error_remembers_its_field():
    error = ServerError(grpc.StatusCode.INVALID_ARGUMENT, "no")
    error.field = "prompt"
    assert error.reworded("still no").field == "prompt"
    assert error.origin is Origin.SERVER


def test_a_missing_bearer_token_is_told_in_the_words_of_http():
    """Servers say where gRPC has it."""
    needed = "this server needs a bearer token (metadata `authorization: Bearer TOKEN`; `rill` takes --token-file)"
    error = error_of(grpc.StatusCode.UNAUTHENTICATED, needed)
    assert error.message == "this server needs a bearer token (header `authorization: Bearer TOKEN`)"
