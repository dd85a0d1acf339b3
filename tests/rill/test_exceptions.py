"""Every exception of the package can be pickled and copied: process pools hand them to their parents in this way."""

import copy
import inspect
import multiprocessing
import pickle
import pkgutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module, util
from typing import Any

import grpc
import pytest
from calls import text_of

import rill
from rill import ServerError
from rill.gateway.errors import ApiError

NEED_MORE = {"rill.bench.peers.mlserver": "mlserver", "rill.bench.peers.v2": "mlserver"}
VALUES = {  # by annotation
    str: "a",
    int: 7,
    float: 0.5,
    float | None: 0.5,
    bytes: b"token",
    grpc.StatusCode: grpc.StatusCode.ABORTED,
    str | None: "b",
    int | None: 8,
    bool: True,
    Mapping[str, str] | None: {"retry-after": "1"},
    ApiError: ApiError(400, "a sentence", "prompt", "a_code", {"allow": "GET"}),
}


def classes_below(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from classes_below(child)


def exceptions() -> list[type[BaseException]]:
    """All that modules of the package define."""
    for module in pkgutil.walk_packages(rill.__path__, "rill."):
        name = module.name
        if not name.endswith("__main__") and (name not in NEED_MORE or util.find_spec(NEED_MORE[name])):
            import_module(name)
    found = {kind for kind in classes_below(BaseException) if kind.__module__.partition(".")[0] == "rill"}
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def example(kind: type[BaseException]) -> BaseException:
    """One with a value for each argument, and none of them a default."""
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError:  # a builtin's
        return kind("a sentence")
    return kind(**{name: VALUES[parameter.annotation] for name, parameter in parameters.items()})


def contents(value: Any) -> Any:
    """What makes two errors equal, down to the errors that they hold."""
    if isinstance(value, BaseException):
        return type(value), str(value), contents(value.args), contents(vars(value))
    if isinstance(value, tuple | list):
        return [contents(item) for item in value]
    return {key: contents(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_every_exception_survives_pickling_and_copying():
    kinds = exceptions()
    assert ServerError in kinds
    for kind in kinds:
        error = example(kind)
        error.added_later = [1]  # type: ignore[attr-defined]
        error.add_note("a note")
        copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        for other in [*copies, copy.copy(error), copy.deepcopy(error)]:
            assert contents(other) == contents(error), kind


def test_an_error_of_a_worker_reaches_the_parent(server):
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(ServerError, match="not in the model's vocabulary") as caught,
    ):
        pool.submit(text_of, server.target, "\N{GRINNING FACE}").result(timeout=60)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.request_id) == 16
