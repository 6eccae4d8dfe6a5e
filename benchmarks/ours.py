"""Measures our network on a batch that stays on the device, as the peers measure theirs.

    python benchmarks/ours.py --variant=bn --arithmetic=merge_1x1+gather_max_pool

Other scripts import the functions that make the steps.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peer

from googlenet_flax.analysis.cost import image_cost
from googlenet_flax.model.convolution import STOCK, Arithmetic
from googlenet_flax.model.googlenet import VARIANTS, create_model
from googlenet_flax.performance.limits import find_limits
from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.runtime.environment import on_the_cpu
from googlenet_flax.runtime.memory import step_bytes
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.optimizer import create_optimizer
from googlenet_flax.training.state import TrainState
from googlenet_flax.training.step import train_step

LIMIT_SECONDS = 0.5  # Duration of the measurement of a chip that is not in `CHIPS`.


def choose_arithmetic(choice: str) -> Arithmetic:
    """Creates the arithmetic in which only some fields are on, such as `"a+b"`.

    `"stock"` leaves all fields off.
    """
    names = [] if choice == "stock" else choice.split("+")
    return dataclasses.replace(STOCK, **dict.fromkeys(names, True))


@functools.cache
def create_sgd() -> optax.GradientTransformation:
    """Creates the optimizer of the peers."""
    schedule = optax.constant_schedule(peer.LEARNING_RATE)
    return create_optimizer(schedule, momentum=peer.MOMENTUM, weight_decay=0.0)


@functools.cache
def initial_state(variant: str, image_size: int) -> TrainState:
    """Creates the state on the host; it depends on neither the dtype nor the arithmetic."""
    model = create_model(variant, num_classes=peer.NUM_CLASSES, arithmetic=STOCK)

    def create(rng: jax.Array) -> TrainState:
        images = jnp.zeros((1, image_size, image_size, 3))
        return TrainState.of(model.init(rng, images, train=False), create_sgd())

    with on_the_cpu():
        return jax.device_get(jax.jit(create)(jax.random.key(0)))


def make_steps(
    variant: str, arithmetic: Arithmetic, work: peer.Work
) -> tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]:
    """Compiles a network.

    Returns:
      A function that starts a training step and returns its loss, a function that starts a
      forward pass, and a dict with the `peak_memory_bytes` that XLA plans for the training
      step, or an empty dict if XLA reports no plan.
    """
    model = create_model(
        variant, num_classes=peer.NUM_CLASSES, dtype=work.dtype, arithmetic=arithmetic
    )
    state = jax.device_put(initial_state(variant, work.image_size))
    images, labels = peer.draw_batch(work)
    index = np.arange(work.batch_size, dtype=np.int32)
    batch = jax.device_put({"image": images, "label": labels, "index": index})
    step = partial(
        train_step,
        model=model,
        tx=create_sgd(),
        inputs=lambda batch, rngs, step: batch["image"],
        objective=Objective(aux_weight=peer.AUX_WEIGHT),
        seed=0,
    )
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False).logits)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    forward = logits.lower(state.variables, batch["image"]).compile()
    plan = compiled.memory_analysis()
    figures = {"peak_memory_bytes": step_bytes(plan)} if plan else {}

    def train() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics["loss"]

    return train, lambda: forward(state.variables, batch["image"]), figures


def main() -> None:
    """Measures a network and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", choices=VARIANTS, default="seed")
    parser.add_argument(
        "--arithmetic",
        type=choose_arithmetic,  # An unknown field is an error of the flag.
        default="stock",
        help="fields of Arithmetic that are on, joined by +; default: stock, none",
    )
    work, flags = peer.parse_flags(parser)
    use_compilation_cache()
    device = jax.devices()[0]
    train, forward, figures = make_steps(flags.variant, flags.arithmetic, work)
    model = create_model(flags.variant, num_classes=peer.NUM_CLASSES, dtype=work.dtype)
    rates = find_limits([device], work.dtype, LIMIT_SECONDS).training_rates(
        image_cost(model, work.image_size)
    )
    facts = {"version": f"jax {jax.__version__}", "limit": min(rates.values()), **figures}
    peer.measure_and_print(
        work,
        device=device.device_kind,
        train_step=train,
        eval_step=forward,
        wait=jax.block_until_ready,
        facts=lambda: facts,
    )


if __name__ == "__main__":
    main()
