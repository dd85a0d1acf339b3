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


class ServeError(Exception):
    """Base of all errors here; the message is for the user."""


class StartError(ServeError):
    """The server cannot start as it was asked to."""


class RequestError(ServeError):
    """A field of the request is wrong: `field` is its name in rill.proto."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class TokenError(ServeError):
    """A resume token cannot be used; `reason` is INVALID or EXPIRED."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class OtherModelError(ServeError):
    """A resume token is of another model than the one that is asked to continue."""


class ModelNotFoundError(ServeError):
    """No model of that name is served here."""


class OutOfOrderError(ServeError):
    """An action of Interact has no meaning where it comes; the state is as it was."""


class WaitingLineFullError(ServeError):
    """All slots and all places in the waiting line are taken."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class ClientLimitError(ServeError):
    """A client has as many streams as it may have at once."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class StalledError(ServeError):
    """The reader of a stream takes nothing."""


class DrainingError(ServeError):
    """The server is going away and takes no new streams."""


class EngineError(ServeError):
    """An engine round failed; its streams end."""


class BrokenEngineError(EngineError):
    """No round can be run any more: the server ends."""
