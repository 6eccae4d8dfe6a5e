"""Class names of ImageNet 2012, in the label order of Caffe, torchvision and TFDS."""

from collections.abc import Sequence

from tensorflow_datasets.datasets.imagenet2012 import imagenet_common
from tensorflow_datasets.datasets.siscore import labels

NUM_CLASSES = 1000


def imagenet_class_names() -> tuple[str, ...]:
    """Returns the English names, from "tench, Tinca tinca" to "toilet tissue, ..."."""
    return tuple(labels.IMAGENET_LABELS_LIST)


def wordnet_ids() -> tuple[str, ...]:
    """Returns the WordNet IDs, which TFDS stores: from "n01440764" to "n15075141"."""
    return tuple(imagenet_common.label_names_file().read_text().split())


def readable_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Replaces each WordNet ID of ImageNet 2012 with the English name."""
    words = dict(zip(wordnet_ids(), imagenet_class_names(), strict=True))
    return tuple(words.get(name, name) for name in class_names)
