import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_flax.data.sampler import TrainingOrder

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60)).map(sorted)
SEEDS = st.integers(0, 2**32 - 1)


def whole_epoch(seed, epoch, num_examples):
    (order,) = TrainingOrder(seed, epoch, epoch + 1, num_examples, num_examples)
    return order


@settings(deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 1000), sizes=SIZES)
def test_an_epoch_repeats_no_example(seed, epoch, sizes):
    batch_size, num_examples = sizes
    steps = num_examples // batch_size
    start = epoch * steps
    batches = list(TrainingOrder(seed, start, start + steps, num_examples, batch_size))
    assert all(batch.shape == (batch_size,) for batch in batches)
    indices = np.concatenate(batches)
    assert indices.dtype == np.int64
    assert len(set(indices.tolist())) == steps * batch_size
    assert 0 <= indices.min() <= indices.max() < num_examples
    # An epoch has the same permutation for every batch size.
    whole = whole_epoch(seed, epoch, num_examples)
    np.testing.assert_array_equal(indices, whole[: steps * batch_size])


@settings(deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 1000))
def test_epochs_and_seeds_differ(seed, epoch):
    # Among 60! orders, two are not equal by chance.
    pairs = [(seed, epoch), (seed, epoch + 1), (seed + 1, epoch)]
    assert len({tuple(whole_epoch(*pair, 60)) for pair in pairs}) == 3


@settings(deadline=None)
@given(seed=SEEDS, start=st.integers(0, 40), steps=st.integers(0, 20), data=st.data())
def test_any_position_may_be_asked_for_and_a_resumed_run_sees_the_rest(
    seed, start, steps, data
):
    order = TrainingOrder(seed, start, start + steps, num_examples=23, batch_size=5)
    expected = [batch.tolist() for batch in order]
    assert len(order) == len(expected) == steps
    for position in data.draw(st.permutations(range(steps))):
        assert order[position].tolist() == expected[position]
    done = data.draw(st.integers(0, steps + 2))
    rest = TrainingOrder(seed, start + done, start + steps, 23, 5)
    assert [batch.tolist() for batch in rest] == expected[done:]
    for position in (steps, -1):
        with pytest.raises(IndexError):
            order[position]


def test_the_order_is_frozen():
    # The values are those of numpy 2. A resumed run must see the same order with any numpy.
    # NEP 19 freezes the stream of RandomState.
    assert whole_epoch(0, 0, 10).tolist() == [6, 1, 0, 5, 3, 8, 7, 9, 2, 4]
    assert TrainingOrder(7, 5, 6, 10, 4)[0].tolist() == [1, 4, 7, 5]


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
    starts = range(0, size, rows_each)
    shares, leading = (
        [dataclasses.replace(order, rows=range(n - k, n + rows_each)) for n in starts]
        for k in (0, 1)
    )
    position %= steps
    assert all(len(share) == steps for share in (*shares, *leading))
    whole = np.concatenate([share[position] for share in shares])
    np.testing.assert_array_equal(whole, order[position])
    for share, lead in zip(shares, leading, strict=True):
        np.testing.assert_array_equal(lead[position][1:], share[position])
    firsts = np.array([lead[position][0] for lead in leading])
    np.testing.assert_array_equal(firsts, np.roll(order[position], 1)[::rows_each])
