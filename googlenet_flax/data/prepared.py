"""Reader for TFDS data sets that are prepared as array_record, without TensorFlow."""

import contextlib
import hashlib
import math
import os
import pathlib
import resource
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from googlenet_flax.data import splits
from googlenet_flax.data.builders import cifar, imagenet
from googlenet_flax.data.class_names import in_words
from googlenet_flax.data.image_set import ImageSet, Split
from googlenet_flax.data.picture_options import PictureOptions
from googlenet_flax.data.picture_set import PictureSet
from googlenet_flax.data.records import RecordPictures
from googlenet_flax.runtime.errors import MissingDataError, UserError
from googlenet_flax.runtime.memory import machine_memory_bytes

OWN_BUILDERS = (cifar, imagenet)  # Modules that prepare data sets.
READ_CHUNK_EXAMPLES = 1000
MAX_MEMORY_FRACTION = 0.5  # Largest part of the machine's memory for one split.


def load_prepared(
    dataset: str,
    split: str,
    data_dir: str,
    options: PictureOptions | None = None,
    *,
    may_prepare: bool = True,
) -> Split:
    """Opens a split; prepares CIFAR and `imagenet2012` where they are missing.

    Images of one fixed shape are read into memory. Others are decoded while the network
    trains.

    Args:
      dataset: Name in TFDS, such as `mnist` or `cifar10:3.0.2`.
      split: Split in TFDS notation.
      data_dir: Folder of the TFDS data sets; "" is the default of TFDS.
      options: How images without a fixed shape are read; needed only for these.
      may_prepare: False to raise an error instead of preparing a missing data set.

    Raises:
      UserError: The data set is missing, has another format, or is too large for memory.
    """
    with _readable(dataset, data_dir):
        builder = _find_builder(dataset, data_dir, may_prepare=may_prepare)
        _check_features(builder)
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        has_one_shape = None not in builder.info.features["image"].shape
    positions = splits.split_positions(split, sizes)
    assert has_one_shape or options is not None
    with _readable(dataset, data_dir):
        if options is None or has_one_shape:
            return _read_images(builder, split, positions)
        return _open_pictures(builder, split, positions, options)


def _read_images(
    builder: tfds.core.DatasetBuilder, split: str, positions: Sequence[tuple[str, slice]]
) -> ImageSet:
    """Reads all images of the split into memory."""
    num_examples = sum(len(range(rows.start, rows.stop)) for _, rows in positions)
    _check_memory(builder, split, num_examples)
    image, label = builder.info.features["image"], builder.info.features["label"]
    images = np.empty((num_examples, *image.shape), np.uint8)
    labels = np.empty(num_examples, np.int32)
    source = builder.as_data_source(split=split)
    for start in range(0, num_examples, READ_CHUNK_EXAMPLES):
        rows = range(start, min(start + READ_CHUNK_EXAMPLES, num_examples))
        for row, example in zip(rows, source.__getitems__(rows), strict=True):
            images[row] = example["image"]
            labels[row] = example["label"]
    return ImageSet(images, labels, in_words(label.names))


def _open_pictures(
    builder: tfds.core.DatasetBuilder,
    split: str,
    positions: Sequence[tuple[str, slice]],
    options: PictureOptions,
) -> PictureSet:
    """Opens the records of the split without reading them."""
    shards = [part.filename for part in builder.info.splits[split].file_instructions]
    for path in shards:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} is missing")
    _allow_open_files(len(shards))
    class_names = in_words(builder.info.features["label"].names)
    parts = tuple((name, range(rows.start, rows.stop)) for name, rows in positions)
    return PictureSet(
        RecordPictures(
            source=builder.as_data_source(split=split).data_source,
            dataset=builder.name,
            parts=parts,
            num_classes=len(class_names),
            fingerprint=_fingerprint(builder.info.full_name, parts, shards),
        ),
        class_names=class_names,
        storage_size=options.storage_size,
        on_bad_image=options.on_bad_image,
        decode_workers=options.decode_workers,
    )


def _fingerprint(
    full_name: str, parts: Sequence[tuple[str, range]], shards: Sequence[str]
) -> str:
    """Computes a digest of name, version, selected records and sizes of the shards."""
    sizes = [(os.path.basename(path), os.path.getsize(path)) for path in shards]
    facts = repr((full_name, list(parts), sizes))
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def _allow_open_files(more: int) -> None:
    """Raises the limit of open files: each shard stays open, and ImageNet has over 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited:
        wanted = soft + more if hard == unlimited else min(soft + more, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _readable(dataset: str, data_dir: str) -> Iterator[None]:
    """Turns any error of TFDS into a `UserError` that names the data set."""
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
    """Returns the builder of a prepared data set; prepares it if needed and allowed."""
    root = os.fspath(pathlib.Path(data_dir).expanduser().absolute()) if data_dir else None
    name = dataset.split(":", maxsplit=1)[0]
    for own in OWN_BUILDERS:
        if name in own.BUILDERS:
            builder = own.BUILDERS[name](data_dir=root)
            if not _is_prepared(builder):
                if not may_prepare:
                    raise MissingDataError(
                        f"data set {builder.name!r} is not prepared in "
                        f"{builder.data_dir_root}: training prepares it"
                    )
                own.prepare(builder)
            return builder
    try:
        builder = tfds.builder(dataset, data_dir=root)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"unknown dataset {dataset!r}: use digits, cifar10, cifar100, imagenet2012, "
            "folder, or an image classification set of TFDS that is prepared as "
            f"array_record in --config.data_dir ({root or tfds.core.constants.DATA_DIR})"
        ) from error
    if not _is_prepared(builder):
        raise MissingDataError(
            f"data set {dataset!r} is not prepared in {builder.data_dir_root}: run "
            f"`tfds build {name} --file_format=array_record` where TensorFlow is installed "
            "and point --config.data_dir at the folder it writes"
        )
    return builder


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns True if the data set is prepared as array_record.

    Raises:
      UserError: The data set is prepared in a format that only TensorFlow reads.
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
    """Rejects a data set that is not for image classification."""
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"data set {builder.name!r} has no class `label`; choose an image "
            "classification set"
        )
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(
            f"data set {builder.name!r} has no uint8 `image` but {image}; choose an image "
            "classification set"
        )


def _check_memory(builder: tfds.core.DatasetBuilder, split: str, num_examples: int) -> None:
    """Rejects a split that is too large for the machine's memory."""
    shape = builder.info.features["image"].shape
    needed_bytes, memory_bytes = num_examples * math.prod(shape), machine_memory_bytes()
    if needed_bytes > memory_bytes * MAX_MEMORY_FRACTION:
        raise UserError(
            f"{builder.name} {split} needs {needed_bytes / 2**30:.1f} GiB of the machine's "
            f"{memory_bytes / 2**30:.1f} GiB of memory: choose a slice such as "
            f"{split}[:10%]"
        )
