"""A served model: its bundle, its engine, and the way of a stream from a free slot to its end."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from rill.bundle import Bundle
from rill.serve.engine.automata import Automata
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.device_turns import DeviceTurns
from rill.serve.engine.devices import numerics
from rill.serve.engine.loop import Engine
from rill.serve.engine.rows import Rows
from rill.serve.engine.states import States
from rill.serve.engine.stream import Delivery, Stream, TotalStream, WholeStream
from rill.serve.engine.text_codec import TextCodec
from rill.serve.engine.timer import StageTimer
from rill.serve.engine.types import FinishReason, Piece, StreamSpec
from rill.serve.errors import BrokenEngineError, DrainingError, EngineError
from rill.serve.models.slots import Slots
from rill.serve.observe.metrics import of_model

READERS_AT_ONCE = 8  # notified in one iteration of the event loop

log = logging.getLogger("rill")


class InFlight:
    """Counts the calls inside; `left` is set each time one leaves."""

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
    thread, which then gives the event loop. `on_broken` is called when the engine can run no more.

    A call is inside `in_flight` while it uses the model, which stays until then, even if it is replaced.

    The automaton of a constrained stream must be in `automata` when it begins (`Automata.acquire`), and stays there
    until the stream has left the engine; only a model that `supports_constraints` has such streams.
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
        timer: StageTimer | None = None,
    ) -> None:
        self.bundle, self.provider = bundle, decoder.provider
        self.numerics = numerics(decoder.provider)
        self.metrics = of_model(bundle.name)
        self.codec = TextCodec(bundle.vocabulary)
        self.supports_constraints = decoder.has_constrained
        self.automata = Automata(bundle.vocabulary)
        self.slots = Slots(slots, waiting)
        self.in_flight = InFlight()
        self._loop = loop or asyncio.get_running_loop()
        self._live: dict[int, Stream] = {}  # in the engine, by slot
        self._to_notify: deque[Stream] = deque()  # whose readers have text to read
        self._held_slots: set[int] = set()  # of calls that have not ended
        self._on_broken = on_broken
        self._draining = False
        self.engine = Engine(
            decoder,
            self.codec,
            Rows(slots, len(bundle.vocabulary), self.codec.longest, self.automata),
            States(bundle.states, slots + 1, decoder.device, decoder.device_id),  # the last slot is for padding
            self.automata,
            self._deliver,
            round_seconds,
            (device_turns or DeviceTurns()).join(),
            self._loop,
            self.metrics.ran,
            lambda: self.slots.waiting > 0,
            timer or StageTimer(),
        )

    def slot(self) -> "SlotContext":
        """A slot, as soon as one is free, for one stream after another. Entering raises WaitingLineFullError."""
        return SlotContext(self)

    async def acquire_slot(self) -> int:
        """A slot, until `release_slot`."""
        slot = await self.slots.acquire()
        self._held_slots.add(slot)
        return slot

    def release_slot(self, slot: int) -> None:
        """Begin no more streams in the slot."""
        self._held_slots.remove(slot)
        if slot not in self._live:  # else it is free when its stream has left
            self.slots.release(slot)

    def stream_in(self, slot: int, spec: StreamSpec) -> "StreamContext":
        """A live stream in a slot that has none; leaving the context ends it, whatever it is doing."""
        return StreamContext(self, Stream(spec, slot))

    async def total_in(self, slot: int, spec: StreamSpec) -> float:
        """The total of a stream with `only_total`, in a slot that has none. Raises DrainingError and EngineError."""
        stream = TotalStream(spec, slot)
        with StreamContext(self, stream):
            if await stream.end() is FinishReason.DRAINING:
                raise DrainingError("the server is shutting down; it has not read the whole text")
        return stream.total

    async def whole_in(self, slot: int, spec: StreamSpec) -> tuple[Piece, FinishReason]:
        """The text of a stream with `is_whole`, in a slot that has none, and why it ended.

        Raises DrainingError and EngineError.
        """
        stream = WholeStream(spec, slot)
        with StreamContext(self, stream):
            piece, reason = await stream.end()
        if reason is None or reason is FinishReason.DRAINING:
            raise DrainingError("the server is shutting down; it has not generated all texts")
        return piece, reason

    def begin(self, stream: Stream) -> None:
        """Let a stream join the engine."""
        if stream.spec.is_constrained:
            assert stream.spec.automaton
            self.automata.hold(stream.spec.automaton)
        self._live[stream.slot] = stream
        self.engine.join(stream)
        if self._draining:
            self.engine.finish(stream, FinishReason.DRAINING)

    def leave(self, stream: Stream) -> None:
        """End a stream, whatever it is doing, unless it has ended."""
        if self._live.get(stream.slot) is stream:
            self.engine.leave(stream)

    def mark_sent(self, stream: Stream, text: str) -> None:
        """Coded `text` has been written to the reader of `stream`: the engine may generate as much again."""
        stream.position += len(text)
        if self._live.get(stream.slot) is stream:
            self.engine.mark_read(stream, len(text))

    @property
    def parked(self) -> int:
        """Streams that wait for their reader, their pace, or their reader's next action."""
        return self.engine.parked() + len(self._held_slots - self._live.keys())

    @property
    def calls(self) -> int:
        """Calls that have not ended: they wait for a slot, generate, or have text left to send."""
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
            if stream.spec.is_constrained:
                assert stream.spec.automaton
                self.automata.release(stream.spec.automaton)
            if stream.slot not in self._held_slots:
                self.slots.release(stream.slot)
            self.in_flight.left.set()
        try:
            pieces = delivery.pieces()
        except Exception as error:  # any: a reader must not wait for text that will not come
            log.exception("the results of a round cannot be read")
            for stream in delivery.streams:
                stream.fail(EngineError(f"the results of a round cannot be read: {error}"))
            return
        for stream, piece in zip(delivery.streams, pieces, strict=True):
            stream.deliver(piece, now)
        for total_stream, total in delivery.totals.items():
            total_stream.total = total
        for stream, reason in delivery.ended.items():
            if delivery.error:
                stream.fail(delivery.error)
            elif reason:
                stream.finish(reason)
        if isinstance(delivery.error, BrokenEngineError):
            self._on_broken(delivery.error)
        if delivery.readers and not self._to_notify:
            self._loop.call_soon(self._notify_some)
        self._to_notify.extend(delivery.readers)

    def _notify_some(self) -> None:
        """Notify some readers, and the others in the next iterations of the event loop.

        With all at once an iteration took 10 ms and more, and a new call needs half a dozen iterations.
        """
        for _ in range(min(READERS_AT_ONCE, len(self._to_notify))):
            self._to_notify.popleft().notify_reader()
        if self._to_notify:
            self._loop.call_soon(self._notify_some)


# The contexts of each call are classes: generators, and asynchronous ones above all, take several times as long.


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
