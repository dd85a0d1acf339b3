"""What is sent of a stream that fails."""

from types import SimpleNamespace

import numpy as np
import pytest

from rill.sampling import Sampling
from rill.serve.api.sender import TextSender
from rill.serve.engine.stream import Stream
from rill.serve.engine.types import Piece, Snapshot, StreamSpec
from rill.serve.errors import EngineError
from rill.v1 import rill_pb2 as pb


async def test_a_stream_that_fails_leaves_a_token_without_text():
    """All text was sent before the round that failed: the snapshot alone is worth a message."""
    spec = StreamSpec(np.array([0]), 0, Sampling(), seed=1, max_chars=9)
    stream, sent = Stream(spec, 0), []

    def mark_sent(stream, text):
        stream.position += len(text)
        if text:
            stream.deliver(Piece("", Snapshot(1, 0, {})), 0.0)
            stream.fail(EngineError("a round failed"))

    async def write(message):
        sent.append((message.text, message.resume_token))

    messages = SimpleNamespace(
        output=lambda model, stream, piece: pb.GenerateResponse(
            text=piece.text, resume_token=b"token" if piece.snapshot else b""
        ),
        with_logprobs=lambda message, *_: message,
    )
    call = SimpleNamespace(on_prompt_read=lambda _: None, on_generated=lambda *_: None)
    stream.deliver(Piece("a"), 0.0)
    with pytest.raises(EngineError):
        await TextSender(spec, SimpleNamespace(mark_sent=mark_sent), messages, call, 0.0, write).send(stream)
    assert sent == [("a", b""), ("", b"token")]
