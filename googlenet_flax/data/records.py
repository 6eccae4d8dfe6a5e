"""Encoded pictures in the records of a prepared TFDS set."""

import dataclasses
from typing import Any

from tensorflow_datasets.proto import tf_example_pb2

from googlenet_flax.data.decode import BadImageError


@dataclasses.dataclass(frozen=True)
class RecordPictures:
    """Records of one split, as `picture_set.PictureSource` asks for them.

    Nothing is read before it is asked for, labels neither.
    """

    # NOTE: array_record's source of bytes and not TFDS's around it: that holds the whole
    # description of the set, of which every process would get a copy.
    source: Any
    dataset: str
    parts: tuple[tuple[str, range], ...]  # Split and records in it, in order.
    num_classes: int
    fingerprint: str  # A digest of the shards and of the part of them that is read.
    remedy = "prepare the data set again"

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[bytes, int]:
        """Content of the picture's file, and its label."""
        try:
            record = self.source[index]
            example = tf_example_pb2.Example.FromString(record)  # pyrefly: ignore
            features = example.features.feature
            (picture,) = features["image"].bytes_list.value
            (label,) = features["label"].int64_list.value
        except Exception as error:  # A broken record raises nearly anything.
            reason = str(error).partition("\n")[0].partition(" (")[0]
            raise BadImageError(f"broken record: {reason}") from error
        if not 0 <= label < self.num_classes:
            raise BadImageError(f"label {label} of {self.num_classes} classes")
        return picture, label

    def name(self, index: int) -> str:
        """Data set, split and the record's number in it."""
        for split, records in self.parts:
            if index < len(records):
                return f"{self.dataset} {split} record {records[index]}"
            index -= len(records)
        raise IndexError(index)
