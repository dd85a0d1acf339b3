"""Score lines, each as a text of its own, many at a time and in order. No connections here.

The loops around a `LineQueue` are in `rill.client.sync_lines` and `rill.client.aio_lines`: they add lines while there
is room, make a call for each batch that `take` returns, and pass on what `next_score` returns. Lines that are there at
the same time share a call, which costs more than a line; a line that comes alone has one for itself, at once.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from rill.client.errors import ServerError
from rill.client.origin import Origin
from rill.client.requests import checked_id
from rill.client.retry import Attempts, Backoff, FirstContact, is_full
from rill.v1 import rill_pb2 as pb

CALLS = 64  # at once: as many rows as a round of the server has on a CPU
LINES_AT_ONCE, CHARS_AT_ONCE = 16, 2048  # of a call: it reads its lines one after another
MOST_LINES = 2 * CALLS * LINES_AT_ONCE  # that wait, or whose scores wait for those before them
MOST_CHARS = 4_000_000  # likewise
AWAY_SECONDS = 1.0  # for which no call begins at an address that failed


class LineScore(NamedTuple):
    """How probable the model finds a line, or the `error` that is the reason why it has no score.

    `line` counts from 1; `symbols` are those judged: characters for most models, and the end where the model has one.
    `logprob` is their sum in nats, NaN for a line without a score.
    """

    line: int
    text: str
    symbols: int
    logprob: float
    error: str = ""

    @property
    def bits_per_symbol(self) -> float:
        """Return -log2 of the probability, by symbol; 0 for an empty line, NaN without a score."""
        return -self.logprob / self.symbols / math.log(2) if self.symbols else abs(self.logprob)


class LineBatch(Attempts):
    """Consecutive lines that share a call, which is repeated for those that have no score yet."""

    def __init__(self, first: int, texts: list[str], number: int, queue: "LineQueue") -> None:
        super().__init__(queue.addresses, queue.retry_seconds, queue.time_left(), queue.clock, queue.contact)
        self.first, self.texts, self.request_id = first, texts, checked_id("")
        self._queue, self._known, self._full = queue, 0, Backoff()
        self.address = queue.address_for(number)
        self.was_refused = False

    def request(self) -> pb.ScoreRequest | None:
        """Return the next request; None if all lines have their scores."""
        self.was_refused = False
        left = self.texts[self._known :]
        if not left:
            return None
        return pb.ScoreRequest(model=self._queue.model, include_end=self._queue.include_end, texts=left)

    def received(self, message: pb.ScoreResponse) -> None:
        """Take the scores of a message. Raises ServerError."""
        if message.HasField("total") or message.logprobs:
            raise ServerError(
                grpc.StatusCode.UNIMPLEMENTED, "the server does not know texts of a score: its version is too old"
            )
        self._queue.check_model(message.model_id)
        if self._known + len(message.totals) > len(self.texts):
            raise _data_loss("a call has more scores than lines")
        for total in message.totals:
            self._add(total.chars, math.nan if total.error else total.logprob, total.error)
        if message.totals:
            self.progressed()
            self._queue.progressed()

    def ended(self, error: grpc.RpcError | None) -> float:
        """Return the seconds to wait before the next request, now that a call ended. Raises ServerError."""
        if self._known == len(self.texts):
            self._queue.succeeded()
            return 0.0
        failure = ServerError.from_rpc(error) if error else ServerError.ended_early()
        failure.told(self.request_id)
        if _is_too_large(failure) and len(self.texts) == 1:
            self._add(0, math.nan, f"the line is longer than the server allows: {failure}")
            return 0.0
        if is_full(failure):
            self.was_refused = True
            self.address = (self.address + 1) % self._queue.addresses
            self._queue.refused(failure)
            return self._full.next(failure.retry_seconds)
        address = self.address
        delay = self.failed(failure, f"the scores of lines broke after line {self.first + self._known:,}")
        self._queue.away(address)
        return delay

    def _add(self, symbols: int, logprob: float, error: str) -> None:
        index = self.first + self._known
        self._queue.store(LineScore(index + 1, self.texts[self._known], symbols, logprob, error))
        self._known += 1


class LineQueue:
    """The lines between the caller, the calls and the caller again; for one thread at a time.

    `addresses`, `retry_seconds`, `timeout` and `contact` are those of `Attempts`. `begin` is called before `take`.
    `most_calls` run at once, or fewer where a server refuses some.
    """

    def __init__(
        self,
        model: str,
        addresses: int,
        retry_seconds: float,
        timeout: float | None,
        contact: FirstContact,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.include_end = model, False
        self.addresses, self.retry_seconds, self.contact, self.clock = addresses, retry_seconds, contact, clock
        self.failure: BaseException | None = None
        self._deadline = None if timeout is None else clock() + timeout
        self._waiting: deque[str] = deque()
        self._first_waiting = 0  # index of the first of them
        self._scores: dict[int, LineScore] = {}
        self._shown = 0  # index of the next score to be shown
        self._chars = 0  # of lines that are not shown yet
        self._is_closed = False  # no line follows
        self._failed_at = math.inf  # index of the first line without a score
        self._limit = self.most_calls = CALLS
        self._running = self._batches = self._successes = 0
        self._model_id = ""
        self._away_until: dict[int, float] = {}
        self._last_progress = clock()

    def begin(self, served: pb.ListModelsResponse, include_end: bool | None) -> None:
        """Take over what a server says of itself: how many streams it runs, and whether texts of the model end."""
        info = next((info for info in served.models if self.model in ("", info.name)), pb.ModelInfo())
        self.include_end = bool(info.end_symbols) if include_end is None else include_end
        if served.max_streams:  # earlier servers do not say it
            self._limit = self.most_calls = min(CALLS, served.max_streams)

    def time_left(self) -> float | None:
        """Return the time that is left for all lines, in seconds; None if there is no limit."""
        return None if self._deadline is None else max(self._deadline - self.clock(), 0.0)

    # ---- lines

    @property
    def has_room(self) -> bool:
        """Whether another line may be added."""
        count = self._first_waiting + len(self._waiting) - self._shown
        return not count or (count < MOST_LINES and self._chars < MOST_CHARS)

    def add(self, text: Any) -> None:
        """Add a line. Raises TypeError unless it is a str."""
        if not isinstance(text, str):
            raise TypeError(f"lines must be str, not {type(text).__name__}")
        self._waiting.append(text)
        self._chars += len(text)

    def close(self, failure: BaseException | None = None) -> None:
        """No line follows, because of `failure` if there is one, which is raised after the scores before it."""
        self._is_closed = True
        if failure:
            self.fail(self._first_waiting + len(self._waiting), failure)

    def fail(self, index: int, failure: BaseException) -> None:
        """The line with this index has no score, nor have those after it."""
        if index < self._failed_at:
            self._failed_at, self.failure = index, failure

    def next_score(self) -> LineScore | None:
        """Return the next score in order, if it is there. Raises what ended the lines, when its place has come."""
        score = self._scores.pop(self._shown, None)
        if score:
            self._shown += 1
            self._chars -= len(score.text)
        elif self.failure and self._shown >= self._failed_at:
            raise self.failure
        return score

    @property
    def is_complete(self) -> bool:
        """Whether all lines have been shown."""
        return self._is_closed and self._shown == self._first_waiting and not self._waiting

    # ---- calls

    @property
    def may_call(self) -> bool:
        """Whether one more call may run."""
        return self._running < self._limit

    @property
    def has_work(self) -> bool:
        """Whether `take` returns a batch."""
        return bool(self._waiting) and self.may_call and self._first_waiting < self._failed_at

    def take(self) -> LineBatch | None:
        """Return the next lines to be scored, as a call that runs from now on; None if there are none, or no room."""
        if not self.has_work:
            return None
        texts: list[str] = []
        chars, first = 0, self._first_waiting
        while self._waiting and len(texts) < LINES_AT_ONCE:
            text = self._waiting[0]
            problem = _unsendable(text)
            if not text or problem:
                if texts:
                    break
                self._first_waiting = first = first + 1
                self.store(LineScore(first, self._waiting.popleft(), 0, math.nan if problem else 0.0, problem))
                continue
            if texts and chars + len(text) > CHARS_AT_ONCE:
                break
            chars += len(text)
            texts.append(self._waiting.popleft())
        self._first_waiting += len(texts)
        if not texts:
            return None
        self._running += 1
        self._batches += 1
        return LineBatch(first, texts, self._batches, self)

    def pause(self) -> None:
        """A call does not run, while it waits for its next attempt or because it is complete."""
        self._running -= 1

    def unpause(self) -> None:
        """A call runs again."""
        self._running += 1

    # ---- what batches say

    def store(self, score: LineScore) -> None:
        """Keep the score of a line until its turn has come."""
        self._scores[score.line - 1] = score

    def progressed(self) -> None:
        """Note that something has arrived."""
        self._last_progress = self.clock()

    def succeeded(self) -> None:
        """A call is complete: after as many as run at a time, one more may."""
        self._successes += 1
        if self._successes > self._limit:
            self._successes, self._limit = 0, min(self._limit + 1, self.most_calls)

    def refused(self, failure: ServerError) -> None:
        """A server has no room: one call less may run. Raises the failure if nothing has arrived for too long."""
        self._limit, self._successes = max(self._limit - 1, 1), 0
        left = self.time_left()
        if self.clock() - self._last_progress >= self.retry_seconds or (left is not None and not left):
            raise failure

    def check_model(self, model_id: str) -> None:
        """Raise ServerError if a server has another model than the others."""
        if model_id and model_id != (self._model_id or model_id):
            raise _data_loss("they have different models")
        self._model_id = self._model_id or model_id

    def away(self, address: int) -> None:
        """Begin no calls at this address for a moment."""
        self._away_until[address] = self.clock() + AWAY_SECONDS

    def address_for(self, number: int) -> int:
        """Return where call `number` begins: at the addresses in turn, except those that just failed."""
        now = self.clock()
        usable = [at for at in range(self.addresses) if self._away_until.get(at, 0.0) <= now] or [0]
        return usable[number % len(usable)]


def _unsendable(text: str) -> str:
    """Return why no message can hold this text; empty if one can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at position {error.start}, which is not text"
    return ""


def _is_too_large(failure: ServerError) -> bool:
    """Tell whether gRPC refused a request for its size."""
    exhausted = failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return exhausted and failure.origin is Origin.SERVER and not is_full(failure)


def _data_loss(difference: str) -> ServerError:
    return ServerError(grpc.StatusCode.DATA_LOSS, f"the servers do not produce the same scores: {difference}")
