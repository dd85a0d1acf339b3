"""Files that users name: what is replaced, what is kept, and what is only written to."""

import argparse
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from servers import ROOT

from rill import files
from rill.files import STDOUT, is_replaced, opened, output_file, replaced

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")


class Unwritable(bytes):
    """Bytes for which there is no space, except the first."""


def write(path, content=b"new", **parameters):
    with replaced(Path(path), **parameters) as file:
        file.write(content)
        file.flush()
        if isinstance(content, Unwritable):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=["unnamed", "unlinkable", "named"])
def folder(tmp_path, monkeypatch, request):
    """A folder on a file system that can make files without a name, cannot name them later, or can do neither."""
    if request.param == "unlinkable":

        def refuse(*_, **__):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

        monkeypatch.setattr(os, "link", refuse)
    if request.param == "named":
        monkeypatch.setattr(files, "_UNNAMED", 0)
    return tmp_path


def test_a_file_is_replaced_whole(folder):
    path = folder / "a"
    write(path, b"old")
    with replaced(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(OSError, match="No space") as caught:
        write(path, Unwritable(b"half"))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"new"
    assert os.listdir(folder) == ["a"]


def test_nothing_is_left_of_a_process_that_is_killed(tmp_path):
    program = f"""
import os, pathlib, rill.files
with rill.files.replaced(pathlib.Path({str(tmp_path / "a")!r})) as file:
    file.write(b"half"); file.flush(); os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    if hasattr(os, "O_TMPFILE"):
        assert os.listdir(tmp_path) == []


@posix_only
def test_modes(folder):
    before = os.umask(0o027)
    try:
        write(folder / "new")
        write(folder / "secret", mode=0o600)
    finally:
        os.umask(before)
    assert (mode_of(folder / "new"), mode_of(folder / "secret")) == (0o640, 0o600)
    for mode in (0o600, 0o664, 0o755):
        (folder / "new").chmod(mode)
        write(folder / "new", mode=0o600)
        assert mode_of(folder / "new") == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays(folder):
    (folder / "theirs").touch()
    os.chown(folder / "theirs", 12345, 54321)
    write(folder / "theirs")
    found = (folder / "theirs").stat()
    assert (found.st_uid, found.st_gid, found.st_size) == (12345, 54321, 3)


@posix_only
def test_links_stay(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "real").write_bytes(b"something that is longer")
    (folder / "link").symlink_to("sub/real")
    (folder / "link2").symlink_to(folder / "link")
    (folder / "dangling").symlink_to("sub/none")
    for name in ("link", "link2", "dangling"):
        write(folder / name, name.encode())
        assert (folder / name).is_symlink()
        assert (folder / name).read_bytes() == name.encode()
    assert (folder / "sub" / "real").read_bytes() == b"link2"
    assert sorted(os.listdir(folder / "sub")) == ["none", "real"]
    (folder / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write(folder / "loop")


@posix_only
def test_other_names_of_a_file_stay(folder):
    (folder / "a").write_bytes(b"something that is longer")
    subprocess.run(["ln", folder / "a", folder / "b"], check=True)
    write(folder / "b")
    assert (folder / "a").read_bytes() == b"new"
    assert os.path.samefile(folder / "a", folder / "b")
    assert sorted(os.listdir(folder)) == ["a", "b"]


@posix_only
def test_a_file_in_a_folder_that_cannot_be_written(folder, monkeypatch):
    """Root can write everywhere, so the refusal is made up; a file that is mounted cannot be renamed over either."""
    (folder / "a").write_bytes(b"something that is longer")

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_new_file", refuse)
        write(folder / "a")
        with pytest.raises(PermissionError):
            write(folder / "b")
    assert (folder / "a").read_bytes() == b"new"

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    write(folder / "a", b"mounted")
    assert (folder / "a").read_bytes() == b"mounted"
    assert os.listdir(folder) == ["a"]


@posix_only
def test_devices_pipes_and_descriptors_are_written_as_such(tmp_path, devices):
    write(devices / "null")
    assert (devices / "null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(10)
    assert found == [b"new"]
    assert (tmp_path / "pipe").is_fifo()
    with (tmp_path / "log").open("wb") as log:
        log.write(b"before,")
        log.flush()
        write(f"/dev/fd/{log.fileno()}")
        write(f"/proc/self/fd/{log.fileno()}" if sys.platform == "linux" else f"/dev/fd/{log.fileno()}", b",again")
        assert not is_replaced(Path(f"/dev/fd/{log.fileno()}"))
    assert (tmp_path / "log").read_bytes() == b"before,new,again"
    with pytest.raises(OSError, match="Bad file descriptor"):
        write("/dev/fd/987")


@posix_only
def test_a_pipe_without_a_reader_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no program reads this pipe") as caught:
        opened(tmp_path / "pipe")
    assert caught.value.filename == str(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@posix_only
@pytest.mark.parametrize("redirection", ["> out", ">> out", "| cat > out"])
def test_standard_output_is_where_the_shell_put_it(tmp_path, redirection):
    """`/dev/stdout` of a file that is appended to would be truncated if it were opened by its name."""
    (tmp_path / "out").write_bytes(b"" if redirection == "> out" else b"old,")
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "program.py").write_text(
        "from rill.files import output_file, replaced\n"
        "for name in ('-', '/dev/stdout', 'link'):\n"
        "    with replaced(output_file(name)) as file:\n"
        "        file.write(b'x')\n"
    )
    program = f"cd {tmp_path} && {{ printf a; {sys.executable} program.py; printf z; }} {redirection}"
    subprocess.run(["bash", "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "out").read_bytes() == (b"old," if ">>" in redirection else b"") + b"axxxz"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_device_is_an_error(tmp_path, devices):
    (tmp_path / "full").symlink_to(devices / "full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(tmp_path / "full")
    assert caught.value.filename == str(tmp_path / "full")
    assert os.listdir(tmp_path) == ["full"]


@posix_only
def test_arguments_are_checked_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("none/x")
    (tmp_path / "file").touch()
    for text, complaint in [
        ("", "cannot write : the name is empty"),
        (".", "cannot write .: it is a folder"),
        ("new/", "cannot write new/: there is no folder new/"),
        ("none/a", "cannot write none/a: there is no folder none"),
        ("link", f"cannot write link: there is no folder {tmp_path}/none"),
        ("file/a", "cannot write file/a: "),
        ("x" * 300, "File name too long"),
        ("a\0b", "cannot write a\0b: "),
        ("/dev/fd/987", "cannot write /dev/fd/987: Bad file descriptor"),
    ]:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            output_file(text)
        assert complaint in str(caught.value)
    for text in ("file", "new", "./-", "/dev/null", "/dev/stdout", str(tmp_path / "x")):
        assert output_file(text) == Path(text)
    assert output_file("-") == STDOUT
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
