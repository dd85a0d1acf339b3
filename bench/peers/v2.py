"""A client of streams in the V2 inference protocol, with the methods of Rill's own stub."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from mlserver.grpc import dataplane_pb2 as v2
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from rill.v1 import rill_pb2 as pb

MODEL = "characters"


class V2Stub:
    """`Generate` by `ModelStreamInfer`: prompt, length and seed of a request, nothing else."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = GRPCInferenceServiceStub(channel)

    async def Generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Yield one symbol a message."""
        prompt = v2.ModelInferRequest.InferInputTensor(
            name="prompt",
            datatype="BYTES",
            shape=[1],
            contents=v2.InferTensorContents(bytes_contents=[request.prompt.encode()]),
        )
        parameters = {"max_chars": request.max_chars, "seed": request.sampling.seed}
        inference = v2.ModelInferRequest(
            model_name=MODEL,
            inputs=[prompt],
            parameters={name: v2.InferParameter(int64_param=value) for name, value in parameters.items()},
        )
        position = 0
        async for answer in self._stub.ModelStreamInfer(iter([inference])):
            for character in answer.outputs[0].contents.bytes_contents:
                text = character.decode()
                message = pb.GenerateResponse(text=text, position=position, symbol_lengths=[len(text)])
                position += 1
                if position == request.max_chars:
                    message.finish_reason = pb.FINISH_REASON_LENGTH
                yield message
        if position < request.max_chars:  # an end symbol
            yield pb.GenerateResponse(position=position, finish_reason=pb.FINISH_REASON_STOP)
