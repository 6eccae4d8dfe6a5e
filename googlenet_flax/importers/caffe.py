"""Readers of Caffe's bvlc_googlenet: a `.caffemodel`, or an ONNX file of the model zoo."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from googlenet_flax.importers.leaves import (
    Source,
    WeightFile,
    hwc_rows_from_chw,
    hwio_from_oihw,
    io_from_oi,
    reading,
)
from googlenet_flax.model.googlenet import HEADS, INCEPTIONS
from googlenet_flax.model.layers import BRANCHES

STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
# The messages of BVLC/caffe src/caffe/proto/caffe.proto that lead to the weights: number,
# name and type of each field that is read. All are declared as repeated, which accepts
# single values too. The packed floats of `data` are declared as the bytes that they are on
# the wire, so that NumPy takes them without an object for each number.
SCHEMA = {
    "NetParameter": [(2, "layers", "V1LayerParameter"), (100, "layer", "LayerParameter")],
    "V1LayerParameter": [(4, "name", "STRING"), (6, "blobs", "BlobProto")],
    "LayerParameter": [(1, "name", "STRING"), (7, "blobs", "BlobProto")],
    "BlobProto": [
        (1, "num", "INT64"),
        (2, "channels", "INT64"),
        (3, "height", "INT64"),
        (4, "width", "INT64"),
        (5, "data", "BYTES"),
        (7, "shape", "BlobShape"),
    ],
    "BlobShape": [(1, "dim", "INT64")],
}


def read(path: pathlib.Path) -> WeightFile:
    """Reads the layers of a `.caffemodel`, but not those of the old type V0LayerParameter.

    The blobs of a layer are its kernel and its bias, here named `LAYER[0]` and `LAYER[1]`.

    Raises:
      UserError: The file is not a `.caffemodel`, or the package protobuf is missing.
    """
    arrays = {}
    with reading(path, "a Caffe model", "protobuf"):
        net = _create_net()
        net.ParseFromString(path.read_bytes())
        for layer in (*net.layers, *net.layer):
            for number, blob in enumerate(layer.blobs):
                # Before 2015 there was no `shape`, and every blob had four dimensions.
                legacy_shape = (*blob.num, *blob.channels, *blob.height, *blob.width)
                shape = blob.shape[0].dim if blob.shape else legacy_shape
                values = np.frombuffer(b"".join(blob.data), "<f4")
                arrays[f"{''.join(layer.name)}[{number}]"] = values.reshape(shape)
    return WeightFile(arrays, dict(_sources("[0]", "[1]")), ())


def _create_net() -> Any:
    """Creates an empty protobuf message of the type NetParameter."""
    from google.protobuf import descriptor_pb2, message_factory  # noqa: PLC0415

    proto: Any = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message_name, fields in SCHEMA.items():
        message = proto.message_type.add(name=message_name)
        for number, name, kind in fields:
            field = message.field.add(number=number, name=name)
            field.label = kinds.LABEL_REPEATED
            if kind in SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, kind
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind}")
    # The pool of these classes is a new one, not that of an installed Caffe.
    return message_factory.GetMessages([proto])["caffe.NetParameter"]()


def read_onnx(path: pathlib.Path) -> WeightFile:
    """Reads the initializers of an ONNX graph, which are named after Caffe's layers.

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
    return WeightFile(arrays, dict(_sources("_w_0", "_b_0")), skipped)


def _sources(kernel: str, bias: str) -> Iterator[tuple[str, Source]]:
    """Yields the source of each leaf; `kernel` and `bias` end the names in the file."""
    in_blocks = [f"{block}/{branch}" for block in INCEPTIONS for branch in BRANCHES]
    convs = {**STEM, **{conv: conv for conv in in_blocks}}
    kernels = {f"{ours}/conv": (theirs, hwio_from_oihw) for ours, theirs in convs.items()}
    for number, head in enumerate(HEADS, start=1):
        kernels[f"{head}/proj/conv"] = f"loss{number}/conv", hwio_from_oihw
        kernels[f"{head}/fc"] = f"loss{number}/fc", hwc_rows_from_chw
        kernels[f"{head}/classifier"] = f"loss{number}/classifier", io_from_oi
    kernels["classifier"] = "loss3/classifier", io_from_oi
    for ours, (theirs, layout) in kernels.items():
        yield f"params/{ours}/kernel", Source(f"{theirs}{kernel}", layout)
        # Old Caffe models have three more dimensions of size 1 before those of a bias.
        yield f"params/{ours}/bias", Source(f"{theirs}{bias}", np.ravel)
