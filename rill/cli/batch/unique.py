"""Which texts were there before: a set of digests in memory of a fixed size."""

import hashlib
from array import array

_BITS = 64


class SeenTexts:
    """The texts that `add` has had, as digests of 64 bits in a table for `most` texts: 11 to 21 bytes for each.

    Two different texts have the same digest with a probability of 2^-64: of a million texts, one is taken for another
    with a probability of about 3e-8, of 100 million with 3e-4.
    """

    def __init__(self, most: int) -> None:
        slots = 1 << (most * 4 // 3).bit_length()  # filled to three quarters at most
        self._table, self._mask = array("Q", [0]) * slots, slots - 1  # 0: free

    def add(self, text: str) -> bool:
        """Add a text; tell whether it is new."""
        digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_BITS // 8).digest()) or 1
        table, mask, slot = self._table, self._mask, digest & self._mask
        while found := table[slot]:
            if found == digest:
                return False
            slot = (slot + 1) & mask
        table[slot] = digest
        return True
