"""Build hook: put the top-level folders that `rill/` links to into a wheel as real folders.

In a checkout `rill/serve` is a link to `serve/`, and so on: each file exists once, and every import is `rill.…`.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("train", "export", "serve", "bench", "gateway")
SUFFIXES = (".py", ".toml")
NOT_INSTALLED = {"export/matrix"}


class RealFolders(BuildHookInterface):  # type: ignore[misc]  # hatchling has no types
    """Used by hatchling (pyproject.toml)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of `PARTS` to a wheel; an editable install only checks the links that it will use."""
        root = Path(self.root)
        if version == "editable":
            broken = [f"rill/{part}" for part in PARTS if not (root / "rill" / part / "__init__.py").is_file()]
            if broken:
                raise SystemExit(
                    f"error: {', '.join(broken)}: not links to folders, so an editable install cannot work; use a git "
                    "clone with links (git config core.symlinks true, then git checkout -- rill), or pip install ."
                )
            return
        for part in PARTS:
            for path in sorted((root / part).rglob("*")):
                relative = path.relative_to(root)
                if path.is_file() and path.suffix in SUFFIXES and relative.parent.as_posix() not in NOT_INSTALLED:
                    build_data["force_include"][str(path)] = f"rill/{relative.as_posix()}"
