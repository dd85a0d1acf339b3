"""What the server refuses, and why; each becomes one gRPC status (`rill.serve.api.statuses`).

RillError
├── StartError              the server cannot start: a bundle, a device, a port
├── RequestError            a field of the request is wrong
├── TokenError              a resume token is forged, damaged or expired
├── OtherModelError         a resume token is of another model
├── ModelNotFoundError      no such model here
├── OutOfOrderError         an action of Interact that has no meaning where it comes
├── WaitingLineFullError    too many streams; says when to try again
├── ClientLimitError        too many streams of one client; likewise
├── StalledError            nobody reads what is sent
├── DrainingError           the server is going away
└── EngineError             an engine round failed; the fault is ours
    └── BrokenEngineError   no round can be run any more
"""


class RillError(Exception):
    """Base of all errors here; the message is for the user."""


class StartError(RillError):
    """The server cannot start as it was asked to."""


class RequestError(RillError):
    """A field of the request is wrong: `field` is its name in rill.proto."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class TokenError(RillError):
    """A resume token cannot be used; `reason` is INVALID or EXPIRED."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class OtherModelError(RillError):
    """A resume token is of another model than the one that is asked to continue."""


class ModelNotFoundError(RillError):
    """No model of that name is served here."""


class OutOfOrderError(RillError):
    """An action of Interact has no meaning where it comes; the state is as it was."""


class WaitingLineFullError(RillError):
    """All slots and all places in the waiting line are taken."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class ClientLimitError(RillError):
    """A client has as many streams as it may have at once."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class StalledError(RillError):
    """The reader of a stream takes nothing."""


class DrainingError(RillError):
    """The server is going away and takes no new streams."""


class EngineError(RillError):
    """An engine round failed; its streams end."""


class BrokenEngineError(EngineError):
    """No round can be run any more: the server ends."""
