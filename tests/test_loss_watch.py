import jax
import numpy as np
import pytest

from googlenet_flax.runtime.errors import NotFiniteError
from googlenet_flax.training.loss_watch import LossWatch


def sharded(**metrics):
    """Metrics as a sharded step returns them: the same on two devices."""
    devices = jax.local_devices()[:2]
    return {
        name: jax.pmap(lambda x: x, devices=devices)(np.full(2, value, np.float32))
        for name, value in metrics.items()
    }


def test_the_last_metrics_are_returned_and_all_are_checked_once():
    losses = LossWatch()
    losses.add(1, sharded(loss=2.5, accuracy=0.5))
    losses.add(2, sharded(loss=1.5, accuracy=0.75))
    assert losses.check() == {"loss": 1.5, "accuracy": 0.75}
    losses.add(3, sharded(loss=1.0))
    assert losses.check() == {"loss": 1.0}


def test_the_first_step_that_is_not_finite_is_named():
    losses = LossWatch()
    losses.add(7, sharded(loss=2.5, main_loss=1.0))
    losses.add(8, sharded(loss=np.nan, main_loss=np.inf, aux_4a_loss=1.0))
    losses.add(9, sharded(loss=np.nan, main_loss=np.nan))
    words = "^loss is nan, main_loss is inf at step 8: lower --config.learning_rate"
    with pytest.raises(NotFiniteError, match=words):
        losses.check()
