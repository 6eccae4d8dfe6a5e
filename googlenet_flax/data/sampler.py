"""Order of the training examples, as a pure function of the seed and the step."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class TrainingOrder(Sequence):
    """The indices of each batch from `start_step` to `stop_step - 1`, computed on access.

    Every epoch has its own permutation; an incomplete last batch is dropped. No state is
    kept, so a resumed run continues as if it had never stopped.
    """

    seed: int
    start_step: int
    stop_step: int
    num_examples: int
    batch_size: int
    # Rows of each batch that this process reads; None reads all. In a range that starts at
    # -1, the row -1 is the last row of the batch.
    rows: range | None = None

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step)

    def __getitem__(self, position: int) -> np.ndarray:  # pyrefly: ignore
        """Returns the indices, int64, of these rows of one batch."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        epoch_steps = self.num_examples // self.batch_size
        epoch, batch = divmod(self.start_step + position, epoch_steps)
        order = _permutation(self.seed, epoch, self.num_examples)
        indices = order[batch * self.batch_size :][: self.batch_size]
        return indices if self.rows is None else indices.take(self.rows, mode="wrap")


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    # NOTE: RandomState, not Generator: NumPy guarantees that its stream never changes, so
    # a run also resumes exactly under a newer NumPy.
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
    return np.random.RandomState(bits).permutation(num_examples)
