"""Where images come from: sources, sampling, and preprocessing on the device."""

from googlenet_flax.data.digits import load_digits
from googlenet_flax.data.image_set import ImageSet
from googlenet_flax.data.prepared import load_prepared


def load_split(dataset: str, split: str, *, data_dir: str) -> ImageSet:
    """Reads a split into memory.

    Args:
      dataset: `"digits"` (embedded), `"cifar10"` and `"cifar100"` (prepared when missing),
        or any image-classification set that TFDS has prepared as array_record.
      split: In TFDS notation: `train`, `train[:3000]`, `train[90%:]+test`.
      data_dir: Folder of TFDS data sets; "" is TFDS's own default.

    Raises:
      UserError: The set or split does not exist or cannot be read.
    """
    if dataset == "digits":
        return load_digits(split)
    return load_prepared(dataset, split, data_dir)
