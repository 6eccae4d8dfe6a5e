"""Measures how many JPEGs the input pipeline decodes per second.

    python benchmarks/decode.py [--images_per_second=1000] [--seconds=2] [--rounds=3]

The first table is measured in one process, by its CPU time. Its pictures have the typical
size of ImageNet or a larger size. `googlenet_flax.data.decode` reads them; for comparison,
every JPEG is also decoded at its full size before it is reduced. The last column gives the
number of cores that decode `--images_per_second`. The second table is measured in the input
pipeline on all cores, with threads and with processes, for pictures of the typical size. No
data set is needed: pictures are random fields whose amplitude falls with the frequency as
1 / f^1.3. At quality 95, pictures of the typical size have about 110 kB.
"""

import argparse
import contextlib
import io
import math
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import PIL.Image
from compare import figure, row, spread
from PIL.JpegImagePlugin import JpegImageFile

from googlenet_flax.data.decode import decode_image
from googlenet_flax.data.folder import FilePictures
from googlenet_flax.data.image_set import PictureOptions
from googlenet_flax.data.picture_set import PictureSet
from googlenet_flax.data.sampler import TrainingOrder

SIZES = ((375, 500), (750, 1000), (1500, 2000))  # Height and width; the typical one first.
STORAGE_SIZES = (256, 320)
NUM_PICTURES = 8  # Number of pictures of each size.
DECAY = 1.3  # Exponent of the frequency by which the amplitude is divided.
CONTRAST, COLOR_CONTRAST = 50, 12  # Standard deviations of gray and color, 0 to 255.
QUALITY = 95
BATCH_SIZE = 64  # Batch size of the input pipeline.


def draw_picture(rng: np.random.Generator, height: int, width: int) -> bytes:
    """Draws a random field in color and returns it as a JPEG file."""
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequencies[0, 0] = np.inf
    fields = []
    for _ in range(3):
        spectrum = np.fft.rfft2(rng.normal(size=(height, width))) / frequencies**DECAY
        field = np.fft.irfft2(spectrum, (height, width))
        fields.append(field / field.std())
    gray, red, blue = fields
    colors = np.stack([red, np.zeros_like(gray), blue], axis=-1)
    pixels = 128 + CONTRAST * gray[..., np.newaxis] + COLOR_CONTRAST * colors
    file = io.BytesIO()
    image = PIL.Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))
    image.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


def decoded_at_full_size() -> contextlib.AbstractContextManager:
    """Disables Pillow's decoding of JPEG files at a reduced scale."""
    return mock.patch.object(JpegImageFile, "draft", lambda *_: None)


def rates(
    read: Callable[[], int], clock: Callable[[], float], *, seconds: float, rounds: int
) -> list[float]:
    """Measures pictures per second in `rounds` rounds of at least `seconds` each.

    `read` reads some pictures and returns their number; `clock` returns seconds.
    """
    found = []
    for _ in range(rounds):
        count, started = 0, clock()
        while not count or clock() - started < seconds:
            count += read()
        found.append(count / (clock() - started))
    return found


def measure_core(pictures: Sequence[bytes], storage_size: int, **length) -> list[float]:
    """Measures decoded pictures per second on one core; `length` is passed to `rates`."""

    def read() -> int:
        for picture in pictures:
            decode_image(picture, storage_size)
        return len(pictures)

    read()
    return rates(read, time.process_time, **length)


def measure_pipeline(paths: Sequence[pathlib.Path], workers: int, **length) -> list[float]:
    """Measures pictures per second in batches, decoded by processes, or by threads if 0."""
    names = tuple(map(str, paths)) * (BATCH_SIZE // len(paths))
    split = PictureSet(
        FilePictures(str(paths[0].parent), names, np.zeros(len(names), np.int32)),
        class_names=("noise",),
        options=PictureOptions(STORAGE_SIZES[0], decode_workers=workers),
    )
    order = TrainingOrder(0, 0, 10**5, len(names), BATCH_SIZE)
    with contextlib.closing(split.batches(order)) as batches:
        for _ in range(4):  # Warms up: the workers start and read ahead.
            next(batches)
        return rates(lambda: len(next(batches)["index"]), time.perf_counter, **length)


def core_table(images_per_second: float, **length) -> Iterator[str]:
    """Yields the lines of the first table."""
    needed = f"cores for {images_per_second:,.0f} images/s"
    yield f"| pictures | reduced to | images/s per core | all at full size | {needed} |"
    yield "|---|---|---|---|---|"
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        pictures = [draw_picture(rng, height, width) for _ in range(NUM_PICTURES)]
        kilobytes = statistics.mean(map(len, pictures)) / 1000
        name = f"{width}x{height}, {kilobytes:.0f} kB"
        for size in (*STORAGE_SIZES, width):
            ours = measure_core(pictures, size, **length)
            with decoded_at_full_size():
                full = measure_core(pictures, size, **length)
            target = "not reduced" if size == width else f"{size} px"
            cores = math.ceil(images_per_second / statistics.median(ours))
            yield row([name, target, spread(ours), spread(full), str(cores)])


def pipeline_table(**length) -> Iterator[str]:
    """Yields the lines of the second table."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux has it, macOS does not.
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    yield f"| pipeline on {cores} cores, {STORAGE_SIZES[0]} px | images/s | per core |"
    yield "|---|---|---|"
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, f"{i}.jpg") for i in range(NUM_PICTURES)]
        for path in paths:
            path.write_bytes(draw_picture(rng, *SIZES[0]))
        for name, workers in (("threads", 0), (f"{cores} processes", cores)):
            found = measure_pipeline(paths, workers, **length)
            yield row([name, spread(found), figure(statistics.median(found) / cores)])


def main() -> None:
    """Prints the tables; figures are minimum / median / maximum over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images_per_second", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    length = {"seconds": args.seconds, "rounds": args.rounds}
    for line in core_table(args.images_per_second, **length):
        print(line, flush=True)
    print()
    for line in pipeline_table(**length):
        print(line, flush=True)


if __name__ == "__main__":
    main()
