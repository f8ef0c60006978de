"""The answer: what every arm reached, and by how much it differs from its control, seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.eval.comparison import Effect, adjusted, describe, paired, summary
from jaxlm.report.gather import Group, Material, Run
from jaxlm.sweep.table import steps_to

GREATER_IS_BETTER = ("accuracy", "mean_token_accuracy", "rewards/accuracies", "rewards/margins", "tokens_per_second", "mfu")


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
    speed_up: Effect | None
    """Of the loss: in how many times fewer steps it came down to where the control of the same seed ended."""
    p: float
    """Of no difference, as it is among all comparisons of this metric (Holm 1979); nan where there is none."""
    says: str
    """What the interval says: "lower", "higher", "not shown", or why nothing can be said."""
    better: bool | None
    """Whether a shown difference is for the better; None where nothing is shown."""


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
    group = material.groups[number]
    made = [_verdict(material, number, group, metric) for metric in metrics]
    return [verdict for verdict in made if any(arm.values for arm in verdict.arms)]


def _verdict(material: Material, number: int, group: Group, metric: str) -> Verdict:
    runs = {arm: material.of(number, arm) for arm in group.arms}
    values = {arm: reached(runs[arm], metric) for arm in group.arms}
    control = values.get(group.control, {})
    effects = [paired(values[arm], control) if arm != group.control else None for arm in group.arms]
    arms = []
    for arm, effect, p in zip(group.arms, effects, adjusted(effects), strict=True):
        mine = arm == group.control
        says, better = _says(effect, metric) if effect else ("" if mine else f"no {metric} in a seed of the control's", None)
        if better is not None and p >= 0.05:
            says += ", not among all comparisons"
        asked = len(runs[arm]) + sum(1 for name, *_ in group.missing if name == arm)
        done = sum(run.standing.kind in ("finished", "imported") for run in runs[arm])
        made = summary(values[arm].values()) if values[arm] else None
        speed = _speed_up(runs[arm], runs.get(group.control, [])) if effect and metric == "loss" else None
        arms.append(Arm(arm, mine, done, asked, values[arm], made, effect, speed, p, says, better))
    ends = [
        end for arm in arms if arm.effect for end in (arm.effect.low, arm.effect.high, arm.effect.mean) if math.isfinite(end)
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    space = 0.06 * (high - low)
    return Verdict(metric, tuple(arms), sum(1 for arm in arms if arm.effect), low - space, high + space)


def reached(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Return seed -> the metric at the last validation, of runs that finished; of a seed that is there twice, the first."""
    found: dict[int, float] = {}
    for run in runs:
        value = run.standing.last.get(metric) if run.standing.kind == "finished" and run.standing.last else None
        if type(value) in (int, float):
            found.setdefault(run.seed, float(value))
        elif run.standing.kind == "finished" and metric in run.standing.last:
            found.setdefault(run.seed, math.nan)  # it diverged: that is a result
    return found


def _speed_up(runs: Sequence[Run], controls: Sequence[Run]) -> Effect | None:
    """Return steps of the control over the steps after which an arm is as good, over seeds; None where one never is."""
    ends = {run.seed: run for run in reversed(controls) if run.standing.kind == "finished"}
    ratios = {}
    for run in runs:
        if run.standing.kind == "finished" and run.seed in ends and run.seed not in ratios:
            loss = ends[run.seed].standing.last.get("loss")
            step = steps_to(run.rows, loss) if loss is not None else None
            if not step:
                return None
            ratios[run.seed] = ends[run.seed].standing.step / step
    return summary(ratios.values()) if ratios else None


def _says(effect: Effect, metric: str) -> tuple[str, bool | None]:
    if not math.isfinite(effect.mean):
        return "a run is not finite", None
    if effect.seeds < 2 or not (math.isfinite(effect.low) and math.isfinite(effect.high)):
        return "one seed: no interval", None
    if effect.low <= 0 <= effect.high:
        return "no difference shown", None
    lower = effect.high < 0
    return ("lower" if lower else "higher"), (metric in GREATER_IS_BETTER) != lower


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
                "done": arm.done, "value": plain(arm.value), "mean": _number(arm.value),
                "effect": describe(effect) if effect else "", "difference": _number(effect),
                "says": arm.says, "better": arm.better,
                "method": effect.method if effect else "", "detectable": detectable(effect),
                "p": f"{arm.p:.2g}" if math.isfinite(arm.p) else "–", "speed_up": plain(arm.speed_up, 2),
                "interval": interval(effect) if effect else "",
                "at": verdict.place(effect.mean) if drawn else None,
                "from": verdict.place(effect.low) if whole else None, "to": verdict.place(effect.high) if whole else None,
            }
        )  # fmt: skip
    return rows


def _number(effect: Effect | None) -> float | None:
    return effect.mean if effect and math.isfinite(effect.mean) else None


def plain(effect: Effect | None, digits: int = 4) -> str:
    """Return a mean with its interval."""
    if effect is None:
        return "–"
    if not math.isfinite(effect.mean):
        return "not finite"
    known = math.isfinite(effect.low)
    return f"{effect.mean:.{digits}f}" + (f" ({effect.low:.{digits}f} to {effect.high:.{digits}f})" if known else "")


def interval(effect: Effect) -> str:
    """Return a difference with its interval, signed."""
    if not math.isfinite(effect.mean):
        return "not finite"
    known = math.isfinite(effect.low) and math.isfinite(effect.high)
    return f"{effect.mean:+.4f}" + (f" ({effect.low:+.4f} to {effect.high:+.4f})" if known else "")


def detectable(effect: Effect | None) -> str:
    """Return the smallest difference that as many pairs would have shown."""
    return f"{effect.detectable:.2g}" if effect and math.isfinite(effect.detectable) else "–"
