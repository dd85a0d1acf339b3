"""The seeds of several texts that are requested with one."""

import hashlib


def seed_of(base: int, number: int) -> int:
    """Return the seed of text `number` of those with the seed `base`, from 0 to 2^53 - 1, which JSON holds exactly."""
    return int.from_bytes(hashlib.blake2b(f"{base} {number}".encode(), digest_size=8).digest()) >> 11
