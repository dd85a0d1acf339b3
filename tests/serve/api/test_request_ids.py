"""Every status of a server has a request id in its trailing metadata: clients take one without for the network's."""

import grpc
import grpc.aio
import pytest
from servers import run_server

from rill.client.errors import ServerError
from rill.client.origin import Origin
from rill.client.security import Security
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.api.service import TextGeneration
from rill.serve.api.wire import ServiceHandlers
from rill.serve.config import ServerConfig
from rill.serve.operate.server import SERVICE
from rill.v1 import rill_pb2 as pb

Code, TOKEN = grpc.StatusCode, "a-token-of-21-letters"


def ending(call):
    """The status of a call that fails, whose it is, and its id."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert ServerError.from_rpc(caught.value).origin is Origin.SERVER
    return caught.value.code(), dict(caught.value.trailing_metadata())["x-request-id"]


@pytest.fixture(scope="module")
def guarded(tiny_folder, tmp_path_factory):
    """A server that asks for a token, with room for one stream."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    with run_server(tiny_folder, "--auth-token-file", tokens, "--max-streams", 1, "--max-waiting", 0) as running:
        yield running


def test_refusals_before_the_handler(guarded):
    with grpc.insecure_channel(guarded.target) as channel:
        known, unknown, nobody = (Security(token=token).stub(channel) for token in (TOKEN, "x" * 20, ""))
        for stub in (unknown, nobody):
            code, given = ending(stub.Generate(pb.GenerateRequest()))
            assert (code, len(given)) == (Code.UNAUTHENTICATED, 16)
        assert ending(nobody.Generate(pb.GenerateRequest(), metadata=[("x-request-id", "mine")]))[1] == "mine"
        authorization = ("authorization", f"Bearer {TOKEN}")
        for method in ("/rill.v1.TextGeneration/Nothing", "/other.Service/Method"):
            call = channel.unary_stream(method)(b"", metadata=[authorization, ("x-request-id", "mine")])
            assert ending(call) == (Code.UNIMPLEMENTED, "mine")
        running = known.Generate(pb.GenerateRequest())
        next(running)
        for call in (
            known.Generate(pb.GenerateRequest()),
            known.Score(pb.ScoreRequest(text="a")),
            known.Interact(iter([pb.InteractRequest(open=pb.InteractRequest.Open())])),
        ):
            assert ending(call)[0] is Code.RESOURCE_EXHAUSTED
        running.cancel()


def test_refusals_of_requests(server):
    with grpc.insecure_channel(server.target) as channel:
        stub = Security().stub(channel)
        assert ending(stub.Generate(pb.GenerateRequest(model="nobody")))[0] is Code.NOT_FOUND
        assert ending(stub.Score(pb.ScoreRequest(text="漢")))[0] is Code.INVALID_ARGUMENT
        assert ending(stub.Interact(iter([])))[0] is Code.FAILED_PRECONDITION
        malformed = channel.unary_stream("/rill.v1.TextGeneration/Generate")(b"\xff")
        assert ending(malformed)[0] is Code.INVALID_ARGUMENT


async def test_a_bug_of_the_server():
    service = TextGeneration(object(), ResumeTokens([bytes(32)], 1.0), ServerConfig(["bundle"]))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([ServiceHandlers(SERVICE, service)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Security().stub(channel).ListModels(pb.ListModelsRequest())
    finally:
        await server.stop(0)
    assert caught.value.code() is Code.UNKNOWN
    assert ServerError.from_rpc(caught.value).origin is Origin.SERVER
