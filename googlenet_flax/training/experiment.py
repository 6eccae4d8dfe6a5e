"""Data, network, schedule and steps of a run, built from its config."""

import dataclasses
import itertools
from collections.abc import Callable, Generator
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
import optax

from googlenet_flax.config import FIELDS, MAX_NUMBER, Config
from googlenet_flax.data import PictureOptions, Split, load_split
from googlenet_flax.data.sampler import TrainingOrder
from googlenet_flax.model.googlenet import HEADS
from googlenet_flax.preprocessing.augment import Augment
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runtime import distributed
from googlenet_flax.runtime.environment import on_the_cpu
from googlenet_flax.runtime.errors import MissingDataError, UserError
from googlenet_flax.runtime.progress import clock
from googlenet_flax.training import evaluation, sharding
from googlenet_flax.training import schedule as schedules
from googlenet_flax.training.description import DataDescription, ModelDescription
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.mixup import with_partners
from googlenet_flax.training.optimizer import Averaging, create_optimizer
from googlenet_flax.training.state import Batch, Metrics, TrainState
from googlenet_flax.training.step import Inputs, train_step

TrainStep = Callable[[TrainState, Batch, np.int32], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run needs and that no step changes, built from its config.

    The network and its steps are not compiled before their first call.
    """

    config: Config
    devices: list[jax.Device]  # Devices of this process.
    train_set: Split
    eval_set: Split

    @cached_property
    def description(self) -> ModelDescription:
        """The description of the network, which each checkpoint stores."""
        fields = _shared_fields(self.config, Preprocess)
        fields["storage_size"] = self.train_set.storage_size
        return ModelDescription(
            **_shared_fields(self.config, ModelDescription),
            class_names=self.train_set.class_names,
            preprocess=Preprocess(**fields),
            untrained_heads=() if self.config.aux_weight else HEADS,
        )

    @cached_property
    def data_description(self) -> DataDescription:
        """The description of the data, which each checkpoint stores.

        The first use reads what the fingerprints need.
        """
        return DataDescription(
            train_examples=len(self.train_set),
            train_fingerprint=self.train_set.fingerprint,
            eval_examples=len(self.eval_set),
            eval_fingerprint=self.eval_set.fingerprint,
        )

    @cached_property
    def epoch_steps(self) -> int:
        """The number of updates in an epoch."""
        return schedules.steps_per_epoch(len(self.train_set), self.config.batch_size)

    @cached_property
    def total_steps(self) -> int:
        """The number of updates of the whole run."""
        max_steps, num_epochs = self.config.max_steps, self.config.num_epochs
        return max_steps or schedules.epochs_to_steps(
            "num_epochs", num_epochs, self.epoch_steps
        )

    @property
    def stage_ends(self) -> list[int]:
        """The steps at which the image size changes."""
        return [n * self.epoch_steps for n in self.config.progressive_image_size_epochs]

    @property
    def stages(self) -> list[tuple[int, range]]:
        """Each image size in pixels, with the range of steps that train at this size.

        A step is numbered by the updates before it. Sizes that the run does not reach are
        left out.
        """
        sizes = (*self.config.progressive_image_sizes, self.config.image_size)
        edges = [min(n, self.total_steps) for n in (0, *self.stage_ends, self.total_steps)]
        steps = [range(*pair) for pair in itertools.pairwise(edges)]
        return [stage for stage in zip(sizes, steps, strict=True) if stage[1]]

    @cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        return schedules.create_schedule(
            self.config, epoch_steps=self.epoch_steps, total_steps=self.total_steps
        )

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return create_optimizer(
            self.schedule,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
            last_layers_only=self.config.trainable == "head",
        )

    @property
    def averaging(self) -> Averaging | None:
        """The average of the weights over steps, if the config asks for one."""
        config = self.config
        if config.averaging == "none":
            return None
        start_step = min(config.average_from_epoch * self.epoch_steps, MAX_NUMBER)
        return Averaging(config.averaging, config.ema_decay, start_step)

    @property
    def objective(self) -> Objective:
        """The training objective; the auxiliary weight is a schedule if it changes."""
        config, weight = self.config, self.config.aux_weight
        if config.final_aux_fraction != 1:
            last = weight * config.final_aux_fraction
            weight = optax.linear_schedule(weight, last, self.total_steps)
        return Objective(weight, config.label_smoothing, config.mixup_alpha)

    @cached_property
    def train_steps(self) -> list[TrainStep]:
        """The train step of each image size, from the first stage to the last."""
        config = self.config
        step = partial(
            train_step,
            model=self.description.create_model(
                self.devices,
                axis_name=sharding.AXIS_NAME,
                freeze_norm=config.trainable == "head",
            ),
            tx=self.tx,
            objective=self.objective,
            averaging=self.averaging,
            accumulation_steps=config.accumulation_steps,
            unroll_accumulation=self.devices[0].platform == "cpu",
            axis_name=sharding.AXIS_NAME,
        )
        augment = Augment(**_shared_fields(config, Augment))
        everywhere = distributed.all_devices(self.devices)
        steps = []
        for size in (*config.progressive_image_sizes, config.image_size):
            preprocess = dataclasses.replace(self.description.preprocess, image_size=size)
            sized = partial(step, inputs=Inputs(preprocess, augment, self.epoch_steps))
            steps.append(sharding.parallel_train_step(sized, everywhere))
        return steps

    @cached_property
    def eval_step(self) -> evaluation.EvalStep:
        """The step that evaluates a batch."""
        return evaluation.create_eval_step(
            self.description, aux_weight=self.config.aux_weight, devices=self.devices
        )

    @cached_property
    def _create_state(self) -> Callable[[jax.Array], TrainState]:
        """The jitted function from a random key to a state with random weights."""

        def create_state(key: jax.Array) -> TrainState:
            variables = self.description.initialize(key)
            return TrainState.of(variables, self.tx, averages=self.averaging is not None)

        # The random generators of some sixty kernels run only once. To compile them with
        # optimization would take most of the start-up time, and minutes for a GPU.
        options = {"xla_backend_optimization_level": 0}
        return jax.jit(create_state, compiler_options=options)

    @property
    def seed(self) -> np.int32:
        """The seed of the run, as its train steps take it."""
        return np.int32(self.config.seed)

    @property
    def _key(self) -> jax.Array:
        return jax.random.key(self.config.seed, impl="threefry2x32")

    @cached_property
    def state_like(self) -> TrainState:
        """The shapes and types of the state, as `jax.eval_shape` returns them."""
        with on_the_cpu():  # As in `fresh_state`, which reuses this trace.
            return jax.eval_shape(self._create_state, self._key)

    def fresh_state(self) -> TrainState:
        """Creates a state with random weights, replicated over this process's devices."""
        with on_the_cpu():
            state = self._create_state(self._key)
        return sharding.replicate(state, self.devices)

    def train_step_at(self, step: int) -> TrainStep:
        """Returns the function that makes the update after `step` updates."""
        return self.train_steps[sum(step >= end for end in self.stage_ends)]

    def batches(self, start_step: int) -> Generator[Batch, None, None]:
        """Yields the batch of each update after `start_step` updates, `[D, B/D, ...]`.

        Each of several processes gets its own rows of the global batch.
        """
        config = self.config
        rows = distributed.process_rows(config.batch_size)
        order = TrainingOrder(
            seed=config.seed,
            start_step=start_step,
            stop_step=self.total_steps,
            num_examples=len(self.train_set),
            batch_size=config.batch_size,
            # Mixup also needs the row before these.
            rows=range(rows.start - bool(config.mixup_alpha), rows.stop),
        )
        for batch in self.train_set.batches(order):
            yield sharding.split_over_devices(self._to_step_batch(batch), len(self.devices))

    def _to_step_batch(self, batch: Batch) -> Batch:
        """Turns a batch of the split into one that the step takes."""
        # Training also uses the examples that replace unreadable pictures.
        batch = {name: batch[name] for name in batch if name != "readable"}
        if not self.config.mixup_alpha:
            return batch
        # The first row is only the partner of the second one.
        return jax.tree.map(lambda values: values[1:], with_partners(batch))

    @cached_property
    def _batch_like(self) -> Batch:
        """The shapes and types of a step's batch; the first use reads one example."""
        examples = self.train_set.batches([np.zeros(1, np.int64)])
        shards = len(self.devices), self.config.batch_size // len(self.devices)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*shards, *x.shape[1:]), x.dtype),
            self._to_step_batch(next(iter(examples))),
        )

    def compile_train_step(self, step: int) -> jax.stages.Compiled:
        """Compiles the train step before its first call, which follows `step` updates."""
        state_like = sharding.replicated_like(self.state_like, self.devices)
        jitted: Any = self.train_step_at(step)
        return jitted.lower(state_like, self._batch_like, self.seed).compile()

    def evaluate(
        self, state: TrainState, watch: evaluation.Watch = iter
    ) -> dict[str, float]:
        """Computes the mean metrics over the whole `eval_split`.

        If the state holds averaged weights, their metrics are added under names with the
        prefix `averaged_`. `loss` includes the auxiliary losses with `config.aux_weight`,
        whatever `final_aux_fraction` is. `evaluate_split` describes `watch`.
        """

        def sum_batch(batch: dict[str, np.ndarray]) -> evaluation.Sums:
            with clock("evaluating a batch"):  # The first one compiles.
                sums = self.eval_step(state.variables, batch)
            if state.averages:
                averaged = self.eval_step(state.averages, batch)
                sums |= {f"averaged_{name}": value for name, value in averaged.items()}
            return sums

        return evaluation.evaluate_split(
            sum_batch,
            self.eval_set,
            # No more images at a time than a training step takes.
            batch_size=self.config.batch_size // self.config.accumulation_steps,
            num_devices=len(self.devices),
            watch=watch,
        )

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update after `step` updates."""
        # Without `jit`, each stair would be compiled again.
        return float(jax.jit(self.schedule)(step))

    def is_due(self, every_steps: int, step: int) -> bool:
        """Returns true at every multiple of `every_steps`, and at the end of the run.

        A run that was shortened can be past its last step.
        """
        return step >= self.total_steps or (every_steps > 0 and step % every_steps == 0)

    def is_eval_due(self, step: int) -> bool:
        """Returns true if `step` ends the run or an epoch that is evaluated."""
        return self.is_due(self.config.eval_every_epochs * self.epoch_steps, step)


def create_experiment(config: Config, devices: list[jax.Device]) -> Experiment:
    """Loads the data and builds the experiment.

    The first of several processes prepares missing data.

    Raises:
      UserError: The data cannot be read or do not fit the config.
    """

    def load(*, may_prepare: bool) -> list[Split]:
        _check_batch(config, devices)  # Loading can take long, so errors come first.
        names = config.train_split, config.eval_split
        return [load_config_split(config, name, may_prepare=may_prepare) for name in names]

    with distributed.together():
        splits = load(may_prepare=True) if distributed.is_first() else None
    with distributed.together():
        try:
            splits = splits or load(may_prepare=False)
        except MissingDataError as error:
            raise UserError(
                f"process 0 has the data set {config.dataset!r} and this process does not "
                "see it: --config.data_dir must be one folder that all processes see"
            ) from error
        return build_experiment(config, devices, *splits)


def build_experiment(
    config: Config, devices: list[jax.Device], train_set: Split, eval_set: Split
) -> Experiment:
    """Builds the network and its steps without compiling them.

    Raises:
      UserError: The devices cannot share a batch, `train_set` does not fill one, or the
        run or its warm-up has too many steps.
    """
    _check_batch(config, devices)
    experiment = Experiment(config, devices, train_set, eval_set)
    _ = experiment.total_steps, experiment.train_steps  # Finds errors at the start.
    return experiment


def _check_batch(config: Config, devices: list[jax.Device]) -> None:
    num_devices = len(distributed.all_devices(devices))
    sharding.check_batch_divides(config.batch_size, num_devices, config.accumulation_steps)


def load_config_split(
    config: Config,
    split: str,
    *,
    may_prepare: bool = True,
    network: ModelDescription | None = None,
) -> Split:
    """Loads a split of the data set of a config with `data.load_split`.

    If `network` is given, pictures are read with its classes, storage size and channels
    instead of those of the config.

    Raises:
      MissingDataError: The data are missing, and `may_prepare` is false.
      UserError: The data set or split does not exist or cannot be read.
    """
    fields = _shared_fields(config, PictureOptions)
    if network is not None:
        fields["storage_size"] = network.preprocess.storage_size
        fields["input_channels"] = network.preprocess.input_channels
        fields["class_names"] = network.class_names
    return load_split(
        config.dataset,
        split,
        data_dir=config.data_dir,
        pictures=PictureOptions(**fields),
        may_prepare=may_prepare,
    )


def _shared_fields(config: Config, kind: Any) -> dict[str, Any]:
    """Returns the fields of a config, by name, that a dataclass such as `Augment` has."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: getattr(config, name) for name in names if name in FIELDS}
