"""Data sets: sources of images, decoding, and the order of the examples."""

from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.image_set import ImageSet, PictureOptions, Split
from googlenet_flax.runtime.errors import UserError

__all__ = ["ImageSet", "PictureOptions", "Split", "load_split"]


def load_split(
    dataset: str,
    split: str,
    *,
    data_dir: str,
    pictures: PictureOptions | None = None,
    may_prepare: bool = True,
) -> Split:
    """Opens a split of a data set.

    A data set whose images all have one size, such as CIFAR-10, is read into memory. The
    pictures of a folder, or of a data set whose images differ in size, are read and decoded
    while the network trains.

    Args:
      dataset: `"digits"` (of scikit-learn), `"folder"` (your own pictures), `"cifar10"`,
        `"cifar100"` and `"imagenet2012"` (prepared when missing), or any
        image-classification data set that TFDS has prepared as array_record, such as
        `"mnist"` or `"cifar10:3.0.2"`.
      split: Split in TFDS notation: `train`, `train[:3000]`, `train[90%:]+test`.
      data_dir: Folder of the TFDS data sets ("" is the default of TFDS), or the folder of
        your own pictures.
      pictures: Options for images of different sizes. They are required for `"folder"` and
        for every data set whose images differ in size, and are ignored otherwise.
      may_prepare: False to raise an error instead of preparing a missing data set.

    Raises:
      MissingDataError: The folder does not exist, or the data set is not prepared and
        `may_prepare` is false or only TFDS can prepare it. It is a `UserError`.
      UserError: The data set or split does not exist, is in another format or cannot be
        read, the options for pictures are missing or do not fit, or the images do not fit
        into memory.
    """
    if dataset == "digits":
        from googlenet_flax.data.digits import load_digits  # noqa: PLC0415 - slow

        return load_digits(split)
    if dataset == "folder":
        if pictures is None:
            raise UserError(
                "data set 'folder' needs `pictures`: pass a PictureOptions to load_split"
            )
        return load_folder(split, data_dir, pictures)
    from googlenet_flax.data.prepared import load_prepared  # noqa: PLC0415 - slow

    return load_prepared(dataset, split, data_dir, pictures, may_prepare=may_prepare)
