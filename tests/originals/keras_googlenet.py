"""The tutorial's Keras network, for any Keras backend.

`save_weights` numbers its layers in `model.layers` order, by falling distance from the
outputs: a block's 3x3_reduce and 5x5_reduce come before its 1x1, the heads' layers last.
"""

import keras
import numpy as np
from keras import layers

from originals.weights import HEADS, INCEPTIONS, NUM_CLASSES, Weights


class _Network:
    """Layers by the paper's names, in the order in which they are added.

    They start at zero, because weights are always loaded and Keras on JAX draws slowly.
    """

    def __init__(self, activation: str | None):
        self.activation = activation  # The activation of the three classifiers.
        self.layers = {}

    def conv(self, x, name, filters, side, strides=1):
        self.layers[name] = layers.Conv2D(
            filters,
            side,
            strides=strides,
            padding="same",
            activation="relu",
            kernel_initializer="zeros",
        )
        return self.layers[name](x)

    def dense(self, x, name, units, activation):
        self.layers[name] = layers.Dense(
            units, activation=activation, kernel_initializer="zeros"
        )
        return self.layers[name](x)

    def pool(self, x, strides):
        return layers.MaxPooling2D((3, 3), strides=strides, padding="same")(x)

    def inception(self, x, name, widths):
        conv_1x1, reduce_3x3, conv_3x3, reduce_5x5, conv_5x5, pool_proj = widths
        branch_1x1 = self.conv(x, f"{name}/1x1", conv_1x1, 1)
        branch_3x3 = self.conv(x, f"{name}/3x3_reduce", reduce_3x3, 1)
        branch_3x3 = self.conv(branch_3x3, f"{name}/3x3", conv_3x3, 3)
        branch_5x5 = self.conv(x, f"{name}/5x5_reduce", reduce_5x5, 1)
        branch_5x5 = self.conv(branch_5x5, f"{name}/5x5", conv_5x5, 5)
        branch_pool = self.pool(x, strides=1)
        branch_pool = self.conv(branch_pool, f"{name}/pool_proj", pool_proj, 1)
        branches = [branch_1x1, branch_3x3, branch_5x5, branch_pool]
        return layers.concatenate(branches, axis=3)

    def head(self, x, name):
        x = layers.AveragePooling2D((5, 5), strides=3)(x)
        x = layers.Flatten()(self.conv(x, f"{name}/proj", 128, 1))
        x = layers.Dropout(0.7)(self.dense(x, f"{name}/fc", 1024, "relu"))
        return self.dense(x, f"{name}/classifier", NUM_CLASSES, self.activation)

    def outputs(self, images):
        x = self.pool(self.conv(images, "conv1", 64, 7, strides=2), strides=2)
        x = self.conv(x, "conv2_reduce", 64, 1)
        x = self.pool(self.conv(x, "conv2", 192, 3), strides=2)
        heads = []
        for name, (_, *widths) in INCEPTIONS.items():
            if name in ("inception_4a", "inception_5a"):
                x = self.pool(x, strides=2)
            x = self.inception(x, name, widths)
            if (aux := name.replace("inception", "aux")) in HEADS:
                heads.append(self.head(x, aux))
        x = layers.Dropout(0.4)(layers.GlobalAveragePooling2D()(x))
        return [self.dense(x, "classifier", NUM_CLASSES, self.activation), *heads]


def create_model(
    weights: Weights, image_size: int, *, activation: str | None = "softmax"
) -> keras.Model:
    """Creates the network with the given weights, with the outputs main and both heads.

    Args:
      weights: Arrays by the paper's names of the layers.
      image_size: Side of the images in pixels.
      activation: Activation of the three classifiers; None makes them return logits.
    """
    network = _Network(activation)
    images = keras.Input((image_size, image_size, 3))
    model = keras.Model(images, network.outputs(images))
    for name, layer in network.layers.items():
        layer.set_weights([weights[f"{name}/kernel"], weights[f"{name}/bias"]])
    return model


def run(weights: Weights, images: np.ndarray) -> list[np.ndarray]:
    """Computes the logits of all three classifiers for images `[B, H, W, 3]`."""
    model = create_model(weights, images.shape[1], activation=None)
    return model.predict(images, verbose=0)
