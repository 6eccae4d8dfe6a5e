"""Search for picture files, and decoding of common formats into RGB arrays."""

import functools
import io
import logging
import os
import pathlib
import stat
import warnings

import numpy as np
import PIL.Image
from PIL.ExifTags import Base
from PIL.Image import Resampling, Transpose

from googlenet_flax.runtime.errors import UserError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# Listed because pillow would also try readers that start other programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow warns of decompression bombs above the same number.
# Pillow reduces cheaply to twice the target size, and only then resizes with antialiasing.
# That is 4x faster than antialiasing all the way (PSNR between the two: 55 dB).
REDUCING_GAP = 2
Picture = str | os.PathLike[str] | bytes  # The path of a file, or the bytes of one.
TRANSPOSE = {  # EXIF orientation to the operation that turns the picture upright.
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width.


class BadImageError(Exception):
    """A file that cannot be read as a picture; the message is the reason."""


def printable(path: str | os.PathLike[str]) -> str:
    """Returns the path as text, with escapes for bytes that are not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def find_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Finds the picture files below `folder` by their suffix, sorted by path.

    Names that begin with a dot are skipped. Links are followed, and no folder is listed
    twice.

    Raises:
      UserError: A folder cannot be listed.
    """
    found, visited = [], set()
    for parent, folders, files in os.walk(folder, onerror=_report, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [pathlib.Path(parent, name) for name in files if _is_image(name)]
    return sorted(found, key=pathlib.Path.as_posix)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _report(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from error


def decode_image(picture: Picture, storage_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes a picture into the top-left corner of a square.

    The picture keeps its aspect ratio. It is reduced (bilinear, antialiased) until its
    longer side has at most `storage_size` pixels, and never enlarged. It is turned
    according to its EXIF orientation. Transparent pixels are blended with white. 16-bit
    gray values are divided by 257. Floating-point gray values are read as 0 to 1 if none
    exceeds 1, and as 0 to 255 otherwise. Only the first frame of an animation is read.

    Args:
      picture: A BMP, GIF, JPEG (also MPO), PNG, PPM, TIFF or WebP file with any suffix,
        or the bytes of one.
      storage_size: Side `S` of the square in pixels.

    Returns:
      uint8 `[S, S, 3]`, RGB, 0-255, zero outside the picture; and `(height, width)` of
      the picture in it.

    Raises:
      BadImageError: The picture cannot be read or has more than `MAX_PIXELS` pixels.
    """
    pixels, _ = decode_pixels(picture, storage_size)
    height, width, _ = pixels.shape
    image = np.zeros((storage_size, storage_size, 3), np.uint8)
    image[:height, :width] = pixels
    return image, (height, width)


def decode_pixels(picture: Picture, longer_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes a picture as `decode_image` does, without a square around it.

    Args:
      picture: A file or its bytes, as for `decode_image`.
      longer_side: Pixels to which the longer side of a larger picture is reduced.

    Returns:
      uint8 `[H, W, 3]`, RGB, 0-255; and `(height, width)` before the reduction.

    Raises:
      BadImageError: The picture cannot be read or has more than `MAX_PIXELS` pixels.
    """
    _silence_pillow()
    try:
        image, size = _read(picture, longer_side)
        return np.asarray(image), size
    except Exception as error:  # A broken file makes pillow raise nearly anything.
        raise BadImageError(_reason(picture, error)) from error


def _read(picture: Picture, longer_side: int) -> tuple[PIL.Image.Image, tuple[int, int]]:
    """Reads, reduces and turns a picture; also returns its full height and width."""
    if isinstance(picture, bytes):
        file = io.BytesIO(picture)
    else:
        _check_regular(picture)
        file = picture
    with PIL.Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImageError(f"too large: {width}x{height} pixels")
        scale = min(1, longer_side / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        gap_size = size[0] * REDUCING_GAP, size[1] * REDUCING_GAP
        drafted = image.draft(None, gap_size)  # Decodes a JPEG at reduced size.
        image.load()
        reduced = _convert_to_rgb(image).resize(
            size,
            Resampling.BILINEAR,
            box=drafted[1] if drafted else None,
            reducing_gap=REDUCING_GAP,
        )
        # NOTE: Read after loading, because pillow already turns TIFF files on loading.
        orientation = _orientation(image)
    upright = reduced.transpose(TRANSPOSE[orientation]) if orientation else reduced
    return upright, (width, height) if orientation in SIDEWAYS else (height, width)


def _check_regular(path: str | os.PathLike[str]) -> None:
    """Rejects pipes, sockets and devices, because opening one may block forever."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # Opening the file will raise the same error.
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadImageError("not a regular file")


def _convert_to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return PIL.Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        canvas = PIL.Image.new("RGB", image.size, "white")
        canvas.paste(opaque, mask=opaque)
        return canvas
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Converts gray `[H, W]`, 16-bit integers or floating point, to uint8."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        levels = values * 255 if values.max() <= 1 else values
    else:
        levels = values / 257
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _orientation(image: PIL.Image.Image) -> int | None:
    """Returns the EXIF orientation if the picture has to be turned."""
    try:
        orientation = image.getexif().get(Base.Orientation)
        return orientation if orientation in TRANSPOSE else None
    except Exception:  # Pictures with broken EXIF data are read unturned.
        return None


def _reason(picture: Picture, error: Exception) -> str:
    """Returns a short reason why the picture cannot be read."""
    message = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"too large: more than {2 * MAX_PIXELS} pixels"
    if isinstance(error, PIL.UnidentifiedImageError):
        is_bytes = isinstance(picture, bytes)
        size_bytes = len(picture) if is_bytes else os.path.getsize(picture)
        return "not a picture" if size_bytes else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "truncated" if "truncated" in message.lower() else message


@functools.cache
def _silence_pillow() -> None:
    # NOTE: Set once, because catch_warnings is not thread-safe, and appended, so that
    # filters of the user take precedence.
    warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
