"""Texts for `rill batch` from the engine in this process, without a server."""

import sys

from rill.bundle import BundleError, read_bundle
from rill.cli.batch.runner import Came, RefusedError, Text
from rill.serve.api.requests import Limits, spec_of
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import choose_device, warn_of_two_runtimes
from rill.serve.errors import RequestError, StartError
from rill.serve.models.model import Model
from rill.serve.operate.server import GIL_SECONDS, Settings
from rill.v1 import rill_pb2 as pb


class Local:
    """One bundle for up to `streams` texts at a time. Made and used on one event loop. Raises StartError."""

    def __init__(self, folder: str, device: str, streams: int) -> None:
        sys.setswitchinterval(GIL_SECONDS)
        warn_of_two_runtimes()
        provider, device_id = choose_device(device)
        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            raise StartError(str(error)) from None
        decoder = Decoder(bundle, provider, device_id)
        self._model = Model(bundle, decoder, streams, streams, Settings.round_seconds)

    async def model_id(self) -> str:
        """See Source."""
        return self._model.bundle.model_id

    async def text(self, request: pb.GenerateRequest, came: Came) -> Text:
        """See Source; also raises EngineError. What a server's client would be told is told in the same words."""
        try:
            order = spec_of(request, None, self._model, Limits())
        except RequestError as error:
            raise RefusedError(str(error)) from None
        parts, end = [], None
        async with self._model.stream(order) as stream:
            while end is None:
                piece, end = await stream.next_piece()
                self._model.mark_sent(stream, piece.text)
                parts.append(piece.text)
                came(len(piece.text))
        return Text("".join(parts), end.name)

    def close(self) -> None:
        """End the engine."""
        self._model.engine.stop()
