"""Where images come from: sources, sampling, and preprocessing on the device."""

from googlenet_flax.data.folder import FolderOptions, load_folder
from googlenet_flax.data.image_set import ImageSet, Split

__all__ = ["FolderOptions", "ImageSet", "Split", "load_split"]


def load_split(
    dataset: str,
    split: str,
    *,
    data_dir: str,
    folder: FolderOptions | None = None,
    may_prepare: bool = True,
) -> Split:
    """Opens a split; all but `folder` are read into memory.

    Args:
      dataset: `"digits"` (embedded), `"folder"` (your own pictures), `"cifar10"` and
        `"cifar100"` (prepared when missing), or any image-classification set that TFDS has
        prepared as array_record.
      split: In TFDS notation: `train`, `train[:3000]`, `train[90%:]+test`.
      data_dir: Folder of TFDS data sets, "" is TFDS's own default; or the folder of
        pictures.
      folder: How to read pictures; `"folder"` alone needs it.
      may_prepare: Download and write CIFAR where it is missing; otherwise that is an error.

    Raises:
      UserError: The set or split does not exist or cannot be read.
    """
    if dataset == "digits":
        from googlenet_flax.data.digits import load_digits  # noqa: PLC0415 - slow

        return load_digits(split)
    if dataset == "folder":
        assert folder is not None
        return load_folder(split, data_dir, folder)
    from googlenet_flax.data.prepared import load_prepared  # noqa: PLC0415 - slow

    return load_prepared(dataset, split, data_dir, may_prepare=may_prepare)
