"""A peer behind MLServer: a runtime of ours whose `predict_stream` runs model.onnx once a character."""

import argparse
import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import StringCodec
from mlserver.grpc import dataplane_pb2 as v2
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from rill.bench.peers.step import step_texts
from rill.bench.peers.v2 import MODEL
from rill.bundle import read_bundle
from rill.client.connection import options_for


class Runtime(MLModel):  # type: ignore[misc]  # MLServer may not be installed
    """Streams of the bundle at `parameters.uri`, with temperature 1."""

    async def load(self) -> bool:
        """Read the bundle."""
        bundle = read_bundle(Path(self.settings.parameters.uri))
        self._vocabulary, self._new_text = bundle.vocabulary, step_texts(bundle)
        return True

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        """Read the prompt, then send characters one by one."""
        request = await anext(payloads)
        (prompt,) = StringCodec.decode_input(request.inputs[0])
        tokens = self._vocabulary.begin(self._vocabulary.encode(prompt))
        text, random = self._new_text(1.0), np.random.default_rng(request.parameters.seed)
        for _ in range(request.parameters.max_chars):
            tokens = [text.step(tokens, random.random())]
            if tokens[0] in self._vocabulary.end_ids:
                return
            character = self._vocabulary.symbols[tokens[0]]
            yield InferenceResponse(model_name=MODEL, outputs=[StringCodec.encode_output("text", [character])])


async def serve(bundle: Path) -> None:
    """Serve until SIGTERM, which MLServer handles. Its output goes to stderr: stdout is for our own line."""
    ours, sys.stdout = sys.stdout, sys.stderr
    http_port, grpc_port = _free_ports(2)
    settings = Settings(
        host="127.0.0.1",
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_endpoint=None,
        parallel_workers=0,  # streams need this
        gzip_enabled=False,
    )
    model = ModelSettings(name=MODEL, implementation=Runtime, parameters=ModelParameters(uri=str(bundle)))
    serving = asyncio.create_task(MLServer(settings).start([model]))
    target = f"127.0.0.1:{grpc_port}"
    async with grpc.aio.insecure_channel(target, options_for(target)) as channel:
        stub = GRPCInferenceServiceStub(channel)
        while not serving.done() and not await _is_ready(stub):  # noqa: ASYNC110  # once
            await asyncio.sleep(0.05)
    print(f"peer: listening on {target}", file=ours, flush=True)
    await serving


async def _is_ready(stub: GRPCInferenceServiceStub) -> bool:
    try:
        answer = await stub.ModelReady(v2.ModelReadyRequest(name=MODEL), wait_for_ready=True, timeout=1.0)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.ready)


def _free_ports(count: int) -> list[int]:
    """Find free ports: MLServer does not accept port 0."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True, type=Path)
    asyncio.run(serve(parser.parse_args().bundle))
