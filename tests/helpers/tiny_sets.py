"""Small sets that TFDS prepares as array_record."""

import io

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

SIZES = {"train": 12, "test": 5}
LABEL = tfds.features.ClassLabel(names=["zero", "one", "two"])


def image(*shape, dtype=np.uint8):
    """Returns the feature of images of a shape."""
    return tfds.features.Image(shape=shape, dtype=dtype)


def pixels(split, index, shape):
    """Draws the image of an example."""
    rng = np.random.default_rng([len(split), index])
    return rng.integers(0, 256, shape, dtype=np.uint8)


def expected_images(split, rows, shape):
    """Draws the images of a slice of a split."""
    return np.stack([pixels(split, i, shape) for i in range(SIZES[split])[rows]])


class TinySet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Random images with labels 0, 1, 2, 0 and so on."""

    VERSION = tfds.core.Version("3.0.1")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.FEATURES),
            disable_shuffling=True,  # Otherwise tests would have to undo a shuffle.
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        feature = self.FEATURES.get("image", image(28, 28, 1))
        shape = [size or 7 for size in feature.shape]
        for index in range(SIZES[split]):
            png = io.BytesIO()
            picture = pixels(split, index, shape)
            PIL.Image.fromarray(picture.squeeze()).save(png, format="PNG")
            png.seek(0)
            example = {"image": png, "label": index % 3}
            yield index, {name: example[name] for name in self.FEATURES}


def set_of(name, **features):
    """Creates a class of sets with these features."""
    body = {"__module__": __name__, "FEATURES": features}
    return type(name, (TinySet,), body, skip_registration=True)


TinyGrey = set_of("TinyGrey", image=image(28, 28, 1), label=LABEL)
TinyColour = set_of("TinyColour", image=image(6, 9, 3), label=LABEL)


def prepare(builder_class, data_dir):
    """Prepares a set and returns its builder."""
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder
