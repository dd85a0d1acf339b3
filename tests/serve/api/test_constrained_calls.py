"""Calls with constraints that are refused, wait or end early; models with longer symbols; what the log says of them."""

import re
import time
from contextlib import ExitStack
from types import SimpleNamespace

import grpc
import numpy as np
import psutil
import pytest
from calls import joined, refusal
from constrained import Served, request_of
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from servers import run_server, wait_until

from rill.sampling import Sampling
from rill.serve.api.compile_line import Caller, CompileLine
from rill.serve.api.constraints import constrained
from rill.serve.api.statuses import code_of
from rill.serve.constraints.patterns import ConstraintError, Pattern
from rill.serve.engine.types import StreamSpec
from rill.serve.errors import CompilerError
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

INF = float("inf")
STOP, LENGTH, DRAINING = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_DRAINING


@pytest.mark.parametrize(
    ("constraint", "field", "words"),
    [
        ({"pattern": "("}, "regex", ["position"]),
        ({"pattern": "a(?=b)"}, "regex", ["look"]),
        ({"pattern": r"(a)\1"}, "regex", ["reference"]),
        ({"pattern": "a$b"}, "regex", ["$"]),
        ({"pattern": "0{3}"}, "regex", ["'0'"]),
        ({"pattern": "(?i)a"}, "regex", ["flag"]),
        ({"pattern": "a" * 20_000}, "regex", ["16,384"]),
        ({"choices": []}, "choices", ["at least one"]),
        ({"choices": ["0", "1"]}, "choices", ["'0'"]),
        ({"choices": ["a"] * 70_000}, "choices", ["65536"]),
        ({"schema": "{"}, "json_schema", ["JSON"]),
        ({"schema": '{"format": "date"'}, "json_schema", []),
        ({"pattern": "a*", "terminator": "ab"}, "terminator", ["'ab'"]),
        ({"pattern": "a*", "terminator": "0"}, "terminator", ["'0'"]),
        ({"terminator": "a"}, "terminator", ["there is no regex, choices or json_schema"]),
    ],
)
def test_what_cannot_be_met_is_named(served, constraint, field, words):
    code, named, said = served.refusal(constraint=constraint, max_chars=5)
    assert (code, named) == ("INVALID_ARGUMENT", f"sampling.constraint.{field}")
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 5000 + ")" * 5000,
        "[ab]*a[ab]{14}",
        pytest.param("((((a{9}){9}){9}){9}){9}", marks=pytest.mark.long),
        pytest.param("(.*a.*){5000}", marks=pytest.mark.long),
    ],
)
def test_hostile_expressions_are_refused_soon(served, pattern):
    started = time.monotonic()
    code, named, _ = served.refusal(regex=pattern, max_chars=5)
    assert (code, named) == ("INVALID_ARGUMENT", "sampling.constraint.regex")
    assert time.monotonic() - started < 20
    assert served.text(regex="ab", max_chars=5)[0] == "ab"


def test_a_kind_of_a_later_version_is_not_ignored(served):
    later = pb.Constraint.FromString(b"\x4a\x03abc")  # field 9
    code, field, said = served.refusal(constraint=later, max_chars=5)
    assert (code, field) == ("INVALID_ARGUMENT", "sampling.constraint")
    assert "this server knows" in said


@pytest.mark.parametrize(
    ("pattern", "bans", "names"),
    [
        ("ab", "b", "'b'"),
        ("(a|b)c", "c", "'c'"),
        ("[ab]+", "ab", "'a', 'b'"),
        ("a[a-h]", "abcdefgh", "'a'"),
        ("a[b-h]", "bcdefgh", "'b', 'c', 'd', 'e', 'f' and 2 more"),
        ("a?", "a\n", "'\\n', 'a'"),
    ],
)
def test_biases_that_leave_no_symbol_are_refused(served, pattern, bans, names):
    bias = dict.fromkeys(bans, -INF)
    code, field, said = served.refusal(regex=pattern, logit_bias=bias, max_chars=5)
    assert (code, field) == ("INVALID_ARGUMENT", "sampling.logit_bias")
    assert said == f"logit_bias bans all that the constraint allows at some point of a text: {names}"


def test_biases_that_leave_a_symbol_are_not(served):
    for pattern, bans in (("a[bc]", "b"), ("ab", "cde\n"), ("[ab]*", "ab"), ("[ab]*", "\n"), ("ab", "\n")):
        text, _ = served.text(regex=pattern, logit_bias=dict.fromkeys(bans, -INF), max_chars=20)
        assert not set(text) & set(bans)
    # By a token too, with its biases or its constraint.
    _, last = served.text(regex="[ab]{9}", logit_bias={"a": -INF}, max_chars=3)
    assert served.text(resume_token=last.resume_token)[0] == "b" * 6
    assert served.refusal(resume_token=last.resume_token, logit_bias={"a": -INF, "b": -INF})[1] == "sampling.logit_bias"
    assert served.refusal(resume_token=last.resume_token, regex="xay")[1] == "sampling.logit_bias"


def test_a_bundle_of_before_constraints(served):
    """It serves all but constraints, and says what to do."""
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stub.Generate(request_of(model="older", regex="ab", max_chars=3)))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    said = "bundle 'older' was exported before constraints; export its run again"
    assert caught.value.details() == said
    (packed,) = Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"]).details
    detail = ErrorInfo()
    assert packed.Unpack(detail)
    assert detail.reason == "MODEL_WITHOUT_CONSTRAINTS"
    _, last = served.text(regex="[ab]{9}", max_chars=3)  # the older one is the same model
    assert served.refusal(model="older", resume_token=last.resume_token, max_chars=9)[2] == said
    anew = {"resume_token": last.resume_token, "constraint": pb.Constraint(), "max_chars": 9}
    assert served.text(model="older", **anew)[0] == served.text(**anew)[0]
    assert len(served.text(model="older", constraint=pb.Constraint(), max_chars=9)[0]) == 9


# ---- longer symbols, and end symbols


RING_FREE = r"(C|N|O|=C)+(Cl|Br)?"


def test_longer_symbols(served):
    """An end symbol is the terminator, wherever the text matches."""
    pattern = r"(C|N|O|\[nH\]|=C){3,9}(Cl|Br)"
    for seed in range(20):
        text, last = served.text(model="molecules", regex=pattern, seed=seed, max_chars=50)
        assert re.fullmatch(pattern, text)
        assert (last.finish_reason, last.usage.matches) == (STOP, True)
    ends = set()
    for seed in range(20):
        messages = served.messages(model="molecules", regex=RING_FREE, seed=seed, max_chars=6, logprobs=2)
        text, last = joined(messages), messages[-1]
        assert re.fullmatch(RING_FREE, text)
        assert last.usage.matches
        assert [entry.character for message in messages for entry in message.logprobs] == re.findall("Cl|Br|.", text)
        ends.add(last.finish_reason)
    assert ends == {STOP, LENGTH}


def test_an_end_symbol_is_forbidden_before_the_text_matches_and_with_another_terminator(served):
    for seed in range(10):
        assert len(served.text(model="molecules", regex="C{30}", seed=seed)[0]) == 30
    text, last = served.text(model="molecules", constraint={"pattern": "C*", "terminator": ""}, max_chars=300)
    assert (text, last.finish_reason) == ("C" * 300, LENGTH)
    text, last = served.text(model="molecules", constraint={"pattern": "C*", "terminator": "O"}, max_chars=300)
    assert (set(text) <= {"C"}, last.finish_reason) == (True, STOP)


def test_positions_of_longer_symbols_after_a_resume(served):
    pattern = r"(Cl|Br){8}"
    messages = served.messages(model="molecules", regex=pattern, seed=2, resume_every=1)
    whole = joined(messages)
    for message in messages:
        at = message.text_position + len(message.text)
        rest = served.messages(resume_token=message.resume_token, seed=2)
        assert (rest[0].position, rest[0].text_position) == (at // 2, at)
        assert (whole[:at] + joined(rest), rest[-1].usage.matches) == (whole, True)


@pytest.mark.parametrize(("terminator", "said"), [("<start>", "<start>"), ("CC", "CC"), ("x", "x"), ("<end", "<end")])
def test_terminators_that_are_no_symbol_or_never_chosen(served, terminator, said):
    constraint = {"pattern": "C*", "terminator": terminator}
    code, field, message = served.refusal(model="molecules", constraint=constraint, max_chars=3)
    assert (code, field) == ("INVALID_ARGUMENT", "sampling.constraint.terminator")
    assert said in message


# ---- waiting, ending early


@pytest.fixture
def small(tiny_folder):
    """A server with two slots and room for one call that waits."""
    with (
        run_server(tiny_folder, "--max-streams", 2, "--max-waiting", 1, "--drain-seconds", 1.5) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield server, Served(server.target, TextGenerationStub(channel), {})


def test_a_full_server_refuses_before_it_compiles(small):
    """The constraint, which is wrong, is not even looked at; and a call with a constraint waits like others."""
    _, served = small
    with ExitStack() as stack:
        calls = [served.stub.Generate(request_of(chars_per_second=5), timeout=60) for _ in range(2)]
        for call in calls:
            stack.callback(call.cancel)
            next(call)
        waiting = served.stub.Generate(request_of(regex="[ab]{4}"), timeout=60)
        models = pb.ListModelsRequest()
        wait_until(lambda: served.stub.ListModels(models).streams_waiting == 1)
        error, details = refusal(served.stub.Generate(request_of(regex="("), timeout=60))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert RetryInfo in details
        calls[0].cancel()
        assert re.fullmatch("[ab]{4}", joined(waiting))


def test_a_deadline_and_a_cancellation_end_a_call_that_is_compiling(served):
    hostile = request_of(regex="[ab]*a[ab]{300}c{4999}", max_chars=5)
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stub.Generate(hostile, timeout=0.05))
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INVALID_ARGUMENT)
    call = served.stub.Generate(request_of(regex="[ab]*a[ab]{301}c{4999}"), timeout=60)
    call.cancel()
    wait_until(lambda: not served.stub.ListModels(pb.ListModelsRequest()).streams_running)
    assert served.text(regex="ab", max_chars=5)[0] == "ab"


def test_draining_ends_a_text_where_it_is(small):
    server, served = small
    call = served.stub.Generate(request_of(regex="[a-c]{8000}", chars_per_second=50), timeout=60)
    messages = [next(call)]
    server.process.terminate()
    with pytest.raises(grpc.RpcError) as caught:
        messages.extend(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (messages[-1].finish_reason, messages[-1].usage.matches) == (DRAINING, False)
    assert messages[-1].usage.HasField("matches")
    assert messages[-1].resume_token


def test_the_log_says_what_kind_of_constraint_a_call_had(small):
    server, served = small
    served.text(regex="ab", seed=1)
    served.text(constraint={"choices": ["secret"]})
    served.text(max_chars=3)
    _, log = server.stop()
    calls = [line for line in log.splitlines() if "method=Generate" in line]
    assert [re.findall(r"constraint=(\w+)", line) for line in calls] == [["regex"], ["choices"], []]
    assert "secret" not in log


def test_the_process_of_the_compiler_may_be_killed_and_ends_with_the_server(small):
    """A call while it is away starts another one; a server that has compiled nothing has none."""
    server, served = small
    process = psutil.Process(server.process.pid)

    def compilers():
        return [child for child in process.children() if "rill.serve.constraints.worker" in child.cmdline()]

    assert served.text(max_chars=3)
    assert not compilers()
    for number in range(3):
        assert served.text(regex=f"ab{{{number + 1}}}")[0] == "a" + "b" * (number + 1)
        (compiler,) = compilers()
        compiler.kill()
    assert served.text(regex="abc")[0] == "abc"
    (compiler,) = compilers()
    status, log = server.stop()
    assert (status, "Traceback" in log) == (0, False), log
    wait_until(lambda: not compiler.is_running() or compiler.status() == psutil.STATUS_ZOMBIE)


async def test_a_compiler_that_cannot_be_started_is_the_servers_fault(tiny):
    """Not the request's; the next call tries again."""

    class Failing:
        def cached(self, vocabulary, pattern):
            return None

        async def compile(self, vocabulary, pattern):
            raise self.error

    compiler, model = Failing(), SimpleNamespace(bundle=tiny, supports_constraints=True)
    spec = StreamSpec(np.zeros(1, np.int64), 0, Sampling(), 1, 0, constraint=b"x")
    line, pattern = CompileLine(compiler), Pattern("regex", "a", None)
    for error, said in (
        (OSError(11, "Resource temporarily unavailable"), "cannot be started: Resource temporarily unavailable"),
        (ConstraintError("constraint", "the process ends"), "the process ends"),
    ):
        compiler.error = error
        with pytest.raises(CompilerError, match=said) as caught:
            await constrained(spec, pattern, model, line, Caller("a", "1"), is_from_token=False)
        assert code_of(caught.value) is grpc.StatusCode.INTERNAL
