"""A small network whose input has no default setting, and pictures for it."""

import numpy as np
import PIL.Image
from helpers.images import color_blocks, cut_out
from helpers.untrained_runs import describe

STORED = 48  # In pixels; smaller pictures are not resized when they are read.
SIZE = 81
CLASS_NAMES = ("ant", "Zoë the bird", "cat, any cat", "dog", "elk", "fox", "gnu")
DESCRIPTION = describe(
    width_multiplier=0.25,
    class_names=CLASS_NAMES,
    storage_size=STORED,
    image_size=SIZE,
    crop_fraction=0.875,
    input_scale=1 / 127.5,
    input_mean=(1.0, 0.8, 1.2),
    input_std=(0.9, 1.0, 1.3),
    channel_order="BGR",
)
PICTURE_SIZES = [(40, 48), (48, 31), (48, 48), (9, 48), (3, 3), (1, 1)]


def write_pictures(folder):
    """Writes six files, wide and high ones; returns their paths and their pixels."""
    arrays = [color_blocks(number, *size) for number, size in enumerate(PICTURE_SIZES)]
    files = [folder / f"{number}.png" for number in range(len(arrays))]
    for file, pixels in zip(files, arrays, strict=True):
        PIL.Image.fromarray(pixels).save(file)
    return files, arrays


def inputs_of(pictures, boxes=None) -> np.ndarray:
    """Computes the network's input in NumPy: a box of each picture, resized, BGR, scaled.

    By default the box is the crop of the network.
    """
    inputs = []
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        side = min(height, width) * 0.875
        central = (height - side) / 2, (width - side) / 2, side, side
        bgr = cut_out(picture, boxes[number] if boxes else central, SIZE)[..., ::-1]
        inputs.append((bgr / 127.5 - [1.0, 0.8, 1.2]) / [0.9, 1.0, 1.3])
    return np.array(inputs, np.float32)
