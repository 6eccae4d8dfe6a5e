import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_flax.data.sampler import ProcessShard, TrainingOrder, batch_indices

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60)).map(sorted)
SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 1000), sizes=SIZES)
def test_an_epoch_repeats_no_example(seed, epoch, sizes):
    batch_size, num_examples = sizes
    steps = num_examples // batch_size
    batches = [
        batch_indices(
            seed=seed, step=step, num_examples=num_examples, batch_size=batch_size
        )
        for step in range(epoch * steps, (epoch + 1) * steps)
    ]
    assert all(batch.shape == (batch_size,) for batch in batches)
    indices = np.concatenate(batches)
    assert indices.dtype == np.int64
    assert len(set(indices.tolist())) == steps * batch_size
    assert 0 <= indices.min() <= indices.max() < num_examples
    # Whatever the batch size, the epoch runs through the same permutation.
    whole = batch_indices(
        seed=seed, step=epoch, num_examples=num_examples, batch_size=num_examples
    )
    np.testing.assert_array_equal(indices, whole[: steps * batch_size])


@settings(deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 1000))
def test_epochs_and_seeds_differ(seed, epoch):
    def order(seed, epoch):
        # Of 60! orders, two are not the same by chance.
        return batch_indices(seed=seed, step=epoch, num_examples=60, batch_size=60).tolist()

    orders = [order(seed, epoch), order(seed, epoch + 1), order(seed + 1, epoch)]
    assert len(set(map(tuple, orders))) == 3


@settings(deadline=None)
@given(seed=SEEDS, start=st.integers(0, 40), steps=st.integers(0, 20), data=st.data())
def test_training_order_is_every_batch_from_start_to_stop(seed, start, steps, data):
    fields = {"seed": seed, "num_examples": 23, "batch_size": 5}
    order = TrainingOrder(start_step=start, stop_step=start + steps, **fields)
    expected = [
        batch_indices(step=step, **fields).tolist() for step in range(start, start + steps)
    ]
    assert len(order) == steps
    # By iteration, and by position in any order: grain asks so, from many threads.
    assert [batch.tolist() for batch in order] == expected
    for position in data.draw(st.permutations(range(steps))):
        assert order[position].tolist() == expected[position]
    # A resumed run sees the rest of the same order, and a finished one nothing.
    done = data.draw(st.integers(0, steps + 2))
    rest = TrainingOrder(start_step=start + done, stop_step=start + steps, **fields)
    assert [batch.tolist() for batch in rest] == expected[done:]
    for position in (steps, steps + 3, -1):
        with pytest.raises(IndexError):
            order[position]


def test_the_order_is_frozen():
    # Written down from numpy 2: a resumed run must see the same order under any numpy.
    # NEP 19 freezes the stream of RandomState.
    first = batch_indices(seed=0, step=0, num_examples=10, batch_size=10)
    assert first.tolist() == [6, 1, 0, 5, 3, 8, 7, 9, 2, 4]
    later = batch_indices(seed=7, step=5, num_examples=10, batch_size=4)
    assert later.tolist() == [1, 4, 7, 5]


@settings(deadline=None)
@given(
    count=st.integers(1, 8),
    rows_each=st.integers(1, 5),
    steps=st.integers(1, 5),
    position=st.integers(0, 4),
)
def test_shares_of_a_batch_are_all_of_it_once(count, rows_each, steps, position):
    size = count * rows_each
    order = TrainingOrder(1, 0, steps, num_examples=4 * size, batch_size=size)
    slices = [slice(n * rows_each, (n + 1) * rows_each) for n in range(count)]
    shares = [ProcessShard(order, rows) for rows in slices]
    leading = [ProcessShard(order, rows, with_previous=True) for rows in slices]
    position %= steps
    assert all(len(share) == steps for share in (*shares, *leading))
    whole = np.concatenate([share[position] for share in shares])
    np.testing.assert_array_equal(whole, order[position])
    for share, lead in zip(shares, leading, strict=True):
        np.testing.assert_array_equal(lead[position][1:], share[position])
    firsts = np.array([lead[position][0] for lead in leading])
    np.testing.assert_array_equal(firsts, np.roll(order[position], 1)[::rows_each])
