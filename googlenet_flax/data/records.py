"""Encoded pictures in the records of a prepared TFDS data set."""

import dataclasses
from typing import Any

from tensorflow_datasets.proto import tf_example_pb2

from googlenet_flax.data.decode import BadImageError


@dataclasses.dataclass(frozen=True)
class RecordPictures:
    """Records of one split; implements `picture_set.PictureSource`."""

    # NOTE: This is the data source of array_record. That of TFDS also holds the whole
    # description of the data set, which would be copied to every worker process.
    source: Any
    dataset: str  # Name of the data set.
    parts: tuple[tuple[str, range], ...]  # TFDS splits and their records, in order.
    num_classes: int
    fingerprint: str  # Digest of the shards and the selected records.
    remedy = "prepare the data set again"

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns the bytes of the picture, and the label.

        Raises:
          BadImageError: The record is broken, or its label is not that of a class.
        """
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
            raise BadImageError(
                f"its label is {label}, but there are {self.num_classes} classes"
            )
        return picture, label

    def name(self, index: int) -> str:
        """Returns the data set, the split and the record's number in the split."""
        for split, records in self.parts:
            if index < len(records):
                return f"{self.dataset} {split} record {records[index]}"
            index -= len(records)
        raise IndexError(index)
