"""Random numbers as functions: every draw is a hash of its purpose, never the next number of a stream.

So a draw doesn't depend on the processes, ranks or batches before it. Everything works elementwise on arrays.
"""

from enum import IntEnum, unique

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 6


@unique
class Purpose(IntEnum):
    """What a draw is for: the second part of every key, so that no two kinds of draw share one.

    The numbers are part of the identity of every shard set and run: never change or reuse one.
    """

    ORDER_ROTATION, ORDER_WINDOW, ORDER_FLIP, ORDER_SHARDS = range(4)
    MIX, MIXED_SEED = 10, 11
    ROTATE90, ROTATE, SCALE, BRIGHTNESS, CONTRAST, GAMMA, NOISE, BLUR, ELASTIC, PIXELS = range(16, 26)
    TRAINING_IMAGES, TEST_IMAGES, VALIDATION_SPLIT, TEST_SPLIT, POSITIONS, FOLDS = range(30, 36)
    CONTACT_SHEET = 50
    BOOTSTRAP = 60
    STEP, GRAIN = 100, 101


def generator(*key: int) -> np.random.Generator:
    """A separate numpy generator for `key`, where many different draws are needed."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def hash64(*parts: ArrayLike) -> UInt64:
    """64 well-mixed bits of `parts` (integers or integer arrays, broadcast), uint64.

    Chained splitmix64 finalizers (Steele, Lea and Flood, OOPSLA 2014).
    """
    with np.errstate(over="ignore"):  # arithmetic is intentionally modulo 2^64
        state = _as_uint64(_GOLDEN)
        for part in parts:
            state = _finalize((state ^ _as_uint64(part)) + _GOLDEN)
        return state


def uniform(*parts: ArrayLike) -> NDArray[np.float64]:
    """`hash64` as float64 in [0, 1)."""
    return (hash64(*parts) >> np.uint64(11)) * np.float64(2.0**-53)


def permute(position: ArrayLike, size: ArrayLike, key: ArrayLike) -> UInt64:
    """Where a random permutation of `range(size)`, chosen by `key`, sends `position`; elementwise, uint64.

    A Feistel network on the grid a x b >= size (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002):
    positions outside `range(size)` are followed along their cycle until they are inside. a and b are next to the
    square root of `size`, so at most one position in b needs this; nothing is ever stored.
    """
    position, size, key = _as_uint64(position), _as_uint64(size), _as_uint64(key)
    a = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    b = (size + a - np.uint64(1)) // a
    result = np.asarray(_feistel(position, a, b, key))
    outside = np.flatnonzero(result >= size)
    if not outside.size:
        return result
    size, a, b, key = (np.broadcast_to(each, result.shape).ravel() for each in (size, a, b, key))
    walking = result.ravel()
    while outside.size:
        walking[outside] = _feistel(walking[outside], a[outside], b[outside], key[outside])
        outside = outside[walking[outside] >= size[outside]]
    return walking.reshape(result.shape)


def _feistel(x: UInt64, a: UInt64, b: UInt64, key: UInt64) -> UInt64:
    right = x // a
    left = x - right * a
    with np.errstate(over="ignore"):
        for number in range(0, _ROUNDS, 2):
            left = _add_modulo(left, right, a, key + np.uint64(number) * _GOLDEN)
            right = _add_modulo(right, left, b, key + np.uint64(number + 1) * _GOLDEN)
        return right * a + left


def _add_modulo(value: UInt64, other: UInt64, modulus: UInt64, key: UInt64) -> UInt64:
    """(value + pseudo-random function of `other`) mod `modulus`, without a division."""
    bits = (other ^ key) * _MIX_1
    bits ^= bits >> np.uint64(32)
    bits *= _MIX_2
    bits >>= np.uint64(32)
    # The 32 bits as a fraction of the modulus (Lemire's reduction).
    bits *= modulus
    bits >>= np.uint64(32)
    bits += value
    bits -= modulus * (bits >= modulus)
    return bits


def _finalize(state: UInt64) -> UInt64:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def _as_uint64(values: ArrayLike) -> UInt64:
    array = np.asarray(values)
    return array.view(np.uint64) if array.dtype == np.int64 else array.astype(np.uint64)
