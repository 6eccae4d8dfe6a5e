"""Sets that TFDS has prepared as array_record, read without TensorFlow."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from googlenet_flax.data import cifar, splits
from googlenet_flax.data.image_set import ImageSet
from googlenet_flax.errors import UserError

READ_CHUNK_EXAMPLES = 1000
MAX_MEMORY_FRACTION = 0.5  # Of the machine's memory, for one split.


def load_prepared(
    dataset: str, split: str, data_dir: str, *, may_prepare: bool = True
) -> ImageSet:
    """Reads a split into memory; prepares `cifar10` and `cifar100` where they are missing.

    Args:
      dataset: Name as in TFDS, `mnist` or `cifar10:3.0.2`.
      split: Split in TFDS notation.
      data_dir: Folder of TFDS data sets; "" is TFDS's own default.
      may_prepare: Otherwise a set that is missing is an error.

    Raises:
      UserError: The set is missing, of another format, or cannot be held in memory.
    """
    with _readable(dataset, data_dir):
        builder = _find_builder(dataset, data_dir, may_prepare=may_prepare)
        _check_features(builder)
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    positions = splits.split_positions(split, sizes)
    num_examples = sum(len(range(rows.start, rows.stop)) for _, rows in positions)
    _check_memory(builder, split, num_examples)

    image, label = builder.info.features["image"], builder.info.features["label"]
    images = np.empty((num_examples, *image.shape), np.uint8)
    labels = np.empty(num_examples, np.int32)
    with _readable(dataset, data_dir):
        source = builder.as_data_source(split=split)
        for start in range(0, num_examples, READ_CHUNK_EXAMPLES):
            rows = range(start, min(start + READ_CHUNK_EXAMPLES, num_examples))
            for row, example in zip(rows, source.__getitems__(rows), strict=True):
                images[row] = example["image"]
                labels[row] = example["label"]
        return ImageSet(images, labels, tuple(label.names))


@contextlib.contextmanager
def _readable(dataset: str, data_dir: str) -> Iterator[None]:
    """Says which data set it is that cannot be read, whatever TFDS makes of its files."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and dataset.split(":", maxsplit=1)[0] in str(error):
            raise
        where = data_dir or tfds.core.constants.DATA_DIR
        reason = str(error).strip() or type(error).__name__
        raise UserError(
            f"data set {dataset!r} in {where} cannot be read ({reason.splitlines()[0]}): "
            "remove its folder and prepare it again"
        ) from error


def _find_builder(
    dataset: str, data_dir: str, *, may_prepare: bool
) -> tfds.core.DatasetBuilder:
    root = os.fspath(pathlib.Path(data_dir).expanduser().absolute()) if data_dir else None
    name = dataset.split(":", maxsplit=1)[0]
    if name in cifar.BUILDERS:
        builder = cifar.BUILDERS[name](data_dir=root)
        if not _is_prepared(builder):
            if not may_prepare:
                raise UserError(
                    f"data set {name!r} is not prepared in {builder.data_dir_root}: "
                    "training prepares it"
                )
            cifar.prepare(builder)
        return builder
    try:
        builder = tfds.builder(dataset, data_dir=root)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"unknown dataset {dataset!r}: use digits, cifar10, cifar100, or an image "
            "classification set of TFDS that is prepared as array_record in "
            f"--config.data_dir ({root or tfds.core.constants.DATA_DIR})"
        ) from error
    if not _is_prepared(builder):
        raise UserError(
            f"data set {dataset!r} is not prepared in {builder.data_dir_root}: run "
            f"`tfds build {name} --file_format=array_record` where TensorFlow is installed "
            "and point --config.data_dir at the folder it writes"
        )
    return builder


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the data are there, and in the format that can be read.

    Raises:
      UserError: They are there as TFRecord, which only TensorFlow reads.
    """
    if not builder.is_prepared():
        return False
    file_format = builder.info.file_format
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{builder.data_dir} is prepared as {file_format.value}, which only TensorFlow "
            "reads: convert it with `tfds convert_format --out_file_format=array_record "
            f"--dataset_dir={builder.data_path.parent}` where TensorFlow is installed"
        )
    return True


def _check_features(builder: tfds.core.DatasetBuilder) -> None:
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"data set {builder.name!r} has no class `label`; choose an image "
            "classification set"
        )
    fixed_size = isinstance(image, tfds.features.Image) and None not in image.shape
    if not fixed_size or image.np_dtype != np.uint8:
        raise UserError(
            f"data set {builder.name!r} has images {getattr(image, 'shape', None)}; only "
            "uint8 images of one fixed shape are held in memory so far"
        )


def _check_memory(builder: tfds.core.DatasetBuilder, split: str, num_examples: int) -> None:
    shape = builder.info.features["image"].shape
    needed = num_examples * math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory * MAX_MEMORY_FRACTION:
        raise UserError(
            f"{builder.name} {split} needs {needed / 2**30:.1f} GiB of the machine's "
            f"{memory / 2**30:.1f} GiB of memory: choose a slice such as {split}[:10%]"
        )
