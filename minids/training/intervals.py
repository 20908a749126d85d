"""95% confidence intervals for the scores of a report: how far off could they be because only some text was scored?

**Bits per byte are a ratio of two sums**, the bits of all rows over their bytes: a *ratio estimator*. The model's bits
over those of the 5-gram on the same rows are one, too. A row that is hard for the one is hard for the other; this
cancels in the ratio, so the gain is known better than either score. With R = Σx / Σy, each of n samples has the
residual e = x - R·y, and to first order

    R is off by  Σe / Σy,   with the variance  n / (n-1) · Σ(e - mean e)² / (Σy)²      (Cochran 1977, ch. 6)

The half-width of the interval is the root of this variance times the 97.5% quantile of Student's t distribution, with
n - 1 degrees of freedom. A bootstrap resamples rows a thousand times to estimate the same spread. The formula needs no
random numbers, and its quantile is right for few samples too, where the bootstrap's intervals are too narrow.

**Neighbouring rows are not independent**: they often come from the same file, and if one is hard, so is the next. Rows
taken as samples would give intervals that are much too narrow. So the samples are up to 16 blocks of neighbouring rows
(the method of *batch means*).

What the intervals cover: other held-out text of the same kind. What they do not: other seeds, with which training gives
another model, and other kinds of text. The book's tables show the spread over seeds separately.
"""

import math
from statistics import NormalDist

import numpy as np

BLOCKS = 16
Z = NormalDist().inv_cdf(0.975)  # 1.96
Interval = tuple[float, float]


def ratio_interval(*parts: tuple[np.ndarray, np.ndarray]) -> Interval | None:
    """Return the 95% interval of Σx / Σy. Each part is a pair of arrays x and y with one number per row, in order.

    Several parts, such as prose and code, were sampled separately: their variances add. None if one of them has a
    single row, whose variance is unknown.
    """
    if any(len(x) < 2 for x, _ in parts):
        return None
    x_sum, y_sum = (sum(float(pair[i].sum()) for pair in parts) for i in (0, 1))
    ratio, variance, degrees = x_sum / y_sum, 0.0, 0
    for x, y in parts:
        residual = x - ratio * y
        errors = _block_sums(residual - residual.mean())  # one domain may be harder than the ratio of all
        variance += len(errors) / (len(errors) - 1) * float((errors**2).sum())
        degrees += len(errors) - 1
    half_width = _student(degrees) * math.sqrt(variance) / y_sum
    return ratio - half_width, ratio + half_width


def wilson_interval(right: float, asked: float) -> Interval:
    """Return Wilson's 95% interval of a share, `right` of `asked` independent answers (Wilson 1927).

    It holds the shares p from which the observed one is at most 1.96 of p's own standard deviations away. So it stays
    between 0 and 1, and is no point when all answers are wrong.
    """
    share, z2 = right / asked, Z**2 / asked
    half_width = Z * math.sqrt((share * (1 - share) + z2 / 4) / asked)
    low, high = ((share + z2 / 2 + side * half_width) / (1 + z2) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)  # beyond by a rounding error


def share_interval(right: np.ndarray, asked: np.ndarray) -> Interval | None:
    """Return the 95% interval of Σright / Σasked, counts per row, if answers of a row and its neighbours are alike.

    The *design effect* is the variance of this ratio over that of as many independent answers. The interval is Wilson's
    for the number of answers divided by the design effect (Kish's effective sample size). None if nothing was asked.
    """
    asked_sum = asked.sum()
    if asked_sum == 0:
        return None
    share = right.sum() / asked_sum
    independent, effective = share * (1 - share) / asked_sum, float(asked_sum)
    found = ratio_interval((right, asked))
    if found and independent > 0:
        half_width, degrees = (found[1] - found[0]) / 2, len(_block_sums(asked)) - 1
        design_effect = (half_width / _student(degrees)) ** 2 / independent
        effective /= max(1.0, design_effect)
    return wilson_interval(share * effective, effective)


def _block_sums(values: np.ndarray) -> np.ndarray:
    """Return the sums over up to 16 blocks of neighbours that are as equally long as possible."""
    return np.array([part.sum() for part in np.array_split(values, min(BLOCKS, len(values)))], dtype=float)


def _student(degrees: int) -> float:
    """Return the 97.5% quantile of Student's t: the normal one's, and a correction in powers of 1/degrees of freedom.

    From 3 degrees of freedom on, three terms are right to 1% (Abramowitz & Stegun 26.7.5); 1 and 2 have closed forms.
    """
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, n = Z, degrees
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
