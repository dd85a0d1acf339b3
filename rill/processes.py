"""The Python processes that Rill starts for itself: none of them runs code of the current folder.

A train.py or a socket.py there may be anybody's.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

_HOME = str(Path(__file__).absolute().parent.parent)  # the folder that holds `rill`
_INSTALLED = ("site-packages", "dist-packages")


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of Rill, with this interpreter and its -W options."""
    return [sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-P", "-m", module, *arguments]


def python_environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for it: it finds this very Rill, also that of a checkout which is not installed.

    An empty entry of PYTHONPATH, which a stray colon makes, stands for the current folder, as a dot does.
    """
    here = ""
    with suppress(FileNotFoundError):  # it has been deleted
        here = os.getcwd()
    paths = [entry for entry in given.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if here:
        paths = [entry for entry in paths if os.path.abspath(entry) != here]
    if Path(_HOME).name not in _INSTALLED:
        paths.insert(0, _HOME)
    environment = {name: value for name, value in given.items() if name != "PYTHONPATH"}
    return environment | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


@contextmanager
def safe_imports() -> Iterator[None]:
    """Let the processes that multiprocessing starts meanwhile look for modules as those of `python_command` do."""
    before = dict(os.environ)
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(python_environment(before), PYTHONSAFEPATH="1")
    try:
        yield
    finally:
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def memory_file() -> BinaryIO:
    """Open a file in memory, which needs no folder for temporary files and ends with its last process."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("rill"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())
