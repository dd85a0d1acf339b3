"""Writing the folder of a page so that nothing half-written stays, and nothing of others is lost."""

import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rill.page.errors import PageError

MARKER = "rill-page.json"  # lists the files that rill page wrote
_ASIDE = ".rill-page-"  # begins the name of a folder in which files are being written
_MARKER_BYTES = 2**20
_LONGEST_SECONDS = 3600  # that writing a page may take


def check_target(out: Path, force: bool, sources: Mapping[str, Path]) -> Path:
    """Return the folder that `out` names. Raises PageError if a page cannot be written there.

    `sources` are folders that are read, by what they are called; a page must not be inside one.
    """
    named = f"--out {out}"
    try:
        if out.is_symlink() and not out.exists():
            raise PageError(f"{named} is a link to nothing; remove it")
        target = out.resolve()
        if target.exists() and not target.is_dir():
            raise PageError(f"{named} is not a folder")
        for what, source in sources.items():
            if target.is_relative_to(source.resolve()):
                raise PageError(f"{named} is inside the {what} {source}; name a folder outside it")
        place = next(folder for folder in (target, *target.parents) if os.path.lexists(folder))
        if not place.is_dir():
            raise PageError(f"{named}: {place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PageError(f"{named}: {place} cannot be written")
        if target.is_dir() and not force and (foreign := _foreign(target)):
            raise PageError(
                f"{named} holds {foreign!r}, which rill page did not write; name an empty folder, or write the page's "
                "files beside it with --force"
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else error
        raise PageError(f"{named} cannot be written: {reason}") from None
    return target


def write_site(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a page's files, by their names with `/`, into the folder `target`, which has passed `check_target`.

    They are written aside and then renamed one by one, index.html last; files of an earlier page are removed. Raises
    OSError or PageError; the folder is then as it was.
    """
    files = {**files, MARKER: _marker([*files, MARKER])}
    for name in files:
        _check_place(target, name)
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        aside = target / f"{_ASIDE}{secrets.token_hex(4)}"
        try:
            for name, content in files.items():
                path = aside / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            earlier = _files_of(target)
            with _uninterrupted():
                _move(aside, target, sorted(files, key=lambda name: (name == "index.html", name != MARKER)))
                for name in earlier - set(files):
                    (target / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _remove_leftovers(target: Path) -> None:
    """Remove what a process left that was killed while it wrote, but not what one writes now."""
    for aside in target.glob(f"{_ASIDE}*"):
        if time.time() - aside.stat().st_mtime > _LONGEST_SECONDS:
            shutil.rmtree(aside, ignore_errors=True)


def _move(aside: Path, target: Path, names: list[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(target / name)


def _check_place(target: Path, name: str) -> None:
    """Raise PageError if a file cannot be renamed to this name in a folder that holds other things."""
    *folders, _ = Path(name).parents  # without `.`
    for folder in reversed(folders):
        path = target / folder
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise PageError(f"{path} is not a folder, but the page needs one of that name; remove it")
    if (target / name).is_dir():
        raise PageError(f"{target / name} is a folder, but the page needs a file of that name; remove it")


def _foreign(target: Path) -> str:
    """Return the name of something that is not of an earlier page; empty if there is nothing of that kind."""
    own = _files_of(target)
    for folder, _, names in os.walk(target):
        within = Path(folder).relative_to(target)
        if within.parts and within.parts[0].startswith(_ASIDE):
            continue
        for name in sorted(names):
            if (within / name).as_posix() not in own:
                return (within / name).as_posix()
    return ""


def _files_of(target: Path) -> set[str]:
    """Return the names that the marker of an earlier page lists; none if there is no such page."""
    try:
        with (target / MARKER).open("rb") as file:
            names = json.loads(file.read(_MARKER_BYTES))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    if not isinstance(names, list):
        return set()
    return {name for name in names if isinstance(name, str) and _is_inside(name)}


def _is_inside(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _marker(names: list[str]) -> bytes:
    content = {"about": "written by rill page, which replaces these files", "files": sorted(names)}
    return (json.dumps(content, indent=1) + "\n").encode()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let signals wait until all files have their names."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
