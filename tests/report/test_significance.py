"""The paired bootstrap against scipy's tests, which know nothing of it."""

import numpy as np
import pytest
from scipy import stats

from report.significance import paired_bootstrap


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.06, 0.1])
def test_p_values_of_normal_data_are_those_of_the_t_test(shift):
    """400 normal differences: both are about the same mean and its standard error."""
    draw = np.random.default_rng(3)
    one = draw.normal(shift, 1, 400) + (common := draw.normal(0, 3, 400))
    other = draw.normal(0, 0.2, 400) + common
    expected = stats.ttest_rel(one, other).pvalue
    assert paired_bootstrap(one - other) == pytest.approx(expected, abs=0.02)


def test_p_values_of_right_and_wrong_are_those_of_a_permutation_test():
    """1,000 items, of which 130 differ: 80 for the one, 50 for the other; few values, so drawn by their counts."""
    one = np.repeat([1.0, 0.0, 1.0, 0.0], [80, 50, 500, 370])
    other = np.repeat([0.0, 1.0, 1.0, 0.0], [80, 50, 500, 370])

    def mean_difference(a, b, axis):
        return (a - b).mean(axis=axis)

    swapped = stats.permutation_test(
        (one, other), mean_difference, permutation_type="samples", n_resamples=2_000, rng=np.random.default_rng(0)
    )
    found = paired_bootstrap(one - other)
    assert found == pytest.approx(swapped.pvalue, abs=0.015)
    assert found < 0.05 < paired_bootstrap(np.repeat([1.0, -1.0, 0.0], [80, 65, 855]))


def test_the_interval_of_scipy_touches_zero_where_p_is_the_level():
    """Zero moved to the edge of scipy's 95 % interval is at p = 0.05."""
    values = np.random.default_rng(1).normal(0.2, 1, 300)
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=0.95, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    for edge in interval:
        assert paired_bootstrap(values - edge) == pytest.approx(0.05, abs=0.01)


def test_both_ways_of_drawing_agree():
    """The same differences, drawn by counts of values and, told apart by a hair, one by one."""
    few = np.repeat([1.0, -1.0, 0.0], [60, 42, 298])
    many = few + np.linspace(-1e-14, 1e-14, 400)
    assert 8 * len(np.unique(few)) <= 400 < 8 * len(np.unique(many))
    assert paired_bootstrap(few) == pytest.approx(paired_bootstrap(many), abs=0.012)


def test_nothing_and_everything():
    assert paired_bootstrap(np.zeros(50)) == 1
    assert paired_bootstrap(np.ones(50)) == pytest.approx(1 / 10_001)
    assert paired_bootstrap(np.array([0.5])) == pytest.approx(1 / 10_001), "one item is never drawn otherwise"


def test_the_same_seed_gives_the_same_value():
    values = np.random.default_rng(5).normal(0.1, 1, 100)
    assert paired_bootstrap(values) == paired_bootstrap(values)
    assert paired_bootstrap(values) != paired_bootstrap(values, seed=1)


@pytest.mark.parametrize("shift", [0.02, 0.05, 0.12])
def test_a_mean_of_two_means_has_the_standard_error_of_both(shift):
    """500 items of one kind and 100 of the other, of other spreads: as normal theory says."""
    draw = np.random.default_rng(5)
    many, few = draw.normal(shift, 1, 500), draw.normal(shift, 0.3, 100)
    error = np.sqrt(many.var(ddof=1) / 500 + few.var(ddof=1) / 100) / 2
    expected = 2 * stats.norm.sf(abs(many.mean() + few.mean()) / 2 / error)
    assert paired_bootstrap(many, few) == pytest.approx(expected, abs=0.02)
