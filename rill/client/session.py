"""What both kinds of session share."""

from rill.client.interaction import InteractProtocol

CLOSE_SECONDS = 1.0  # for a server to end a call whose last action was sent; then the client cancels it


class SessionBase:
    """What a session knows without asking its server."""

    _protocol: InteractProtocol

    @property
    def request_id(self) -> str:
        """The id of the session's calls in the logs of servers."""
        return self._protocol.request_id

    @property
    def seed(self) -> int:
        """The seed that the session was opened with, or that the server drew."""
        return self._protocol.seed

    @property
    def model_id(self) -> str:
        """The model's sha256 over graphs and vocabulary, in hexadecimal."""
        return self._protocol.model_id

    @property
    def position(self) -> int:
        """How many characters were generated and have arrived, since the beginning of the stream."""
        return self._protocol.position

    @property
    def text_position(self) -> int:
        """The same in code points, if text has arrived; else 0."""
        return self._protocol.text_position

    @property
    def resume_token(self) -> bytes:
        """The last state that a server gave."""
        return self._protocol.resume_token

    @property
    def resume_position(self) -> int:
        """How many characters were generated before that state."""
        return self._protocol.resume_position
