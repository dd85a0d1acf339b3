"""Texts that must match, over HTTP and its WebSocket, of a real server."""

import json
import re
import shutil

import httpx
import pytest
from gateways import run_gateway
from servers import run_server
from websockets.sync.client import connect

from rill.client.requests import generate_request

WORDS = r"([A-Z][a-z]{2,5} ){2,4}[a-z]{3}\."
ENDLESS = {"guided_regex": "(?:[a-e]{3} )*", "terminator": ""}


@pytest.fixture(scope="module")
def http(gateway):
    with httpx.Client(base_url=gateway.url, headers={"content-type": "application/json"}) as client:
        yield client


@pytest.fixture(scope="module")
def post(http):
    def send(**fields):
        return http.post(
            "/v1/completions", content=json.dumps({"prompt": "the ", "seed": 7, "max_tokens": 60} | fields)
        )

    return send


def chunks_of(answer):
    data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


def generated(server, prompt="the ", **parameters):
    with server.client() as client:
        return "".join(client.generate(prompt, **{"seed": 7, "max_chars": 60} | parameters))


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": WORDS}},
        {"guided_regex": WORDS},
        {"guided_regex": WORDS, "response_format": {"type": "text"}},
    ],
)
def test_a_text_matches(post, server, fields):
    answer = post(**fields).json()
    (choice,) = answer["choices"]
    assert re.fullmatch(WORDS, choice["text"])
    assert choice["text"] == generated(server, regex=WORDS)
    assert choice["finish_reason"] == "stop"
    assert answer["rill"]["matches"] is True
    assert answer["usage"]["completion_tokens"] == len(choice["text"])


def test_a_free_text_says_nothing_of_matches(post):
    assert "matches" not in post().json()["rill"]


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"structured_outputs": {"choice": ["yes", "no", "née"]}}, {"yes", "no", "née"}),
        ({"guided_choice": ["yes", "no", "née"]}, {"yes", "no", "née"}),
        ({"structured_outputs": {"json": {"type": "boolean"}}}, {"true", "false"}),
        ({"guided_json": '{"enum": [true, null]}'}, {"true", "null"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "null"}}}}, {"null"}),
    ],
)
def test_kinds_of_constraints(post, fields, texts):
    answer = post(n=4, temperature=2, **fields).json()
    found = [choice["text"] for choice in answer["choices"]]
    assert set(found) <= texts
    assert [choice["rill"]["matches"] for choice in answer["choices"]] == [True] * 4
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}


def test_the_last_chunk_of_a_stream_says_whether_it_matches(post):
    whole = post(guided_regex=WORDS).json()["choices"][0]["text"]
    *chunks, usage = chunks_of(post(guided_regex=WORDS, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
    assert [chunk.get("rill", {}).get("matches") for chunk in chunks] == [None] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == len(whole)


def test_a_text_that_is_cut_off_is_the_beginning_of_one_that_matches(post):
    whole = post(guided_regex=WORDS).json()["choices"][0]["text"]
    answer = post(guided_regex=WORDS, max_tokens=8).json()
    assert answer["choices"][0]["text"] == whole[:8]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["rill"]["matches"] is False
    rest = post(prompt="", seed=None, resume_token=answer["rill"]["resume_token"]).json()
    assert whole[:8] + rest["choices"][0]["text"] == whole
    assert rest["rill"]["matches"] is True
    again = post(prompt="", seed=None, resume_token=rest["rill"]["resume_token"]).json()
    assert (again["choices"][0]["text"], again["choices"][0]["finish_reason"]) == ("", "stop")
    assert again["rill"]["matches"] is True


def test_a_token_loses_its_constraint_or_gets_another(post):
    token = post(**ENDLESS, max_tokens=8).json()["rill"]["resume_token"]
    free = post(prompt="", resume_token=token, response_format={"type": "text"}).json()
    assert "matches" not in free["rill"]
    assert len(free["choices"][0]["text"]) == 60
    other = post(prompt="", resume_token=token, guided_choice=["yes", "no"]).json()
    assert other["choices"][0]["text"] in ("yes", "no")


def test_a_prompt_behind_a_token_does_not_move_its_constraint(post):
    """Also where the prompt is read once for several texts."""
    first = post(guided_regex="[a-e]{6}", max_tokens=2).json()
    begin, token = first["choices"][0]["text"], first["rill"]["resume_token"]
    for more in ({}, {"n": 3}, {"echo": True, "logprobs": 0}):
        answer = post(prompt="XYZ", resume_token=token, **more).json()
        for choice in answer["choices"]:
            assert re.fullmatch("(XYZ)?[a-e]{4}", choice["text"]), begin
            assert choice.get("rill", answer["rill"])["matches"] is True


@pytest.mark.parametrize("more", [{"echo": True}, {"n": 3}, {"best_of": 3}, {"logprobs": 2}, {"prompt": ["a", "b"]}])
def test_other_fields_do_not_disturb_a_constraint(post, more):
    answer = post(guided_regex=WORDS, **more).json()
    prompt = "the " if "echo" in more else ""
    for choice in answer["choices"]:
        assert choice["text"].startswith(prompt)
        assert re.fullmatch(WORDS, choice["text"][len(prompt) :])
        assert choice.get("rill", answer["rill"])["matches"] is True


def test_logprobs_are_the_models_own(post, server):
    found = post(guided_regex=WORDS, logprobs=2).json()["choices"][0]
    with server.client() as client:
        text = found["text"]
        score = [one for message in client.score("the " + text, as_prompt=True) for one in message.logprobs]
    assert found["logprobs"]["tokens"] == list(text)
    assert found["logprobs"]["token_logprobs"] == pytest.approx(score[4:], abs=1e-4)
    assert any(
        token != max(top, key=top.get)
        for token, top in zip(found["logprobs"]["tokens"], found["logprobs"]["top_logprobs"], strict=True)
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_may_be_empty(post, stream):
    answer = post(guided_regex="", stream=stream, stream_options={"include_usage": True} if stream else None, n=2)
    last = chunks_of(answer) if stream else [answer.json()]
    choices = [choice for chunk in last for choice in chunk["choices"]]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("", "stop")] * 2
    assert last[-1]["usage"]["completion_tokens"] == 0


def test_a_stop_string_may_end_a_text_before_it_matches(post):
    answer = post(guided_regex=WORDS, stop=" ").json()
    whole = post(guided_regex=WORDS).json()["choices"][0]["text"]
    assert answer["choices"][0]["text"] == whole.partition(" ")[0]
    assert (answer["choices"][0]["finish_reason"], answer["rill"]["matches"]) == ("stop", False)


def test_a_terminator_is_no_part_of_the_text(post):
    found = [post(guided_regex="[a-z]*", terminator=".", seed=seed, logit_bias={"4": 8}).json() for seed in range(3)]
    for answer in found:
        assert re.fullmatch("[a-z]*", answer["choices"][0]["text"])
        assert answer["rill"]["matches"] is True
    assert len(post(**ENDLESS).json()["choices"][0]["text"]) == 60


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_regex": "("}, "guided_regex", "position"),
        ({"structured_outputs": {"regex": r"(a)\1"}}, "structured_outputs.regex", "structured_outputs.regex"),
        ({"guided_regex": "a(?=b)"}, "guided_regex", ""),
        ({"guided_regex": "[0-9]+"}, "guided_regex", ""),
        ({"guided_regex": "(?:(?:[a-z]{1,99}){1,99}){1,99}"}, "guided_regex", ""),
        ({"guided_regex": "a" * 70_000}, "guided_regex", "70000"),
        ({"guided_choice": ["1", "2"]}, "guided_choice", ""),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", ""),
        ({"structured_outputs": {"json": {"type": "strang"}}}, "structured_outputs.json", "strang"),
        ({"structured_outputs": {"json": {"$dynamicRef": "#a"}}}, "structured_outputs.json", "$dynamicRef"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}},
            "response_format.json_schema.schema",
            "",
        ),
        ({"guided_regex": "a*", "terminator": "ab"}, "terminator", "terminator"),
        ({"guided_choice": ["a"], "logit_bias": {"30": -100}}, "logit_bias", "'a'"),
    ],
)
def test_what_cannot_match_is_refused_by_its_name(post, http, fields, param, words):
    if "logit_bias" in fields:
        (id_,) = http.post("/tokenize", json={"prompt": "a"}).json()["tokens"]
        fields = fields | {"logit_bias": {str(id_): -100}}
    for stream in (False, True):
        answer = post(stream=stream, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert words in error["message"]


@pytest.mark.long
def test_a_bundle_of_an_earlier_version_says_so(tiny_folder, tmp_path):
    folder = tmp_path / "earlier"
    shutil.copytree(tiny_folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest.pop("constrained").values():
        (folder / entry["file"]).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with run_server(folder) as earlier, run_gateway(earlier.target) as gateway:
        ask = f"{gateway.url}/v1/completions"
        answer = httpx.post(ask, json={"guided_regex": "a"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        assert "was exported before constraints" in answer.json()["error"]["message"]
        assert httpx.post(ask, json={"prompt": "a"}).status_code == 200


def test_a_conversation_sets_changes_and_removes_a_constraint(gateway):
    constraint = {"choices": {"text": ["yes", "no"]}}
    with connect(f"{gateway.url.replace('http', 'ws')}/v1/interact", proxy=None) as socket:

        def say(action):
            socket.send(json.dumps(action))

        def generate(count):
            say({"generate": {"maxChars": count}})
            text = ""
            while True:
                output = json.loads(socket.recv(timeout=20))["output"]
                text += output.get("text", "")
                if "finishReason" in output:
                    return text, output["finishReason"], output["usage"].get("matches")

        say({"open": {"sampling": {"seed": "7", "constraint": {"regex": "[a-c]{6}"}}}})
        assert "opened" in json.loads(socket.recv(timeout=20))
        begin, reason, matches = generate(2)
        assert (reason, matches) == ("FINISH_REASON_LENGTH", False)
        say({"feed": "XYZ"})
        assert "fed" in json.loads(socket.recv(timeout=20))
        rest, reason, matches = generate(40)
        assert re.fullmatch("[a-c]{6}", begin + rest)
        assert (reason, matches) == ("FINISH_REASON_STOP", True)
        assert generate(40) == ("", "FINISH_REASON_STOP", True)
        say({"update": {"constraint": constraint}})
        assert generate(40)[0] in ("yes", "no")
        say({"update": {"constraint": {}}})
        text, reason, matches = generate(40)
        assert (len(text), reason, matches) == (40, "FINISH_REASON_LENGTH", None)
        say({"update": {"constraint": {"regex": "[0-9]"}}})
        say({"generate": {"maxChars": 4}})
        while "error" not in (frame := json.loads(socket.recv(timeout=20))):
            pass
        assert (frame["error"]["status"], frame["error"]["param"]) == (400, "regex")


def test_a_frame_with_two_constraints_is_refused(gateway):
    two = {"open": {"sampling": {"constraint": {"regex": "a", "jsonSchema": "{}"}}}}
    with connect(f"{gateway.url.replace('http', 'ws')}/v1/interact", proxy=None) as socket:
        socket.send(json.dumps(two))
        error = json.loads(socket.recv(timeout=20))["error"]
    assert error["message"] == "the frame is not an InteractRequest: open.sampling.constraint has more than one kind"


def test_symbols_of_several_characters(molecule_server):
    with run_gateway(molecule_server.target) as gateway:
        fields = {"guided_regex": "(?:C|Cl|N){5,9}", "seed": 3, "max_tokens": 40, "return_token_ids": True}
        answer = httpx.post(f"{gateway.url}/v1/completions", json=fields).json()
        (choice,) = answer["choices"]
        assert re.fullmatch("(?:C|Cl|N){5,9}", choice["text"])
        assert answer["rill"]["matches"] is True
        assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])
        request = generate_request(regex="(?:C|Cl|N){5,9}", seed=3, max_chars=40)
        with molecule_server.client() as client:
            assert "".join(message.text for message in client.stream(request)) == choice["text"]


def test_many_patterns_at_once(http):
    """Each text of a crowd keeps to its own."""
    patterns = [f"[{chr(97 + at)}{chr(98 + at)}]{{{3 + at}}}" for at in range(20)]
    fields = [{"guided_regex": pattern, "seed": 7, "max_tokens": 60, "stream": True} for pattern in patterns]
    answers = [http.send(http.build_request("POST", "/v1/completions", json=one), stream=True) for one in fields]
    for answer, pattern in zip(answers, patterns, strict=True):
        answer.read()
        assert re.fullmatch(pattern, "".join(chunk["choices"][0]["text"] for chunk in chunks_of(answer)))
