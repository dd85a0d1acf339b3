"""Texts that are cut off when the gateway drains: their tokens continue them exactly."""

import asyncio
import json
from contextlib import aclosing

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rill.client.aio import AsyncClient
from rill.gateway.api.choices import Job
from rill.gateway.api.fields import Fields
from rill.gateway.api.parameters import completion_of
from rill.gateway.api.texts import Texts
from rill.gateway.drain import Drain
from rill.gateway.served_models import ServedModels

STOPS = ["the", "at", "on the mat", "zz", ". "]


def chunks_of(events):
    data = [
        line.removeprefix("data: ") for event in events for line in event.decode().split("\n") if line[:5] == "data:"
    ]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


async def events_of(client, fields, drain_after=None):
    """Run a request; the gateway drains after so many events."""
    completion = completion_of(Fields({**fields, "stream": True}))
    model = (await ServedModels(1).fresh(client)).find("")
    drain = Drain()
    texts = Texts(Job(completion, model, client, "id", drain))
    await texts.begin()
    events = []
    try:
        async with aclosing(texts.events()) as source:
            async for event in source:
                events.append(event)
                if len(events) == drain_after:
                    drain.begin()
                    await asyncio.sleep(0)
    finally:
        await texts.aclose()
    return chunks_of(events)


def text_of(chunks, index=0):
    return "".join(one["text"] for chunk in chunks for one in chunk.get("choices", ()) if one["index"] == index)


def logprobs_of(chunks, key):
    found = [one["logprobs"] for chunk in chunks for one in chunk.get("choices", ()) if one["logprobs"]]
    return [value for lists in found for value in lists[key]]


@given(
    fields=st.fixed_dictionaries(
        {"prompt": st.sampled_from(["", "the cat", "a"]), "seed": st.integers(0, 2**64 - 1)},
        optional={
            "stop": st.lists(st.sampled_from(STOPS), min_size=1, max_size=3),
            "include_stop_str_in_output": st.booleans(),
            "logit_bias": st.dictionaries(st.integers(0, 20).map(str), st.floats(-101, 3), max_size=3),
            "logprobs": st.integers(0, 3),
            "temperature": st.floats(0, 2),
            "top_p": st.floats(0.1, 1),
            "resume_every": st.sampled_from([5, 100]),
            "echo": st.booleans(),
            "structured_outputs": st.sampled_from([{"regex": "([a-z]{1,9} )*"}, {"regex": "([A-Z][a-z]*[ .])+"}]),
        },
    ),
    drain_after=st.integers(1, 6),
)
@example({"prompt": "the cat", "seed": 7}, 1)
@settings(max_examples=12)
def test_a_cut_text_continues_exactly(server, fields, drain_after):
    async def check():
        async with AsyncClient(server.target) as client:
            whole = await events_of(client, {**fields, "max_tokens": 700})
            cut = await events_of(client, {**fields, "max_tokens": 700}, drain_after)
            assert whole[-1] == "[DONE]"
            if cut[-1] == "[DONE]":  # it was complete by then
                assert text_of(cut[:-1]) == text_of(whole[:-1])
                return
            *chunks, last, error = cut
            assert error["error"]["code"] == "draining"
            assert last["choices"][0]["finish_reason"] is None
            had = last["rill"]["position"]
            more = {"resume_token": last["rill"]["resume_token"], "max_tokens": 700 - had}
            if "logprobs" in fields:
                more["logprobs"] = fields["logprobs"]
            rest = await events_of(client, more)
        first = text_of(chunks)
        echoed = len(fields["prompt"]) if fields.get("echo") else 0
        assert len(first) == had + echoed
        assert first + text_of(rest[:-1]) == text_of(whole[:-1])
        assert rest[-2]["choices"][0]["finish_reason"] == whole[-2]["choices"][0]["finish_reason"]
        for key in ("tokens", "token_logprobs", "top_logprobs"):
            assert logprobs_of(chunks, key) + logprobs_of(rest[:-1], key) == logprobs_of(whole[:-1], key)

    asyncio.run(check())


def test_all_texts_of_a_request_are_cut_where_they_are(server):
    async def check():
        async with AsyncClient(server.target) as client:
            fields = {"prompt": ["the ", "cat"], "n": 2, "seed": 7, "max_tokens": 100_000}
            cut = await events_of(client, fields, 20)
            last = [chunk for chunk in cut if chunk.get("rill", {}).get("resume_token")]
            assert [one["choices"][0]["index"] for one in last] == [0, 1, 2, 3]
            for index, chunk in enumerate(last):
                more = {"resume_token": chunk["rill"]["resume_token"], "max_tokens": 50}
                rest = await events_of(client, more)
                had = text_of(cut, index)
                assert chunk["rill"]["position"] == len(had)
                alone = {"prompt": fields["prompt"][index // 2], "seed": int(chunk["rill"]["seed"])}
                whole = await events_of(client, {**alone, "max_tokens": len(had) + 50})
                assert had + text_of(rest[:-1]) == text_of(whole[:-1])

    asyncio.run(check())


@given(
    seed=st.integers(0, 2**64 - 1), every=st.sampled_from([5, 100]), drain_after=st.integers(1, 6), echo=st.booleans()
)
@settings(max_examples=6)
def test_a_cut_text_of_longer_symbols_continues_exactly(molecule_server, seed, every, drain_after, echo):
    prompt, most = "CCl[nH]", 700
    fields = {"prompt": prompt, "seed": seed, "resume_every": every, "echo": echo, "ignore_eos": True}

    async def check():
        async with AsyncClient(molecule_server.target) as client:
            whole = await events_of(client, {**fields, "max_tokens": most})
            *cut, last = await events_of(client, {**fields, "max_tokens": most}, drain_after)
            if last == "[DONE]":
                return
            place = cut[-1]["rill"]
            rest = await events_of(
                client, {"resume_token": place["resume_token"], "max_tokens": most - place["position"]}
            )
            text = text_of(cut)
            assert place["text_position"] == len(text) - echo * len(prompt)
            assert text + text_of(rest[:-1]) == text_of(whole[:-1])

    asyncio.run(check())
