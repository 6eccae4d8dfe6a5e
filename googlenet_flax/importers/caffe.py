"""Readers of Caffe's bvlc_googlenet: a `.caffemodel`, or an ONNX file of the model zoo."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from googlenet_flax.importers.leaves import WeightFile, from_channels_first, reading
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
    return WeightFile(arrays, dict(_names("[0]", "[1]")), layout=_layout)


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
        import onnx

        arrays = {
            os.fsdecode(tensor.name): np.asarray(onnx.numpy_helper.to_array(tensor))
            for tensor in onnx.load(path).graph.initializer
        }
    # Integer arrays are shapes for Reshape nodes.
    skipped = [name for name, values in arrays.items() if values.dtype.kind in "iu"]
    return WeightFile(arrays, dict(_names("_w_0", "_b_0")), skipped, _layout)


def _names(kernel: str, bias: str) -> Iterator[tuple[str, str]]:
    """Yields our path and Caffe's name of each leaf; `kernel` and `bias` end the names."""
    in_blocks = [f"{block}/{branch}" for block in INCEPTIONS for branch in BRANCHES]
    convs = {**STEM, **{conv: conv for conv in in_blocks}}
    layers = {f"{ours}/conv": theirs for ours, theirs in convs.items()}
    for number, head in enumerate(HEADS, start=1):
        layers[f"{head}/proj/conv"] = f"loss{number}/conv"
        layers[f"{head}/fc"] = f"loss{number}/fc"
        layers[f"{head}/classifier"] = f"loss{number}/classifier"
    layers["classifier"] = "loss3/classifier"
    for ours, theirs in layers.items():
        yield f"params/{ours}/kernel", f"{theirs}{kernel}"
        yield f"params/{ours}/bias", f"{theirs}{bias}"


def _layout(path: str, values: np.ndarray) -> np.ndarray:
    # Old Caffe models have three more dimensions of size 1 before those of a bias.
    return values.ravel() if path.endswith("/bias") else from_channels_first(path, values)
