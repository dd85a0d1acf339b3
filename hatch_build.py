"""Put the parts of the repository that `rill` links to into a wheel, as real folders.

In a checkout `rill/serve` is a link to `serve/`, and so on: the files are there once, and every import is `rill.…`.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("train", "export", "serve", "bench")
NOT_INSTALLED = {"export/matrix"}


class RealFolders(BuildHookInterface):  # type: ignore[misc]  # hatchling has no types for it
    """Used by hatchling (pyproject.toml)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """An editable install (`version` is then "editable") finds the links themselves."""
        if version != "standard":
            return
        root = Path(self.root)
        for part in PARTS:
            for path in sorted((root / part).rglob("*")):
                inside = path.relative_to(root)
                if path.is_file() and path.suffix in (".py", ".toml") and str(inside.parent) not in NOT_INSTALLED:
                    build_data["force_include"][str(path)] = f"rill/{inside.as_posix()}"
