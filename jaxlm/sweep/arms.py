"""Arms against their control, seed by seed: what may be compared, and how it comes out.

The table of a sweep and the verdict of a report are made of these functions, so that both say the same.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import ConfigError, suggest
from jaxlm.eval.comparison import Effect, adjusted, paired, summary
from jaxlm.run.directory import TOKENIZER
from jaxlm.run.tail import finite

Rows = Sequence[dict[str, Any]]

# Of each token as its tokenizer cuts it, or of the objective: their difference between others means nothing.
PER_TOKEN = ("loss", "perplexity", "accuracy", "mean_token_accuracy")
PER_OBJECTIVE = ("loss", "perplexity")
# What arm and control must share for a number of steps to be compared.
SAME_TASK = ("steps", "tokens", "data", "tokenizer", "objective")


class Conditions(NamedTuple):
    """What runs share whose numbers mean the same; an empty text for what is not known."""

    tokenizer: str = ""
    objective: str = ""
    data: str = ""
    """The prepared text, validation included."""
    sequence_length: str = ""
    steps: str = ""
    tokens: str = ""
    """Places for tokens in the rows of all steps."""
    jax_version: str = ""
    """At the last start."""
    devices: str = ""
    """Their number and kind, at the last start."""


class Finished(NamedTuple):
    """A run that has come to its end, as it is compared."""

    rows: Rows
    conditions: Conditions = Conditions()
    diverged: bool = False
    """Its end was that it diverged: its values are nan, whatever it measured before."""


Runs = Mapping[int, Finished]
"""The finished runs of an arm, by seed."""


class Comparison(NamedTuple):
    """One metric of an arm."""

    values: dict[int, float]
    """seed -> the last value, nan where it is not finite; without runs that never measured it."""
    mean: Effect | None
    difference: Effect | None
    """From the control over the seeds they share; None for the control itself, where they share none, or where refused."""
    p: float
    """Of no difference among all comparisons of this metric (Holm 1979); nan where there is none."""
    refused: str
    """Why the difference would mean nothing."""


class SpeedUp(NamedTuple):
    """In how many times fewer steps an arm first comes down to the loss at which the control of its seed ends.

    Both are first crossings: a control's loss may have been as low before its end, and the control against itself is 1.
    """

    values: dict[int, float]
    """seed -> ratio, of the seeds that came down to it."""
    pairs: int
    mean: Effect | None
    """None where a seed did not."""
    why: str
    """Why there is none."""


def conditions_of(folder: Path, config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> Conditions:
    """Return what a run's numbers depend on, from its dotted configuration, its starts and the tokenizer it keeps."""
    if not config:
        return Conditions()
    form = str(config.get("data.form", ""))
    deciding = ("data.form", *(("data.examples.train_on", "preference.") if form not in ("", "text") else ()))
    newest = starts[-1] if starts and isinstance(starts[-1], Mapping) else {}
    versions = newest.get("versions")
    beside = ("preference.reference", "preference.reference_run", "preference.router_losses")
    objective = {k: v for k, v in config.items() if k.startswith(deciding) and k not in beside}
    pairs = 2 if form in ("preferences", "labels") else 1
    sizes = [config.get(name) for name in ("steps", "batch_size", "data.sequence_length")]
    known = all(type(size) is int for size in sizes)
    return Conditions(
        tokenizer=_tokenizer(folder, config), objective=_text(objective) if objective else "",
        data=str(newest.get("data") or ""), devices=str(newest.get("devices") or ""),
        jax_version=str(versions.get("jax") or "") if isinstance(versions, Mapping) else "",
        sequence_length=str(config.get("data.sequence_length", "")), steps=str(config.get("steps", "")),
        tokens=str(math.prod(sizes) * pairs) if known else "",
    )  # fmt: skip


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the tokenizer's digest where the run keeps it, for a path says little, and its fields where it does not."""
    try:
        return hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    except OSError:
        return _text({k: v for k, v in config.items() if k.startswith("data.tokenizer.")})


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def unlike(pairs: Iterable[tuple[Conditions, Conditions]]) -> list[str]:
    """Return in which respects any of these runs differ from their partners, as far as both are known."""
    made = list(pairs)
    return [
        name.replace("_", " ")
        for place, name in enumerate(Conditions._fields)
        if any(one[place] and other[place] and one[place] != other[place] for one, other in made)
    ]


def _unlike(arm: Runs, control: Runs) -> list[str]:
    return unlike((arm[seed].conditions, control[seed].conditions) for seed in arm if seed in control)


def refusal(metric: str, differing: Sequence[str]) -> str:
    """Return why a metric's difference means nothing between runs that differ so; empty where it means something."""
    if "tokenizer" in differing and metric in PER_TOKEN:
        return "another tokenizer: compare bits_per_byte"
    if "objective" in differing and metric in PER_OBJECTIVE:
        return "another objective: compare what both measure alike"
    return ""


def compare(runs: Mapping[str, Runs], control: str, metric: str) -> dict[str, Comparison]:
    """Return for every arm its last values of a metric, and the difference from the control over the seeds they share."""
    values = {arm: _lasts(mine, metric) for arm, mine in runs.items()}
    reference = runs.get(control, {})
    refused = {arm: "" if arm == control else refusal(metric, _unlike(mine, reference)) for arm, mine in runs.items()}
    effects = [
        None if arm == control or refused[arm] else paired(mine, values.get(control, {})) for arm, mine in values.items()
    ]
    return {
        arm: Comparison(mine, summary(mine.values()) if mine else None, effect, p, refused[arm])
        for (arm, mine), effect, p in zip(values.items(), effects, adjusted(effects), strict=True)
    }


def speed_up(arm: Runs, control: Runs) -> SpeedUp | None:
    """Return an arm's speed-up; None where it shares no seed with the control.

    There is none where either is down at that loss at its first validation already, for the crossing came at a step that
    nobody saw, where the two differ in steps, tokens, data, tokenizer or objective, and where one of them diverged.
    """
    common = [seed for seed in arm if seed in control]
    if not common:
        return None
    if differing := [name for name in _unlike(arm, control) if name in SAME_TASK]:
        return SpeedUp({}, len(common), None, f"differs in {' and '.join(differing)}")
    if any(runs[seed].diverged for seed in common for runs in (arm, control)):
        return SpeedUp({}, len(common), None, "a run diverged")
    ratios = {}
    for seed in common:
        loss = last(control[seed].rows, "loss")
        steps, reference = (steps_to(run.rows, loss) for run in (arm[seed], control[seed]))
        if reference is None:
            return SpeedUp({}, len(common), None, "the control's loss is not finite")
        first = max(_first(run.rows) for run in (arm[seed], control[seed]))
        if min(reference, math.inf if steps is None else steps) <= first:
            return SpeedUp({}, len(common), None, "as low at the first validation")
        if steps is not None:
            ratios[seed] = reference / steps
    return SpeedUp(ratios, len(common), summary(ratios.values()) if len(ratios) == len(common) else None, "")


def _lasts(runs: Runs, metric: str) -> dict[int, float]:
    return {
        seed: math.nan if run.diverged else last(run.rows, metric)
        for seed, run in runs.items()
        if run.diverged or any(metric in row for row in _validations(run.rows))
    }


def _validations(rows: Rows) -> Iterable[dict[str, Any]]:
    return (row for row in rows if row["split"] == "validation")


def _curve(rows: Rows) -> list[tuple[int, float]]:
    curve = [(row["step"], plain_number(row.get("loss"))) for row in _validations(rows)]
    return [(step, loss) for step, loss in curve if math.isfinite(loss)]


def _first(rows: Rows) -> float:
    return next((row["step"] for row in _validations(rows)), 0)


def steps_to(rows: Rows, loss: float) -> float | None:
    """Return the step at which validation loss first comes down to `loss`, between two evaluations by a straight line."""
    curve = _curve(rows)
    if curve and curve[0][1] <= loss:
        return float(curve[0][0])
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= loss:
            return before + (after - before) * (high - loss) / max(high - low, 1e-12)
    return None


def last(rows: Rows, name: str, split: str = "validation") -> float:
    """Return a field's last value, the mean over mixture layers where it has one for each; nan where it is none.

    A run that diverged has nan there, and not what it had before.
    """
    return plain_number(next((row for row in reversed(rows) if row["split"] == split), {}).get(name))


def plain_number(value: Any) -> float:
    """Return a number of a row, of one for each layer their mean; nan for all else."""
    if isinstance(value, list) and value:
        return sum(map(plain_number, value)) / len(value)
    return finite(value)


def check_metrics(metrics: Sequence[str], runs: Iterable[Rows]) -> None:
    """Raise ConfigError for a metric that no validation of these runs has, where any was validated at all."""
    for fault in unmeasured(metrics, runs):
        raise ConfigError(fault)


def unmeasured(metrics: Sequence[str], runs: Iterable[Rows]) -> list[str]:
    """Say which metrics no validation of these runs has, with the nearest that it has; nothing where there is none at all."""
    rows = [row for each in runs for row in _validations(each)]
    known = {name for row in rows for name, value in row.items() if value is None or math.isfinite(plain_number(value))}
    known -= {"step"}
    names = ", ".join(sorted(known))
    return [
        f"no validation here has {metric!r}.{suggest(metric, known)} It has {names}"
        for metric in metrics
        if rows and metric not in known
    ]
