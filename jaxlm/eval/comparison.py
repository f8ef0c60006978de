"""Whether one arm of an experiment is better than another: differences over seeds, with what could have been seen at all.

A seed decides the first parameters and the order of the data, so that two arms with the same seed have much of their noise in
common: intervals are of the differences, seed by seed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

ENOUGH = 8
"""Seeds from which on the bootstrap is used: with fewer, its intervals miss the truth more often than Student's."""
DRAWS = 10_000
ROUNDING = 1e-12
"""A spread this small beside the values is of their last digits: it says nothing of what other seeds would give."""


class Effect(NamedTuple):
    """A mean over seeds, of values or of differences, and its 95 % interval; nan for what a single seed cannot say."""

    mean: float
    low: float
    high: float
    detectable: float
    """The smallest true difference that so many seeds would show (interval without 0) with a probability of 80 %.

    It rests on the spread of these differences: of three seeds, that is a guess of its size."""
    seeds: int
    method: Literal["bootstrap", "t", "single", "none"]
    """How the interval was made: the studentized bootstrap, Student's t, or not at all: of one value, or for want of spread."""
    p: float = math.nan
    """Of no difference; below 0.05 where the interval leaves 0 out."""


def paired(arm: Mapping[int, float], control: Mapping[int, float], *, draws: int = DRAWS) -> Effect | None:
    """Return how much greater the arm's values are than the control's of the same seed; None where no seed is in both.

    One value that is not finite makes all of it nan: to leave the seed of a run that diverged out would be to choose. Where
    the differences are the same to the last digits there is no interval; p is 1 where all of them are 0.
    """
    common = sorted(arm.keys() & control.keys())
    if not common:
        return None
    differences = np.array([arm[seed] - control[seed] for seed in common])
    effect = _effect(differences, max(max(abs(arm[seed]), abs(control[seed])) for seed in common), draws)
    if effect.method == "none" and not differences.any():
        return effect._replace(p=1.0)
    if effect.method in ("single", "none"):
        return effect
    return effect._replace(detectable=detectable(float(np.std(differences, ddof=1)), effect.seeds, method=effect.method))


def summary(values: Iterable[float], *, draws: int = DRAWS) -> Effect:
    """Return the mean of one arm's values and its interval over seeds; raises ValueError where there are none.

    From 8 seeds on the interval is of the studentized bootstrap (Efron 1982; Hesterberg 2015, arXiv:1411.5279, section 5.5),
    which follows a skewed distribution; for fewer, or where most values are the same, it is Student's t (1908). Where all are
    the same there is none.
    """
    found = np.fromiter(values, np.float64)
    if not len(found):
        raise ValueError("a summary needs a value")
    return _effect(found, float(np.abs(found).max()), draws)


def _effect(found: np.ndarray, scale: float, draws: int) -> Effect:
    """Return the mean of values [seeds] and its interval; `scale` is the greatest of the numbers that they were made of."""
    n, mean = len(found), float(found.mean())
    if not np.isfinite(found).all():
        return Effect(math.nan, math.nan, math.nan, math.nan, n, "single")
    if n == 1:
        return Effect(mean, math.nan, math.nan, math.nan, n, "single")
    spread = float(found.std(ddof=1))
    if spread <= ROUNDING * scale:
        return Effect(mean, math.nan, math.nan, math.nan, n, "none")
    error = spread / math.sqrt(n)
    ratios = _ratios(found, draws) if n >= ENOUGH else np.empty(0)
    if len(ratios):
        below, above = np.percentile(ratios, [2.5, 97.5])
        p = 2 * _share(min(np.sum(ratios >= mean / error), np.sum(ratios <= mean / error)), len(ratios))
        return Effect(mean, mean - float(above) * error, mean - float(below) * error, math.nan, n, "bootstrap", min(1.0, p))
    from scipy import special  # of scipy.stats only this is needed, and it is many times as fast to import

    half = float(special.stdtrit(n - 1, 0.975)) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    return Effect(mean, mean - half, mean + half, math.nan, n, "t", p)


def _share(count: float, draws: int) -> float:
    """Return the share of resamples as extreme, the sample itself being one of them (Davison and Hinkley 1997, section 4.2)."""
    return (float(count) + 1) / (draws + 1)


def _ratios(values: np.ndarray, draws: int) -> np.ndarray:
    """Return Student's ratio of resamples [draws]; nothing where too many resamples have no spread to divide by."""
    picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    means, spreads = values[picks].mean(axis=1), values[picks].std(axis=1, ddof=1)
    varied = spreads > 1e-9 * values.std()
    if np.mean(varied) < 0.999:
        return np.empty(0)
    return (means[varied] - values.mean()) / (spreads[varied] / math.sqrt(len(values)))


def detectable(spread: float, seeds: int, power: float = 0.8, method: str = "t") -> float:
    """Return the smallest true difference that a two-sided test at 5 % of `seeds` differences finds with this power.

    `spread` is the differences' standard deviation; Student's ratio follows the noncentral t distribution (Cohen 1988, chapter
    2; the chance of a finding with the wrong sign is left out). nan for a single seed.
    """
    if seeds < 2 or not math.isfinite(spread):
        return math.nan
    from scipy import special

    shift = special.nctdtrinc(seeds - 1, 1 - power, special.stdtrit(seeds - 1, 0.975))
    # The bootstrap finds a little less of normal differences; the factor fits 6,000 simulated samples each of 8 to 30 seeds.
    wider = 1 + 7 / seeds**2 if method == "bootstrap" else 1.0
    return wider * float(shift) * spread / math.sqrt(seeds)


def adjusted(effects: Sequence[Effect | None]) -> list[float]:
    """Return the p of each effect as it is when all are looked at together (Holm 1979): one below 0.05 holds among them all.

    Of k arms that are as good as the control, one in 20 / k would otherwise be called different. nan stays nan and is not
    counted.
    """
    known = sorted((effect.p, place) for place, effect in enumerate(effects) if effect is not None and math.isfinite(effect.p))
    result, least = [math.nan] * len(effects), 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        result[place] = least
    return result


def describe(effect: Effect, digits: int = 4) -> str:
    """Return mean, interval, smallest detectable difference and seeds in one text, with so many digits after the point."""
    seeds = f"{effect.seeds} seed{'s' * (effect.seeds != 1)}"
    if not math.isfinite(effect.mean):
        return f"not finite, {seeds}"
    if effect.method == "single":
        return f"{effect.mean:.{digits}f}, {seeds}: no interval"
    if effect.method == "none":
        alike = "no difference in any" if effect.p == 1 else "no spread to judge by"
        return f"{effect.mean:.{digits}f}, {seeds}: {alike}"
    found = f", detectable {effect.detectable:.{digits}f}" if math.isfinite(effect.detectable) else ""
    return f"{effect.mean:.{digits}f} ({effect.low:.{digits}f} to {effect.high:.{digits}f}){found}, {seeds}"


def describe_mean(effect: Effect, digits: int = 4, sign: str = "") -> str:
    """Return mean and interval alone; `sign` is "+" for differences, whose sign is then always told."""
    if not math.isfinite(effect.mean):
        return "not finite"
    form = f"{sign}.{digits}f"
    known = math.isfinite(effect.low) and math.isfinite(effect.high)
    return f"{effect.mean:{form}}" + (f" ({effect.low:{form}} to {effect.high:{form}})" if known else "")


def bootstrap_items(values: np.ndarray, draws: int = DRAWS) -> Effect:
    """Return the mean of `values` [items], or of each seed's [seeds, items], and its 95 % interval over items (Efron 1979).

    Items are drawn anew, the same for all seeds, so that what is common to an item counts once: the interval is of these
    seeds, over other items. The percentiles are widened for few items (Hesterberg 2015, arXiv:1411.5279, section 5.2).
    Raises ValueError where there are no items.
    """
    table = np.atleast_2d(np.asarray(values, np.float64))
    items = table.mean(axis=0)
    n = len(items)
    if not n:
        raise ValueError("a bootstrap needs items")
    mean = float(items.mean()) if np.isfinite(items).all() else math.nan
    if n == 1 or math.isnan(mean):
        return Effect(mean, math.nan, math.nan, math.nan, len(table), "single")
    from scipy import special

    generator, means = np.random.default_rng(0), []
    for start in range(0, draws, size := max(1, 4_000_000 // n)):  # so that no table of picks takes more than 32 MB
        means.append(items[generator.integers(0, n, (min(size, draws - start), n))].mean(axis=1))
    tail = special.ndtr(-math.sqrt(n / (n - 1)) * special.stdtrit(n - 1, 0.975))
    drawn = np.concatenate(means)
    low, high = np.percentile(drawn, [100 * tail, 100 * (1 - tail)])
    # The level at which the interval, widened alike, would end at 0.
    beyond = special.ndtri(min(_share(min(np.sum(drawn >= 0), np.sum(drawn <= 0)), draws), 0.5))
    p = 2 * float(special.stdtr(n - 1, math.sqrt((n - 1) / n) * beyond))
    return Effect(mean, float(low), float(high), math.nan, len(table), "bootstrap", min(1.0, p))
