"""Call a gateway as programs of OpenAI's package do, and print what came back as JSON: `openai_calls.py URL MODEL`."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

import openai

URL, MODEL = sys.argv[1:3]
COMMON: dict[str, Any] = {"model": MODEL, "prompt": "a man ", "temperature": 0.7, "seed": 7}
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=30)


def listed() -> Any:
    """List the models, and look one of them up."""
    found = client.models.list().data
    return [(model.id, model.object, client.models.retrieve(model.id).id) for model in found]


def whole() -> Any:
    """Get a text in one answer."""
    answer = client.completions.create(**COMMON, max_tokens=80)
    return {**answer.model_dump(), "request_id": answer._request_id}


def streamed() -> Any:
    """Get the same text as a stream, with its usage."""
    options: Any = {"include_usage": True}
    with client.completions.create(**COMMON, max_tokens=80, stream=True, stream_options=options) as chunks:
        return [chunk.model_dump() for chunk in chunks]


def default_length() -> Any:
    """Say nothing but the prompt."""
    return client.completions.create(model=MODEL, prompt="a").model_dump()


def largest_seed() -> Any:
    """Use all 64 bits of a seed."""
    return client.completions.create(**{**COMMON, "seed": 2**64 - 1}, max_tokens=80).choices[0].text


def logprobs() -> Any:
    """Ask for the log-probabilities of what is generated."""
    return client.completions.create(**COMMON, max_tokens=20, logprobs=3).choices[0].model_dump()


def streamed_logprobs() -> Any:
    """Ask for the same in a stream."""
    chunks = client.completions.create(**COMMON, max_tokens=20, logprobs=3, stream=True)
    return [chunk.choices[0].model_dump() for chunk in chunks]


def echo() -> Any:
    """Ask for the prompt and its log-probabilities."""
    return client.completions.create(**COMMON, max_tokens=1, logprobs=1, echo=True).choices[0].model_dump()


def several() -> Any:
    """Ask for three texts of each of two prompts."""
    answer = client.completions.create(**{**COMMON, "prompt": ["a", "the "]}, max_tokens=30, n=3)
    return answer.model_dump()


def best() -> Any:
    """Ask for the best of four."""
    return client.completions.create(**COMMON, max_tokens=30, n=2, best_of=4).model_dump()


def several_streamed() -> Any:
    """Ask for three texts in one stream; collect each."""
    texts: dict[int, str] = {}
    for chunk in client.completions.create(**COMMON, max_tokens=30, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return [texts[index] for index in sorted(texts)]


def stopped() -> Any:
    """Stop before a text, and behind it."""
    usual = client.completions.create(**COMMON, max_tokens=400, stop=["e", "Q"])
    included = client.completions.create(
        **COMMON, max_tokens=400, stop="e", extra_body={"include_stop_str_in_output": True}
    )
    return [usual.choices[0].model_dump(), included.choices[0].model_dump()]


def banned() -> Any:
    """Ban two symbols by their ids, and keep the rest of the parameters that only vLLM has."""
    bias: Any = {"0": -100, "1": -100.0}
    extra = {"top_k": 20, "min_p": 0.01, "ignore_eos": True}
    return client.completions.create(**COMMON, max_tokens=80, logit_bias=bias, extra_body=extra).choices[0].text


def ids() -> Any:
    """Give the prompt as symbol ids."""
    body = json.dumps({"model": MODEL, "prompt": COMMON["prompt"]}).encode()
    with urlopen(Request(f"{URL}/tokenize", body, {"Content-Type": "application/json"})) as answer:
        tokens = json.load(answer)["tokens"]
    return client.completions.create(**{**COMMON, "prompt": tokens}, max_tokens=80).choices[0].text


def continued() -> Any:
    """Continue from the resume token of an answer."""
    first = client.completions.create(**COMMON, max_tokens=40)
    token = first.rill["resume_token"]
    rest = client.completions.create(model=MODEL, prompt="", max_tokens=40, extra_body={"resume_token": token})
    return first.choices[0].text + rest.choices[0].text


def matched() -> Any:
    """Ask for texts that match, in the ways of vLLM and of OpenAI, whole and streamed."""
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": {"type": "boolean"}}}
    bodies: list[dict[str, Any]] = [
        {"structured_outputs": {"regex": "[a-c]{5}"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"json": {"enum": [True, False]}}},
        {"guided_regex": "[a-c]{5}"},
        {"response_format": schema},
    ]
    found = []
    for body in bodies:
        answer = client.completions.create(**COMMON, extra_body=body)
        chunks = list(client.completions.create(**COMMON, extra_body=body, stream=True))
        streamed = "".join(chunk.choices[0].text for chunk in chunks)
        rill: Any = [answer.rill, chunks[-1].rill]  # type: ignore[attr-defined]
        found.append([answer.choices[0].model_dump(), streamed, [one["matches"] for one in rill]])
    return found


def left() -> Any:
    """Leave a stream without an end."""
    with client.completions.create(**COMMON, max_tokens=10**9, stream=True) as chunks:
        return next(iter(chunks)).choices[0].text


def refused() -> Any:
    """Ask for what cannot be done; return the class of each error, with what it says."""
    calls: dict[str, Callable[[], Any]] = {
        "model": lambda: client.completions.create(**{**COMMON, "model": "gpt-3.5-turbo-instruct"}),
        "no such model": lambda: client.models.retrieve("davinci"),
        "temperature": lambda: client.completions.create(**{**COMMON, "temperature": -1}),
        "top_p": lambda: client.completions.create(**COMMON, top_p=0),
        "seed": lambda: client.completions.create(**{**COMMON, "seed": -1}),
        "prompt": lambda: client.completions.create(**{**COMMON, "prompt": "a\x01"}),
        "suffix": lambda: client.completions.create(**COMMON, suffix="end"),
        "presence_penalty": lambda: client.completions.create(**COMMON, presence_penalty=0.5),
        "frequency_penalty": lambda: client.completions.create(**COMMON, frequency_penalty=-1),
        "logprobs": lambda: client.completions.create(**COMMON, logprobs=21),
        "logit_bias": lambda: client.completions.create(**COMMON, logit_bias={"99999": 1}),
        "response_format": lambda: client.completions.create(
            **COMMON, extra_body={"response_format": {"type": "json_object"}}
        ),
        "structured_outputs.grammar": lambda: client.completions.create(
            **COMMON, extra_body={"structured_outputs": {"grammar": "root ::= 'a'"}}
        ),
        "structured_outputs.regex": lambda: client.completions.create(
            **COMMON, extra_body={"structured_outputs": {"regex": "(a"}}
        ),
        "resume_token": lambda: client.completions.create(
            model=MODEL, prompt="", extra_body={"resume_token": "bm8gdG9rZW4"}
        ),
        "chat": lambda: client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}]),
        "responses": lambda: client.responses.create(model=MODEL, input="a"),
        "streamed": lambda: client.completions.create(**{**COMMON, "temperature": -1}, stream=True),
    }
    return {name: error_of(call) for name, call in calls.items()}


def error_of(call: Callable[[], Any]) -> Any:
    """Return what a call raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "param": error.param,
            "code": error.code,
            "type": error.type,
            "message": error.body["message"] if isinstance(error.body, dict) else str(error.body),
            "request_id": error.request_id,
        }
    return None


def at_once() -> Any:
    """Read eight streams at once with the asynchronous client, each with a seed of its own."""

    async def read(other: openai.AsyncOpenAI, seed: int) -> str:
        stream = await other.completions.create(**{**COMMON, "seed": seed}, max_tokens=50, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as other:
            return await asyncio.gather(*(read(other, seed) for seed in range(8)))

    return asyncio.run(run())


CALLS = [
    *(listed, whole, streamed, default_length, largest_seed, logprobs, streamed_logprobs, echo, several, best),
    *(several_streamed, stopped, banned, ids, continued, matched, left, refused, at_once),
]


def main() -> None:
    """Make each call; one that fails says why in its place."""
    results = {}
    for call in CALLS:
        try:
            results[call.__name__] = call()
        except Exception as error:
            results[call.__name__] = f"{type(error).__name__}: {error}"
    json.dump(results, sys.stdout)


main()
