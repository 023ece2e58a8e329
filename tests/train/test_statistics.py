"""The Wilson interval against published values and against the quadratic that defines it."""

import numpy as np
import pytest

from train.statistics import Z95, wilson_interval


def by_quadratic(successes, trials, z):
    """Rates p at which (successes / trials - p)^2 = z^2 p (1 - p) / trials."""
    rate, slack = successes / trials, z * z / trials
    return np.sort(np.roots([1 + slack, -(2 * rate + slack), rate * rate]).real)


@pytest.mark.parametrize("z", [1.0, Z95, 2.5758])
@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (5, 10), (10, 10), (95, 100), (1, 1), (512, 1024)])
def test_interval_solves_the_quadratic(successes, trials, z):
    low, high = wilson_interval(successes, trials, z)
    np.testing.assert_allclose((low, high), by_quadratic(successes, trials, z), atol=1e-7)
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_is_the_published_one(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (1, 0), (-1, 10), (11, 10), (1, -5), (float("nan"), 10)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, trials)
