"""The statistics of a measurement equal published tables and NumPy's; its loop is tested with a simulated clock."""

import numpy as np
import pytest

from analysis import timing


# Conover 1999, table A3: ranks of a 95 % interval for the median, at least.
@pytest.mark.parametrize(
    "n, low, high", [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)]
)
def test_ranks_of_the_medians_interval(n, low, high):
    values = np.random.RandomState(n).permutation(n) + 1
    assert timing.median_interval(list(values)) == (low, high)


def test_the_interval_holds_the_median_as_often_as_it_says():
    samples = np.random.RandomState(0).exponential(size=(2000, 10))
    intervals = [timing.median_interval(list(sample)) for sample in samples]
    held = np.mean([low <= np.log(2) <= high for low, high in intervals])
    assert held == pytest.approx(1 - 2 * 11 / 1024, abs=0.01)  # 2nd and 9th of ten: 97.85 %


def test_a_row_of_known_times():
    seconds = np.arange(1, 101) / 1000
    row = timing.describe(seconds, batch_size=8)
    assert row["images_per_second"] == pytest.approx(800 / 5.05)
    assert (row["step_ms_median"], row["step_ms_max"]) == pytest.approx((50.5, 100))
    assert (row["step_ms_p90"], row["step_ms_p99"]) == pytest.approx((90.1, 99.01))
    assert row["step_ms_spread"] == pytest.approx(49.5)
    # Blocks of ten: the second fastest takes 15.5 ms a step on average, the second slowest 85.5.
    assert row["images_per_second_low"] == pytest.approx(8 / 0.0855)
    assert row["images_per_second_high"] == pytest.approx(8 / 0.0155)


def test_an_outlier_is_within_the_interval():
    seconds = [0.01] * 99 + [1.0]
    row = timing.describe(seconds, batch_size=1)
    assert row["images_per_second"] == row["images_per_second_low"] == pytest.approx(100 / 1.99)
    assert row["step_ms_max"] == 1000


def test_errors_of_a_ratio_add_as_squares():
    new = (2.0, 2.0 * np.exp(-0.03), 2.0 * np.exp(0.03))
    old = (1.0, np.exp(-0.04), np.exp(0.04))
    assert timing.ratio_interval(new, old) == pytest.approx((2, 2 * np.exp(-0.05), 2 * np.exp(0.05)))


class Device:
    """Runs iterations of given lengths one after the other, on a simulated clock."""

    def __init__(self, monkeypatch, durations):
        self.now, self.busy_until, self.unfinished, self.most = 0.0, 0.0, 0, 0
        self.durations = iter(durations)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def step(self):
        self.busy_until = max(self.busy_until, self.now) + next(self.durations)
        self.unfinished += 1
        self.most = max(self.most, self.unfinished)
        return Running(self, self.busy_until)


class Running:
    """The result of an iteration, with the block_until_ready of a jax.Array."""

    def __init__(self, device, end):
        self.device, self.end = device, end

    def block_until_ready(self):
        self.device.now = max(self.device.now, self.end)
        self.device.unfinished -= 1
        return self


def test_every_iteration_but_the_warm_up_is_timed_with_one_in_flight(monkeypatch):
    # Two warm-up iterations, one before the clock starts, the measured ones, and one still running at the end.
    measured = [1, 2, 1, 1, 5, 1, 3]
    device = Device(monkeypatch, [100, 50, 7, *measured, 9])
    seconds = timing.time_iterations(device.step, limit_seconds=100 + 50 + 7 + sum(measured))
    assert list(seconds) == measured
    assert (device.most, device.unfinished) == (2, 0)


def test_a_steady_device_is_measured_no_longer_than_it_takes(monkeypatch):
    device = Device(monkeypatch, [1.0] * 10_000)
    assert len(timing.time_iterations(device.step, limit_seconds=1000)) == timing.MIN_ITERATIONS_TO_STOP
    noisy = Device(monkeypatch, np.random.RandomState(0).uniform(0.1, 10, 10_000))
    assert len(timing.time_iterations(noisy.step, limit_seconds=1000)) > 5 * timing.MIN_ITERATIONS_TO_STOP
