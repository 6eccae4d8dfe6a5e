"""Images of noise and of blocks, and cuts of images in float64."""

import numpy as np


def random_images(*shape) -> np.ndarray:
    """Draws uint8 noise over the whole range."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def color_blocks(number: int, height: int, width: int) -> np.ndarray:
    """Draws blocks of strong colors, different for each number."""
    rng = np.random.default_rng(number)
    colors = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    return colors[rows][:, columns]


def cut_out(picture: np.ndarray, box, size: int) -> np.ndarray:
    """Resizes a box of a picture `[h, w, C]` to a square, antialiased, in float64."""
    for axis, (start, length) in enumerate(zip(box[:2], box[2:], strict=True)):
        pixels = np.moveaxis(np.asarray(picture, np.float64), axis, 0)
        step = length / size
        result = []
        for number in range(size):
            centre = start + (number + 0.5) * step
            distances = np.abs(np.arange(len(pixels)) + 0.5 - centre) / max(step, 1)
            weights = np.clip(1 - distances, 0, None)
            result.append(np.tensordot(weights / weights.sum(), pixels, 1))
        picture = np.moveaxis(np.stack(result), 0, axis)
    return picture
