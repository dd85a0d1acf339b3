"""A served model: its bundle, its engine, and the way of a stream from a free slot to its end."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from export.bundle import Bundle
from serve.admission import Admission
from serve.codec import Codec
from serve.engine import Delivery, Engine
from serve.errors import EngineError
from serve.logprobs import LogprobEncoder
from serve.metrics import of_model
from serve.rows import Rows
from serve.runtime import Decoder, numerics
from serve.states import States
from serve.stream import Order, Stream
from serve.turnstile import Turnstile

log = logging.getLogger("rill")


class Model:
    """One bundle with its engine, slots and live streams; used on the event loop.

    Its rounds take turns at `turnstile` with those of the other models on the device. It may be made in another thread,
    if that says which event loop.
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
        self._live: set[Stream] = set()  # in the engine
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
    async def stream(self, order: Order) -> AsyncIterator[Stream]:
        """A live stream, as soon as a slot is free; leaving the context ends it, whatever it was doing.

        Raises WaitingLineFullError.
        """
        stream = Stream(order, await self.admission.acquire())
        self._live.add(stream)
        self.engine.join(stream)
        if self._draining:
            self.engine.drain(stream)
        try:
            yield stream
        finally:
            if stream in self._live:
                self.engine.leave(stream)

    def sent(self, stream: Stream, text: str) -> None:
        """`text` has been written to the reader of `stream`: the engine may make as much again."""
        stream.position += len(text)
        if stream in self._live:
            self.engine.read(stream, len(text))

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
        for stream in self._live:
            self.engine.drain(stream)

    def _deliver(self, delivery: Delivery) -> None:
        now = time.monotonic()
        self._live -= delivery.gone.keys()
        for stream in delivery.gone:
            self.admission.release(stream.slot)
            self._left.set()
        if delivery.error:
            for stream in delivery.streams:
                stream.fail(delivery.error)
            return
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
            if end:
                stream.finish(end)
        for stream in delivery.readers:
            stream.tell()
