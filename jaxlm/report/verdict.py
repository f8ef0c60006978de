"""The answer: what every arm reached, and by how much it differs from its control, seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.eval.comparison import Effect, describe, describe_mean
from jaxlm.report.material import Material
from jaxlm.run.metrics import without_nan
from jaxlm.sweep.arms import Comparison, SpeedUp, check_metrics, compare, speed_up

# Of any other metric nobody can say which is better.
GREATER_IS_BETTER = ("accuracy", "mean_token_accuracy", "rewards/accuracies", "rewards/margins", "tokens_per_second", "mfu")
LESS_IS_BETTER = ("loss", "bits_per_byte", "perplexity", "router_dropped", "router_dead", "step_seconds", "data_wait_seconds")


@dataclass(frozen=True)
class Arm:
    """One row of a verdict."""

    name: str
    control: bool
    done: int
    """Runs that finished: they alone count."""
    asked: int
    values: Mapping[int, float]
    """seed -> the metric at the last validation of a finished run; nan where that is not finite."""
    value: Effect | None
    effect: Effect | None
    """Difference from the control over the seeds they share; None for the control itself, and where they share none."""
    speed_up: SpeedUp | None
    """Of the loss."""
    p: float
    """Of no difference, as it is among all comparisons of this metric (Holm 1979); nan where there is none."""
    says: str
    """What the interval says, or why nothing can be said."""
    better: bool | None
    """Whether a difference that holds among all comparisons is for the better; None where none does, or nobody can say."""


@dataclass(frozen=True)
class Verdict:
    """One metric of one group."""

    metric: str
    arms: tuple[Arm, ...]
    comparisons: int
    low: float
    high: float
    """What the drawing of all intervals spans, 0 included."""

    @property
    def chance(self) -> float:
        """Chance that one interval or more of independent ones leaves out zero though there is no difference anywhere."""
        return 1 - 0.95**self.comparisons

    def place(self, value: float) -> float:
        """Return where a difference stands in the drawing, 0 to 100."""
        value = min(max(value, self.low), self.high)
        return round(100 * (value - self.low) / (self.high - self.low), 2) if self.high > self.low else 50.0


def verdicts(material: Material, number: int, metrics: Sequence[str]) -> list[Verdict]:
    """Return the verdict of a group on each metric that any of its finished runs has."""
    finished = material.finished(number)
    control = material.groups[number].control
    made = []
    for metric in metrics:
        compared = compare(finished, control, metric)
        if any(each.values for each in compared.values()):
            made.append(_verdict(material, number, metric, compared))
    return made


def check(material: Material, metrics: Sequence[str]) -> None:
    """Raise ConfigError for a metric that no validation of any run has."""
    check_metrics(metrics, (run.rows for run in material.runs))


def _verdict(material: Material, number: int, metric: str, compared: Mapping[str, Comparison]) -> Verdict:
    group, finished = material.groups[number], material.finished(number)
    arms = []
    for name, made in compared.items():
        runs, mine = material.arms[number, name], name == group.control
        says, better = _says(made, metric, bool(finished[name])) if not mine else ("", None)
        asked = sum(run.standing.kind != "imported" for run in runs) + sum(1 for arm, *_ in group.missing if arm == name)
        speed = speed_up(finished[name], finished[group.control]) if metric == "loss" and not mine else None
        done = sum(run.finished for run in runs)
        arms.append(Arm(name, mine, done, asked, made.values, made.mean, made.difference, speed, made.p, says, better))
    ends = [
        end for arm in arms if arm.effect for end in (arm.effect.low, arm.effect.high, arm.effect.mean) if math.isfinite(end)
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    space = 0.06 * (high - low)
    return Verdict(metric, tuple(arms), sum(1 for arm in arms if arm.effect), low - space, high + space)


def _says(made: Comparison, metric: str, finished: bool) -> tuple[str, bool | None]:
    effect = made.difference
    if made.refused:
        return f"not comparable: {made.refused}", None
    if effect is None:
        why = "no seed of the control's" if made.values else f"no {metric} was measured" if finished else "no finished run"
        return why, None
    if not math.isfinite(effect.mean):
        return "a run is not finite", None
    if effect.seeds < 2 or not (math.isfinite(effect.low) and math.isfinite(effect.high)):
        return "one seed: no interval", None
    if effect.low <= 0 <= effect.high:
        return "no difference shown", None
    says = "lower" if effect.high < 0 else "higher"
    if made.p >= 0.05:
        return f"{says}, but not among all comparisons", None
    known = metric in GREATER_IS_BETTER or metric in LESS_IS_BETTER
    return says, (says == "higher") == (metric in GREATER_IS_BETTER) if known else None


def table_of(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the rows of a verdict as texts and numbers for a page."""
    rows = []
    for arm in verdict.arms:
        effect = arm.effect
        drawn = effect is not None and math.isfinite(effect.mean)
        whole = drawn and math.isfinite(effect.low) and math.isfinite(effect.high)
        rows.append(
            {
                "arm": arm.name, "control": arm.control, "seeds": f"{arm.done} of {arm.asked}", "short": arm.done < arm.asked,
                "done": arm.done, "value": "no validation" if arm.done and not arm.value else _mean(arm.value),
                "mean": _number(arm.value),
                "effect": describe(effect) if effect else "", "difference": _number(effect),
                "says": arm.says, "better": arm.better,
                "method": effect.method if effect else "", "detectable": detectable(effect),
                "least": without_nan(effect.detectable) if effect else None, "p_value": without_nan(arm.p),
                "p": f"{arm.p:.2g}" if math.isfinite(arm.p) else "–",
                "speed_up": speed(arm.speed_up), "speed": _number(arm.speed_up.mean) if arm.speed_up else None,
                "speed_why": arm.speed_up.why if arm.speed_up else "",
                "interval": describe_mean(effect, sign="+") if effect else "",
                "at": verdict.place(effect.mean) if drawn else None,
                "from": verdict.place(effect.low) if whole else None, "to": verdict.place(effect.high) if whole else None,
            }
        )  # fmt: skip
    return rows


def _mean(effect: Effect | None) -> str:
    return describe_mean(effect) if effect else "–"


def _number(effect: Effect | None) -> float | None:
    return effect.mean if effect and math.isfinite(effect.mean) else None


def speed(found: SpeedUp | None) -> str:
    """Return a speed-up with its interval; a dash where there is none."""
    if found is None or found.why:
        return "–"
    if found.mean is None:
        return f"reached by {len(found.values)} of {found.pairs}"
    return describe_mean(found.mean, 2) + (" (one seed)" if found.pairs == 1 else "")


def detectable(effect: Effect | None) -> str:
    """Return the smallest difference that as many pairs would have shown."""
    return f"{effect.detectable:.2g}" if effect and math.isfinite(effect.detectable) else "–"
