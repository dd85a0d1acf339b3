"""The programs whose needs are extras, found by name, so that the `rill` command imports none of them."""

import sys
from importlib import import_module

DISTRIBUTION = "rill-text"

# By command: the module whose `main` runs it, and the extra that installs what it needs.
PROGRAMS = {
    "train": ("rill.train.command", "train"),
    "export": ("rill.export.command", "train"),
    "serve": ("rill.serve.command", "serve"),
    "bench": ("rill.bench.command", "bench"),
}


def run(name: str, arguments: list[str]) -> int:
    """Run the program `name` with its `arguments`; returns the exit status: 2 where its extra is not installed."""
    module, extra = PROGRAMS[name]
    try:
        status: int = import_module(module).main(arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package == "rill":  # a fault of ours
            raise
        print(
            f"error: rill {name} needs the package {package!r}, which is not installed: "
            f"pip install '{DISTRIBUTION}[{extra}]'",
            file=sys.stderr,
        )
        return 2
    return status
