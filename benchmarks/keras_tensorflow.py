"""The network in Keras 3 on TensorFlow; a step is one `tf.function`."""

import argparse
import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras reads it at its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collections.abc import Callable
from functools import partial

import keras
import peer
import tensorflow as tf
from keras import layers


def _conv(x, filters, side, *, name, strides=1):
    conv = layers.Conv2D(
        filters, side, strides=strides, padding="same", activation="relu", name=name
    )
    return conv(x)


def _pool(x, strides):
    return layers.MaxPooling2D(3, strides=strides, padding="same")(x)


def _classifier(x, name):
    return layers.Dense(peer.NUM_CLASSES, dtype="float32", name=name)(x)


def _inception(x, name, widths):
    conv_1x1, reduce_3x3, conv_3x3, reduce_5x5, conv_5x5, pool_proj = widths
    branch_1x1 = _conv(x, conv_1x1, 1, name=f"{name}_1x1")
    branch_3x3 = _conv(x, reduce_3x3, 1, name=f"{name}_3x3_reduce")
    branch_3x3 = _conv(branch_3x3, conv_3x3, 3, name=f"{name}_3x3")
    branch_5x5 = _conv(x, reduce_5x5, 1, name=f"{name}_5x5_reduce")
    branch_5x5 = _conv(branch_5x5, conv_5x5, 5, name=f"{name}_5x5")
    branch_pool = _conv(_pool(x, strides=1), pool_proj, 1, name=f"{name}_pool_proj")
    return layers.concatenate([branch_1x1, branch_3x3, branch_5x5, branch_pool])


def _head(x, name):
    x = layers.AveragePooling2D(5, strides=3)(x)
    x = layers.Flatten()(_conv(x, 128, 1, name=f"{name}_proj"))
    x = layers.Dense(1024, activation="relu", name=f"{name}_fc")(x)
    return _classifier(layers.Dropout(peer.AUX_DROPOUT)(x), f"{name}_classifier")


def create_model(image_size: int) -> keras.Model:
    """Creates a model from `[B, H, W, 3]` to float32 logits of main classifier and heads.

    The model computes in the dtype of Keras's current policy.
    """
    images = keras.Input((image_size, image_size, 3))
    x = _pool(_conv(images, 64, 7, strides=2, name="conv1"), strides=2)
    x = _conv(x, 64, 1, name="conv2_reduce")
    x = _pool(_conv(x, 192, 3, name="conv2"), strides=2)
    heads = []
    for name, widths in peer.INCEPTIONS.items():
        if name in peer.POOL_BEFORE:
            x = _pool(x, strides=2)
        x = _inception(x, name, widths)
        if name in peer.HEAD_AFTER:
            heads.append(_head(x, peer.HEAD_AFTER[name]))
    x = layers.Dropout(peer.DROPOUT)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, [_classifier(x, "classifier"), *heads])


def make_train_step(model: keras.Model, *, jit: bool) -> Callable:
    """Creates a function `(images, labels) -> loss` that updates the model."""
    optimizer = keras.optimizers.SGD(peer.LEARNING_RATE, momentum=peer.MOMENTUM)
    optimizer.build(model.trainable_variables)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits

    @tf.function(jit_compile=jit)
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            main, *heads = (
                tf.reduce_mean(cross_entropy(labels, logits)) for logits in outputs
            )
            loss = main + peer.AUX_WEIGHT * sum(heads)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return train_step


def device_name() -> str:
    """Returns the name of the GPU that TensorFlow uses, or `cpu`."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    return tf.config.experimental.get_device_details(gpus[0])["device_name"]


def main() -> None:
    """Measures the network and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jit", action="store_true", help="compile the steps with XLA")
    work, flags = peer.parse_flags(parser)
    if work.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    images, labels = map(tf.constant, peer.draw_batch(work))
    model = create_model(work.image_size)
    peer.check_parameters(model.count_params(), work.image_size)
    train_step = make_train_step(model, jit=flags.jit)
    main_model = keras.Model(model.inputs, model.outputs[0])
    forward = tf.function(partial(main_model, training=False), jit_compile=flags.jit)
    peer.measure_and_print(
        work,
        device=device_name(),
        train_step=lambda: train_step(images, labels),
        eval_step=lambda: forward(images),
        wait=lambda _: tf.test.experimental.sync_devices(),
    )


if __name__ == "__main__":
    main()
