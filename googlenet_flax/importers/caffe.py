"""Reader of Caffe's bvlc_googlenet as an ONNX file of the model zoo."""

import os
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from googlenet_flax.importers.leaves import (
    HEADS,
    INCEPTION_CONVS,
    Layout,
    OriginalWeights,
    Source,
    hwc_rows_from_chw,
    hwio_from_oihw,
    io_from_oi,
    refuse_broken_file,
    same,
    translate,
)
from googlenet_flax.runtime.errors import missing_package

STEM = {
    "conv1": "conv1/7x7_s2",
    "conv2_reduce": "conv2/3x3_reduce",
    "conv2": "conv2/3x3",
}


def read(path: pathlib.Path) -> OriginalWeights:
    """Reads the initializers of an ONNX graph, which have Caffe's names of the layers.

    Raises:
      UserError: The file is not an ONNX file, or the package onnx is missing.
    """
    try:
        import onnx  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise missing_package("onnx", f"reading {path.name}") from error
    with refuse_broken_file(path, "an ONNX file"):
        arrays = {
            os.fsdecode(tensor.name): np.asarray(onnx.numpy_helper.to_array(tensor))
            for tensor in onnx.load(path).graph.initializer
        }
    arrays = {  # NumPy does not count bfloat16 among its floats.
        name: values.astype(np.float32) if values.dtype == jnp.bfloat16 else values
        for name, values in arrays.items()
    }
    # Integer arrays are shapes for Reshape nodes.
    skipped = [name for name, values in arrays.items() if values.dtype.kind in "iu"]
    return translate(arrays, dict(_sources()), skipped=skipped)


def _sources() -> Iterator[tuple[str, Source]]:
    convs = {**STEM, **{conv: conv for conv in INCEPTION_CONVS}}
    for ours, theirs in convs.items():
        yield from _layer_sources(f"{ours}/conv", theirs, hwio_from_oihw)
    for number, head in enumerate(HEADS, start=1):
        yield from _layer_sources(f"{head}/proj/conv", f"loss{number}/conv", hwio_from_oihw)
        yield from _layer_sources(f"{head}/fc", f"loss{number}/fc", hwc_rows_from_chw)
        yield from _layer_sources(
            f"{head}/classifier", f"loss{number}/classifier", io_from_oi
        )
    yield from _layer_sources("classifier", "loss3/classifier", io_from_oi)


def _layer_sources(ours: str, theirs: str, layout: Layout) -> Iterator[tuple[str, Source]]:
    yield f"params/{ours}/kernel", Source(f"{theirs}_w_0", layout)
    yield f"params/{ours}/bias", Source(f"{theirs}_b_0", same)
