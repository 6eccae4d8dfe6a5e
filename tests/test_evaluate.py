import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_flax.config import Config
from googlenet_flax.data import ImageSet
from googlenet_flax.model.googlenet import GoogLeNetOutput
from googlenet_flax.runs.checkpoint_evaluation import evaluation_config
from googlenet_flax.training.evaluation import evaluate_split
from googlenet_flax.training.sharding import replicate, split_over_devices
from googlenet_flax.training.step import eval_step


class PixelClassifier:
    """A stand-in for the network: the first pixels of an image are its logits."""

    def apply(self, variables, images, *, train):
        assert not train
        logits = images[:, 0, :10, 0] * variables["slope"]
        return GoogLeNetOutput(logits, -logits, logits / 2)


class PartlyReadable(ImageSet):
    """A split in which every third picture stands for a file that cannot be read."""

    def batches(self, index_batches):
        for batch in super().batches(index_batches):
            yield {**batch, "readable": batch["index"] % 3 != 0}


@functools.cache
def step_on(num_devices):
    return jax.pmap(
        lambda variables, batch: eval_step(
            variables,
            batch,
            model=PixelClassifier(),
            preprocess=lambda images, extents=None: images.astype(jnp.float32),
            aux_weight=0.3,
        ),
        in_axes=(None, 0),
        devices=jax.devices()[:num_devices],
    )


@pytest.mark.parametrize("image_set", [ImageSet, PartlyReadable])
@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_every_example_counts_once(num_devices, batch_size, image_set):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (37, 12, 12, 1), dtype=np.uint8)
    labels = rng.integers(0, 10, 37).astype(np.int32)
    devices = jax.devices()[:num_devices]
    step = step_on(num_devices)
    variables = replicate({"slope": jnp.asarray(0.01)}, devices)
    metrics = evaluate_split(
        lambda batch: jax.device_get(
            step(variables, split_over_devices(batch, num_devices))
        ),
        image_set(images, labels, tuple("0123456789")),
        batch_size=batch_size,
        num_devices=num_devices,
    )
    if image_set is PartlyReadable:
        readable = np.arange(37) % 3 != 0
        images, labels = images[readable], labels[readable]
    logits = images[:, 0, :10, 0] * 0.01
    own = logits[np.arange(len(labels)), labels]
    main_loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - own)
    rank = (logits >= own[:, None]).sum(axis=1) - 1
    np.testing.assert_allclose(metrics["main_loss"], main_loss, rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(rank < 1))
    assert metrics["top5"] == pytest.approx(np.mean(rank < 5))
    heads = metrics["aux_4a_loss"] + metrics["aux_4d_loss"]
    assert metrics["loss"] == pytest.approx(main_loss + 0.3 * heads, rel=1e-5)
    assert "count" not in metrics


@pytest.mark.parametrize(("flag", "expected"), [(None, 0.2), (0.0, 0.0), (0.5, 0.5)])
def test_a_fraction_of_zero_overrides_that_of_the_run(flag, expected):
    run = Config(dataset="folder", eval_fraction=0.2)
    assert evaluation_config(run, eval_fraction=flag).eval_fraction == expected


def test_batches_are_those_that_pass_through_the_network_in_training():
    run = Config(batch_size=12, accumulation_steps=3)
    assert evaluation_config(run).batch_size == 4
    assert evaluation_config(run, batch_size=6).batch_size == 6
