"""Reader for TFDS data sets that are prepared as array_record, without TensorFlow."""

import hashlib
import math
import os
import resource
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from googlenet_flax.data.builders.cifar import Cifar10, Cifar100
from googlenet_flax.data.builders.imagenet import Imagenet2012
from googlenet_flax.data.class_names import readable_names
from googlenet_flax.data.image_set import ImageSet, PictureOptions, Split
from googlenet_flax.data.picture_set import PictureSet
from googlenet_flax.data.records import RecordPictures
from googlenet_flax.data.splits import split_positions
from googlenet_flax.runtime.errors import MissingDataError, UserError
from googlenet_flax.runtime.memory import machine_memory_bytes

# Builders that prepare a missing data set.
OWN_BUILDERS = {"cifar10": Cifar10, "cifar100": Cifar100, "imagenet2012": Imagenet2012}
READ_CHUNK_EXAMPLES = 1000
MAX_MEMORY_FRACTION = 0.5  # Largest part of the memory for one split.


def load_prepared(
    dataset: str,
    split: str,
    data_dir: str,
    options: PictureOptions | None,
    *,
    may_prepare: bool,
) -> Split:
    """Opens a split of TFDS; `data.load_split` describes the arguments and errors."""
    try:
        builder = _find_builder(dataset, data_dir, may_prepare=may_prepare)
        _check_features(builder)
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        positions = split_positions(split, sizes)
        if None not in builder.info.features["image"].shape:
            return _read_images(builder, split, sum(len(rows) for _, rows in positions))
        if options is None:
            raise UserError(
                f"the pictures of data set {dataset!r} differ in size: pass `pictures`, "
                "a PictureOptions, to load_split"
            )
        return _open_pictures(builder, split, positions, options)
    except UserError:
        raise
    except Exception as error:  # Damaged files make TFDS raise nearly anything.
        where = data_dir or tfds.core.constants.DATA_DIR
        reason = str(error).strip() or type(error).__name__
        raise UserError(
            f"data set {dataset!r} in {where} cannot be read ({reason.splitlines()[0]}): "
            "check that you may read it; if it is damaged, remove its folder and prepare "
            "it again"
        ) from error


def _find_builder(
    dataset: str, data_dir: str, *, may_prepare: bool
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a prepared data set; prepares it if needed and allowed."""
    root = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    name, _, version = dataset.partition(":")
    own = OWN_BUILDERS.get(name)
    make = partial(own, version=version or None) if own else partial(tfds.builder, dataset)
    try:
        builder: Any = make(data_dir=root)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"unknown dataset {dataset!r}: use digits, cifar10, cifar100, imagenet2012, "
            "folder, or an image classification set of TFDS that is prepared as "
            f"array_record in --config.data_dir ({root or tfds.core.constants.DATA_DIR})"
        ) from error
    if _is_prepared(builder):
        return builder
    if own and may_prepare:
        try:
            builder.prepare()
        except UserError:
            builder = make(data_dir=root)
            if not builder.is_prepared():  # Another process may have been faster.
                raise
        return builder
    remedy = "training prepares it"
    if not own:
        remedy = (
            f"run `tfds build {name} --file_format=array_record` where TensorFlow is "
            "installed and point --config.data_dir at the folder it writes"
        )
    raise MissingDataError(
        f"data set {dataset!r} is not prepared in {builder.data_dir_root}: {remedy}"
    )


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns True if the data set is prepared; refuses any format but array_record."""
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
    image, missing = features.get("image"), None
    if not isinstance(features.get("label"), tfds.features.ClassLabel):
        missing = "feature `label` of the type ClassLabel"
    elif not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        missing = f"feature `image` of uint8 pixels (it is {image})"
    if missing:
        raise UserError(
            f"data set {builder.name!r} has no {missing}: choose a data set for image "
            "classification"
        )


def _read_images(
    builder: tfds.core.DatasetBuilder, split: str, num_examples: int
) -> ImageSet:
    """Reads all images of the split into memory, if they fit."""
    shape = builder.info.features["image"].shape
    needed_bytes, memory_bytes = num_examples * math.prod(shape), machine_memory_bytes()
    if needed_bytes > memory_bytes * MAX_MEMORY_FRACTION:
        raise UserError(
            f"split {split!r} of {builder.name} needs {needed_bytes / 2**30:.1f} GiB, but "
            f"may take at most half of the {memory_bytes / 2**30:.1f} GiB of memory of "
            "this machine or container: choose a smaller slice, such as train[:10%]"
        )
    images = np.empty((num_examples, *shape), np.uint8)
    labels = np.empty(num_examples, np.int32)
    source = builder.as_data_source(split=split)
    for start in range(0, num_examples, READ_CHUNK_EXAMPLES):
        rows = range(start, min(start + READ_CHUNK_EXAMPLES, num_examples))
        for row, example in zip(rows, source.__getitems__(rows), strict=True):
            images[row], labels[row] = example["image"], example["label"]
    return ImageSet(images, labels, readable_names(builder.info.features["label"].names))


def _open_pictures(
    builder: tfds.core.DatasetBuilder,
    split: str,
    positions: Sequence[tuple[str, range]],
    options: PictureOptions,
) -> PictureSet:
    """Opens the records of the split without reading them."""
    shards = [part.filename for part in builder.info.splits[split].file_instructions]
    sizes = [(os.path.basename(path), os.path.getsize(path)) for path in shards]
    _allow_open_files(len(shards))
    facts = repr((builder.info.full_name, list(positions), sizes))
    class_names = readable_names(builder.info.features["label"].names)
    return PictureSet(
        RecordPictures(
            source=builder.as_data_source(split=split).data_source,
            dataset=builder.name,
            parts=tuple(positions),
            num_classes=len(class_names),
            fingerprint=hashlib.blake2b(facts.encode(), digest_size=16).hexdigest(),
        ),
        class_names,
        options,
    )


def _allow_open_files(more: int) -> None:
    """Raises the limit of open files: each shard stays open, and ImageNet has over 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited:
        wanted = soft + more if hard == unlimited else min(soft + more, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
