"""Which examples a batch holds, as a pure function of the seed and the step."""

import functools

import numpy as np


def batch_indices(
    *, seed: int, step: int, num_examples: int, batch_size: int
) -> np.ndarray:
    """Indices int64 `[batch_size]` of the examples in the batch of `step`.

    Every epoch is a permutation of its own; its tail that fills no batch is dropped. No
    state is kept, so a resumed run continues as if it had never stopped.
    """
    epoch, position = divmod(step, num_examples // batch_size)
    order = _permutation(seed, epoch, num_examples)
    return order[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    # NOTE: RandomState and not Generator: numpy promises never to change its stream, so a
    # run resumes exactly under a newer numpy too.
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
    return np.random.RandomState(bits).permutation(num_examples)
