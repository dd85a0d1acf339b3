"""A served model: its bundle, its engine, and the way of a stream from a free slot to its end."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rill.bundle import Bundle
from rill.serve.api.logprobs import LogprobEncoder
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.device_turns import DeviceTurns
from rill.serve.engine.devices import numerics
from rill.serve.engine.loop import Engine
from rill.serve.engine.rows import Rows
from rill.serve.engine.states import States
from rill.serve.engine.stream import Delivery, Stream
from rill.serve.engine.text_codec import TextCodec
from rill.serve.engine.types import FinishReason, StreamSpec
from rill.serve.errors import BrokenEngineError, EngineError
from rill.serve.models.slots import Slots
from rill.serve.observe.metrics import of_model

READERS_AT_ONCE = 8  # readers, in an iteration of the event loop

log = logging.getLogger("rill")


class InFlight:
    """Counts who is inside, and says when somebody `left`."""

    def __init__(self) -> None:
        self.inside, self.left = 0, asyncio.Event()

    def __enter__(self) -> None:
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1
        self.left.set()


class Model:
    """One bundle with its engine, slots and live streams; used on the event loop.

    Its rounds take turns with those of the other models on the device, by `device_turns`. It may be made in another
    thread, if that says which event loop. `on_broken` is called when it can run no more.

    A call of it is inside `call`: it stays meanwhile, even if it is replaced.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoder: Decoder,
        slots: int,
        waiting: int,
        round_seconds: float,
        device_turns: DeviceTurns | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        on_broken: Callable[[BrokenEngineError], None] = lambda error: None,
    ) -> None:
        self.bundle, self.provider = bundle, decoder.provider
        self.numerics = numerics(decoder.provider)
        self.metrics = of_model(bundle.name)
        self.codec, self.logprob_encoder = TextCodec(bundle.vocabulary), LogprobEncoder(bundle.vocabulary)
        self.slots = Slots(slots, waiting)
        rows = Rows(slots, len(bundle.vocabulary))
        names = [name for name, _ in bundle.states]
        shape = (bundle.layers, slots + 1, bundle.hidden)  # one more: padding
        states = States(names, shape, decoder.device, decoder.device_id)
        self._loop = loop or asyncio.get_running_loop()
        participant = (device_turns or DeviceTurns()).join()
        self.engine = Engine(
            decoder,
            self.codec,
            rows,
            states,
            self._deliver,
            round_seconds,
            participant,
            self._loop,
            self.metrics,
            lambda: self.slots.waiting > 0,
        )
        self._live: dict[int, Stream] = {}  # in the engine, by slot
        self._to_notify: deque[Stream] = deque()  # who has text to read
        self._held_slots: set[int] = set()  # slots of calls that are not over
        self._on_broken = on_broken
        self.in_flight = InFlight()
        self._draining = False

    def slot(self) -> "SlotContext":
        """A slot, as soon as one is free, for one stream after another. Entering raises WaitingLineFullError."""
        return SlotContext(self)

    async def acquire_slot(self) -> int:
        """A slot, until `release_slot`."""
        slot = await self.slots.acquire()
        self._held_slots.add(slot)
        return slot

    def release_slot(self, slot: int) -> None:
        """No more streams will begin in the slot."""
        self._held_slots.remove(slot)
        if slot not in self._live:  # else it is free when its stream is gone
            self.slots.release(slot)

    @asynccontextmanager
    async def stream(self, spec: StreamSpec) -> AsyncIterator[Stream]:
        """A live stream, as soon as a slot is free, as with `stream_in`. Raises WaitingLineFullError."""
        async with self.slot() as slot:
            with self.stream_in(slot, spec) as stream:
                yield stream

    def stream_in(self, slot: int, spec: StreamSpec) -> "StreamContext":
        """A live stream in a slot that has none; leaving the context ends it, whatever it was doing."""
        return StreamContext(self, Stream(spec, slot))

    def begin(self, stream: Stream) -> None:
        """Let a stream go into the engine."""
        self._live[stream.slot] = stream
        self.engine.join(stream)
        if self._draining:
            self.engine.finish(stream, FinishReason.DRAINING)

    def leave(self, stream: Stream) -> None:
        """Let a stream end, whatever it was doing, unless it has."""
        if self._live.get(stream.slot) is stream:
            self.engine.leave(stream)

    def mark_sent(self, stream: Stream, text: str) -> None:
        """`text` has been written to the reader of `stream`: the engine may make as much again."""
        stream.position += len(text)
        if self._live.get(stream.slot) is stream:
            self.engine.mark_read(stream, len(text))

    @property
    def parked(self) -> int:
        """Streams that wait for their reader, their pace, or what their reader wants next."""
        return self.engine.parked() + len(self._held_slots - self._live.keys())

    @property
    def calls(self) -> int:
        """Calls that are not over: they wait for a slot, generate, or have text left to send."""
        return self.in_flight.inside

    async def wait_until_idle(self) -> None:
        """Wait until no call is left, and no stream in the engine."""
        while self.in_flight.inside or self._live:
            self.in_flight.left.clear()
            await self.in_flight.left.wait()

    def drain(self) -> None:
        """End all streams as DRAINING, each where it is."""
        self._draining = True
        for stream in self._live.values():
            self.engine.finish(stream, FinishReason.DRAINING)

    def _deliver(self, delivery: Delivery) -> None:
        now = time.monotonic()
        for stream in delivery.ended:
            del self._live[stream.slot]
            if stream.slot not in self._held_slots:
                self.slots.release(stream.slot)
            self.in_flight.left.set()
        try:
            pieces = delivery.pieces()
        except Exception as error:  # whatever it is, nobody waits for what will not come
            log.exception("what a round made cannot be read")
            for stream in delivery.streams:
                stream.fail(EngineError(f"what a round made cannot be read: {error}"))
            return
        for stream, piece in zip(delivery.streams, pieces, strict=True):
            stream.deliver(piece, now)
        for stream, end in delivery.ended.items():
            if delivery.error:
                stream.fail(delivery.error)
            elif end:
                stream.finish(end)
        if isinstance(delivery.error, BrokenEngineError):
            self._on_broken(delivery.error)
        if delivery.readers and not self._to_notify:
            self._loop.call_soon(self._notify_some)
        self._to_notify.extend(delivery.readers)

    def _notify_some(self) -> None:
        """Tell some readers of their texts, and the others in the next iterations of the event loop.

        With all at once, one took 10 ms and more, and a call that comes needs half a dozen of them.
        """
        for _ in range(min(READERS_AT_ONCE, len(self._to_notify))):
            self._to_notify.popleft().notify_reader()
        if self._to_notify:
            self._loop.call_soon(self._notify_some)


# The contexts of each call, as classes: generators, asynchronous ones above all, take several times as long.


class SlotContext:
    """`Model.slot`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def __aenter__(self) -> int:
        self._slot = await self._model.acquire_slot()
        return self._slot

    async def __aexit__(self, *_: object) -> None:
        self._model.release_slot(self._slot)


class StreamContext:
    """`Model.stream_in`."""

    def __init__(self, model: Model, stream: Stream) -> None:
        self._model, self._stream = model, stream

    def __enter__(self) -> Stream:
        self._model.begin(self._stream)
        return self._stream

    def __exit__(self, *_: object) -> None:
        self._model.leave(self._stream)
