"""The network in stock Flax, with Flax's own layers and pools, optax and `jax.jit`."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import peer

Params = Any


def _conv(x, features, side, *, name, dtype, strides=1):
    conv = nn.Conv(features, (side, side), strides=strides, dtype=dtype, name=name)
    return nn.relu(conv(x))


def _pool(x, strides):
    return nn.max_pool(x, (3, 3), strides=(strides, strides), padding="SAME")


class Inception(nn.Module):
    """Maps `[B, H, W, C]` to `[B, H, W, C']`."""

    widths: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes four branches and concatenates them along the channels."""
        conv = partial(_conv, dtype=self.dtype)
        conv_1x1, reduce_3x3, conv_3x3, reduce_5x5, conv_5x5, pool_proj = self.widths
        branch_1x1 = conv(x, conv_1x1, 1, name="1x1")
        branch_3x3 = conv(x, reduce_3x3, 1, name="3x3_reduce")
        branch_3x3 = conv(branch_3x3, conv_3x3, 3, name="3x3")
        branch_5x5 = conv(x, reduce_5x5, 1, name="5x5_reduce")
        branch_5x5 = conv(branch_5x5, conv_5x5, 5, name="5x5")
        branch_pool = conv(_pool(x, strides=1), pool_proj, 1, name="pool_proj")
        return jnp.concatenate([branch_1x1, branch_3x3, branch_5x5, branch_pool], axis=-1)


class Head(nn.Module):
    """An auxiliary classifier: maps `[B, H, W, C]` to float32 `[B, num_classes]`."""

    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Computes the logits, with dropout if `train`."""
        x = nn.avg_pool(x, (5, 5), strides=(3, 3))
        x = _conv(x, 128, 1, name="proj", dtype=self.dtype)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(1024, dtype=self.dtype, name="fc")(x))
        x = nn.Dropout(peer.AUX_DROPOUT, deterministic=not train)(x)
        return nn.Dense(peer.NUM_CLASSES, dtype="float32", name="classifier")(x)


class GoogLeNet(nn.Module):
    """Maps `[B, H, W, 3]` to the float32 logits of the main classifier and both heads."""

    dtype: str

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Computes the logits, with dropout if `train`, which needs the `"dropout"` rng."""
        conv = partial(_conv, dtype=self.dtype)
        x = _pool(conv(images, 64, 7, strides=2, name="conv1"), strides=2)
        x = conv(x, 64, 1, name="conv2_reduce")
        x = _pool(conv(x, 192, 3, name="conv2"), strides=2)
        heads = []
        for name, widths in peer.INCEPTIONS.items():
            if name in peer.POOL_BEFORE:
                x = _pool(x, strides=2)
            x = Inception(widths, self.dtype, name=name)(x)
            if name in peer.HEAD_AFTER:
                head = Head(self.dtype, name=peer.HEAD_AFTER[name])
                heads.append(head(x, train=train))
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(peer.DROPOUT, deterministic=not train)(x)
        return nn.Dense(peer.NUM_CLASSES, dtype="float32", name="classifier")(x), *heads


def make_train_step(model: GoogLeNet, tx: optax.GradientTransformation) -> Callable:
    """Creates a jitted step.

    It maps `(params, opt_state, rng, images, labels)` to `(params, opt_state, rng, loss)`.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss_fn(params: Params, rng, images, labels):
        outputs = model.apply(params, images, train=True, rngs={"dropout": rng})
        main, *heads = (jnp.mean(cross_entropy(logits, labels)) for logits in outputs)
        return main + peer.AUX_WEIGHT * sum(heads)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params: Params, opt_state, rng, images, labels):
        rng, dropout_rng = jax.random.split(rng)
        loss, grads = jax.value_and_grad(loss_fn)(params, dropout_rng, images, labels)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, rng, loss

    return train_step


def main() -> None:
    """Measures the network and prints its figures."""
    work, _ = peer.parse_flags(argparse.ArgumentParser(description=__doc__))
    images, labels = jax.device_put(peer.draw_batch(work))
    model = GoogLeNet(work.dtype)
    tx = optax.sgd(peer.LEARNING_RATE, momentum=peer.MOMENTUM)
    params = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:1])
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    peer.check_parameters(num_parameters, work.image_size)
    state = (params, tx.init(params), jax.random.key(1))
    compiled_step = make_train_step(model, tx)
    forward = jax.jit(lambda params, images: model.apply(params, images, train=False)[0])

    def train_step() -> jax.Array:
        nonlocal state
        *state, loss = compiled_step(*state, images, labels)
        return loss

    (device,) = images.devices()

    def facts() -> dict[str, Any]:
        memory = device.memory_stats() or {}  # CPU devices have no statistics.
        peak = memory.get("peak_bytes_in_use")
        return {"version": f"jax {jax.__version__}", "peak_memory_bytes": peak}

    peer.measure_and_print(
        work,
        device=device.device_kind,
        train_step=train_step,
        eval_step=lambda: forward(state[0], images),
        wait=jax.block_until_ready,
        facts=facts,
    )


if __name__ == "__main__":
    main()
