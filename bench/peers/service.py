"""Parts that the peers share: the servicer with its loop per stream, and the process around it."""

import argparse
import asyncio
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from rill.bundle import Bundle, read_bundle
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer, add_TextGenerationServicer_to_server


class CharacterLoop(ABC):
    """One stream: its state, and how the next character is chosen."""

    @abstractmethod
    def step(self, tokens: list[int], u: float) -> int:
        """Read tokens, then choose a character with u in [0, 1); returns its id."""


NewText = Callable[[float], CharacterLoop]  # from a temperature above 0


class Service(TextGenerationServicer):
    """One symbol a message; `new_text` begins a stream."""

    def __init__(self, bundle: Bundle, new_text: NewText) -> None:
        self._vocabulary, self._new_text = bundle.vocabulary, new_text

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        """Read the prompt, then send characters one by one."""
        temperature = request.sampling.temperature if request.sampling.HasField("temperature") else 1.0
        if not temperature > 0:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a peer needs a temperature above 0")
        try:
            tokens = self._vocabulary.begin(self._vocabulary.encode(request.prompt))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        text, symbols, ends = self._new_text(temperature), self._vocabulary.symbols, self._vocabulary.end_ids
        random = np.random.default_rng(request.sampling.seed)
        for position in range(request.max_chars) if request.max_chars else count():
            token = text.step(tokens, random.random())
            if token in ends:
                await context.write(pb.GenerateResponse(position=position, finish_reason=pb.FINISH_REASON_STOP))
                return
            message = pb.GenerateResponse(text=symbols[token], position=position)
            if not self._vocabulary.are_characters:
                message.symbol_lengths.append(len(symbols[token]))
            if position + 1 == request.max_chars:
                message.finish_reason = pb.FINISH_REASON_LENGTH
            await context.write(message)
            tokens = [token]


def main(new_texts: Callable[[Bundle], NewText]) -> None:
    """Serve `--bundle` on a free port until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True, type=Path)
    bundle = read_bundle(parser.parse_args().bundle)
    asyncio.run(_serve(Service(bundle, new_texts(bundle))))


async def _serve(service: Service) -> None:
    server = grpc.aio.server()
    add_TextGenerationServicer_to_server(service, server)
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    await healths.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"peer: listening on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.stop(0)
