"""Ways to damage a file, each a function of a random generator and the valid bytes."""

import struct
import zlib
from collections.abc import Callable

import numpy as np

Damage = Callable[[np.random.Generator, bytes], bytes]

TELLING = (0, 1, 2, 3, 7, 255, 256, 60_000, 65_535, 65_536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Numbers that often break programs."""


def cut(random: np.random.Generator, content: bytes) -> bytes:
    return content[: int(random.integers(0, len(content)))]


def flip_bits(random: np.random.Generator, content: bytes) -> bytes:
    changed = bytearray(content)
    for place in random.integers(0, len(content), int(random.integers(1, 5))):
        changed[place] ^= 1 << int(random.integers(0, 8))
    return bytes(changed)


def flip_bits_of_header(random: np.random.Generator, content: bytes) -> bytes:
    return flip_bits(random, content[:256]) + content[256:]


def overwrite(random: np.random.Generator, content: bytes) -> bytes:
    start, length = int(random.integers(0, len(content))), int(random.integers(1, 64))
    return (content[:start] + random.bytes(length) + content[start + length :])[: len(content)]


def insert_or_remove(random: np.random.Generator, content: bytes) -> bytes:
    start, length = int(random.integers(0, len(content))), int(random.integers(1, 16))
    if random.random() < 0.5:
        return content[:start] + content[start + length :]
    return content[:start] + random.bytes(length) + content[start:]


def random_header(random: np.random.Generator, content: bytes) -> bytes:
    """Edge-case numbers where sizes, counts and offsets are: TIFF directories are at the start or the end."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        reach = min(len(content), int(random.choice([32, 256, 1024])))
        place = int(random.integers(0, reach))
        if random.random() < 0.3:
            place = len(content) - 1 - place
        code = "<>"[int(random.integers(0, 2))] + "HI"[int(random.integers(0, 2))]
        value = int(random.choice(TELLING)) & (0xFFFF if code[1] == "H" else 0xFFFFFFFF)
        number = struct.pack(code, value)
        changed[place : place + len(number)] = number
    return bytes(changed[: len(content)])


def claims_of_png(random: np.random.Generator, content: bytes) -> bytes:
    """Change size, depth or color type, with a matching checksum."""
    if not content.startswith(b"\x89PNG"):
        return random_header(random, content)
    header = bytearray(content[16:29])
    place = int(random.integers(0, 5))
    if place < 2:
        header[4 * place : 4 * place + 4] = struct.pack(">I", int(random.choice(TELLING)))
    else:
        header[8 + place - 2 if place < 4 else 12] = int(random.integers(0, 20))
    return content[:16] + bytes(header) + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


DAMAGES: dict[str, Damage] = {
    function.__name__: function
    for function in (cut, flip_bits, flip_bits_of_header, overwrite, insert_or_remove, random_header)
}
FORGERIES: dict[str, Damage] = {claims_of_png.__name__: claims_of_png}
"""Damage that updates the checksums, so that different pixels are correct."""
