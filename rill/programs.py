"""The programs that need extras, found by name so that the `rill` command imports none of them."""

from importlib import import_module

from rill.first_signals import take_signals
from rill.log_lines import report_error
from rill.streams import run_with_streams

DISTRIBUTION = "rill-text"
UNKNOWN_VERSION = "0+unknown"  # of a checkout that is not installed

# By command: the module whose `main` runs it, and the extra that installs what it needs.
PROGRAMS = {
    "train": ("rill.train.command", "train"),
    "export": ("rill.export.command", "train"),
    "serve": ("rill.serve.command", "serve"),
    "bench": ("rill.bench.command", "bench"),
    "http": ("rill.gateway.command", "http"),
}
RUN_MODELS = ("export", "serve", "bench")  # with ONNX Runtime
SERVERS = ("serve", "http")
LONGEST_REASON = 300  # characters


def run(name: str, arguments: list[str]) -> int:
    """Run the program `name` with its `arguments`; return its exit status, or 2 if its extra is not installed."""
    if name in SERVERS:
        take_signals()
    return run_with_streams(lambda: _run(name, arguments))


def _run(name: str, arguments: list[str]) -> int:
    module, extra = PROGRAMS[name]
    try:
        if name in RUN_MODELS and not {"-h", "--help"} & {*arguments} and (problem := _half_a_runtime(name)):
            report_error(problem, arguments)
            return 2
        status: int = import_module(module).main(arguments)
    except ImportError as error:
        problem = _problem(name, module, extra, error)
        if not problem:
            raise
        report_error(problem, arguments if name == "serve" else ())
        return 2
    return status


def version() -> str:
    """Return the version that is installed, or UNKNOWN_VERSION."""
    from importlib import metadata  # noqa: PLC0415  # takes longer than everything else here

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return UNKNOWN_VERSION


def _half_a_runtime(name: str) -> str:
    """Say how to mend ONNX Runtime if it is incomplete; empty if it is whole or not there."""
    from rill.onnx_runtime import conflict, is_half, remedy  # noqa: PLC0415  # not for --help

    if not is_half():
        return ""
    return f"rill {name} needs ONNX Runtime, and its module 'onnxruntime' is incomplete: {conflict() or remedy()}"


def _problem(name: str, module: str, extra: str, error: ImportError) -> str:
    """Say why a module cannot be imported; empty if that is a bug of ours."""
    missing, is_missing = error.name or _raised_in(error), isinstance(error, ModuleNotFoundError)
    part = module.split(".")[1]
    if is_missing and missing == f"rill.{part}":
        return f"rill/{part} is not a link to {part}/: run git config core.symlinks true, then git checkout -- rill"
    package = missing.partition(".")[0]
    if not package or package == "rill":
        return ""
    install = f"pip install '{DISTRIBUTION}[{extra}]'"
    if is_missing:
        return f"rill {name} needs the package {package!r}; install it with: {install}"
    if package == "onnxruntime":
        from rill.onnx_runtime import remedy  # noqa: PLC0415  # only here

        advice = remedy()
    else:
        from importlib.metadata import packages_distributions  # noqa: PLC0415  # only here

        distributions = " ".join(packages_distributions().get(package, [package]))
        advice = f"install it again: pip uninstall --yes {distributions}, then {install}"
    reason = " ".join(str(error).split())[:LONGEST_REASON]
    return f"rill {name} cannot load the package {package!r} ({reason}); {advice}"


def _raised_in(error: ImportError) -> str:
    """Return the name of the module that raised it."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
