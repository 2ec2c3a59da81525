"""A shuffled order of n items that is computed from (seed, epoch, offset), not stored.

Each epoch is a permutation of its own, so every item comes exactly once in it, and any process can
ask for any position. The permutation is a Feistel network on the next power of four, walked until
it lands inside (Black and Rogaway 2002).
"""

import hashlib

ROUNDS = 6


def item_at(position: int, count: int, seed: int) -> int:
    """Return the item at a running `position` over epochs of `count` items."""
    epoch, offset = divmod(position, count)
    return shuffled(offset, count, seed, epoch)


def shuffled(offset: int, count: int, seed: int, epoch: int) -> int:
    """Return the item at `offset` of one epoch, 0 <= offset < count. Raises ValueError outside."""
    if not 0 <= offset < count:
        raise ValueError(f"offset must be in [0, {count}), got {offset}")
    half = max((count - 1).bit_length() + 1, 2) // 2
    keys = hashlib.sha256(f"{seed}/{epoch}/{count}".encode()).digest()
    value = offset
    while True:
        value = _permuted(value, half, keys)
        if value < count:
            return value


def _permuted(value: int, half: int, keys: bytes) -> int:
    """Return a bijection of 2 * half bits."""
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for number in range(ROUNDS):
        left, right = (
            right,
            left
            ^ (_mixed(right, int.from_bytes(keys[4 * number : 4 * number + 4], "little")) & mask),
        )
    return left << half | right


def _mixed(value: int, key: int) -> int:
    """Return 64 well-mixed bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value + key * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
