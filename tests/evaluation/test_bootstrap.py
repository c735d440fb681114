"""The paired bootstrap against scipy's tests, closed formulas and plain loops, which know nothing of it."""

import numpy as np
import pytest
from scipy import stats

from evaluation.bootstrap import interval, paired_bootstrap


def alone(differences):
    """Items that are pictures of their own."""
    return differences, range(len(differences))


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.06, 0.1])
def test_p_values_of_normal_data(shift):
    """400 normal differences: both are about the same mean and its standard error."""
    draw = np.random.default_rng(3)
    one = draw.normal(shift, 1, 400) + (common := draw.normal(0, 3, 400))
    other = draw.normal(0, 0.2, 400) + common
    expected = stats.ttest_rel(one, other).pvalue
    assert paired_bootstrap(alone(one - other)) == pytest.approx(expected, abs=0.02)


def test_p_values_are_those_of_a_permutation_test():
    """1,000 items, of which 130 differ: 80 for the one, 50 for the other; few values, so drawn by their counts."""
    one = np.repeat([1.0, 0.0, 1.0, 0.0], [80, 50, 500, 370])
    other = np.repeat([0.0, 1.0, 1.0, 0.0], [80, 50, 500, 370])

    def mean_difference(a, b, axis):
        return (a - b).mean(axis=axis)

    swapped = stats.permutation_test(
        (one, other), mean_difference, permutation_type="samples", n_resamples=2_000, rng=np.random.default_rng(0)
    )
    found = paired_bootstrap(alone(one - other))
    assert found == pytest.approx(swapped.pvalue, abs=0.015)
    assert found < 0.05 < paired_bootstrap(alone(np.repeat([1.0, -1.0, 0.0], [80, 65, 855])))


def test_the_interval_touches_zero_at_the_level():
    """Zero moved to the edge of scipy's 95 % interval is at p = 0.05."""
    values = np.random.default_rng(1).normal(0.2, 1, 300)
    scipys = stats.bootstrap(
        (values,), np.mean, confidence_level=0.95, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    for edge in scipys:
        assert paired_bootstrap(alone(values - edge)) == pytest.approx(0.05, abs=0.01)


def test_both_ways_of_drawing_agree():
    """The same differences, drawn by counts of values and, told apart by a hair, one by one."""
    few = np.repeat([1.0, -1.0, 0.0], [60, 42, 298])
    many = few + np.linspace(-1e-14, 1e-14, 400)
    assert 8 * len(np.unique(few)) <= 400 < 8 * len(np.unique(many))
    assert paired_bootstrap(alone(few)) == pytest.approx(paired_bootstrap(alone(many)), abs=0.012)


def test_nothing_and_everything():
    assert paired_bootstrap(alone(np.zeros(50))) == 1
    assert paired_bootstrap(alone(np.ones(50))) == pytest.approx(1 / 10_001)
    assert paired_bootstrap(alone(np.array([0.5]))) == pytest.approx(1 / 10_001), "one item is never drawn otherwise"


def test_the_same_seed_gives_the_same_value():
    values = np.random.default_rng(5).normal(0.1, 1, 100)
    assert paired_bootstrap(alone(values)) == paired_bootstrap(alone(values))
    assert paired_bootstrap(alone(values)) != paired_bootstrap(alone(values), seed=1)


@pytest.mark.parametrize("shift", [0.02, 0.05, 0.12])
def test_standard_error_of_a_mean_of_two_means(shift):
    """500 items of one kind and 100 of the other, of other spreads: as normal theory says."""
    draw = np.random.default_rng(5)
    many, few = draw.normal(shift, 1, 500), draw.normal(shift, 0.3, 100)
    error = np.sqrt(many.var(ddof=1) / 500 + few.var(ddof=1) / 100) / 2
    expected = 2 * stats.norm.sf(abs(many.mean() + few.mean()) / 2 / error)
    assert paired_bootstrap(alone(many), (few, [("few", i) for i in range(100)])) == pytest.approx(expected, abs=0.02)


# -- items that share a picture --------------------------------------------------------------------------


def shared(seed, pictures=200, shift=0.0):
    """Differences of 1 to 7 items a picture, right or wrong, in no order; much of them is the picture's own."""
    draw = np.random.default_rng(seed)
    whose = draw.permutation(np.repeat(np.arange(pictures), draw.integers(1, 8, pictures)))
    own = draw.normal(shift, 0.8, pictures)[whose]
    return np.clip(np.round(own + draw.normal(0, 0.8, len(whose))), -1, 1), whose


def sums_of(differences, whose):
    """By picture: the sum of its differences and how many they are."""
    return np.array([(differences[whose == picture].sum(), (whose == picture).sum()) for picture in np.unique(whose)])


def closed_error(*kinds):
    """Standard error of the mean of the kinds' means: residuals add up within a picture, over kinds, too."""
    residuals = {}
    for differences, whose in kinds:
        for difference, picture in zip(differences - differences.mean(), whose, strict=True):
            residuals[picture] = residuals.get(picture, 0) + difference / len(differences) / len(kinds)
    return sum(residual**2 for residual in residuals.values()) ** 0.5


@pytest.mark.parametrize("shift", [0.03, 0.08, 0.12])
def test_pictures_by_the_closed_formula(shift):
    differences, whose = shared(1)
    differences = differences - differences.mean() + shift
    error = closed_error((differences, whose))
    assert error > 1.5 * differences.std() / len(differences) ** 0.5, "or pictures would not matter"
    expected = 2 * stats.norm.sf(shift / error)
    assert paired_bootstrap((differences, whose)) == pytest.approx(expected, abs=0.02)


def test_pictures_at_the_edge_of_scipys_interval():
    """scipy draws sums and sizes of pictures together; zero moved to the edge of its 95 % interval is at p = 0.05."""
    differences, whose = shared(2)
    scipys = stats.bootstrap(
        tuple(sums_of(differences, whose).T), lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True, vectorized=True, confidence_level=0.95, method="percentile", n_resamples=10_000,
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert interval(differences, whose) == pytest.approx(tuple(scipys), abs=0.003)
    assert interval(differences[whose < 4], whose[whose < 4]) is None, "four pictures say too little"
    for edge in scipys:
        assert paired_bootstrap((differences - edge, whose)) == pytest.approx(0.05, abs=0.012)


def test_pictures_by_plain_loops():
    differences, whose = shared(3, pictures=12, shift=0.2)
    draw = np.random.default_rng(0)
    items_of = [np.flatnonzero(whose == picture) for picture in range(12)]
    strays = 0
    for _ in range(4000):
        drawn = [item for picture in draw.integers(0, 12, 12) for item in items_of[picture]]
        strays += abs(differences[drawn].mean() - differences.mean()) >= abs(differences.mean())
    assert paired_bootstrap((differences, whose)) == pytest.approx(strays / 4000, abs=0.025)


def test_kinds_share_their_pictures():
    """Five texts and one image a picture, right or wrong together: their mean of means has the larger error."""
    draw = np.random.default_rng(4)
    level = draw.normal(0, 0.7, 300)
    texts, images = (np.repeat(level, 5) + draw.normal(0, 0.3, 1500), np.repeat(range(300), 5)), (level, range(300))
    error = closed_error(texts, images)
    apart = (closed_error(texts) ** 2 + closed_error(images) ** 2) ** 0.5 / 2
    assert error > 1.35 * apart
    shift = 2 * error - (texts[0].mean() + images[0].mean()) / 2
    found = paired_bootstrap((texts[0] + shift, texts[1]), (images[0] + shift, images[1]))
    assert found == pytest.approx(2 * stats.norm.sf(2), abs=0.012)


def test_both_ways_of_drawing_pictures_agree():
    """Ten kinds of pictures, drawn by their counts and, told apart by a hair, one by one."""
    draw = np.random.default_rng(6)
    whose = np.repeat(np.arange(400), 4)
    differences = np.repeat(draw.choice([1.0, 0.0, -1.0], 400, p=[0.2, 0.65, 0.15]), 4)
    found = paired_bootstrap((differences, whose))
    hair = differences + np.linspace(-1e-14, 1e-14, 1600)
    assert found == pytest.approx(paired_bootstrap((hair, whose)), abs=0.012)
    assert found == pytest.approx(paired_bootstrap(alone(differences[::4])), abs=0.012), "four copies are one item"
