"""Fixtures of the API's tests."""

import grpc
import pytest
from constrained import Served, forget_constraints
from random_models import save_bundle
from servers import run_server

from rill.v1.rill_pb2_grpc import TextGenerationStub


@pytest.fixture(scope="module")
def served(tiny_run, molecule_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("constraints")
    (folder / "key").write_bytes(bytes(range(32)))
    bundles = {name: save_bundle(run, folder / name) for name, run in (("tiny", tiny_run), ("molecules", molecule_run))}
    bundles["older"] = save_bundle(tiny_run, folder / "older")
    forget_constraints(folder / "older")
    folders = [folder / name for name in bundles]
    with (
        run_server(*folders, "--resume-key-file", folder / "key") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield Served(server.target, TextGenerationStub(channel), bundles)
