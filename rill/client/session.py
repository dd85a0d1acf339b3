"""What both kinds of session share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc

from rill.client.errors import ServerError, SessionStateError
from rill.client.interaction import InteractProtocol
from rill.client.retry import is_away
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub


class Beginning(NamedTuple):
    """What a session is opened with."""

    model: str
    resume_token: bytes
    sampling: pb.Sampling


def closed_error() -> ServerError:
    """Why a session ended that was closed here."""
    return ServerError(grpc.StatusCode.CANCELLED, "the session is closed")


def _not_open(_: pb.InteractRequest) -> None:
    raise SessionStateError("the session is not open: use it in a with statement")


class SessionBase:
    """What both kinds of session know without asking."""

    def __init__(self, stubs: Sequence[TextGenerationStub], beginning: Beginning, timeout: float | None) -> None:
        self._stubs, self._beginning, self._timeout = stubs, beginning, timeout
        self._dialogue = InteractProtocol(_not_open)
        self._call: Any = None

    @property
    def seed(self) -> int:
        """What the session was opened with, or the server drew."""
        return self._dialogue.seed

    @property
    def model_id(self) -> str:
        """sha256 over graphs and vocabulary, in hexadecimal."""
        return self._dialogue.model_id

    @property
    def position(self) -> int:
        """Generated characters of the stream, as far as they have come."""
        return self._dialogue.position

    @property
    def resume_token(self) -> bytes:
        """The last state that the server gave."""
        return self._dialogue.resume_token

    @property
    def resume_position(self) -> int:
        """Generated characters before that state."""
        return self._dialogue.resume_position

    def _may_try_another(self, stub: TextGenerationStub, error: BaseException) -> bool:
        return isinstance(error, ServerError) and is_away(error) and stub is not self._stubs[-1]
