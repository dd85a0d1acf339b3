"""The names of the package, and what importing it costs."""

import subprocess
import sys
from importlib import metadata

import pytest
from servers import ROOT

import rill


def test_all_names_are_there():
    assert rill.__all__ == sorted(rill.__all__)
    for name in rill.__all__:
        assert getattr(rill, name).__name__ == name
    assert set(rill.__all__) <= set(dir(rill))
    assert set(rill.__all__) == set(rill._MODULES)
    with pytest.raises(AttributeError, match="module 'rill' has no attribute 'Clientele'"):
        rill.Clientele  # noqa: B018


def test_errors_have_one_base():
    assert issubclass(rill.ServerError, rill.RillError)
    assert issubclass(rill.SessionStateError, rill.RillError)


def test_importing_it_loads_neither_grpc_nor_protobuf():
    program = "import sys, rill; print(*sorted({'grpc', 'google.protobuf', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_version_is_there_and_costs_nothing_until_it_is_read(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    assert rill.__version__ == metadata.version("rill-text")
    assert "__version__" in dir(rill)
    monkeypatch.setattr(metadata, "version", missing)
    assert rill.__version__ == "0+unknown"
    program = "import sys, rill; print('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
