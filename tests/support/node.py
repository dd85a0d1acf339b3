"""Running a page's modules in Node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from servers import ROOT

PAGE = ROOT / "rill" / "page"


def modules(folder: Path) -> Path:
    """Copy the modules of the pages into a folder in which Node reads them as modules; skip where there is no Node."""
    if not shutil.which("node"):
        pytest.skip("no node on this machine")
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"), dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def run_node(folder: Path, program: str, data: Any, timeout: float = 100) -> Any:
    """Run a module in the folder; `data` is its global `data`. Returns what it passes to `report`."""
    (folder / "data.json").write_text(json.dumps(data))
    head = """
    import { readFileSync, writeFileSync } from "node:fs";
    const data = JSON.parse(readFileSync("data.json", "utf8"));
    const report = (result) => writeFileSync("result.json", JSON.stringify(result));
    """
    (folder / "program.js").write_text(head + program)
    command = ["node", "program.js"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Draw the same `count` cases each time, to be tried in one process of Node."""
    cases: list[Any] = []

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate])
    @given(strategy)
    def draw(case: Any) -> None:
        cases.append(case)

    draw()
    return cases
