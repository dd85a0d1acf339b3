"""Memory that is freed is given back: what the server asks of the C library holds."""

import subprocess
import sys

import pytest

# A large block that is freed makes glibc take the next one from a heap, unless it has been told otherwise.
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
def test_what_is_large_is_given_back_when_it_is_freed(prepared):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *["prepared"] * prepared]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "no mallinfo2" in ended.stderr:
        pytest.skip("the C library is no glibc from 2.33 on")
    assert (ended.stdout, ended.stderr) == (f"{prepared}\n", "")
