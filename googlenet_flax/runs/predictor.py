"""A trained network, loaded from a workdir to compute class probabilities of pictures."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.preprocessing.crops import evaluation_crops
from googlenet_flax.runs.checkpoint import Checkpoints, retried
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.environment import local_devices
from googlenet_flax.runtime.onednn import use_onednn_for
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.sharding import split_over_devices, split_sharding
from googlenet_flax.training.state import Variables


def devices_for(*workdirs: Workdir) -> list[jax.Device]:
    """Returns the devices of this process, with oneDNN turned on if a run needs it.

    A bfloat16 network then computes as in training. Call this function before JAX creates
    its devices.

    Raises:
      UserError: There is no run in a workdir, its config is missing or unreadable, or JAX
        finds no device.
    """
    for workdir in workdirs:
        if config := workdir.load_config():  # Imported weights have none.
            use_onednn_for(config.dtype)
    return local_devices()


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network of a workdir, its weights and the devices it runs on."""

    workdir: Workdir
    checkpoint_step: int
    description: ModelDescription
    variables: Variables  # Replicated over the devices.
    devices: Sequence[jax.Device]
    metrics: Mapping[str, float] | None  # Those of the evaluation of the checkpoint.
    # Takes variables, shards and a `Crop`; returns log probabilities, because small
    # probabilities would be rounded to 0.
    step: Callable[..., dict[str, jax.Array]]

    @classmethod
    @retried
    def load(
        cls,
        workdir: Workdir,
        checkpoint: str,
        devices: Sequence[jax.Device],
        *,
        raw: bool = False,
    ) -> Self:
        """Loads the network of a checkpoint: `best`, `latest` or a step.

        The weights are the averages if the run averaged them, unless `raw` is true.

        Raises:
          UserError: There is no such run or checkpoint, or the checkpoint is damaged.
        """
        workdir.read_config()  # Refuses a directory without a run.
        checkpoints = Checkpoints(workdir.checkpoints)
        checkpoint_step = checkpoints.resolve(checkpoint)
        manifest = checkpoints.manifests[checkpoint_step]
        description = manifest.description
        variables = checkpoints.restore_variables(
            checkpoint_step, description.variables_like(), devices, raw=raw
        )
        model = description.create_model(devices)

        def step(variables, batch, crop):
            images = description.preprocess(batch["image"], batch.get("extent"), crop)
            output: Any = model.apply(variables, images, train=False)
            return jax.tree.map(jax.nn.log_softmax, output.by_classifier())

        return cls(
            workdir,
            checkpoint_step,
            description,
            variables,
            devices,
            manifest.metrics,
            jax.pmap(step, in_axes=(None, 0, None), devices=devices),
        )

    def split(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Reshapes `image`, and `extent` if there is one, to `[D, B/D, ...]`."""
        inputs = {name: batch[name] for name in ("image", "extent") if name in batch}
        return split_over_devices(inputs, len(self.devices))

    def log_probabilities(
        self, batch: Mapping[str, np.ndarray], num_crops: int
    ) -> dict[str, np.ndarray]:
        """Computes the logarithm of the mean softmax over the crops of `evaluation_crops`.

        The batch holds `image`, uint8 `[B, h, w, C]`, and optionally `extent`, int32
        `[B, 2]`. B must be a multiple of the number of devices. The result is float32
        `[B, num_classes]` for each classifier: `main`, `aux_4a` and `aux_4d`.
        """
        # Once, not for every crop.
        shards = jax.device_put(self.split(batch), split_sharding(self.devices))
        total: Any = None
        for crop in evaluation_crops(num_crops, self.description.preprocess.crop_fraction):
            one = self.step(self.variables, shards, crop)
            total = one if total is None else jax.tree.map(jnp.logaddexp, total, one)
        return {
            name: np.concatenate(values) - math.log(num_crops)
            for name, values in jax.device_get(total).items()
        }
