"""Score a text over as many calls as it takes. No connections here; the loop is that of `rill.client.failover`."""

import math
import time
from collections.abc import Callable

import grpc

from rill.client.errors import ServerError
from rill.client.retry import RETRY_SECONDS, Attempts, FirstContact
from rill.v1 import rill_pb2 as pb

TOLERANCE = 1e-3  # nats a character: servers with other numerics differ by less, other models by more


class Scoring(Attempts):
    """The log-probabilities of one text. A call that breaks is repeated, and delivered characters are skipped.

    Their repeated log-probabilities must have the same sum, within `TOLERANCE`. Methods raise ServerError.
    """

    def __init__(
        self,
        request: pb.ScoreRequest,
        addresses: int = 1,
        retry_seconds: float = RETRY_SECONDS,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        contact: FirstContact | None = None,
    ) -> None:
        super().__init__(addresses, retry_seconds, timeout, clock, contact)
        self._request = request
        self._delivered, self._sum = 0, 0.0  # characters, nats
        self._at, self._call_sum = 0, 0.0  # the same in the present call
        self._finished = False

    def request(self) -> pb.ScoreRequest | None:
        """Return the next request; None if everything was delivered."""
        self._at, self._call_sum = 0, 0.0
        return None if self._finished else self._request

    def received(self, message: pb.ScoreResponse) -> pb.ScoreResponse | None:
        """Return what the application is to see of a message, if anything; the message itself may be changed."""
        if message.position != self._at:
            raise _data_loss(f"a message begins at character {message.position:,} instead of {self._at:,}")
        self._require_support(message)
        known = self._delivered - self._at
        self._advance(message.logprobs[:known])
        new = message.logprobs[known:]
        apart = 0.0 if self._call_sum == self._sum else abs(self._call_sum - self._sum)
        if self._at == self._delivered and not apart <= TOLERANCE * self._at:
            raise _data_loss("they have different models")
        self._finished = message.HasField("total")
        if self._finished and self._at < self._delivered:
            raise _data_loss(f"one ends after {self._at:,} characters, after {self._delivered:,} were delivered")
        if new:
            self._advance(new)
            self._delivered, self._sum = self._at, self._call_sum
            self.progressed()
        del message.logprobs[:known], message.top[:known]
        message.position = self._at - len(new)
        return message if new or self._finished else None

    def ended(self, error: grpc.RpcError | None) -> float:
        """Return the seconds to wait before the next request, now that a call ended. Raises ServerError."""
        if self._finished:
            return 0.0
        failure = ServerError.from_rpc(error) if error else ServerError.ended_early()
        return self.failed(failure, f"the score broke after {self._delivered:,} characters")

    def lost_end(self) -> None:
        """Return no last message: only a server knows the total."""

    def _advance(self, logprobs: list[float]) -> None:
        self._call_sum += sum(value for value in logprobs if not math.isnan(value))  # of a first character (as_prompt)
        self._at += len(logprobs)

    def _require_support(self, message: pb.ScoreResponse) -> None:
        """Raise ServerError for the answer of an older server, which ignores what it does not know of a request."""
        if self._request.HasField("top_logprobs") and len(message.top) != len(message.logprobs):
            raise ServerError(
                grpc.StatusCode.UNIMPLEMENTED,
                "the server does not know top_logprobs of a score: its version is too old",
            )


def _data_loss(difference: str) -> ServerError:
    return ServerError(grpc.StatusCode.DATA_LOSS, f"the servers do not produce the same scores: {difference}")
