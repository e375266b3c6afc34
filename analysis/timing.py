"""Times every iteration of a step that runs repeatedly, until its rate is known with enough precision."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PRECISION = 0.01  # a measurement ends once half the width of the rate's interval is this share of the rate
BLOCKS = 10  # of neighbouring iterations: single times are correlated, the means of whole blocks hardly
WARM_UP_SHARE = 0.1  # of the time limit, for clock rates and caches to settle
MIN_ITERATIONS = 6  # fewer values than this have no 95 % interval for their median
MIN_ITERATIONS_TO_STOP = 30  # before precision may end a measurement: fewer may agree by chance


def time_iterations(step: Callable[[], Any], limit_seconds: float) -> np.ndarray:
    """Returns the seconds of each iteration, from the end of the one before to its own; the warm-up is left out.

    As in training, the next iteration is always started before the current one is waited for. So a device that is
    faster than its host does not idle while Python wakes up, and yet every iteration has a time of its own.

    Args:
      step: starts an iteration that depends on the one before, and returns an array to wait for.
      limit_seconds: ends the measurement if the rate is not known within PRECISION before; at least six iterations are
        timed.
    """
    start, warm_ups = time.perf_counter(), 0
    while warm_ups < 2 or time.perf_counter() - start < WARM_UP_SHARE * limit_seconds:
        jax.block_until_ready(step())
        warm_ups += 1
    running = step()
    in_flight = step()
    jax.block_until_ready(running)
    seconds: list[float] = []
    last, next_look = time.perf_counter(), float(MIN_ITERATIONS_TO_STOP)
    while len(seconds) < MIN_ITERATIONS or last - start < limit_seconds:
        running, in_flight = in_flight, step()
        jax.block_until_ready(running)
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        if len(seconds) >= next_look:
            next_look = 1.2 * next_look
            low, high = rate_interval(seconds)
            if (high - low) / 2 <= PRECISION * len(seconds) / sum(seconds):
                break
    jax.block_until_ready(in_flight)
    return np.array(seconds)


def describe(seconds: np.ndarray, batch_size: int) -> dict[str, float | int]:
    """Returns the columns of a row about its iterations: their rate, with an interval, and the spread of their times.

    Args:
      seconds: of each iteration, (n,), n >= 6.
      batch_size: images per iteration.
    """
    milliseconds = 1000 * np.asarray(seconds)
    quartile1, median, quartile3, p90, p99 = np.percentile(milliseconds, (25, 50, 75, 90, 99))
    low, high = rate_interval(seconds)
    return {
        "images_per_second": float(batch_size * len(seconds) / np.sum(seconds)),
        "images_per_second_low": batch_size * low,
        "images_per_second_high": batch_size * high,
        "images_per_second_uncertainty": (high - low) / 2 * float(np.mean(seconds)),
        "iterations": len(seconds),
        "step_ms_median": float(median),
        "step_ms_p90": float(p90),
        "step_ms_p99": float(p99),
        "step_ms_max": float(milliseconds.max()),
        "step_ms_spread": float(quartile3 - quartile1),
    }


def rate_interval(seconds: np.ndarray | list[float]) -> tuple[float, float]:
    """Returns a confidence interval of at least 95 % for the iterations per second, from the rates of blocks.

    It is widened to include the rate over all iterations, which one long iteration may move outside of it.
    """
    blocks = np.array_split(np.asarray(seconds), min(BLOCKS, len(seconds)))
    low, high = median_interval([len(block) / block.sum() for block in blocks])
    rate = len(seconds) / np.sum(seconds)
    return float(min(low, rate)), float(max(high, rate))


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Returns the narrowest pair of order statistics between which the median lies with that confidence.

    It holds for every distribution (Conover 1999, Practical Nonparametric Statistics, section 3.2). Of fewer than six
    values it is the smallest and the largest, although their confidence is below 95 %.
    """
    ordered, n = sorted(values), len(values)
    left_out, tail = 0, 1 / 2**n
    while left_out < (n - 1) // 2 and 2 * (tail + math.comb(n, left_out + 1) / 2**n) <= 1 - confidence:
        left_out += 1
        tail += math.comb(n, left_out) / 2**n
    return ordered[left_out], ordered[n - 1 - left_out]


def ratio_interval(new: tuple[float, float, float], old: tuple[float, float, float]) -> tuple[float, float, float]:
    """Returns new / old with a confidence interval of about 95 %: the squares of the relative errors add up.

    Args:
      new: a value, and the ends of its interval.
      old: the value that it is compared with, and the ends of its interval.
    """
    ratio = new[0] / old[0]
    down = math.hypot(math.log(new[0] / new[1]), math.log(old[2] / old[0]))
    up = math.hypot(math.log(new[2] / new[0]), math.log(old[0] / old[1]))
    return ratio, ratio * math.exp(-down), ratio * math.exp(up)
