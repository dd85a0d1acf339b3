"""OpenAI's own packages, for Python and for JavaScript, with a gateway as their server."""

import json
import math
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import outside
import pytest
from gateways import Gateway, run_gateway
from servers import Server, started, wait_until

from rill import Client
from rill.client.requests import generate_request
from rill.client.seeds import seed_of

PROGRAMS = Path(__file__).parent / "programs"
PROMPT, MODEL = "a man ", "tiny"


@pytest.fixture(scope="module")
def results(gateway: Gateway) -> dict[str, Any]:
    """What the package for Python got."""
    environment = outside.python("openai", outside.OPENAI)
    done = environment.run("python", "-W", "error", "openai_calls.py", gateway.url, MODEL, cwd=PROGRAMS)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def node_results(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the package for JavaScript got."""
    modules = outside.node_modules("openai-npm", outside.OPENAI_NPM)
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(PROGRAMS / "openai_calls.mjs", folder)
    (folder / "node_modules").symlink_to(modules)
    done = subprocess.run(
        ["node", "openai_calls.mjs", gateway.url, MODEL],
        cwd=folder,
        env=outside.quiet_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def text_of(server: Server):
    """Return what Rill's own client gets."""
    with server.client() as client:

        def text_of(prompt: str = PROMPT, **parameters: object) -> str:
            return "".join(client.generate(prompt, **{"temperature": 0.7, "seed": 7, **parameters}))

        yield text_of


def test_models(results):
    assert results["listed"] == [[MODEL, "model", MODEL]]


def test_a_whole_text(results, text_of):
    answer = results["whole"]
    (choice,) = answer["choices"]
    assert choice["text"] == text_of(max_chars=80)
    assert (choice["finish_reason"], choice["index"], choice["logprobs"]) == ("length", 0, None)
    assert (answer["object"], answer["model"]) == ("text_completion", MODEL)
    assert answer["request_id"]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (len(PROMPT), 80, 86)


def test_a_stream(results, text_of):
    *chunks, last = results["streamed"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text_of(max_chars=80)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert last["choices"] == []
    assert last["usage"] == results["whole"]["usage"]


def test_the_defaults_are_those_of_openai(results):
    answer = results["default_length"]
    assert len(answer["choices"][0]["text"]) == answer["usage"]["completion_tokens"] == 16


def test_a_seed_has_64_bits(results, node_results, text_of):
    text = text_of(max_chars=80, seed=2**64 - 1)
    assert results["largest_seed"] == text
    assert node_results["largest_seed"] == text


def test_logprobs(results, server):
    choice = results["logprobs"]
    found = choice["logprobs"]
    with server.client() as client:
        request = generate_request(PROMPT, max_chars=20, temperature=0.7, seed=7, logprobs=3)
        expected = [entry for message in client.stream(request) for entry in message.logprobs]
    assert "".join(found["tokens"]) == choice["text"]
    assert found["tokens"] == [entry.character for entry in expected]
    assert found["token_logprobs"] == pytest.approx([entry.logprob for entry in expected])
    assert found["text_offset"] == list(range(20))
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert 3 <= len(top) <= 4  # the chosen one is there, too
        assert top[token] == logprob


def test_logprobs_of_a_stream(results):
    whole = results["logprobs"]["logprobs"]
    parts = [choice["logprobs"] for choice in results["streamed_logprobs"] if choice["logprobs"]]
    assert {key: [one for part in parts for one in part[key]] for key in whole} == whole


def test_echo(results, node_results, text_of, server):
    for choice in (results["echo"], node_results["echo"]):
        found = choice["logprobs"]
        assert choice["text"] == PROMPT + text_of(max_chars=1)
        assert found["tokens"] == list(choice["text"])
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        for token, top in zip(found["tokens"][1:], found["top_logprobs"][1:], strict=True):
            assert max(top.values()) >= top[token]
        assert found["text_offset"] == list(range(len(PROMPT) + 1))
        assert all(math.isfinite(one) for one in found["token_logprobs"][1:])


def test_several_texts_of_several_prompts(results, text_of):
    choices = results["several"]["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    seeds = {"a": 7, "the ": seed_of(7, 1)}
    assert [choice["text"] for choice in choices] == [
        text_of(prompt, max_chars=30, seed=seed_of(seed, number) if number else seed)
        for prompt, seed in seeds.items()
        for number in range(3)
    ]
    usage = results["several"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 180)


def test_several_texts_of_one_stream(results, text_of):
    seeds = [7, seed_of(7, 1), seed_of(7, 2)]
    assert results["several_streamed"] == [text_of(max_chars=30, seed=seed) for seed in seeds]


def test_the_best_of_several(results):
    answer = results["best"]
    assert len(answer["choices"]) == 2
    assert answer["usage"]["completion_tokens"] == 120


def test_stop(results, text_of):
    text = text_of(max_chars=400, stop=["e", "Q"])
    usual, included = results["stopped"]
    assert (usual["text"], usual["finish_reason"]) == (text, "stop")
    assert (included["text"], included["finish_reason"]) == (
        text_of(max_chars=400, stop="e", include_stop=True),
        "stop",
    )


def test_what_only_vllm_has(results, text_of):
    text = results["banned"]
    assert len(text) == 80
    assert not set(text) & {"\n", " "}  # symbols 0 and 1
    banned = {"\n": -math.inf, " ": -math.inf}
    assert text == text_of(max_chars=80, logit_bias=banned, top_k=20, min_p=0.01)


def test_a_prompt_of_symbol_ids(results, text_of):
    assert results["ids"] == text_of(max_chars=80)


def test_a_resume_token(results, text_of):
    assert results["continued"] == text_of(max_chars=80)


def test_texts_that_match(results):
    patterns = ["[a-c]{5}", "yes|no", "true|false", "[a-c]{5}", "true|false"]
    for (choice, streamed, matches), pattern in zip(results["matched"], patterns, strict=True):
        assert re.fullmatch(pattern, choice["text"])
        assert streamed == choice["text"]
        assert choice["finish_reason"] == "stop"
        assert matches == [True, True]


def test_a_stream_that_is_left_is_ended(results, node_results, server):
    assert results["left"]
    assert node_results["left"]
    with server.client() as client:
        wait_until(lambda: client.models().streams_running == 0)


BAD = ["temperature", "top_p", "seed", "prompt", "suffix", "presence_penalty", "frequency_penalty", "logprobs"]
BAD += ["logit_bias", "response_format", "resume_token", "structured_outputs.grammar", "structured_outputs.regex"]


@pytest.mark.parametrize("field", BAD)
def test_a_field_that_cannot_be_is_named(results, field):
    error = results["refused"][field]
    assert (error["class"], error["status"], error["param"]) == ("BadRequestError", 400, field)
    assert error["message"]
    assert error["request_id"]


def test_other_errors_have_their_classes(results):
    refused = results["refused"]
    assert (refused["model"]["class"], refused["no such model"]["class"]) == ("NotFoundError", "NotFoundError")
    for name, field in (("chat", "messages"), ("responses", "input")):
        assert (refused[name]["class"], refused[name]["param"]) == ("BadRequestError", field)
        assert "/v1/completions" in refused[name]["message"]
    assert (refused["streamed"]["class"], refused["streamed"]["param"]) == ("BadRequestError", "temperature")


def test_streams_at_once(results, text_of):
    assert results["at_once"] == [text_of(max_chars=50, seed=seed) for seed in range(8)]


def test_javascript(node_results, text_of):
    assert node_results["listed"] == [MODEL]
    assert node_results["whole"]["choices"][0]["text"] == text_of(max_chars=80)
    *chunks, last = node_results["streamed"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text_of(max_chars=80)
    assert last["usage"]["completion_tokens"] == 80
    assert len(node_results["logprobs"]["logprobs"]["tokens"]) == 20
    errors = node_results["refused"]
    assert [(error["class"], error["status"]) for error in errors.values()] == [
        ("BadRequestError", 400),
        ("NotFoundError", 404),
        ("BadRequestError", 400),
    ]


KILLED = """
import sys, openai
url, length = sys.argv[1], int(sys.argv[2])
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
parameters = {"model": "tiny", "prompt": "a man ", "temperature": 0.7, "seed": 7, "max_tokens": length}
for chunk in client.completions.create(**parameters, stream=True):
    sys.stdout.write(chunk.choices[0].text)
    sys.stdout.flush()
"""


@pytest.mark.long
def test_a_stream_outlives_the_replica_behind_the_gateway(tiny_folder, tmp_path):
    """kill -9; the caller sees every character once, and no error."""
    environment = outside.python("openai", outside.OPENAI)
    key, length = tmp_path / "key", 20_000
    key.write_bytes(bytes(range(32)))
    with (
        started(tiny_folder, key) as first,
        started(tiny_folder, key) as second,
        run_gateway(f"{first.target},{second.target}") as gateway,
        Client(second.target) as client,
        subprocess.Popen(
            [environment.path("python"), "-c", KILLED, gateway.url, str(length)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout
        assert process.stderr
        text = process.stdout.read(1000)
        with first.client() as other:
            assert other.models().streams_running == 1
        first.process.kill()
        text += process.stdout.read()
        assert (process.stderr.read(), process.wait()) == ("", 0)
        assert len(text) == length
        assert text == "".join(client.generate(PROMPT, max_chars=length, temperature=0.7, seed=7))


DRAINED = """
import sys, openai
url, other, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
parameters = {"model": "tiny", "temperature": 0.7, "seed": 7, "stream": True}
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
count, token = 0, None
try:
    for chunk in client.completions.create(**parameters, prompt="a man ", max_tokens=length):
        sys.stdout.write(chunk.choices[0].text)
        sys.stdout.flush()
        count += len(chunk.choices[0].text)
        token = (chunk.model_extra.get("rill") or {}).get("resume_token")
except openai.APIError as error:
    print(type(error).__name__, error.code, error.message, file=sys.stderr)
client = openai.OpenAI(base_url=other + "/v1", api_key="none", max_retries=0)
del parameters["seed"]  # the token has it
rest = {"resume_token": token}
for chunk in client.completions.create(**parameters, prompt="", max_tokens=length - count, extra_body=rest):
    sys.stdout.write(chunk.choices[0].text)
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_ends_does_not_end_a_text_in_silence(server, gateway, text_of, number):
    """With SIGTERM, a token for the exact end comes first; another gateway continues from it."""
    environment, length = outside.python("openai", outside.OPENAI), 1_000_000
    with (
        run_gateway(server.target) as first,
        subprocess.Popen(
            [environment.path("python"), "-c", DRAINED, first.url, gateway.url, str(length)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout
        assert process.stderr
        text = process.stdout.read(1000)
        first.process.send_signal(number)
        if number == signal.SIGKILL:
            process.stdout.close()
            assert "APIConnectionError" in process.stderr.read()
            return
        while len(text) < 60_000:
            text += process.stdout.read(1000)
        process.kill()
        assert process.stderr.readline() == "APIError draining the gateway is shutting down\n"
    assert text == text_of(max_chars=len(text))
