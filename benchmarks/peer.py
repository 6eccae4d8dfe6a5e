"""Code that the peers share: sizes of the network, flags, timing and output."""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from compare import Work

# Columns of Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
INCEPTIONS = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = ("inception_4a", "inception_5a")
HEAD_AFTER = {"inception_4a": "aux_4a", "inception_4d": "aux_4d"}
NUM_CLASSES = 10
DROPOUT = 0.4
AUX_DROPOUT = 0.7
AUX_WEIGHT = 0.3
LEARNING_RATE = 0.01
MOMENTUM = 0.9

WARM_UP_STEPS = 3
MIN_STEPS = 3
WINDOWS = 10


def parse_flags(parser: argparse.ArgumentParser) -> tuple[Work, argparse.Namespace]:
    """Adds the flags of all peers to a parser, and parses the command line."""
    add = parser.add_argument
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--batch_size", type=int, default=32)
    add("--image_size", type=int, default=224)
    add("--seconds", type=float, default=5.0, help="duration of each measurement")
    flags = parser.parse_args()
    names = [field.name for field in dataclasses.fields(Work)]
    return Work(**{name: getattr(flags, name) for name in names}), flags


def draw_batch(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Draws float32 images `[B, H, W, 3]` in [0, 1) and int32 labels `[B]`."""
    rng = np.random.default_rng(0)
    shape = (work.batch_size, work.image_size, work.image_size, 3)
    labels = rng.integers(0, NUM_CLASSES, work.batch_size, dtype=np.int32)
    return rng.random(shape, np.float32), labels


def aux_side(image_size: int) -> int:
    """Computes the side of the map that the heads flatten.

    The input is halved four times and then pooled by 5x5 with stride 3.
    """
    return (-(-image_size // 16) - 5) // 3 + 1


def check_parameters(count: int, image_size: int) -> None:
    """Checks that a network has as many parameters as ours.

    Raises:
      ValueError: The counts differ; the message gives both.
    """
    at_224_px = 10_334_030
    expected = at_224_px + len(HEAD_AFTER) * 128 * 1024 * (aux_side(image_size) ** 2 - 16)
    if count != expected:
        raise ValueError(f"{count:,} parameters instead of {expected:,}")


def images_per_second(
    step: Callable[[], Any], wait: Callable[[Any], Any], work: Work
) -> list[float]:
    """Measures images per second in windows of equally many steps.

    There are 3 to 19 windows, which together take about `work.seconds`. `step` starts a
    step, and `wait` waits for its result and all earlier ones.
    """
    step_seconds = min(_window_seconds(step, wait, 1) for _ in range(WARM_UP_STEPS))
    steps = max(MIN_STEPS, round(work.seconds / step_seconds))
    window = max(1, steps // WINDOWS)  # A GPU need not wait for the host after each step.
    windows = [_window_seconds(step, wait, window) for _ in range(steps // window)]
    return [work.batch_size * window / seconds for seconds in windows]


def _window_seconds(
    step: Callable[[], Any], wait: Callable[[Any], Any], window: int
) -> float:
    start = time.perf_counter()
    for _ in range(window):
        result = step()
    wait(result)
    return time.perf_counter() - start


def measure_and_print(
    work: Work,
    *,
    device: str,
    train_step: Callable[[], Any],
    eval_step: Callable[[], Any],
    wait: Callable[[Any], Any],
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Measures both steps and prints the line that `compare.py` and `gpu.py` read.

    The steps and `wait` are those of `images_per_second`; a training step returns its loss.
    `facts` is called at the end and returns further fields of the line.

    Raises:
      ValueError: The loss is not finite.
    """
    answer = {"device": device, **dataclasses.asdict(work)}
    for name, step in (("train", train_step), ("eval", eval_step)):
        windows = images_per_second(step, wait, work)
        answer[f"{name}_images_per_second"] = statistics.median(windows)
        answer[f"{name}_windows"] = windows
    loss = float(train_step())
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss}")
    print(json.dumps({**answer, **facts()}), flush=True)
