"""The errors of the server; each becomes one gRPC status (`rill.serve.api.statuses`).

ServeError
├── StartError              the server cannot start: a bundle, a device, a port
├── RequestError            a field of the request is not valid
├── TokenError              a resume token is forged, damaged or expired
├── OtherModelError         a resume token belongs to another model
├── ModelNotFoundError      no model of this name is served
├── NoConstraintsError      the model's bundle has no graphs for constraints
├── OutOfOrderError         an action of Interact is not valid at this point
├── WaitingLineFullError    too many streams; says when to try again
├── ClientLimitError        too many streams of one client; says when to try again
├── StalledError            the client does not read, or does not write, for too long
├── IdleError               nothing was asked of an open Interact for too long
├── DrainingError           the server is shutting down
├── CompilerError           the process that compiles constraints cannot be started or ends
└── EngineError             an engine round failed; the server is at fault
    └── BrokenEngineError   no round can run any more
"""

RETRY_SECONDS = 1.0  # after which a refused call may be made again


class ServeError(Exception):
    """The base of these errors; the message is for the user."""


class StartError(ServeError):
    """The server cannot start with this configuration."""


class RequestError(ServeError):
    """A field of the request is not valid: `field` is its name in rill.proto."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)  # what a copy, in another process too, is made of
        self.field = field

    def __str__(self) -> str:
        return str(self.args[1])


class TokenError(ServeError):
    """A resume token cannot be used; `reason` is INVALID or EXPIRED."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class OtherModelError(ServeError):
    """A resume token belongs to another model than the requested one."""


class ModelNotFoundError(ServeError):
    """No model of this name is served."""


class NoConstraintsError(ServeError):
    """The model's bundle has no graphs for constraints."""


class OutOfOrderError(ServeError):
    """An action of Interact is not valid at this point; the state is unchanged."""


class WaitingLineFullError(ServeError):
    """All slots are in use, and the waiting line is full; or the line before the compiler of constraints is."""

    def __init__(self, message: str, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class ClientLimitError(ServeError):
    """A client has as many streams as it may have at once."""

    def __init__(self, message: str, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class StalledError(ServeError):
    """A client keeps its call waiting for too long."""


class IdleError(ServeError):
    """Nothing was asked of an open Interact for too long."""


class DrainingError(ServeError):
    """The server is shutting down and takes no new streams."""


class CompilerError(ServeError):
    """The process that compiles constraints cannot be started, or ends again and again; the server is at fault."""


class EngineError(ServeError):
    """An engine round failed; its streams end."""


class BrokenEngineError(EngineError):
    """No round can run any more: the server ends."""
