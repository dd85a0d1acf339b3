"""Each extra installs what its part of Rill imports, late imports included, and nothing else."""

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

import grimp
import pytest
from servers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {
    "mlserver",  # a server that the benchmark compares with, if it is installed
    "pyarrow",  # of the extra `parquet`: `rill batch --out X.parquet` says so without it
}


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("rill", include_external_packages=True)


def _imported(*parts: str) -> set[str]:
    """The top-level modules of other distributions that these parts of Rill load at any time."""
    graph = _graph()
    modules = {module for part in parts for module in {part} | graph.find_descendants(part)}
    loaded = set().union(*(graph.find_upstream_modules(module) for module in modules))
    return {name for name in loaded if graph.is_module_squashed(name)} - set(sys.stdlib_module_names) - OPTIONAL


def _installed(requirements: list[str]) -> set[str]:
    """The normalised names of the distributions that the requirements name, extras of Rill replaced by theirs."""
    names = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                names |= _installed(PROJECT["optional-dependencies"][extra])
        else:
            names.add(name.lower().replace("_", "-"))
    return names


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("", ["rill.cli", "rill.client", "rill.v1"]),
        ("serve", ["rill.serve"]),
        ("serve-cpu", ["rill.serve"]),
        ("train", ["rill.train", "rill.export"]),
        ("train-cpu", ["rill.train", "rill.export"]),
        ("bench", ["rill.bench"]),
    ],
)
def test_an_extra_installs_what_its_part_imports(extra, parts):
    base = _installed(PROJECT["dependencies"])
    installed = base | (_installed(PROJECT["optional-dependencies"][extra]) if extra else set())
    # ONNX Runtime has two distributions with the same module, and only one of them is in this environment.
    homes = {
        module: {name.lower().replace("_", "-") for name in names} for module, names in packages_distributions().items()
    }
    homes["onnxruntime"] = {"onnxruntime", "onnxruntime-gpu"}
    imported = _imported(*parts)
    assert {module for module in imported if not homes[module] & installed} == set()
    if extra != "bench":  # which includes `serve`
        assert installed - base - set().union(*(homes[module] for module in imported)) == set()
