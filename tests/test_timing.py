import pytest

from googlenet_flax.performance.timing import MIN_CALLS, call_seconds, median_seconds


class Clock:
    """Every call takes two seconds, the first ten."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = 0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def call(self):
        self.now += 2.0 if self.calls else 10.0
        self.calls += 1


def test_the_first_call_is_left_out(monkeypatch):
    clock = Clock(monkeypatch)
    assert call_seconds(clock.call, 9.0) == [2.0] * 5
    assert clock.calls == 1 + 1 + 5  # The one to compile, the one ahead, the measured.


def test_there_are_always_some_calls(monkeypatch):
    assert len(call_seconds(Clock(monkeypatch).call, 0.0)) == MIN_CALLS


def test_one_slow_call_does_not_count():
    assert median_seconds([1.0] * 99 + [50.0]) == 1.0
    assert median_seconds([1.0, 1.0, 50.0]) == 1.0


def test_bursts_are_averaged():
    # A read-ahead that delivers four at once every four seconds.
    assert median_seconds([4.0, 0.0, 0.0, 0.0] * 10) == pytest.approx(1.0)
