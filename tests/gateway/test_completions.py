"""`POST /v1/completions` and its neighbours, of a gateway process before a real server."""

import json
from collections.abc import Iterator

import httpx
import pytest
from gateways import run_gateway
from random_models import LETTERS, make_run, save_bundle
from servers import run_server

from rill.client.seeds import seed_of


@pytest.fixture(scope="module")
def http(gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, headers={"content-type": "application/json"}) as client:
        yield client


def events_of(answer):
    """The chunks of a stream of events, and what stands at its end."""
    data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    end = data.pop() if data[-1] == "[DONE]" else None
    return [json.loads(one) for one in data], end


@pytest.fixture(scope="module")
def post(http):
    def send(**fields):
        return http.post("/v1/completions", content=json.dumps(fields))

    return send


def generated(server, prompt="", **parameters):
    with server.client() as client:
        return "".join(client.generate(prompt, **parameters))


def test_a_text_is_the_servers(post, server):
    answer = post(prompt="the ", seed=7).json()
    (choice,) = answer["choices"]
    assert choice["text"] == generated(server, "the ", seed=7, max_chars=16)
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}


def test_events_join_to_the_text(post, server):
    answer = post(prompt="the ", seed=7, max_tokens=300, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks, end = events_of(answer)
    assert end == "[DONE]"
    *chunks, last = chunks
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == generated(server, "the ", seed=7, max_chars=300)
    assert len(chunks[0]["choices"][0]["text"]) == 1  # at once
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 300, "total_tokens": 304}


def test_a_token_continues_the_text(post, server):
    whole = generated(server, "the ", seed=7, max_chars=40)
    first = post(prompt="the ", seed=7, max_tokens=15).json()
    rest = post(resume_token=first["rill"]["resume_token"], max_tokens=25).json()
    assert first["choices"][0]["text"] + rest["choices"][0]["text"] == whole
    assert first["rill"]["seed"] == rest["rill"]["seed"] == "7"
    assert rest["rill"]["position"] == 40


def test_samples_have_the_seeds_of_the_contract(post, server):
    answer = post(prompt=["the ", "cat"], n=2, seed=7).json()
    seeds = [7, seed_of(7, 1), seed_of(7, 1), seed_of(seed_of(7, 1), 1)]
    prompts = ["the ", "the ", "cat", "cat"]
    texts = [generated(server, prompt, seed=seed, max_chars=16) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["rill"]["seed"] for choice in answer["choices"]] == list(map(str, seeds))


def test_a_field_that_is_wrong_is_named(post):
    answer = post(prompt="the ", temperature="hot")
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": 'temperature must be a number from 0 to 3.4e38, not "hot"',
        "type": "invalid_request_error",
        "param": "temperature",
        "code": None,
    }


def test_a_bias_names_symbols_that_the_model_has(post):
    """Not one beyond the last, which is no fault of the gateway's."""
    answer = post(prompt="the ", logit_bias={"56": 1, "57": 1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logit_bias"
    assert "57 is not the id of a symbol; those of the model are 0 to 56" in answer.json()["error"]["message"]


def test_an_echo_has_the_log_probabilities_of_a_score(post, server, http):
    """As lm-eval asks: ids that begin with the start symbol, and one more symbol."""
    text = "the cat sat"
    ids = http.post("/tokenize", json={"prompt": "\n" + text}).json()["tokens"]
    answer = post(prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234)
    (choice,) = answer.json()["choices"]
    logprobs = choice["logprobs"]
    with server.client() as client:
        expected = [logprob for message in client.score(text) for logprob in message.logprobs]
    assert choice["text"][:-1] == "\n" + text
    assert logprobs["token_logprobs"][1:-1] == expected
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert [choice["text"][at] for at in logprobs["text_offset"]] == logprobs["tokens"]
    assert all(
        top[symbol] == logprob
        for symbol, logprob, top in zip(
            logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        )
    )


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_reads_and_continues(post, server, stream):
    fields = {"prompt": "the ", "echo": True, "logprobs": 2, "seed": 7, "max_tokens": 30}
    answer = post(stream=stream, **fields)
    chunks = events_of(answer)[0] if stream else [answer.json()]
    choices = [chunk["choices"][0] for chunk in chunks]
    text = "".join(choice["text"] for choice in choices)
    assert text == "the " + generated(server, "the ", seed=7, max_chars=30)
    offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
    tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    assert offsets == list(range(34))
    assert tokens == list(text)


def test_an_echo_of_no_more_than_the_prompt_gives_its_state(post, server):
    answer = post(prompt="the ", echo=True, max_tokens=0).json()
    assert answer["choices"][0]["text"] == "the "
    assert answer["usage"]["completion_tokens"] == 0
    rest = post(resume_token=answer["rill"]["resume_token"], seed=7).json()
    assert rest["choices"][0]["text"] == generated(server, "the ", seed=7, max_chars=16)


def test_the_best_have_the_highest_mean(post):
    answer = post(prompt="the ", n=5, seed=7, logprobs=0, temperature=2).json()
    means = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 16 for choice in answer["choices"]}
    best = post(prompt="the ", n=2, best_of=5, seed=7, temperature=2).json()
    assert [choice["text"] for choice in best["choices"]] == sorted(means, key=means.get, reverse=True)[:2]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["choices"][0]["logprobs"] is None
    assert best["usage"] == {"prompt_tokens": 4, "completion_tokens": 80, "total_tokens": 84}


def test_ids_are_as_good_as_text(post, http):
    ids = http.post("/tokenize", json={"prompt": "the "}).json()["tokens"]
    by_text = post(prompt="the ", seed=7, return_token_ids=True).json()["choices"][0]
    by_ids = post(prompt=ids, seed=7, return_token_ids=True).json()["choices"][0]
    assert by_ids["text"] == by_text["text"]
    assert by_ids["prompt_token_ids"] == by_text["prompt_token_ids"] == ids
    back = http.post("/detokenize", json={"tokens": by_ids["token_ids"]}).json()
    assert back == {"prompt": by_ids["text"]}


def test_a_bias_is_by_id_and_minus_100_bans(post, http, server):
    symbols = {"a": 0, "e": 0}
    for symbol in symbols:
        symbols[symbol] = http.post("/tokenize", json={"prompt": symbol}).json()["tokens"][0]
    bias = {str(symbols["a"]): -100, str(symbols["e"]): 2.5}
    text = post(prompt="the ", seed=7, max_tokens=200, logit_bias=bias).json()["choices"][0]["text"]
    expected = generated(server, "the ", seed=7, max_chars=200, logit_bias={"a": float("-inf"), "e": 2.5})
    assert text == expected
    assert "a" not in text


def test_prompt_logprobs_are_as_with_vllm(post, server):
    choice = post(prompt="the ", prompt_logprobs=2, seed=7).json()["choices"][0]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    for symbol, entry in zip("he ", rest, strict=True):
        assert symbol in [one["decoded_token"] for one in entry.values()]
        assert 2 <= len(entry) <= 3
        assert {1, 2} <= {one["rank"] for one in entry.values()}


def test_stop_strings_end_a_text(post, server):
    whole = generated(server, "the ", seed=7, max_chars=100)
    stop = whole[10:12]
    before = whole[: whole.index(stop)]
    for with_stop in (False, True):
        answer = post(prompt="the ", seed=7, max_tokens=100, stop=stop, include_stop_str_in_output=with_stop).json()
        assert answer["choices"][0]["text"] == before + stop * with_stop
        assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("seed", [2**64 - 1, str(2**64 - 1)])
def test_a_seed_has_64_bits(post, server, seed):
    answer = post(prompt="the ", seed=seed).json()
    assert answer["choices"][0]["text"] == generated(server, "the ", seed=2**64 - 1, max_chars=16)
    assert answer["rill"]["seed"] == str(2**64 - 1)


def test_fields_without_effect_and_nulls_are_accepted(post):
    plain = post(prompt="the ", seed=7).json()["choices"][0]["text"]
    extras = {
        **dict.fromkeys(("stop", "logprobs", "logit_bias", "best_of", "suffix", "stream_options", "response_format")),
        "user": "me",
        "ignore_eos": True,
        "frequency_penalty": 0.0,
        "presence_penalty": -0.0,
        "n": 1,
        "top_k": -1,
        "min_tokens": 16,
        "store": False,
        "logit_bias": {},
        "stop": [],
        "top_p": 1,
        "min_p": 0,
        "temperature": 1.0,
    }
    assert post(prompt="the ", seed=7, **extras).json()["choices"][0]["text"] == plain


@pytest.mark.parametrize(
    ("fields", "param", "begin"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is not supported"),
        ({"presence_penalty": -1}, "presence_penalty", "presence_penalty is not supported"),
        ({"suffix": "end"}, "suffix", "suffix is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format of type json_object is not"),
        ({"messages": [{"role": "user"}]}, "messages", "messages is not supported"),
        ({"temperatur": 1}, "temperatur", 'unknown field "temperatur"; do you mean "temperature"?'),
        ({"stream": "true"}, "stream", 'stream must be true or false, not "true"'),
        ({"n": 1.5}, "n", "n must be a whole number, not 1.5"),
        ({"n": True}, "n", "n must be a whole number, not true"),
        ({"n": 0}, "n", "n must be from 1 to 128, not 0"),
        ({"best_of": 1, "n": 2}, "best_of", "best_of must be at least n"),
        ({"best_of": 2, "stream": True}, "best_of", "best_of must not be larger than n with stream"),
        ({"logprobs": 21}, "logprobs", "logprobs must be from 0 to 20, not 21"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1 without echo"),
        ({"max_tokens": 10**9}, "max_tokens", "max_tokens is 1000000000; without stream: true"),
        ({"seed": -1}, "seed", "seed must be from 0 to 2^64 - 1, not -1"),
        ({"seed": 2**64}, "seed", "seed must be from 0 to 2^64 - 1"),
        ({"seed": "seven"}, "seed", 'seed must be a whole number, not "seven"'),
        ({"stop": ""}, "stop", "stop[0] is empty"),
        ({"stop": 5}, "stop", "stop must be a text or a list of texts, not 5"),
        ({"stop": ["x"] * 33}, "stop", "stop has 33 texts; at most 32 are allowed"),
        ({"stop": [5] * 33}, "stop", "stop has 33 texts; at most 32 are allowed"),
        ({"logit_bias": dict.fromkeys(map(str, range(65_537)), 1)}, "logit_bias", "logit_bias has 65537 symbols"),
        ({"logit_bias": {"a": 1}}, "logit_bias", 'logit_bias: "a" is not the id of a symbol'),
        ({"logit_bias": [1]}, "logit_bias", "logit_bias must be an object, not a list"),
        ({"prompt": []}, "prompt", "prompt is an empty list"),
        ({"prompt": {"a": 1}}, "prompt", "prompt must be a text, a list of texts"),
        ({"prompt": [1, "a"]}, "prompt", 'prompt[1] must be a whole number, not "a"'),
        ({"prompt": ["a", 1]}, "prompt", "prompt[1] must be a text, not 1"),
        ({"prompt": [[0], [9999]]}, "prompt", "prompt[1][0] is 9999; the ids of the model's symbols are 0 to"),
        ({"prompt": [-1]}, "prompt", "prompt[0] is -1; the ids"),
        ({"prompt": "the €"}, "prompt", "prompt: character '€' (U+20AC) at position 4 is not in the model's"),
        ({"prompt": ["a", "the €"], "stream": True}, "prompt", "prompt[1]: character '€' (U+20AC) at position 4"),
        ({"prompt": "a\ud800"}, "prompt", "prompt has half of a surrogate pair at position 1"),
        ({"prompt": "a", "resume_token": "!"}, "resume_token", "resume_token is not base64url"),
        ({"prompt": "a", "resume_token": "AAAA"}, "resume_token", "this is not a resume token"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options is only allowed with stream"),
        ({"stream": True, "stream_options": {"usage": 1}}, "stream_options.usage", "unknown field"),
        ({"top_p": 0}, "top_p", "top_p must be a number above 0 and up to 1, not 0"),
        ({"model": 5}, "model", "model must be a text, not 5"),
        ({"prompt": ["a"] * 100, "n": 100}, "n", "10000 texts are requested"),
    ],
)
def test_what_cannot_be_done_is_named(post, fields, param, begin):
    answer = post(**fields)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["message"].startswith(begin)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_an_unknown_model_is_not_found(post, http):
    answer = post(prompt="a", model="gpt-4")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "no model 'gpt-4' is served here; the models are 'tiny'"
    assert http.get("/v1/models/gpt-4").json()["error"]["code"] == "model_not_found"
    assert http.get("/v1/models/tiny").json()["id"] == "tiny"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty; it must be a JSON object"),
        (b"[]", "the body must be a JSON object, not []"),
        (b'{"n": NaN}', "the body is not JSON: NaN is not a number there"),
        (b'{"n": -Infinity}', "the body is not JSON: -Infinity is not a number there"),
        (b'{"n": 1, "n": 2}', 'the body has "n" twice'),
        (b'{"temperature": 1e999}', "temperature must be a number from 0 to 3.4e38, not a number beyond all floats"),
        (b'{"n": 1' + b"0" * 5000 + b"}", "the body has a number with more than 4,300 digits"),
        (b'{"n": 1' + b"0" * 400 + b"}", "n must be from 1 to 128, not 2^1328 or more"),
        (b'{"a": ' + b"[" * 100_000, "the body is nested too deep"),
        (b'{"prompt": "\xff"}', "the body is not UTF-8: invalid start byte at byte 12"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "the body begins with a byte order mark; JSON has none"),
        (b'{"prompt": "a"', "the body is not JSON: Expecting ',' delimiter at character 14"),
        (b'{"\\ud800": 1}', None),
    ],
)
def test_a_body_that_is_not_json_is_refused(http, body, message):
    answer = http.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert message is None or answer.json()["error"]["message"] == message


def test_a_score_is_the_servers(http, server):
    text = "the cat sat"
    with server.client() as client:
        messages = list(client.score(text, top_logprobs=2, as_prompt=True))
    answer = http.post("/v1/score", json={"text": text, "top_logprobs": 2, "as_prompt": True}).json()
    expected = [logprob for message in messages for logprob in message.logprobs]
    assert answer["logprobs"] == [None, *expected[1:]]
    assert answer["top_logprobs"][0] is None
    assert all(len(top) == 2 for top in answer["top_logprobs"][1:])
    total = messages[-1].total
    assert (answer["chars"], answer["bits_per_char"]) == (total.chars, total.bits_per_char)
    streamed = http.post("/v1/score", json={"text": text, "stream": True, "as_prompt": True})
    chunks, end = events_of(streamed)
    assert end == "[DONE]"
    assert [logprob for chunk in chunks for logprob in chunk["logprobs"]] == answer["logprobs"]
    assert chunks[-1]["perplexity"] == total.perplexity


def test_the_tokenizer_names_its_start(http):
    info = http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("\n", "\n")
    answer = http.post("/tokenize", json={"prompt": "€"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/responses", "input")])
def test_a_chat_is_refused_with_what_to_use_instead(gateway, path, field):
    answer = httpx.post(f"{gateway.url}{path}", json={"model": "tiny", field: []})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert answer.json()["error"]["message"].endswith("send the text as prompt to /v1/completions")


def test_an_unknown_symbol_is_a_character_that_is_read_as_it(tmp_path):
    """lm-eval cuts a text, and sends what the ids stand for: "<unk>" would be read as five symbols."""
    save_bundle(make_run(("<unk>", *LETTERS)), tmp_path / "tiny")
    with run_server(tmp_path / "tiny") as server, run_gateway(server.target) as gateway:
        text = "a€b"
        for _ in range(2):
            ids = httpx.post(f"{gateway.url}/tokenize", json={"prompt": text}).json()["tokens"]
            assert len(ids) == 3
            assert ids[1] == 0
            text = httpx.post(f"{gateway.url}/detokenize", json={"tokens": ids}).json()["prompt"]
        assert text == "a\ufffdb"
