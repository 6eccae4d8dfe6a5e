"""Pictures of any common kind as RGB arrays, and where to find their files."""

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
# Named, since pillow would also try readers that start other programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Where pillow, too, begins to suspect a decompression bomb.
# Cheap reduction stops at twice the size; the last step is antialiased (55 dB, 4x faster).
REDUCING_GAP = 2
Picture = str | os.PathLike[str] | bytes  # A file, or what would be in it.
TRANSPOSE = {  # What undoes each EXIF orientation.
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class BadImageError(Exception):
    """A file that cannot be read as a picture; the message is the reason."""


def printable(path: str | os.PathLike[str]) -> str:
    """The path with escapes for bytes that are no UTF-8, which print() may refuse."""
    return os.fsencode(path).decode(errors="backslashreplace")


def find_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Picture files below `folder`, known by their suffix, sorted by path.

    Names that begin with a dot are left out. Links are followed, and no folder is listed
    twice.

    Raises:
      UserError: A folder cannot be listed.
    """
    found, visited = [], set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
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


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from error


def decode_image(picture: Picture, storage_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture in the top-left corner of a square, and its `(height, width)` there.

    It keeps its shape and is reduced (bilinear, antialiased) until its longer side is at
    most `storage_size` pixels; it is never enlarged. It is turned as its EXIF orientation
    says. What is transparent is laid on white. 16-bit grey is divided by 257; of grey in
    floating point, values up to 1 are taken as fractions of white, others as 0-255. Of an
    animation the first frame is read.

    Args:
      picture: A BMP, GIF, JPEG (also MPO), PNG, PPM, TIFF or WebP file, whatever its
        name; or the bytes of one.
      storage_size: Side `S` of the square in pixels.

    Returns:
      uint8 `[S, S, 3]`, RGB, 0-255, zero outside the picture; and the picture's extent.

    Raises:
      BadImageError: It cannot be read, or has more than `MAX_PIXELS` pixels.
    """
    _silence_pillow()
    try:
        pixels = np.asarray(_read(picture, storage_size))
    except Exception as error:  # A broken file makes pillow raise nearly anything.
        raise BadImageError(_reason(picture, error)) from error
    height, width, _ = pixels.shape
    image = np.zeros((storage_size, storage_size, 3), np.uint8)
    image[:height, :width] = pixels
    return image, (height, width)


def _read(picture: Picture, storage_size: int) -> PIL.Image.Image:
    if isinstance(picture, bytes):
        file = io.BytesIO(picture)
    else:
        _check_regular(picture)
        file = picture
    with PIL.Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImageError(f"too large: {width}x{height} pixels")
        scale = min(1, storage_size / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        gap_size = size[0] * REDUCING_GAP, size[1] * REDUCING_GAP
        drafted = image.draft(None, gap_size)  # JPEG alone can be decoded smaller.
        image.load()
        reduced = _convert_to_rgb(image).resize(
            size,
            Resampling.BILINEAR,
            box=drafted[1] if drafted else None,
            reducing_gap=REDUCING_GAP,
        )
        # NOTE: Asked after loading, since pillow turns TIFF files itself while it loads.
        orientation = _orientation(image)
    return reduced.transpose(TRANSPOSE[orientation]) if orientation else reduced


def _check_regular(path: str | os.PathLike[str]) -> None:
    """Refuses pipes, sockets and devices, since opening one may block forever."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # Opening the file fails as well, and that error is reported.
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
    """Grey `[H, W]`, 16-bit integers or floating point, as uint8."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        levels = values * 255 if values.max() <= 1 else values
    else:
        levels = values / 257
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _orientation(image: PIL.Image.Image) -> int | None:
    """The EXIF orientation, if the picture needs turning."""
    try:
        orientation = image.getexif().get(Base.Orientation)
        return orientation if orientation in TRANSPOSE else None
    except Exception:  # Broken EXIF data are no reason to refuse the picture.
        return None


def _reason(picture: Picture, error: Exception) -> str:
    """Why the picture cannot be read, in few words."""
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
    # NOTE: For good and last in line: catch_warnings is not thread safe, and whoever asks
    # for these warnings shall have them.
    warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
