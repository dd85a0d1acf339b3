"""Files that users name: a regular file is replaced whole or not at all, anything else is written as what it is."""

import argparse
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import BinaryIO

STDOUT = Path("/dev/stdout")  # on every system: what `-` means
READER_SECONDS = 5.0  # that a named pipe's reader may take to open it
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d+)")
_OF_OTHERS = re.compile(r"/proc/\d+/fd/\d+")  # descriptors of a process by its number
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_LINKS = 40  # in a row, at most


def output_file(text: str) -> Path:
    """Return the path of an argument that names a file to write; `-` is standard output.

    Raises ArgumentTypeError if it cannot be written, before any work is done.
    """
    if text == "-":
        return STDOUT
    try:
        if not text:
            raise OSError(errno.ENOENT, "the name is empty")
        path = Path(text)
        _check(path)
        if text.endswith(os.sep):
            raise OSError(errno.ENOTDIR, f"there is no folder {text}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise argparse.ArgumentTypeError(f"cannot write {text}: {reason}") from None
    return path


def is_replaced(path: Path) -> bool:
    """Tell whether writing `path` makes a regular file, rather than writing into a device, pipe or descriptor.

    Raises OSError if it is a folder, or its links lead nowhere.
    """
    place = _place(path)
    if isinstance(place, int) or _OF_OTHERS.fullmatch(str(place)):
        return False
    return not place.exists() or place.is_file()


def printed_beside(path: Path | None) -> AbstractContextManager[object]:
    """Send what is printed for people to standard error if a file for programs goes to standard output."""
    return redirect_stdout(sys.stderr) if path == STDOUT else nullcontext()


@contextmanager
def replaced(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file for what `path` shall contain; it takes its place at the end, unless there was an error.

    A link stays, and what it leads to is replaced. A file that exists keeps its owner and mode, and its other names;
    `mode`, less the umask, is a new one's. Devices, pipes and descriptors such as /dev/fd/3 are written as such.
    Raises OSError, which names `path`; a regular file is then as it was.
    """
    with naming(path):
        place = _place(path)
        if is_replaced(path):
            assert isinstance(place, Path)
            with _aside(place, mode) as file:
                yield file
        else:
            with opened(path) as file:
                yield file


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError inside the context name `path`, as those of a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename).name.startswith(_ASIDE):
            error.filename = str(path)
        raise


def opened(path: Path) -> BinaryIO:
    """Open a device, pipe or descriptor for writing. Raises OSError; of a named pipe, if nothing reads it."""
    place = _place(path)
    if isinstance(place, int):
        with suppress(OSError, ValueError):  # what is in its way is for whoever writes there
            sys.stdout.flush()
        return os.fdopen(os.dup(place), "wb")
    if not place.is_fifo():
        return place.open("wb")
    deadline = time.monotonic() + READER_SECONDS
    while True:
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() >= deadline:
                raise OSError(errno.ENXIO, "no program reads this pipe", str(path)) from None
            time.sleep(0.02)
        else:
            os.set_blocking(descriptor, True)
            return os.fdopen(descriptor, "wb")


_ASIDE = ".rill-"  # begins the names of files that are being written


@contextmanager
def _aside(path: Path, mode: int) -> Iterator[BinaryIO]:
    """Open a file that replaces the regular file `path`, or becomes it, at the end."""
    _check(path)
    before = path.stat() if path.exists() else None
    try:
        file, is_unnamed = _new_file(path.parent, mode)
    except OSError as error:
        if before is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        with tempfile.TemporaryFile() as file:  # the folder cannot be written, but the file can
            yield file
            _overwrite(path, file)
        return
    aside = path.with_name(f"{_ASIDE}{secrets.token_hex(8)}.tmp") if is_unnamed else Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if before and not _can_stand_in(file, path, before):
                _overwrite(path, file)
                return
            if is_unnamed:
                _give_name(file, aside)
            try:
                aside.replace(path)
            except OSError as error:
                if before is None or error.errno not in (errno.EBUSY, errno.EXDEV):
                    raise
                _overwrite(path, file)  # a single file that is mounted, as into a container
    finally:
        aside.unlink(missing_ok=True)


def _new_file(folder: Path, mode: int) -> tuple[BinaryIO, bool]:
    """Make a file in a folder; tell whether it has no name yet, so that nothing of it is left if this process dies."""
    flags = os.O_RDWR | getattr(os, "O_BINARY", 0)
    if _UNNAMED and Path("/proc/self/fd").is_dir():
        with suppress(OSError):  # not on every file system
            return os.fdopen(os.open(folder, flags | _UNNAMED, mode), "w+b"), True
    aside = folder / f"{_ASIDE}{secrets.token_hex(8)}.tmp"
    descriptor = os.open(aside, flags | os.O_CREAT | os.O_EXCL, mode)
    return open(aside, "w+b", opener=lambda *_: descriptor), False


def _give_name(file: BinaryIO, path: Path) -> None:
    """Make a file that has no name appear at `path`."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # with folders this is `linkat`, which follows the link in /proc
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:  # not in every container
        made = os.fstat(file.fileno())
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, stat.S_IMODE(made.st_mode))) as copy:
            os.fchown(copy.fileno(), made.st_uid, made.st_gid)
            os.fchmod(copy.fileno(), stat.S_IMODE(made.st_mode))
            file.seek(0)
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(copy.fileno())
    finally:
        os.close(folder)


def _can_stand_in(file: BinaryIO, path: Path, before: os.stat_result) -> bool:
    """Give a new file the owner and mode of the one that it is to replace; tell whether nothing else would be lost."""
    if before.st_nlink > 1 or _has_access_list(path):
        return False
    if not hasattr(os, "fchown"):
        return True
    made = os.fstat(file.fileno())
    try:
        if (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
    except PermissionError:
        return False
    return True


def _has_access_list(path: Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except (AttributeError, OSError):  # not on this system, or file system
        return False


def _overwrite(path: Path, file: BinaryIO) -> None:
    """Copy a file's bytes into `path`, which stays the same file."""
    file.flush()
    file.seek(0)
    with path.open("r+b") as target:
        shutil.copyfileobj(file, target)
        target.truncate()
        target.flush()
        os.fsync(target.fileno())


def _place(path: Path) -> Path | int:
    """Follow links: return the path that they lead to, or the number of a descriptor of this process."""
    place = Path.cwd() / path
    for _ in range(_LINKS):
        text = os.path.normpath(place)
        if place == STDOUT or text in _STANDARD:
            return _STANDARD.get(text, 1)
        if number := _DESCRIPTOR.fullmatch(text):
            return int(number[1])
        if _OF_OTHERS.fullmatch(text):
            return Path(text)
        try:
            found = place.lstat()
        except FileNotFoundError:
            return place
        if not stat.S_ISLNK(found.st_mode):
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
            return place
        place = place.parent / place.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _check(path: Path) -> None:
    """Raise OSError if `path` cannot be written."""
    place = _place(path)
    if isinstance(place, int):
        os.fstat(place)
    elif place.exists():
        if place.is_socket():
            raise OSError(errno.ENXIO, "it is a socket", str(path))
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    elif not place.parent.is_dir():
        folder = path.parent if place == Path.cwd() / path else place.parent
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder}", str(path))
    elif not os.access(place.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)} in {place.parent}", str(path))
