"""Reader of Caffe's bvlc_googlenet as an ONNX file of the model zoo."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np

from googlenet_flax.importers.leaves import (
    HEADS,
    INCEPTION_CONVS,
    Source,
    WeightFile,
    hwc_rows_from_chw,
    hwio_from_oihw,
    io_from_oi,
    reading,
)

STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}


def read(path: pathlib.Path) -> WeightFile:
    """Reads the initializers of an ONNX graph, which have Caffe's names of the layers.

    Raises:
      UserError: The file is not an ONNX file, or the package onnx is missing.
    """
    with reading(path, "an ONNX file", "onnx"):
        import onnx  # noqa: PLC0415 - optional package

        arrays = {
            os.fsdecode(tensor.name): np.asarray(onnx.numpy_helper.to_array(tensor))
            for tensor in onnx.load(path).graph.initializer
        }
    # Integer arrays are shapes for Reshape nodes.
    skipped = [name for name, values in arrays.items() if values.dtype.kind in "iu"]
    return WeightFile(arrays, dict(_sources()), skipped)


def _sources() -> Iterator[tuple[str, Source]]:
    convs = {**STEM, **{conv: conv for conv in INCEPTION_CONVS}}
    kernels = {f"{ours}/conv": (theirs, hwio_from_oihw) for ours, theirs in convs.items()}
    for number, head in enumerate(HEADS, start=1):
        kernels[f"{head}/proj/conv"] = f"loss{number}/conv", hwio_from_oihw
        kernels[f"{head}/fc"] = f"loss{number}/fc", hwc_rows_from_chw
        kernels[f"{head}/classifier"] = f"loss{number}/classifier", io_from_oi
    kernels["classifier"] = "loss3/classifier", io_from_oi
    for ours, (theirs, layout) in kernels.items():
        yield f"params/{ours}/kernel", Source(f"{theirs}_w_0", layout)
        yield f"params/{ours}/bias", Source(f"{theirs}_b_0")
