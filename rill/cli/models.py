"""List the models that a server has, and how busy it is.

rill models --target text.example.com:50051 --tls --token-file token
rill models --bundle bundles/demo
"""

import argparse

from google.protobuf.json_format import MessageToDict

from rill.cli.flags import add_connection, add_timeout, connected
from rill.cli.json_output import json_of
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import CHARACTERS, SEQUENCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_timeout(parser)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError and ValueError."""
    with (
        connected(options) as connection,
        Client(**connection._asdict()) as client,
    ):
        response = client.models(timeout=options.timeout)
    if options.json:
        print(json_of(MessageToDict(response, preserving_proto_field_name=True)))
        return 0
    for model in response.models:
        print(
            f"{model.name}: {model.cell} {model.layers} x {model.hidden}, {model.vocabulary_size} symbols, "
            f"{model.precision}, {model.provider}, {model.state_bytes} bytes a stream, {model.model_id[:12]}"
            f"{_peculiarities(model)}"
        )
    of_most = f" of {response.max_streams}" if response.max_streams else ""  # 0: an earlier server
    print(
        f"streams: {response.streams_running} running{of_most}, {response.streams_waiting} waiting, "
        f"{response.streams_parked} parked" + (" (draining)" if response.draining else "")
    )
    return 0


def _peculiarities(model: pb.ModelInfo) -> str:
    """Return what most models do not have: n-grams, a way of cutting text, and symbols of its own for start and end."""
    found = [f"{model.ngrams}-grams"] * (model.ngrams > 1)
    if not has_characters(model):
        found.append(f"tokenizer {model.tokenizer}")
    if model.start_symbol:
        found.append(f"start {json_of(model.start_symbol)}")
    if model.end_symbols:
        found.append(f"end {' '.join(map(json_of, model.end_symbols))}")
    return "".join(f", {each}" for each in found)


def has_characters(model: pb.ModelInfo) -> bool:
    """Tell whether text is read character by character; servers that say nothing about it have no other models."""
    return model.tokenizer in ("", CHARACTERS, SEQUENCES)


def find_generator(answer: pb.ListModelsResponse, name: str) -> pb.ModelInfo:
    """Find the model of this name, or the first if it is empty. Raises ValueError unless it generates text."""
    info: pb.ModelInfo
    for info in answer.models:
        if name in ("", info.name):
            if not info.streamable:
                raise ValueError(f"{info.name} is a tagging or bidirectional model: it generates no text")
            return info
    raise ValueError(f"there is no model {name!r}; the server has {', '.join(info.name for info in answer.models)}")
