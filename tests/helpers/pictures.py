"""Writers of picture files."""

import struct
import zlib

import numpy as np
import PIL.Image


def write_pictures(root, counts, suffix=".png", side=None, channels=3) -> None:
    """Writes a number of pictures into each folder, no two alike.

    They have various sizes, or all of them a `side` in pixels.
    """
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            height, width = (side, side) if side else rng.integers(8, 16, 2)
            pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(root / name / f"{number:02}{suffix}")


def png_header(width, height) -> bytes:
    """Returns a PNG whose header names more pixels than the file holds."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels)
