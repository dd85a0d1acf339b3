"""A served model: its bundle, its engine, and the way of a stream from a free slot to its end."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from export.bundle import Bundle
from serve.admission import Admission
from serve.codec import Codec
from serve.engine import Delivery, Engine
from serve.errors import BrokenEngineError, EngineError
from serve.logprobs import LogprobEncoder
from serve.metrics import of_model
from serve.rows import Rows
from serve.runtime import Decoder, numerics
from serve.states import States
from serve.stream import End, Order, Stream
from serve.turnstile import Turnstile

log = logging.getLogger("rill")


class Model:
    """One bundle with its engine, slots and live streams; used on the event loop.

    Its rounds take turns at `turnstile` with those of the other models on the device. It may be made in another thread,
    if that says which event loop. `on_broken` is called when it can run no more.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoder: Decoder,
        slots: int,
        waiting: int,
        round_seconds: float,
        turnstile: Turnstile | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        on_broken: Callable[[BrokenEngineError], None] = lambda error: None,
    ) -> None:
        self.bundle, self.provider = bundle, decoder.provider
        self.numerics = numerics(decoder.provider)
        self.metrics = of_model(bundle.name)
        self.codec, self.logprob_encoder = Codec(bundle.vocabulary), LogprobEncoder(bundle.vocabulary)
        self.admission = Admission(slots, waiting)
        rows = Rows(slots, len(bundle.vocabulary))
        names = [name for name, _ in bundle.states]
        shape = (bundle.layers, slots + 1, bundle.hidden)  # one more: padding
        states = States(names, shape, decoder.device, decoder.device_id)
        lane, loop = (turnstile or Turnstile()).lane(), loop or asyncio.get_running_loop()
        self.engine = Engine(decoder, self.codec, rows, states, self._deliver, round_seconds, lane, loop, self.metrics)
        self._live: dict[int, Stream] = {}  # in the engine, by slot
        self._held: set[int] = set()  # slots of calls that are not over
        self._on_broken = on_broken
        self._calls = 0
        self._left = asyncio.Event()  # a call is over, or a stream gone
        self._draining = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call of this model, which stays meanwhile even if it is replaced."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._left.set()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """A slot, as soon as one is free, for one stream after another. Raises WaitingLineFullError."""
        slot = await self.admission.acquire()
        self._held.add(slot)
        try:
            yield slot
        finally:
            self._held.remove(slot)
            if slot not in self._live:  # else it is free when its stream is gone
                self.admission.release(slot)

    @asynccontextmanager
    async def stream(self, order: Order) -> AsyncIterator[Stream]:
        """A live stream, as soon as a slot is free, as with `stream_in`. Raises WaitingLineFullError."""
        async with self.slot() as slot:
            with self.stream_in(slot, order) as stream:
                yield stream

    @contextmanager
    def stream_in(self, slot: int, order: Order) -> Iterator[Stream]:
        """A live stream in a slot that has none; leaving the context ends it, whatever it was doing."""
        stream = Stream(order, slot)
        self._live[slot] = stream
        self.engine.join(stream)
        if self._draining:
            self.engine.end(stream, End.DRAINING)
        try:
            yield stream
        finally:
            if self._live.get(slot) is stream:
                self.engine.leave(stream)

    def sent(self, stream: Stream, text: str) -> None:
        """`text` has been written to the reader of `stream`: the engine may make as much again."""
        stream.position += len(text)
        if self._live.get(stream.slot) is stream:
            self.engine.read(stream, len(text))

    @property
    def parked(self) -> int:
        """Streams that wait for their reader, their pace, or what their reader wants next."""
        return self.engine.parked() + len(self._held - self._live.keys())

    @property
    def calls(self) -> int:
        """Calls that are not over: they wait for a slot, generate, or have text left to send."""
        return self._calls

    async def last_call(self) -> None:
        """Wait until no call is left, and no stream in the engine."""
        while self._calls or self._live:
            self._left.clear()
            await self._left.wait()

    def drain(self) -> None:
        """End all streams as DRAINING, each where it is."""
        self._draining = True
        for stream in self._live.values():
            self.engine.end(stream, End.DRAINING)

    def _deliver(self, delivery: Delivery) -> None:
        now = time.monotonic()
        for stream in delivery.gone:
            del self._live[stream.slot]
            if stream.slot not in self._held:
                self.admission.release(stream.slot)
            self._left.set()
        try:
            pieces = delivery.pieces()
        except Exception as error:  # whatever it is, nobody waits for what will not come
            log.exception("what a round made cannot be read")
            for stream in delivery.streams:
                stream.fail(EngineError(f"what a round made cannot be read: {error}"))
            return
        for stream, piece in zip(delivery.streams, pieces, strict=True):
            stream.deliver(piece, now)
        for stream, end in delivery.gone.items():
            if delivery.error:
                stream.fail(delivery.error)
            elif end:
                stream.finish(end)
        if isinstance(delivery.error, BrokenEngineError):
            self._on_broken(delivery.error)
        for stream in delivery.readers:
            stream.tell()
