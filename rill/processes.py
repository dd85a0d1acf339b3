"""The Python processes that Rill starts for itself: none of them runs code of the current folder.

A train.py or a socket.py there may be anybody's.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

_HOME = str(Path(__file__).absolute().parent.parent)  # the folder that holds `rill`
_INSTALLED = ("site-packages", "dist-packages")


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of Rill, with this interpreter and its -W options."""
    return [sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-P", "-m", module, *arguments]


def python_environment() -> dict[str, str]:
    """Return the environment for it: it finds this very Rill, also that of a checkout which is not installed.

    An empty entry of PYTHONPATH, which a stray colon makes, stands for the current folder, as a dot does.
    """
    here = ""
    with suppress(FileNotFoundError):  # it has been deleted
        here = os.getcwd()
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    paths = [entry for entry in given if os.path.abspath(entry) != here] if here else given
    if Path(_HOME).name not in _INSTALLED:
        paths.insert(0, _HOME)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return environment | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
