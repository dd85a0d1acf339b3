"""The files that a corpus is read from. Needs no PyTorch."""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import iglob
from pathlib import Path

from rill.train.errors import CorpusError, did_you_mean

DESCRIPTORS = re.compile(r"/dev/(stdin|fd/.*)|/proc/[^/]+/(task/[^/]+/)?fd/.*")  # /dev/fd/63 is what <(…) stands for
COMPRESSED = ".gz"  # a file of this suffix has another one before it


@dataclass
class Files:
    """The files that were asked for, in the order of their paths; how many others there are of each suffix; and the
    links that were asked for, but lead nowhere.
    """

    paths: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    broken: list[Path] = field(default_factory=list)


def is_stream(spec: str) -> bool:
    """Whether `spec` names something that can be read only once: standard input, a pipe, an open file of a process."""
    if spec == "-" or DESCRIPTORS.fullmatch(spec):
        return True
    try:
        mode = Path(spec).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def name_of(spec: str) -> str:
    """What to call `spec` in a message."""
    return "standard input" if spec in ("-", "/dev/stdin", "/dev/fd/0") else spec


def nothing(spec: str, wanted: str, names: Iterable[str]) -> CorpusError:
    """The error for a `spec` that is nothing of what is `wanted`; suggests one of `names` or a file beside it."""
    folder, mistyped = os.path.split(spec)
    try:
        beside = [name for name in os.listdir(folder or ".") if not name.startswith(".")]
    except (OSError, ValueError):
        beside = []
    similar = did_you_mean(spec, names) or did_you_mean(mistyped, beside)
    return CorpusError(f"{spec!r} is neither {wanted}{similar}")


def is_pattern(spec: str) -> bool:
    """Whether `spec` has wildcards."""
    return any(character in spec for character in "*?[")


def files_in(folder: Path, suffixes: Sequence[str]) -> Files:
    """The files in `folder`, at any depth, that have one of the `suffixes`, in small or capital letters, perhaps with
    .gz after it.

    Hidden files and folders are left out. Links are followed, each file and folder is visited once. Raises CorpusError
    if there is no such file, and OSError.
    """
    found = _chosen(_walk(folder), suffixes)
    if not found.paths:
        raise CorpusError(f"{folder} has no {' or '.join(suffixes)} files{_what_else(found, folder)}")
    return found


def files_like(pattern: str, suffixes: Sequence[str]) -> Files:
    """The files that `pattern` matches: `*`, `?` and `[…]` within a name, and `**` for any number of folders.

    If `suffixes` are given, only files with one of them. Hidden files match only a pattern that names a hidden one.
    Raises CorpusError if there is no such file, and OSError.
    """
    base, *rest = _split(pattern)
    if not Path(base).is_dir():
        raise CorpusError(f"{pattern!r} matches no file: there is no folder {base}")
    found = _walk(Path(base), None if "**" in rest else len(rest), any(part.startswith(".") for part in rest))
    depth = len(Path(base).parts)
    found.paths = [path for path in found.paths if _matches(path.parts[depth:], tuple(rest))]
    found.broken = [path for path in found.broken if _matches(path.parts[depth:], tuple(rest))]
    matched = len(found.paths)
    if suffixes:
        found = _chosen(found, suffixes)
    if not found.paths:
        if matched:
            raise CorpusError(f"{pattern!r} matches no file with the suffix {' or '.join(suffixes)}")
        way = "; write one pattern for each choice in {}" if "{" in pattern else ""
        if any(Path(path).is_dir() for path in iglob(pattern)):
            way = f", but folders; name their files by {str(Path(pattern, '**'))!r}"
        raise CorpusError(f"{pattern!r} matches no file{way}")
    return found


def _split(pattern: str) -> list[str]:
    """The longest beginning of `pattern` that exists or has no wildcard, and the parts that follow."""
    parts = Path(pattern).parts
    base = Path()
    for index, part in enumerate(parts):
        if is_pattern(part) and not (base / part).exists():
            return [str(base), *parts[index:]]
        base /= part
    return [str(base)]


def _matches(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _chosen(found: Files, suffixes: Sequence[str]) -> Files:
    endings = (*suffixes, *(suffix + COMPRESSED for suffix in suffixes))
    chosen = Files(broken=[path for path in found.broken if path.name.lower().endswith(endings)])
    for path in found.paths:
        if path.name.lower().endswith(endings):
            chosen.paths.append(path)
        else:
            chosen.others[path.suffix.lower()] += 1
    return chosen


def _walk(folder: Path, depth: int | None = None, hidden: bool = False) -> Files:
    """All regular files in `folder`, sorted by path, down to `depth`, which is 1 for those directly in it.

    Links are followed last, so that what is in the folder itself goes by its own path.
    """
    found = Files()
    entered: set[tuple[int, int]] = set()
    seen: set[tuple[int, int]] = set()  # files
    folders, links = [(folder, 1)], list[tuple[Path, int]]()
    while folders or links:
        if folders:
            current, level = folders.pop()
            status = current.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in entered or (depth is not None and level > depth):
                continue
            entered.add(identity)
            with os.scandir(current) as entries:
                for entry in entries:
                    path = current / entry.name
                    if entry.name.startswith(".") and not hidden:
                        continue
                    if entry.is_symlink():
                        links.append((path, level))
                    elif entry.is_dir():
                        folders.append((path, level + 1))
                    elif entry.is_file():
                        found.paths.append(path)
                        seen.add((status.st_dev, entry.inode()))
            links.sort(reverse=True)
            continue
        path, level = links.pop()
        try:
            status = path.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            found.broken.append(path)
            continue
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            folders.append((path, level + 1))
        elif stat.S_ISREG(status.st_mode) and identity not in seen:
            found.paths.append(path)
            seen.add(identity)
    found.paths.sort(key=lambda path: path.parts)
    return found


def _what_else(found: Files, folder: Path) -> str:
    """The end of the message that there is no file of the suffixes that were asked for."""
    if found.broken:
        return f"; links that lead nowhere: {len(found.broken):,}, such as {found.broken[0]}"
    if not found.others:
        return ": it has no files, or hidden ones only"
    common = [suffix for suffix, _ in found.others.most_common(3)]
    counted = ", ".join(f"{found.others[suffix]:,} {suffix or 'without a suffix'}" for suffix in common)
    named = [suffix for suffix in common if suffix]
    way = f"--suffix {' '.join(named)}" if named else f"--corpus '{folder}/*'"
    return f", but {counted}; name what to read with {way}"
