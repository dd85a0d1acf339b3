"""Freed memory is returned to the system: the server's settings of the C library work."""

import subprocess
import sys

import pytest

# After a large block was freed, glibc takes the next one from a heap, unless it is configured otherwise.
PROGRAM = """
import ctypes, sys

class Info(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks".split()] + [
        (f"more{number}", ctypes.c_size_t) for number in range(4)]

try:
    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = Info
except (OSError, AttributeError):
    sys.exit("no mallinfo2")
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = (
    ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p])
if sys.argv[1:]:
    from rill.serve.operate.memory import prepare_memory
    prepare_memory()
for size in (8, 4):
    before = library.mallinfo2().hblkhd
    block = library.malloc(size * 2**20)
    own = library.mallinfo2().hblkhd - before
    library.free(block)
print(own >= 4 * 2**20)
"""


@pytest.mark.parametrize("prepared", [True, False])
def test_large_blocks_are_returned_when_freed(prepared):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *["prepared"] * prepared]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "no mallinfo2" in ended.stderr:
        pytest.skip("the C library is not glibc 2.33 or newer")
    assert (ended.stdout, ended.stderr) == (f"{prepared}\n", "")
