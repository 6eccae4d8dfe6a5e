"""Files of Caffe, written by hand in the wire format of protobuf.

The numbers of the fields are those of BVLC/caffe src/caffe/proto/caffe.proto. Nothing here
knows how `googlenet_flax` reads them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

CONVOLUTION, DATA, RELU = 4, 5, 18  # V1LayerParameter.LayerType.


def varint(value: int) -> bytes:
    """Encodes an integer in 7 bits a byte, lowest first; bit 8 says that more follow."""
    head = [value >> shift & 0x7F | 0x80 for shift in range(0, value.bit_length() - 7, 7)]
    return bytes([*head, value >> 7 * len(head)])


def number(field: int, value: int) -> bytes:
    """Encodes a field of wire type 0, an integer."""
    return varint(field << 3) + varint(value)


def chunk(field: int, content: bytes) -> bytes:
    """Encodes a field of wire type 2: bytes, text, a message or packed numbers."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def old_blob(array: np.ndarray) -> bytes:
    """Encodes a BlobProto: num, channels, height and width (1 to 4), data (5)."""
    sides = (*(1,) * (4 - array.ndim), *array.shape)
    shape = b"".join(number(field, side) for field, side in enumerate(sides, start=1))
    return shape + chunk(5, array.astype("<f4").tobytes())


def new_blob(array: np.ndarray) -> bytes:
    """Encodes a BlobProto: data (5) and shape (7), a BlobShape with dim (1)."""
    shape = chunk(1, b"".join(map(varint, array.shape)))
    return chunk(5, array.astype("<f4").tobytes()) + chunk(7, shape)


def old_layer(name: str, kind: int, blobs: Sequence[np.ndarray] = ()) -> bytes:
    """Encodes NetParameter.layers (2) of V1: top 3, name 4, type 5, blobs 6, blobs_lr 7."""
    rates = [varint(7 << 3 | 5) + np.float32(rate).tobytes() for rate in (1, 2)]
    message = chunk(3, name.encode()) + chunk(4, name.encode()) + number(5, kind)
    message += b"".join(chunk(6, old_blob(blob)) for blob in blobs)
    return chunk(2, message + b"".join(rates if blobs else []))


def new_layer(name: str, kind: str, blobs: Sequence[np.ndarray] = ()) -> bytes:
    """Encodes NetParameter.layer (100): name 1, type 2, top 4, blobs 7, phase 10."""
    message = chunk(1, name.encode()) + chunk(2, kind.encode()) + chunk(4, name.encode())
    message += b"".join(chunk(7, new_blob(blob)) for blob in blobs)
    return chunk(100, message + number(10, 0))


def old_caffemodel(layers: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """Encodes the blobs of layers as Caffe wrote them in 2014."""
    weights = [old_layer(name, CONVOLUTION, blobs) for name, blobs in layers.items()]
    others = old_layer("data", DATA), old_layer("conv1/relu_7x7", RELU)
    return chunk(1, b"GoogleNet") + b"".join([*others, *weights])


def new_caffemodel(layers: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """Encodes the blobs of layers as Caffe has written them since 2015."""
    weights = [new_layer(name, "Convolution", blobs) for name, blobs in layers.items()]
    others = new_layer("data", "Data"), new_layer("conv1/relu_7x7", "ReLU")
    return chunk(1, b"GoogleNet") + b"".join([*others, *weights])
