"""Images of noise, and cuts of images in float64."""

import numpy as np


def random_images(*shape) -> np.ndarray:
    """Draws uint8 noise over the whole range."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


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
