"""A real server among hostile clients: raw bytes, broken connections, cancelled calls; valid streams beside them."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random

import grpc
import grpc.aio
import psutil
from fuzz_inputs import message, mutated
from servers import Server

from rill.client.errors import ServerError
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

ARGUMENTS = (
    "--max-streams",
    64,
    "--max-waiting",
    8,
    "--max-prompt",
    5000,
    "--max-score-chars",
    20_000,
)  # of the server
HOSTILE = 12  # at once
MORE_THREADS, MORE_FILES, MORE_BYTES = 20, 20, 300 * 2**20  # that the server may have afterwards

Code = grpc.StatusCode
# What rill.proto documents, and what becomes of a call that its client gives up.
DOCUMENTED = {
    *(Code.OK, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED),
    *(Code.CANCELLED, Code.DEADLINE_EXCEEDED),
}
NO_METHOD = {Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED}
NOT_WRITTEN = "Internal error from Core"  # what grpc.aio says in place of the status if a call ends while it writes
SERVICE = "/rill.v1.TextGeneration/"
UNARY = {"Generate": pb.GenerateRequest, "Score": pb.ScoreRequest, "ListModels": pb.ListModelsRequest}
UNKNOWN_METHODS = (SERVICE, f"{SERVICE}generate", f"{SERVICE}Generate/", "/rill.v2.TextGeneration/Generate", "/", "/x")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Fuzzing:
    """`calls` hostile ones to `server`; `answers` counts what came of them. Raises AssertionError."""

    def __init__(self, server: Server, calls: int, random: Random) -> None:
        self._server, self._left, self._random = server, calls, random
        self.answers: Counter[str] = Counter()
        self.tokens = [b"", b"x"]

    async def run(self) -> None:
        process = psutil.Process(self._server.process.pid)
        async with grpc.aio.insecure_channel(self._server.target) as channel:
            stub = TextGenerationStub(channel)
            before = [await one(stub, self.tokens) for one in STREAMS]
            self.tokens += [mutated(self._random, self.tokens[-1], self.tokens) for _ in range(5)]
            threads, files, size = process.num_threads(), process.num_fds(), process.memory_info().rss
            async with asyncio.TaskGroup() as group:
                for one, text in zip(STREAMS, before, strict=True):
                    group.create_task(self._again_and_again(stub, one, text))
                for _ in range(HOSTILE):
                    group.create_task(self._attack())
            await self._is_idle(stub)
        async with asyncio.timeout(20):  # the transport closes its connections in its own time
            while process.num_fds() > files + MORE_FILES or process.num_threads() > threads + MORE_THREADS:
                await asyncio.sleep(0.1)
        more = process.memory_info().rss - size
        assert more < MORE_BYTES, f"the server has {more:,} bytes more than before"

    async def _again_and_again(self, stub, one, text: list[str]) -> None:
        """A valid stream until the hostile calls are through."""
        while self._left > 0:
            assert await one(stub, []) == text, "a stream has another text beside hostile calls"
            self.answers["valid streams"] += 1

    async def _is_idle(self, stub) -> None:
        async with asyncio.timeout(20):
            while True:
                models = await stub.ListModels(pb.ListModelsRequest(), timeout=20)
                if not (models.streams_running or models.streams_waiting):
                    return
                await asyncio.sleep(0.02)

    async def _attack(self) -> None:
        """One hostile call after another, over connections of its own."""
        ways = [(self._unary, 8), (self._conversation, 6), (self._unknown_method, 1), (self._connection, 1)]
        while self._left > 0:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(self._server.target, options) as channel:
                for _ in range(50):
                    if self._left <= 0:
                        return
                    self._left -= 1
                    (way,) = self._random.choices(*zip(*ways, strict=True))
                    await way(channel)

    def _request(self, kind) -> bytes:
        random = self._random
        if kind is pb.GenerateRequest and random.random() < 0.3:  # valid: what it leaves behind is in nobody's way
            bias = {letter: random.uniform(-5, 5) for letter in random.sample("abcde ", 3)}
            sampling = pb.Sampling(seed=1, top_p=random.choice((0.5, 1)), logit_bias=bias)
            return kind(prompt="abc", max_chars=100, sampling=sampling, stop=["abc"]).SerializeToString()
        made = message(random, kind, self.tokens)
        for name, value in (("max_chars", 100), ("chars_per_second", 1000)):
            if name in kind.DESCRIPTOR.fields_by_name and random.random() < 0.7:
                setattr(made, name, value)
        if "model" in kind.DESCRIPTOR.fields_by_name and random.random() < 0.9:
            made.ClearField("model")
        data = made.SerializeToString()
        return mutated(random, data, [data]) if random.random() < 0.3 else data

    def _metadata(self) -> list[tuple[str, str | bytes]]:
        random = self._random
        if random.random() < 0.8:
            return []
        keys = ("x", "authorization", "rill-numerics", "grpc-previous-rpc-attempts", "x-bin", "user-agent", "te")
        size = random.choice((0, 1, 100, 3000))
        return [
            (key, random.randbytes(size) if key.endswith("-bin") else "".join(random.choices("ab~!%", k=size)))
            for key in random.choices(keys, k=random.choice((1, 2, 20)))
        ]

    async def _unary(self, channel: grpc.aio.Channel) -> None:
        """Bytes to a method that takes one message; some with none, or two."""
        name = self._random.choice(list(UNARY))
        messages = [self._request(UNARY[name]) for _ in range(self._random.choices((0, 1, 2), (1, 40, 1))[0])]
        if len(messages) == 1:
            await self._watch(name, partial(channel.unary_stream(SERVICE + name), *messages), messages, [])
        else:
            await self._watch(name, channel.stream_stream(SERVICE + name), messages, messages)

    async def _conversation(self, channel: grpc.aio.Channel) -> None:
        actions = [pb.InteractRequest(open=pb.InteractRequest.Open()).SerializeToString()]
        if self._random.random() < 0.3:
            actions = [self._request(pb.InteractRequest)]
        actions += [self._action() for _ in range(self._random.choice((0, 1, 3, 10)))]
        half_close = self._random.random() < 0.7
        await self._watch("Interact", channel.stream_stream(f"{SERVICE}Interact"), actions, actions, half_close)

    def _action(self) -> bytes:
        kind = pb.InteractRequest
        valid = (
            kind(feed="ab"),
            kind(generate=kind.Generate(max_chars=20)),
            kind(generate=kind.Generate(stop=["a", "e "], chars_per_second=2000)),
            kind(pause=kind.Pause()),
            kind(snapshot=kind.Snapshot()),
            kind(update=pb.Sampling(temperature=0.5, top_k=3)),
        )
        return self._random.choice(valid).SerializeToString() if self._random.random() < 0.8 else self._request(kind)

    async def _unknown_method(self, channel: grpc.aio.Channel) -> None:
        name = self._random.choice(UNKNOWN_METHODS)
        await self._watch("unknown", partial(channel.unary_stream(name), b""), [], [], documented=NO_METHOD)

    async def _watch(
        self,
        name: str,
        begin: Callable[..., grpc.aio.Call],
        said: list[bytes],
        written: list[bytes],
        half_close: bool = True,
        documented: set[Code] = DOCUMENTED,
    ) -> None:
        """One call: up to its end, or up to where its client loses interest. What is not `written` it begins with."""
        random = self._random
        most, seconds, metadata = random.choice((0, 1, 5, 500)), random.choice((0.02, 0.3, 2.0)), self._metadata()
        call = begin(timeout=seconds, metadata=metadata)
        try:
            for data in written:
                await call.write(data)
            if half_close and hasattr(call, "done_writing"):
                await call.done_writing()
            for _ in range(most):
                if await call.read() is grpc.aio.EOF:
                    break
            else:
                call.cancel()
        except (grpc.RpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            pass  # the call is over: its status says why
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # this task, not the call
                raise
        async with asyncio.timeout(60):
            code, details = await call.code(), await call.details()
        if details == NOT_WRITTEN:
            self.answers[f"{name} ended before all was said"] += 1
            return
        words = [data.hex() for data in said]
        assert code in documented, f"{name} {words} {metadata} for {seconds} s: {code.name}, {details}"
        self.answers[f"{name} {code.name}"] += 1

    async def _connection(self, channel: grpc.aio.Channel) -> None:
        """Bytes to the port that are no call, or a connection that is dropped."""
        random = self._random
        frame = struct.pack(
            ">IB", random.choice((0, 1, 100, 2**24 - 1)) << 8 | random.randrange(11), random.getrandbits(8)
        )
        frame += struct.pack(">I", random.choice((0, 1, 2**31, 2**32 - 1))) + random.randbytes(
            random.choice((0, 9, 100))
        )
        data = random.choice((b"", b"GET / HTTP/1.1\r\n\r\n", PREFACE, PREFACE + frame, random.randbytes(300)))
        host, _, port = self._server.target.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        if random.random() < 0.5:  # reset, not closed
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError, TimeoutError):
            writer.write(data)
            await writer.drain()
            async with asyncio.timeout(random.choice((0, 0.01, 0.1))):
                await reader.read(1000)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        self.answers["connection"] += 1


# ---- valid streams: what each returns is compared


async def _text(call, tokens: list[bytes]) -> str:
    messages = [message async for message in call]
    tokens += [message.resume_token for message in messages if message.resume_token]
    return "".join(message.text for message in messages)


async def _plain(stub, tokens: list[bytes]) -> list[str]:
    request = pb.GenerateRequest(prompt="To be", max_chars=3000, sampling=pb.Sampling(seed=7), resume_every=1000)
    return [await _text(stub.Generate(request, timeout=600), tokens)]


async def _filtered(stub, tokens: list[bytes]) -> list[str]:
    sampling = pb.Sampling(seed=2**64 - 1, temperature=1.5, top_k=5, top_p=0.9, logit_bias={"e": float("-inf")})
    request = pb.GenerateRequest(max_chars=1000, sampling=sampling, stop=["zzzz"], logprobs=2)
    return [await _text(stub.Generate(request, timeout=600), tokens)]


async def _paced(stub, tokens: list[bytes]) -> list[str]:
    request = pb.GenerateRequest(max_chars=200, chars_per_second=400, sampling=pb.Sampling(seed=1))
    return [await _text(stub.Generate(request, timeout=600), tokens)]


async def _scored(stub, tokens: list[bytes]) -> list[str]:
    asked = pb.ScoreRequest(text="To be, or not to be" * 50, as_prompt=True, top_logprobs=3)
    messages = [message async for message in stub.Score(asked, timeout=600)]
    entries = [entry for message in messages for entry in message.top]
    tokens.append(messages[-1].total.resume_token)
    request = pb.GenerateRequest(resume_token=tokens[-1], max_chars=500, sampling=pb.Sampling(seed=5))
    best = "".join(entry.alternatives[0].character for entry in entries[1:])
    return [f"{sum(entry.logprob for entry in entries[1:]):.3f}", best, await _text(stub.Generate(request), tokens)]


async def _interactive(stub, tokens: list[bytes]) -> list[str]:
    kind, call = pb.InteractRequest, stub.Interact(timeout=600)

    async def ask(**action) -> None:
        await call.write(kind(**action))

    async def text() -> str:
        words = ""
        while not (output := (await call.read()).output).finish_reason:
            words += output.text
        return words + output.text

    await ask(open=kind.Open(sampling=pb.Sampling(seed=3)))
    await ask(feed="hello")
    assert (await call.read()).HasField("opened")
    fed = await call.read()
    await ask(generate=kind.Generate(max_chars=500))
    texts = [f"{fed.fed.logprob:.4f}", await text()]
    await ask(update=pb.Sampling(temperature=0.5))
    await ask(generate=kind.Generate(max_chars=500, stop=["qqqq"]))
    texts.append(await text())
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is Code.OK
    return texts


STREAMS: list[Callable[..., Awaitable[list[str]]]] = [_plain, _filtered, _paced, _scored, _interactive]


def fuzz_server(server: Server, calls: int, random: Random) -> Counter[str]:
    """Fuzz a running server, then stop it: it ends as if nothing had been. Raises AssertionError."""
    fuzzing = Fuzzing(server, calls, random)
    try:
        asyncio.run(fuzzing.run())
        with server.client() as client:
            assert len("".join(client.generate("a", max_chars=50))) == 50
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    except (grpc.RpcError, ServerError) as error:
        raise AssertionError(f"a valid call failed: {error}") from error
    status, log = server.stop()
    assert status == 0, log[-2000:]
    assert "Traceback" not in log, log[-2000:]
    return fuzzing.answers
