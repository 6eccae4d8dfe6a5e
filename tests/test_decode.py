import os
import socket
import struct
from unittest import mock

import numpy as np
import PIL.Image
import pytest
from helpers.images import random_images
from helpers.pictures import png_header
from helpers.processes import finish, start_python
from hypothesis import example, given, settings
from hypothesis import strategies as st

from googlenet_flax.data import decode
from googlenet_flax.data.decode import BadImageError, decode_image, find_images
from googlenet_flax.runtime.errors import UserError

RED, GREEN, BLUE, YELLOW = (200, 30, 40), (20, 180, 60), (30, 50, 220), (230, 210, 20)
WHITE = (255, 255, 255)


def quarters() -> PIL.Image.Image:
    """Draws 24x16 pixels: red and green above, blue and yellow below."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12], pixels[:8, 12:] = RED, GREEN
    pixels[8:, :12], pixels[8:, 12:] = BLUE, YELLOW
    return PIL.Image.fromarray(pixels)


def decode_saved(tmp_path, image, suffix, size=32, **options):
    image.save(tmp_path / f"picture{suffix}", **options)
    return decode_image(tmp_path / f"picture{suffix}", size)


def assert_quarters(picture, extent, atol=0):
    assert picture.dtype == np.uint8
    assert extent == (16, 24)
    middles = picture[[4, 4, 12, 12], [6, 18, 6, 18]].astype(int)
    np.testing.assert_allclose(middles, [RED, GREEN, BLUE, YELLOW], atol=atol)
    assert not picture[16:].any()
    assert not picture[:, 24:].any()


@pytest.mark.parametrize(
    ("suffix", "options", "atol"),
    [
        *((suffix, {}, 0) for suffix in (".png", ".bmp", ".tiff", ".ppm")),
        (".jpg", {"quality": 95, "subsampling": 0}, 6),
        (".jpg", {"quality": 95, "subsampling": 0, "progressive": True}, 6),
        (".webp", {"lossless": True}, 0),
        (".gif", {}, 0),
        (".tif", {"compression": "tiff_lzw"}, 0),
        (".jpg", {"format": "PNG"}, 0),  # The suffix does not decide the format.
    ],
)
def test_formats(tmp_path, suffix, options, atol):
    picture, extent = decode_saved(tmp_path, quarters(), suffix, **options)
    assert picture.shape == (32, 32, 3)
    assert_quarters(picture, extent, atol)
    content = (tmp_path / f"picture{suffix}").read_bytes()
    np.testing.assert_equal(decode_image(content, 32), (picture, extent))
    if not atol:
        np.testing.assert_array_equal(picture[:16, :24], np.asarray(quarters()))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_orientations(tmp_path, suffix):
    seen = np.asarray(quarters())
    turned = seen.transpose(1, 0, 2)
    stored = {  # Sides that the first row and column show: EXIF 2.3, 4.6.4 A.
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: turned,
        6: turned[::-1],
        7: turned[::-1, ::-1],
        8: turned[:, ::-1],
    }
    for orientation, pixels in stored.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
        picture = decode_saved(tmp_path, image, suffix, exif=exif, quality=100)
        assert_quarters(*picture, atol=6)


def test_the_sides_of_a_turned_picture_are_exchanged_if_it_becomes_a_square(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (101, 100)).save(tmp_path / "picture.jpg", exif=exif)
    pixels, size = decode.decode_pixels(tmp_path / "picture.jpg", 10)
    assert pixels.shape == (10, 10, 3) and size == (101, 100)


# The directory announces two entries: orientation 6, and one that is missing.
SHORT_EXIF = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 2, 0x0112, 3, 1, 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("exif", "extent"),
    [(b"Exif\0\0garbage", (16, 24)), (SHORT_EXIF[:14], (16, 24)), (SHORT_EXIF, (24, 16))],
    ids=["garbage", "empty", "short"],
)
def test_what_is_broken_of_the_exif_data_is_ignored(tmp_path, exif, extent):
    assert decode_saved(tmp_path, quarters(), ".jpg", exif=exif)[1] == extent


def grey(value, dtype):
    return PIL.Image.fromarray(np.full((3, 5), value, dtype))


def palette():
    image = PIL.Image.new("P", (5, 3), 1)
    image.putpalette([1, 2, 3, *GREEN])
    return image


def solid(mode, color):
    return PIL.Image.new(mode, (5, 3), color)


@pytest.mark.parametrize(
    ("image", "suffix", "options", "color"),
    [
        (solid("L", 77), ".png", {}, (77, 77, 77)),
        (solid("1", 1), ".png", {}, WHITE),
        (palette(), ".png", {}, GREEN),
        # 32896 is 128 * 257, since 16 bits are scaled and not truncated.
        (grey(32896, np.uint16), ".png", {}, (128, 128, 128)),
        (grey(32896, np.int32), ".pgm", {}, (128, 128, 128)),
        (grey(32896, np.int32), ".tif", {}, (128, 128, 128)),
        (grey(65535, np.uint16), ".png", {"transparency": 3}, WHITE),
        (grey(0.5, np.float32), ".tif", {}, (128, 128, 128)),
        (grey(100.2, np.float32), ".tif", {}, (100, 100, 100)),
        (grey(np.nan, np.float32), ".tif", {}, (0, 0, 0)),
        # Pillow inverts CMYK in JPEG, as Adobe does, but not in TIFF.
        (solid("CMYK", (0, 255, 255, 0)), ".jpg", {"quality": 95}, (255, 0, 0)),
        (solid("CMYK", (0, 255, 255, 0)), ".tif", {}, (255, 0, 0)),
        # Transparent parts become white: a fifth of the color and four fifths of white.
        (solid("RGBA", (100, 0, 0, 51)), ".png", {}, (224, 204, 204)),
        (solid("LA", (100, 51)), ".png", {}, (224, 224, 224)),
        (solid("RGB", RED), ".png", {"transparency": RED}, WHITE),
        (solid("L", 9), ".png", {"transparency": 9}, WHITE),
        (palette(), ".png", {"transparency": bytes([255, 0])}, WHITE),
        (palette(), ".png", {"transparency": bytes([0, 255])}, GREEN),
        (palette(), ".gif", {"transparency": 1}, WHITE),
    ],
)
def test_modes(tmp_path, image, suffix, options, color):
    picture, extent = decode_saved(tmp_path, image, suffix, size=8, **options)
    assert extent == (3, 5)
    atol = 2 if image.mode == "CMYK" else 1
    np.testing.assert_allclose(picture[:3, :5].reshape(-1, 3), [color] * 15, atol=atol)


def test_hidden_colours_do_not_bleed(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, 1::2] = (*WHITE, 255)  # The others are black and transparent.
    image = PIL.Image.fromarray(pixels)
    picture, _ = decode_saved(tmp_path, image, ".png", size=16)
    assert picture.min() == 255


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".mpo", ".tif"])
def test_the_first_frame_is_read(tmp_path, suffix):
    others = [PIL.Image.new("RGB", (24, 16), color) for color in (RED, BLUE)]
    options = {"save_all": True, "append_images": others}
    options |= {".mpo": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    assert_quarters(*decode_saved(tmp_path, quarters(), suffix, **options), atol=6)


SIDES = st.integers(1, 300) | st.just(1000)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 96), st.sampled_from([".png", ".jpg"]))
@example(1, 1000, 32, ".jpg")
@example(1000, 1, 32, ".png")
def test_the_shape_is_kept(tmp_path_factory, width, height, storage_size, suffix):
    tmp_path = tmp_path_factory.mktemp("pictures")
    image = PIL.Image.new("RGB", (width, height), WHITE)
    picture, (rows, columns) = decode_saved(tmp_path, image, suffix, size=storage_size)
    scale = min(1, storage_size / max(width, height))
    assert picture.shape == (storage_size, storage_size, 3)
    assert max(rows, columns) == min(storage_size, max(width, height))
    for length, side in ((rows, height), (columns, width)):
        assert length >= 1 and abs(length - max(1, side * scale)) <= 0.5 + 1e-9
    assert (picture[:rows, :columns] >= 254).all()
    assert not picture[rows:].any() and not picture[:, columns:].any()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("side", [40, 256])
def test_reduced_pictures_are_antialiased(tmp_path, suffix, side):
    # Smooth waves, 1024x768, under fine stripes that would alias if pixels were skipped.
    y, x = np.mgrid[:768, :1024]
    waves = 128 + 80 * np.sin(x / 150) * np.cos(y / 90)
    stripes = 30 * (-1.0) ** x
    image = PIL.Image.fromarray((waves + stripes).astype(np.uint8)).convert("RGB")
    picture, (height, width) = decode_saved(tmp_path, image, suffix, size=side, quality=98)
    expected = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    difference = picture[:height, :width] - np.asarray(expected, float)
    assert np.sqrt(np.mean(difference**2)) < 1.5


def first_half(suffix, tmp_path) -> bytes:
    path, noise = tmp_path / f"whole{suffix}", random_images(90, 90, 3)
    PIL.Image.fromarray(noise).save(path)
    return path.read_bytes()[: path.stat().st_size // 2]


def assert_refused(picture, reason):
    with pytest.raises(BadImageError) as error:
        decode_image(picture, 32)
    assert str(error.value).startswith(reason)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.jpg", b"", "empty file"),
        ("text.png", b"Not a picture at all.\n" * 9, "not a picture"),
        ("vectors.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a pict"),
        ("bomb.png", png_header(20000, 20000), "too large: more than 89478485 pixels"),
        ("large.png", png_header(10000, 9000), "too large: 10000x9000 pixels, more"),
        ("short.png", png_header(10, 10)[:-20], "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_images(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    assert_refused(tmp_path / name, reason)
    assert_refused(data, reason)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif"])
def test_truncated_images(tmp_path, suffix):
    # Pillow describes two formats in another way.
    reason = "" if suffix in {".webp", ".tif"} else "truncated"
    assert_refused(first_half(suffix, tmp_path), reason)


def test_paths_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "folder.jpg").mkdir()
    assert_refused(tmp_path / "folder.jpg", "is a directory")
    assert_refused(tmp_path / "missing.jpg", "no such file")
    (tmp_path / "locked.png").touch()
    # Permissions do not apply to root.
    refuse = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(decode.PIL.Image, "open", refuse)
    assert_refused(tmp_path / "locked.png", "permission denied")


def test_paths_that_could_block(tmp_path, monkeypatch):
    monkeypatch.setattr(decode.PIL.Image, "open", pytest.fail)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to(os.devnull)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.png"))  # Long paths are refused.
        for name in ("pipe.png", "device.png", "socket.png"):
            assert_refused(tmp_path / name, "not a regular file")


PROGRAM = """
import pathlib, sys
from googlenet_flax.data.decode import BadImageError, decode_image
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        decode_image(path, 16)
    except BadImageError as error:
        print(error)
"""


def test_the_terminal_stays_clean(tmp_path):
    for suffix in (".jpg", ".png", ".webp", ".gif", ".tif"):
        quarters().save(tmp_path / f"fine{suffix}")
    quarters().save(tmp_path / "exif.jpg", exif=SHORT_EXIF)
    palette().save(tmp_path / "palette.png", transparency=bytes([9, 99]))
    (tmp_path / "bomb.png").write_bytes(png_header(20000, 20000))
    (tmp_path / "half.jpg").write_bytes(first_half(".jpg", tmp_path))
    out = "too large: more than 89478485 pixels\ntruncated\n"
    assert finish(start_python("-c", PROGRAM, tmp_path)) == (0, out, "")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder):
    return [path.relative_to(folder).as_posix() for path in find_images(folder)]


def test_find_images(tmp_path):
    touch(tmp_path, "b.JPG", "a.jpeg", "deep/er/x.Png", "deep/w.tiff", "a b.gif", "é.webp")
    touch(tmp_path, "notes.txt", "jpg", ".hidden.jpg", ".thumbs/t.jpg", "._b.JPG")
    touch(tmp_path, "album.jpg/z.bmp", "c.ppm", "c.pgm", "c.tif", "c.heic")
    names = [
        *("a b.gif", "a.jpeg", "album.jpg/z.bmp", "b.JPG", "c.pgm", "c.ppm", "c.tif"),
        *("deep/er/x.Png", "deep/w.tiff", "é.webp"),
    ]
    assert found(tmp_path) == names


def test_find_images_follows_links_once(tmp_path):
    touch(tmp_path, "pictures/a.jpg", "elsewhere/b.jpg")
    folder = tmp_path / "pictures"
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "file.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (folder / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    assert found(folder) == ["a.jpg", "dangling.jpg", "file.jpg", "link/b.jpg"]


def test_find_images_in_no_folder(tmp_path):
    assert find_images(tmp_path) == []
    with pytest.raises(UserError, match="gone cannot be listed: No such file"):
        find_images(tmp_path / "gone")
