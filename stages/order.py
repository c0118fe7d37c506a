"""The order in which training sees clips: a permutation that is computed where it is needed and never stored.

Any position of any epoch is found alone, in constant time and memory, whatever the number of clips. So a run resumes at any
step, and every rank and worker agrees, without a list of ten million numbers in each of them.
"""

import functools
import hashlib

_ROUNDS = 10
"""Rounds of the network: more than the four that suffice for large halves, for a few clips have halves of one or two bits. Our
choice; the tests hold the outcome against uniform chance."""


def ordered(position: int, *, count: int, seed: int, epoch: int) -> int:
    """The number below ``count`` that stands at a position of an epoch's order.

    A Feistel network permutes the numbers of twice as many bits as one half has; walking on from a number that is not below
    ``count`` to the next of its cycle leaves a permutation of those that are.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: generalized-Feistel and cycle-walking.

    Args:
        position: from 0 up to ``count``.
        count: how many numbers are ordered.
        seed: seed of all orders.
        epoch: which of them.

    Raises:
        IndexError: the position is not below ``count``.
    """
    if not 0 <= position < count:
        raise IndexError(f"position {position} of an order of {count}")
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    key = _key(seed, epoch, count)
    found = _permuted(position, half_bits, key)
    while found >= count:
        found = _permuted(found, half_bits, key)
    return found


def _permuted(value: int, half_bits: int, key: bytes) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for number in range(_ROUNDS):
        spelled = (number << half_bits | right).to_bytes(8, "big")
        digest = hashlib.blake2b(spelled, digest_size=8, key=key).digest()
        left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
    return left << half_bits | right


@functools.lru_cache(maxsize=4)
def _key(seed: int, epoch: int, count: int) -> bytes:
    spelled = "\x1f".join(map(str, (seed, "order", epoch, count)))
    return hashlib.sha256(spelled.encode()).digest()
