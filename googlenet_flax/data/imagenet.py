"""The classes of ImageNet 2012, in the order in which every original numbers them."""

from tensorflow_datasets.datasets.siscore import labels

NUM_CLASSES = 1000


def imagenet_class_names() -> tuple[str, ...]:
    """From "tench, Tinca tinca" to "toilet tissue, toilet paper, bathroom tissue"."""
    return tuple(labels.IMAGENET_LABELS_LIST)
