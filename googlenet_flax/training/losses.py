"""The loss of the paper's section 5, and the metrics of each example."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from googlenet_flax.model.googlenet import GoogLeNetOutput
from googlenet_flax.training.mixup import mix
from googlenet_flax.training.state import Batch, Metrics

TOP_K = 5


@dataclasses.dataclass(frozen=True)
class Objective:
    """The training objective: the main loss plus the weighted auxiliary losses."""

    # Weight of each auxiliary loss, 0.3 in section 5; or a function of the step.
    aux_weight: float | optax.Schedule = 0.3
    # Part of the target that all classes share (arXiv 1512.00567, section 7).
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0  # Parameter of mixup; 0 is off.

    def aux_weight_at(self, step: jax.Array) -> ArrayLike:
        """Returns the weight of each auxiliary loss after `step` updates."""
        return self.aux_weight(step) if callable(self.aux_weight) else self.aux_weight

    def soft_targets(
        self, batch: Batch, num_classes: int, lambdas: jax.Array | None
    ) -> jax.Array | None:
        """Returns target probabilities `[B, num_classes]`, or None for one-hot targets.

        `lambdas` are the weights of mixup, `[B]`, or None without mixup.
        """
        if not self.label_smoothing and lambdas is None:
            return None
        targets = jax.nn.one_hot(batch["label"], num_classes)
        if lambdas is not None:
            partners = jax.nn.one_hot(batch["partner"]["label"], num_classes)
            targets = mix(targets, partners, lambdas)
        return optax.smooth_labels(targets, self.label_smoothing)


def example_metrics(
    output: GoogLeNetOutput,
    labels: jax.Array,
    *,
    aux_weight: ArrayLike,
    targets: jax.Array | None = None,
) -> Metrics:
    """Computes losses and accuracies per example.

    Args:
      output: Logits `[B, num_classes]`.
      labels: int `[B]`.
      aux_weight: Weight of each auxiliary loss.
      targets: Target probabilities `[B, num_classes]`; None means one-hot targets.

    Returns:
      float32 `[B]` by name. `loss` is `main_loss` plus `aux_weight` times the auxiliary
      losses `aux_4a_loss` and `aux_4d_loss` (section 5). `accuracy`, `aux_4a_accuracy` and
      `aux_4d_accuracy` are 1 where the label has the largest logit and 0 elsewhere; `top5`
      is 1 where the label is among the five largest logits of the main classifier. Ties
      count against the label. Without heads, their entries are absent.
    """
    metrics, aux_losses = {}, []
    for name, logits in output.by_classifier().items():
        if targets is None:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        else:
            losses = optax.softmax_cross_entropy(logits, targets)
        metrics[f"{name}_loss"] = losses
        rank = _rank_of_label(logits, labels)
        is_first = (rank < 1).astype(jnp.float32)
        if name == "main":
            metrics["accuracy"] = is_first
            metrics["top5"] = (rank < TOP_K).astype(jnp.float32)
        else:
            metrics[f"{name}_accuracy"] = is_first
            aux_losses.append(losses)
    metrics["loss"] = metrics["main_loss"] + aux_weight * sum(aux_losses)
    return metrics


def _rank_of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Counts the other classes that score at least as high as the label; int `[B]`."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.sum(~(logits < own), axis=-1) - 1  # Unlike `>=`, counts NaN too.
