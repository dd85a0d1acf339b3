"""Use the generated stubs without the client library, as in any language.

    python examples/grpc_raw.py 127.0.0.1:50051 "ROMEO:"

Other languages generate stubs from protos/rill.proto. What the client library adds: continuing a broken stream.
"""

import sys

import grpc

from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub


def main(target: str = "127.0.0.1:50051", prompt: str = "ROMEO:") -> None:
    """List the models, then stream one text, with the usage of its last message."""
    with grpc.insecure_channel(target) as channel:
        stub = TextGenerationStub(channel)
        for model in stub.ListModels(pb.ListModelsRequest()).models:
            print(f"{model.name}: {model.cell}, {model.vocabulary_size} symbols, {model.numerics}")
        request = pb.GenerateRequest(prompt=prompt, max_chars=200, sampling=pb.Sampling(temperature=0.7, seed=7))
        try:
            for message in stub.Generate(request, timeout=60):
                print(message.text, end="", flush=True)
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name}: {error.details()}") from None
        print(f"\n{message.usage.generated_chars} characters in {message.usage.total_seconds:.3f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
