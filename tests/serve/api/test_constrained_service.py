"""The tables of a model's automata: every call gives them back, however it ends, and waits for them if there are none.

A server in this process, over a real socket, whose tables have room for about 250 states.
"""

import asyncio
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from constrained import constraint_of, request_of

from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.api.service import TextGeneration
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CPU
from rill.serve.models.model import Model
from rill.serve.operate.server import listening
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

Code = grpc.StatusCode
LARGE = "[a-c]{160}"


class Small(SimpleNamespace):
    """The model, its service, and a stub."""

    async def generate(self, **fields):
        """The text of a call."""
        return "".join([message.text async for message in self.stub.Generate(request_of(**fields), timeout=60)])

    async def begun(self, **fields):
        """A call that has generated its first character, and goes on slowly."""
        call = self.stub.Generate(request_of(chars_per_second=1, **fields), timeout=60)
        await call.read()
        return call

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def is_empty(self):
        """No automaton is in use."""
        await self.until(lambda: not (self.model.automata._used_rows or self.model.automata.waiting))


async def code_of(call):
    """The status of a call, all of whose messages are read."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


@asynccontextmanager
async def running(bundle):
    model = Model(bundle, Decoder(bundle, CPU), 8, 4, 0.010)
    model.automata._most_rows = 256  # as many as there are at first
    models = SimpleNamespace(default=model, all=[model], served=[model])
    service = TextGeneration(models, ResumeTokens([bytes(32)], 0), ServerConfig(port=0))
    try:
        async with (
            listening(service, models, ServerConfig(port=0)) as (address, *_),
            grpc.aio.insecure_channel(address) as channel,
        ):
            yield Small(model=model, service=service, stub=TextGenerationStub(channel))
    finally:
        model.engine.stop()


async def test_every_call_gives_its_tables_back(tiny):
    """Complete, at its limit, cancelled, too late, and with an engine that fails."""
    async with running(tiny) as small:
        assert len(await small.generate(regex=LARGE)) == 160
        await small.is_empty()
        assert len(await small.generate(regex=LARGE, max_chars=5)) == 5
        await small.is_empty()
        call = await small.begun(regex=LARGE)
        assert small.model.automata._used_rows == 162
        call.cancel()
        await small.is_empty()
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in small.stub.Generate(request_of(regex=LARGE, chars_per_second=1), timeout=0.5):
                pass
        await small.is_empty()
        call, run = await small.begun(regex=LARGE), small.model.engine._decoder.run
        small.model.engine._decoder.run = lambda *_: 1 / 0
        assert await code_of(call) is Code.INTERNAL
        small.model.engine._decoder.run = run
        await small.is_empty()


async def test_a_call_waits_until_there_is_room(tiny):
    """First come, first served; a call that gives up leaves the line; an automaton that is there needs no more room."""
    async with running(tiny) as small:
        first = await small.begun(regex=LARGE)
        second = asyncio.create_task(small.generate(regex="[b-d]{161}"))
        await small.until(lambda: small.model.automata.waiting == 1)
        third = small.stub.Generate(request_of(regex="[b-d]{162}"))
        await small.until(lambda: small.model.automata.waiting == 2)
        assert len(await small.generate(regex=LARGE)) == 160
        third.cancel()
        await small.until(lambda: small.model.automata.waiting == 1)
        assert not second.done()
        first.cancel()
        assert len(await second) == 161
        await small.is_empty()


async def test_a_constraint_that_can_never_fit_is_refused(tiny):
    async with running(tiny) as small:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await small.generate(regex="[a-c]{300}")
        assert caught.value.code() is Code.INVALID_ARGUMENT
        await small.is_empty()


async def test_a_conversation_gives_them_back_between_generations(tiny):
    kind = pb.InteractRequest
    async with running(tiny) as small:
        call = small.stub.Interact(timeout=60)
        sampling = pb.Sampling(seed=1, constraint=constraint_of(LARGE))
        await call.write(kind(open=kind.Open(sampling=sampling)))
        await call.read()
        assert small.model.automata._used_rows == 0
        await call.write(kind(generate=kind.Generate(chars_per_second=1)))
        await call.read()
        assert small.model.automata._used_rows == 162
        await call.write(kind(update=pb.Sampling(constraint=constraint_of("[x-z]{161}"))))  # in place of the first
        await small.until(lambda: small.model.automata._used_rows == 163)
        await call.write(kind(pause=kind.Pause()))
        while not (await call.read()).HasField("paused"):
            pass
        await small.is_empty()
        assert len(await small.generate(regex="[a-d]{164}")) == 164
        call.cancel()
        await small.is_empty()


async def test_a_conversation_that_waits_for_room_can_be_paused_and_changed(tiny):
    kind = pb.InteractRequest
    async with running(tiny) as small:
        other = await small.begun(regex=LARGE)
        call = small.stub.Interact(timeout=60)
        await call.write(kind(open=kind.Open(sampling=pb.Sampling(seed=1, constraint=constraint_of("[x-z]{161}")))))
        await call.read()
        await call.write(kind(generate=kind.Generate(max_chars=7)))
        await small.until(lambda: small.model.automata.waiting == 1)
        await call.write(kind(snapshot=kind.Snapshot()))
        assert (await call.read()).snapshot.position == 0
        await small.until(lambda: small.model.automata.waiting == 1)
        await call.write(kind(pause=kind.Pause()))
        assert (await call.read()).HasField("paused")
        assert small.model.automata.waiting == 0
        await call.write(kind(generate=kind.Generate(max_chars=7)))
        await small.until(lambda: small.model.automata.waiting == 1)
        await call.write(kind(update=pb.Sampling(constraint=pb.Constraint())))
        text = ""
        while not (output := (await call.read()).output).finish_reason:
            text += output.text
        assert len(text + output.text) == 7
        await call.write(kind(update=pb.Sampling(constraint=constraint_of("[x-z]{161}"))))
        await call.write(kind(generate=kind.Generate(max_chars=7)))
        await small.until(lambda: small.model.automata.waiting == 1)
        other.cancel()
        while not (await call.read()).output.finish_reason:
            pass
        await small.until(lambda: small.model.automata._used_rows == 0)
        await call.write(kind(generate=kind.Generate()))
        call.cancel()
        await small.is_empty()


async def test_calls_that_wait_for_room_are_drained(tiny):
    async with running(tiny) as small:
        first = await small.begun(regex=LARGE)
        second = small.stub.Generate(request_of(regex="[b-d]{161}"))
        await small.until(lambda: small.model.automata.waiting == 1)
        small.service.drain()
        small.model.drain()
        assert await code_of(first) is Code.UNAVAILABLE
        assert await code_of(second) is Code.UNAVAILABLE
        await small.is_empty()
