"""The distributions of ONNX Runtime: they fill one module, so that a second one overwrites files of the first.

Removing either then takes the files of both: what is left is half a module. Nothing here loads it.
"""

from importlib import metadata, util

NAMES = ("onnxruntime-gpu", "onnxruntime", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


def find_distributions() -> dict[str, str]:
    """Return the versions of those that are installed, by name."""
    found = {}
    for name in NAMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def is_half() -> bool:
    """Tell whether there are files of the module, or a record of its installation, but not the whole of it."""
    spec = util.find_spec("onnxruntime")
    return bool(find_distributions()) if spec is None else spec.origin is None  # a folder without its __init__.py


def conflict() -> str:
    """Say what is wrong if several are installed; empty if not."""
    found = find_distributions()
    if len(found) < 2:
        return ""
    names = " and ".join(f"{name} {version}" for name, version in found.items())
    return f"{names} are both installed and overwrite each other's files; {remedy()}"


def remedy() -> str:
    """Say which commands make the module whole."""
    found = find_distributions()
    name, version = next(iter(found.items()), ("onnxruntime", ""))
    exact = f"{name}=={version}" if version else name
    if len(found) > 1:
        return f"keep one of them: pip uninstall --yes {' '.join(found)} && pip install {exact}"
    return f"install it again: pip install --force-reinstall --no-deps {exact}"
