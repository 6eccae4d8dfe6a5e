import pytest

from googlenet_flax.performance.timing import MIN_CALLS, call_seconds, median_seconds


@pytest.mark.parametrize(("seconds", "number"), [(9.0, 5), (0.0, MIN_CALLS)])
def test_the_first_call_is_left_out(monkeypatch, seconds, number):
    """Uses a clock on which the first call takes ten seconds and others two."""
    times = []
    monkeypatch.setattr("time.perf_counter", lambda: sum(times))
    call = lambda: times.append(2.0 if times else 10.0)  # noqa: E731
    assert call_seconds(call, seconds) == [2.0] * number
    assert len(times) == 1 + 1 + number  # One compiles, one is ahead.


def test_one_slow_call_does_not_count():
    assert median_seconds([1.0] * 99 + [50.0]) == 1.0
    assert median_seconds([1.0, 1.0, 50.0]) == 1.0


def test_bursts_are_averaged():
    # Reading ahead delivers four batches at once every four seconds.
    assert median_seconds([4.0, 0.0, 0.0, 0.0] * 10) == pytest.approx(1.0)
