"""Many short texts of one request, over as many calls as they take. No connections here; the loop is that of
`rill.client.failover`.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from rill.client.errors import ServerError
from rill.client.retry import RETRY_SECONDS, Attempts, FirstContact
from rill.v1 import rill_pb2 as pb

MOST_SAMPLES = 1024  # of a request, as in rill.proto
MOST_CHARS = 16_384  # likewise, of each


class TooOldForSamplesError(ServerError):
    """The server does not know samples: it ignored the seeds, and generated one text."""

    def __init__(self) -> None:
        super().__init__(
            grpc.StatusCode.UNIMPLEMENTED, "the server does not know seeds of a request: its version is too old"
        )

    def __reduce__(self) -> tuple[type["TooOldForSamplesError"], tuple[()], dict[str, Any]]:
        return TooOldForSamplesError, (), vars(self)


class SampleCalls(Attempts):
    """The texts of a request with `seeds`. A call that breaks is repeated for those that have not arrived.

    Methods raise ServerError.
    """

    def __init__(
        self,
        request: pb.GenerateRequest,
        addresses: int = 1,
        retry_seconds: float = RETRY_SECONDS,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        contact: FirstContact | None = None,
    ) -> None:
        super().__init__(addresses, retry_seconds, timeout, clock, contact)
        self._request, self._seeds = request, list(request.seeds)
        self._known = self._first = 0  # samples that have arrived, in all and before this call

    def request(self) -> pb.GenerateRequest | None:
        """Return the next request; None if all texts have arrived."""
        if self._known == len(self._seeds):
            return None
        self._first = self._known
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        del request.seeds[: self._first]
        return request

    def received(self, message: pb.GenerateResponse) -> pb.GenerateResponse | None:
        """Return the message, if it has texts; their indexes are those of the whole request."""
        if message.text or message.finish_reason in (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP):
            raise TooOldForSamplesError
        for sample in message.samples:
            sample.index += self._first
            if sample.index != self._known or sample.index >= len(self._seeds):
                raise ServerError(
                    grpc.StatusCode.DATA_LOSS, f"sample {sample.index} arrived instead of sample {self._known}"
                )
            self._known += 1
        if not message.samples:
            return None
        self.progressed()
        return message

    def ended(self, error: grpc.RpcError | None) -> float:
        """Return the seconds to wait before the next request, now that a call ended. Raises ServerError."""
        if self._known == len(self._seeds):
            return 0.0
        failure = ServerError.from_rpc(error) if error else ServerError.ended_early()
        return self.failed(failure, f"the call broke after {self._known:,} samples")

    def lost_end(self) -> None:
        """Return no last message: texts are complete when they arrive."""


def may_be_sampled(request: pb.GenerateRequest) -> bool:
    """Tell whether texts of this request, each with another seed, can share a call."""
    alone = request.resume_token or request.chars_per_second or request.logprobs
    return not alone and 0 < request.max_chars <= MOST_CHARS


def with_seeds(request: pb.GenerateRequest, seeds: Sequence[int]) -> pb.GenerateRequest:
    """Return a request for a text with each of `seeds`, without tokens. Raises ValueError for too many."""
    if not 0 < len(seeds) <= MOST_SAMPLES:
        raise ValueError(f"a call has 1 to {MOST_SAMPLES} samples, not {len(seeds)}")
    shared = pb.GenerateRequest()
    shared.CopyFrom(request)
    shared.sampling.ClearField("seed")
    shared.ClearField("resume_every")
    shared.seeds.extend(seeds)
    return shared
