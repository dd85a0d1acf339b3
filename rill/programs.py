"""The programs that need extras, found by name so that the `rill` command imports none of them."""

import sys
from importlib import import_module

DISTRIBUTION = "rill-text"
UNKNOWN_VERSION = "0+unknown"  # of a checkout that is not installed

# By command: the module whose `main` runs it, and the extra that installs what it needs.
PROGRAMS = {
    "train": ("rill.train.command", "train"),
    "export": ("rill.export.command", "train"),
    "serve": ("rill.serve.command", "serve"),
    "bench": ("rill.bench.command", "bench"),
}


def run(name: str, arguments: list[str]) -> int:
    """Run the program `name` with its `arguments`; return its exit status, or 2 if its extra is not installed."""
    module, extra = PROGRAMS[name]
    try:
        status: int = import_module(module).main(arguments)
    except ModuleNotFoundError as error:
        problem = _problem(name, extra, error.name or "")
        if not problem:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return status


def version() -> str:
    """Return the version that is installed, or UNKNOWN_VERSION."""
    from importlib import metadata  # noqa: PLC0415  # takes longer than everything else here

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return UNKNOWN_VERSION


def _problem(name: str, extra: str, missing: str) -> str:
    """Say why the module `missing` is not there; empty if that is a bug of ours."""
    if missing == f"rill.{name}":
        return f"rill/{name} is not a link to {name}/: run git config core.symlinks true, then git checkout -- rill"
    package = missing.partition(".")[0]
    if not package or package == "rill":
        return ""
    return f"rill {name} needs the package {package!r}; install it with: pip install '{DISTRIBUTION}[{extra}]'"
