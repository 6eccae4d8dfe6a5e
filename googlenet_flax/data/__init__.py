"""Where images come from: sources, sampling, and preprocessing on the device."""

from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.image_set import ImageSet, Split
from googlenet_flax.data.picture_options import PictureOptions

__all__ = ["ImageSet", "PictureOptions", "Split", "load_split"]


def load_split(
    dataset: str,
    split: str,
    *,
    data_dir: str,
    pictures: PictureOptions | None = None,
    may_prepare: bool = True,
) -> Split:
    """Opens a split; images of one fixed size are read into memory, others streamed.

    Args:
      dataset: `"digits"` (embedded), `"folder"` (your own pictures), `"cifar10"`,
        `"cifar100"` and `"imagenet2012"` (prepared when missing), or any
        image-classification set that TFDS has prepared as array_record.
      split: In TFDS notation: `train`, `train[:3000]`, `train[90%:]+test`.
      data_dir: Folder of TFDS data sets, "" is TFDS's own default; or the folder of
        pictures.
      pictures: How to read what is streamed: `"folder"`, and sets without a fixed size.
      may_prepare: Download CIFAR and write CIFAR and ImageNet where they are missing;
        otherwise that is an error.

    Raises:
      UserError: The set or split does not exist or cannot be read.
    """
    if dataset == "digits":
        from googlenet_flax.data.digits import load_digits  # noqa: PLC0415 - slow

        return load_digits(split)
    if dataset == "folder":
        assert pictures is not None
        return load_folder(split, data_dir, pictures)
    from googlenet_flax.data.prepared import load_prepared  # noqa: PLC0415 - slow

    return load_prepared(dataset, split, data_dir, pictures, may_prepare=may_prepare)
