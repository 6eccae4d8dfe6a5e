"""Search for picture files, and decoding of common formats into arrays."""

import functools
import io
import logging
import os
import pathlib
import stat
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.ExifTags import Base
from PIL.Image import Resampling

from googlenet_flax.runtime.errors import UserError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# Without this list, pillow would also try readers that start other programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow warns of decompression bombs above the same number.
# Pillow reduces cheaply to twice the target size, and only then resizes with antialiasing.
# That is 4x faster than antialiasing all the way (PSNR between the two: 55 dB).
REDUCING_GAP = 2
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's modes by number of channels.
Picture = str | os.PathLike[str] | bytes  # The path of a file, or the bytes of one.


class BadImageError(Exception):
    """A file that cannot be read as a picture; the message is the reason."""


def printable(path: str | os.PathLike[str]) -> str:
    """Returns the path as text, with escapes for bytes that are not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def find_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Returns the files of `find_files` whose suffix is that of a picture."""
    return [path for path in find_files(folder) if is_picture(path)]


def is_picture(path: pathlib.Path) -> bool:
    """Returns True if the suffix of a path is that of a picture."""
    return path.suffix.lower() in SUFFIXES


def find_files(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Finds the files below `folder`, sorted by path.

    Names that begin with a dot are skipped. Links are followed, and no folder is listed
    twice.

    Raises:
      UserError: A folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from error

    found, visited = [], set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [pathlib.Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found, key=pathlib.Path.as_posix)


def check_channels(channels: int) -> None:
    """Raises a `UserError` unless pictures can be decoded to this number of channels."""
    if channels not in MODES:
        raise UserError(
            f"config.input_channels is {channels} but pictures are read with 1 (gray), 3 "
            "(RGB) or 4 (RGBA) channels: set --config.input_channels to one of them"
        )


def decode_image(
    picture: Picture, storage_size: int, channels: int = 3
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes a picture into the top-left corner of a square of side `S = storage_size`.

    The picture keeps its aspect ratio. It is reduced (bilinear, antialiased) until its
    longer side has at most `S` pixels, and never enlarged. It is rotated or flipped by its
    EXIF orientation. Transparent pixels are blended with white, unless the result has an
    alpha channel. 16-bit gray values are divided by 257. Floating-point gray values are
    read as 0 to 1 if none exceeds 1, and as 0 to 255 otherwise. Only the first frame of an
    animation is read.

    Args:
      picture: A BMP, GIF, JPEG (also MPO), PNG, PPM, TIFF or WebP file with any suffix,
        or the bytes of one.
      storage_size: Side of the square in pixels.
      channels: 1 for gray (the luma of colors), 3 for RGB or 4 for RGBA.

    Returns:
      uint8 `[S, S, channels]`, 0-255, zero outside the picture; and `(height, width)` of
      the picture in it.

    Raises:
      BadImageError: The picture cannot be read or has more than `MAX_PIXELS` pixels.
      UserError: `channels` is not 1, 3 or 4.
    """
    pixels, _ = decode_pixels(picture, storage_size, channels)
    height, width, _ = pixels.shape
    image = np.zeros((storage_size, storage_size, channels), np.uint8)
    image[:height, :width] = pixels
    return image, (height, width)


def decode_pixels(
    picture: Picture, longer_side: int, channels: int = 3
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes a picture as `decode_image` does, but without a square around it.

    Returns:
      uint8 `[H, W, channels]`, 0-255, with a longer side of at most `longer_side` pixels;
      and `(height, width)` before the reduction.
    """
    check_channels(channels)
    _silence_pillow()
    try:
        image, size = _read(picture, longer_side, MODES[channels])
        return np.asarray(image).reshape(image.height, image.width, channels), size
    except Exception as error:  # A broken file makes pillow raise nearly anything.
        raise BadImageError(_reason(picture, error)) from error


def _read(
    picture: Picture, longer_side: int, mode: str
) -> tuple[PIL.Image.Image, tuple[int, int]]:
    """Reads, reduces and turns a picture; also returns its full height and width."""
    if isinstance(picture, bytes):
        file = io.BytesIO(picture)
    else:
        file, kind = picture, stat.S_IFMT(os.stat(picture).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # Opening it could block forever.
            raise BadImageError("not a regular file")
    with PIL.Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            size = f"{width}x{height} pixels"
            raise BadImageError(f"too large: {size}, more than {MAX_PIXELS}")
        scale = min(1, longer_side / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        gap_size = size[0] * REDUCING_GAP, size[1] * REDUCING_GAP
        drafted = image.draft(None, gap_size)  # Decodes a JPEG at reduced size.
        image.load()
        box = drafted[1] if drafted else None
        converted = _convert(image, mode)
        bilinear = Resampling.BILINEAR
        reduced = converted.resize(size, bilinear, box, reducing_gap=REDUCING_GAP)
    reduced.info = image.info  # Conversions can lose it.
    try:
        upright = PIL.ImageOps.exif_transpose(reduced)
        is_on_side = reduced.getexif().get(Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # A picture with broken EXIF data is not rotated.
        upright, is_on_side = reduced, False
    return upright, (width, height) if is_on_side else (height, width)


def _convert(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):  # Gray, floating point or 16 bits.
        values = np.nan_to_num(np.asarray(image))
        if image.mode != "F":
            values = values / 257
        elif values.max() <= 1:
            values = values * 255
        levels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return PIL.Image.fromarray(levels).convert(mode)
    if mode == "RGBA" or not image.has_transparency_data:
        return image.convert(mode)
    opaque = image.convert("RGBA")
    canvas = PIL.Image.new("RGB", image.size, "white")
    canvas.paste(opaque, mask=opaque)
    return canvas.convert(mode)


def _reason(picture: Picture, error: Exception) -> str:
    """Returns a short reason why the picture cannot be read."""
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"too large: more than {MAX_PIXELS} pixels"
    if isinstance(error, PIL.UnidentifiedImageError):
        is_bytes = isinstance(picture, bytes)
        size_bytes = len(picture) if is_bytes else os.path.getsize(picture)
        return "not a picture" if size_bytes else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    message = str(error).partition("\n")[0] or type(error).__name__
    return "truncated" if "truncated" in message.lower() else message


@functools.cache
def _silence_pillow() -> None:
    # NOTE: Set once, because catch_warnings is not thread-safe, and appended, so that
    # filters of the user take precedence.
    warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
