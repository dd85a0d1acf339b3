"""A package of npm that has its files, but not their code."""

import json

from rill.page.runtime import FILES, PACKAGE


def fake_package(folder, version="1.30.0", name=PACKAGE, without=()):
    """A folder that looks like the npm package, without its code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    for file in FILES:
        if file not in without:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(b"\0asm of nothing" if file.endswith("wasm") else b"export const env = {};")
    return folder
