"""A model of molecules over HTTP: its symbols are strings, it reads a start symbol, and end symbols end its texts."""

import json
import math
from itertools import pairwise

import httpx
import pytest
from gateways import run_gateway
from random_models import MOLECULES, make_run, save_bundle
from servers import run_server
from websockets.sync.client import connect

from rill.client.seeds import seed_of
from rill.vocabulary import LONGEST, UNKNOWN, Vocabulary

START, END = MOLECULES.start_id, MOLECULES.end_ids[0]
PROMPT = "CCl[nH]"
IDS = MOLECULES.encode(PROMPT)
ENDS, LASTS = 7, 3  # seeds: of a text that the model ends soon, and of one that it does not


@pytest.fixture(scope="module")
def molecule_gateway(molecule_server):
    with run_gateway(molecule_server.target) as running:
        yield running


@pytest.fixture(scope="module")
def http(molecule_gateway):
    with httpx.Client(base_url=molecule_gateway.url) as client:
        yield client


@pytest.fixture(scope="module")
def post(http):
    def send(path="/v1/completions", status=200, **fields):
        answer = http.post(path, json=fields)
        assert answer.status_code == status, answer.text
        return answer.json() if not fields.get("stream") else answer

    return send


def events_of(answer):
    """The chunks of a stream of events, and what stands at its end."""
    data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    end = data.pop()
    return [json.loads(one) for one in data], end


def generated(server, prompt="", **parameters):
    """A text by the client, and why it ended."""
    with server.client() as client:
        text = client.generate(prompt, **parameters)
        return "".join(text), text.finish_reason, text.position


def score(server, text, **parameters):
    with server.client() as client:
        messages = list(client.score(text, **parameters))
    return [value for message in messages for value in message.logprobs], messages[-1].total


@pytest.mark.parametrize("seed", [ENDS, LASTS])
def test_a_text_is_counted_in_symbols(post, molecule_server, seed):
    text, reason, count = generated(molecule_server, PROMPT, seed=seed, max_chars=30)
    answer = post(prompt=PROMPT, seed=seed, max_tokens=30, return_token_ids=True)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, reason.lower())
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
    assert (answer["rill"]["position"], answer["rill"]["text_position"]) == (count, len(text))
    assert (choice["prompt_token_ids"], len(choice["token_ids"])) == (IDS, count)
    assert MOLECULES.decode(choice["token_ids"]) == text
    assert count < len(text)


def test_events_say_where_they_stand(post):
    fields = {"prompt": "C", "seed": LASTS, "ignore_eos": True, "max_tokens": 300, "resume_every": 50}
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks, end = events_of(post(**fields, stream=True, stream_options=options, return_token_ids=True))
    assert end == "[DONE]"
    text, count = "", 0
    for chunk in chunks[:-1]:
        text, count = text + chunk["choices"][0]["text"], count + len(chunk["choices"][0]["token_ids"])
        assert chunk["usage"]["completion_tokens"] == count
        if "rill" in chunk:
            assert (chunk["rill"]["position"], chunk["rill"]["text_position"]) == (count, len(text))
    assert sum("resume_token" in chunk.get("rill", ()) for chunk in chunks) >= 2  # of messages that were joined
    whole = post(**fields)["choices"][0]
    assert (text, count) == (whole["text"], 300)
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["finish_reason"] == "length"


def test_a_token_continues_the_text(post):
    fields = {"prompt": "C", "seed": LASTS, "ignore_eos": True}
    whole = post(**fields, max_tokens=40)["choices"][0]["text"]
    first = post(**fields, max_tokens=15)
    rest = post(resume_token=first["rill"]["resume_token"], max_tokens=25)
    assert first["choices"][0]["text"] + rest["choices"][0]["text"] == whole
    assert (rest["rill"]["position"], rest["rill"]["text_position"]) == (40, len(whole))


def test_log_probabilities_are_of_symbols_and_of_the_end(post, molecule_server):
    choice = post(prompt=PROMPT, seed=ENDS, max_tokens=30, logprobs=2)["choices"][0]
    found = choice["logprobs"]
    with molecule_server.client() as client:
        text = client.generate(PROMPT, seed=ENDS, max_chars=30, logprobs=2)
        "".join(text)
        end = next(client.score("", resume_token=text.resume_token, include_end=True)).logprobs
    assert found["tokens"] == [*(entry.character for entry in text.logprobs), "<end>"]
    assert found["token_logprobs"] == [*(entry.logprob for entry in text.logprobs), *end]
    offsets = [*found["text_offset"], len(choice["text"])]
    assert [choice["text"][begin:end] for begin, end in pairwise(offsets)] == [*found["tokens"][:-1], ""]
    streamed, _ = events_of(post(prompt=PROMPT, seed=ENDS, max_tokens=30, logprobs=2, stream=True))
    lists = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [value for one in lists if one for value in one["token_logprobs"]] == found["token_logprobs"]


def test_no_end_is_added_where_a_stop_may_have_ended_the_text(post):
    choice = post(prompt=PROMPT, seed=LASTS, max_tokens=200, logprobs=0, stop="(", ignore_eos=True)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "<end>" not in choice["logprobs"]["tokens"]


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("around", [(), (START,), (END,), (START, END)])
def test_ids_are_scored_as_lm_eval_asks(post, molecule_server, around, max_tokens):
    """Each given id has an entry, and there is one more for each that is generated, if only the end again."""
    ids = [START] * (START in around) + IDS + [END] * (END in around)
    answer = post(prompt=[ids], echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1234)
    (choice,) = answer["choices"]
    found = choice["logprobs"]
    expected, total = score(molecule_server, PROMPT, as_prompt=True, include_end=END in around)
    scored = found["token_logprobs"][: len(ids)]
    assert scored == [None] * (START in around) + expected
    assert sum(expected) == pytest.approx(total.logprob)
    assert found["tokens"][: len(ids)] == [MOLECULES.symbols[one] for one in ids]
    assert len(found["tokens"]) == len(ids) + max_tokens
    assert choice["text"].startswith(PROMPT)
    assert answer["usage"]["prompt_tokens"] == len(IDS)
    if END in around:
        assert (choice["text"], choice["finish_reason"]) == (PROMPT, "stop")


def test_a_scored_text_that_the_model_ends_has_an_entry_for_the_end(post):
    """Programs leave out the last entry, that of the one symbol which is generated."""
    choice = post(prompt=[IDS], echo=True, logprobs=1, max_tokens=1, logit_bias={END: 100})["choices"][0]
    assert (choice["text"], choice["logprobs"]["tokens"]) == (PROMPT, ["C", "Cl", "[nH]", "<end>"])


def test_prompt_logprobs_have_each_given_id(post):
    listed = post(prompt=[START, *IDS], prompt_logprobs=1, max_tokens=1)["choices"][0]["prompt_logprobs"]
    assert listed[0] is None
    assert [str(one) in entry for one, entry in zip(IDS, listed[1:], strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": "CC[nX]"}, "prompt", "prompt: character '[' (U+005B) at position 2 does not begin a symbol"),
        ({"prompt": ["C", "<start>"]}, "prompt", "prompt[1]: character '<' (U+003C) at position 0 does not begin"),
        (
            {"prompt": [7, END]},
            "prompt",
            'prompt[1] is 16, the end symbol "<end>": it can only be the last of a prompt',
        ),
        ({"prompt": [7, START]}, "prompt", 'prompt[1] is 0, the start symbol "<start>": it can only be the first'),
        ({"prompt": [7, 17]}, "prompt", "prompt[1] is 17; the ids of the model's symbols are 0 to 16"),
        ({"logit_bias": {"17": 1}}, "logit_bias", "17 is not the id of a symbol"),
        ({"stop": "[nX]"}, "stop", "does not begin a symbol"),
        ({"min_tokens": 5}, "min_tokens", "min_tokens is not supported by a model with end symbols, except with"),
        ({"max_tokens": 3_000_000}, "max_tokens", "without stream: true this request may have at most"),
    ],
)
def test_what_the_model_cannot_do_is_one_sentence(post, fields, param, message):
    error = post(status=400, **fields)["error"]
    assert message in error["message"]
    assert error["param"] == param


def test_end_symbols_can_be_banned_and_forced(post):
    assert (
        post(prompt="C", seed=ENDS, max_tokens=200, ignore_eos=True, min_tokens=200)["usage"]["completion_tokens"]
        == 200
    )
    banned = post(prompt="C", seed=ENDS, max_tokens=200, logit_bias={str(END): -100})["choices"][0]
    assert banned["finish_reason"] == "length"
    forced = post(prompt="C", logit_bias={str(END): 100, str(START): 100})["choices"][0]
    assert (forced["text"], forced["finish_reason"]) == ("", "stop")


def test_a_stop_ends_at_a_symbol(post, molecule_server):
    expected, reason, count = generated(
        molecule_server, seed=LASTS, stop="Cl", max_chars=300, logit_bias={"<end>": -math.inf}
    )
    assert (reason, "Cl" in expected) == ("STOP", False)
    answer = post(seed=LASTS, stop="Cl", max_tokens=300, ignore_eos=True)
    assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == (expected, count)
    kept = post(seed=LASTS, stop="Cl", max_tokens=300, ignore_eos=True, include_stop_str_in_output=True)
    assert kept["choices"][0]["text"] == expected + "Cl"


def test_samples_and_the_best_of_them(post, molecule_server):
    answer = post(prompt=["C", "N"], n=2, seed=5, max_tokens=40)
    seeds = [5, seed_of(5, 1), seed_of(5, 1), seed_of(seed_of(5, 1), 1)]
    expected = [
        generated(molecule_server, prompt, seed=seed, max_chars=40) for prompt, seed in zip("CCNN", seeds, strict=True)
    ]
    assert [choice["text"] for choice in answer["choices"]] == [text for text, _, _ in expected]
    assert answer["usage"]["completion_tokens"] == sum(count for _, _, count in expected)
    best = post(prompt=PROMPT, best_of=4, seed=5, max_tokens=40)["choices"][0]["text"]
    assert best in [
        generated(molecule_server, PROMPT, seed=seed_of(5, at) if at else 5, max_chars=40)[0] for at in range(4)
    ]


def test_the_tokenizer_is_the_models(post, http):
    assert post("/tokenize", prompt=PROMPT, return_token_strs=True) == {
        "count": 3,
        "max_model_len": None,
        "tokens": IDS,
        "token_strs": ["C", "Cl", "[nH]"],
    }
    assert post("/tokenize", prompt="<end>")["tokens"] == [END]  # as clients look up its id
    assert "position 0" in post("/tokenize", status=400, prompt="<end>C")["error"]["message"]
    assert post("/detokenize", tokens=[START, *IDS, END])["prompt"] == PROMPT
    info = http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["vocab_size"]) == ("<start>", "<end>", len(MOLECULES))
    listed = http.get("/v1/models").json()["data"][0]["rill"]
    assert listed["tokenizer"] == MOLECULES.tokenizer
    assert (listed["start_symbol"], listed["end_symbols"], listed["ngrams"]) == ("<start>", ["<end>"], 1)


def test_a_score_has_the_end_and_the_lengths_of_symbols(post, molecule_server):
    expected, total = score(molecule_server, PROMPT, include_end=True)
    answer = post("/v1/score", text=PROMPT, include_end=True)
    assert (answer["logprobs"], answer["logprob"], answer["chars"]) == (expected, total.logprob, 4)
    assert answer["symbol_lengths"] == [1, 2, 4]
    chunks, _ = events_of(post("/v1/score", text=PROMPT * 3000, stream=True))
    assert [length for chunk in chunks for length in chunk["symbol_lengths"]] == [1, 2, 4] * 3000
    assert len(chunks) > 2


def test_a_conversation_is_passed_on(molecule_gateway, molecule_server):
    with molecule_server.client() as client, client.interact(seed=LASTS) as session:
        session.feed(PROMPT)
        expected = "".join(session.generate(max_chars=20))
    with connect(f"{molecule_gateway.url.replace('http', 'ws')}/v1/interact", proxy=None) as socket:
        for action in (
            {"open": {"sampling": {"seed": str(LASTS)}}},
            {"feed": PROMPT},
            {"generate": {"maxChars": "20"}},
        ):
            socket.send(json.dumps(action))
        assert "opened" in json.loads(socket.recv(timeout=20))
        assert json.loads(socket.recv(timeout=20))["fed"]["chars"] == "3"
        text, count = "", 0
        while True:
            output = json.loads(socket.recv(timeout=20))["output"]
            assert int(output.get("textPosition", 0)) == len(text)
            assert int(output.get("position", 0)) == count
            text, count = text + output.get("text", ""), count + len(output.get("symbolLengths", ()))
            assert sum(output.get("symbolLengths", ())) == len(output.get("text", ""))
            if "finishReason" in output:
                break
    assert text == expected


def test_json_of_a_hostile_text_is_refused_with_its_position(post):
    """A text that the pattern reads anew at each character; others are answered meanwhile."""
    text = ("[" + "C" * 20 + "]") * 20_000
    error = post(status=400, prompt="C" * 1000 + text)["error"]
    assert "at position 1000 does not begin a symbol" in error["message"]
    assert json.dumps(error)


def test_an_echo_has_the_characters_that_the_model_does_not_know(tmp_path):
    vocabulary = Vocabulary((UNKNOWN, "<s>", *"ab\n", "ab", "<e>"), LONGEST, "<s>", ("<e>",))
    save_bundle(make_run(vocabulary), tmp_path / "words")
    fields = {"prompt": "abéa<s>", "echo": True, "logprobs": 1, "max_tokens": 0, "return_token_ids": True}
    with run_server(tmp_path / "words") as server, run_gateway(server.target) as gateway:
        choice = httpx.post(f"{gateway.url}/v1/completions", json=fields).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == ["ab", "é", "a", "<", "s", ">"]
    assert choice["logprobs"]["text_offset"] == [0, 2, 3, 4, 5, 6]
    assert choice["prompt_token_ids"] == vocabulary.encode(fields["prompt"])
