"""Metrics of many runs as curves that a page can draw, each also less that of the control."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from jaxlm.report.lines import Points, joined
from jaxlm.report.material import Material, Run
from jaxlm.report.naming import keys
from jaxlm.sweep.arms import plain_number

# Noisy in training: drawn as running means, on request as they were.
NOISY = (
    "loss", "bits_per_byte", "gradient_norm", "accuracy", "perplexity", "tokens_per_second", "step_seconds", "mfu",
    "router_load_cv", "router_load_max", "router_dropped",
)  # fmt: skip
# Drawn with all the points that are asked for; others with half as many, or what a page can hold of so many.
HEADLINES = ("loss", "learning_rate", "gradient_norm")
MOST_NUMBERS, FEWEST_POINTS = 100_000, 24  # of all other metrics together; of any one of them
# What tells nothing as a curve.
LEFT_OUT = (
    "step", "start", "goodput", "tokens", "real_tokens", "bytes", "documents", "pairs", "skipped", "skipped_in_a_row",
)  # fmt: skip
ROUTERS = (
    ("router_load_cv", "spread of loads (CV)"),
    ("router_dropped", "share dropped"),
    ("router_entropy", "router entropy, nats"),
    ("router_dead", "dead experts"),
    ("router_load_max", "busiest load over the mean"),
    ("router_gate", "mean gate"),
)
LABELS = {
    "loss": "loss, nats a token", "bits_per_byte": "bits per byte", "gradient_norm": "gradient norm",
    "learning_rate": "learning rate", "tokens_per_second": "tokens per second", "step_seconds": "seconds a step",
    "mfu": "model FLOPs utilisation", "data_wait_seconds": "seconds waited for data",
} | dict(ROUTERS)  # fmt: skip


Layers = Mapping[int, list[int] | None]
"""place of a run -> the layers that the values of a list are of; None where that is not known."""


def metrics_of(material: Material, max_points: int) -> dict[str, dict[str, Any]]:
    """Return every numeric metric by "split/name", of routers by "split/name/layer" and, over all layers, "split/name".

    A metric is as `drawn` returns it, with "split".
    """
    names = _names(material)
    others = _most(names, material, max_points)
    found = {}
    for (split, name), layers in names.items():
        most, label = max_points if name in HEADLINES else others, LABELS.get(name, name)
        numbers = sorted({layer for known in layers.values() for layer in known or ()})
        overall = f"{label}, mean of layers" if len(numbers) > 1 else label
        smooth = split == "train" and name in NOISY
        values = [_points(run, split, name) for run in material.runs]
        found[f"{split}/{name}"] = drawn(material, values, _said(overall, split), most, smooth) | {"split": split}
        for layer in numbers if len(numbers) > 1 else ():
            values = [_points(run, split, name, layer, layers.get(run.place)) for run in material.runs]
            made = drawn(material, values, _said(f"{label}, layer {layer}", split), others // 2) | {"split": split}
            found[f"{split}/{name}/{layer}"] = made
    return {name: metric for name, metric in found.items() if metric["arms"] and not _only_zeros(metric)}


def _said(label: str, split: str) -> str:
    return f"{label} ({split})" if split == "validation" else label


def _names(material: Material) -> dict[tuple[str, str], Layers]:
    """Return (split, name) of all numeric metrics, in order, with the layers of those that have one value for each."""
    names: dict[tuple[str, str], dict[int, list[int] | None]] = {}
    for run in material.runs:
        for split, rows in run.by_split.items():
            for row in rows:
                for name, value in row.items():
                    if _is_metric(name, value):
                        layers = names.setdefault((split, name), {})
                        if isinstance(value, list) and run.place not in layers:
                            layers[run.place] = run.layers(len(value))
    return dict(sorted(names.items()))


def _most(names: Mapping[tuple[str, str], Layers], material: Material, max_points: int) -> int:
    """Return how many points a curve gets that is no headline, so that a page can hold all of them."""
    weight = 0.0
    for (split, name), layers in names.items():
        if split == "train" and name not in HEADLINES:
            weight += 2 + len({layer for known in layers.values() for layer in known or ()}) / 2
    twice = 2 if len(material.arms) > 1 else 1  # differences from the control
    fits = int(MOST_NUMBERS / max(1.0, twice * weight * len(material.runs)))
    return max(FEWEST_POINTS, min(max_points // 2, fits))


def _is_metric(name: str, value: Any) -> bool:
    if name in LEFT_OUT:
        return False
    if isinstance(value, list):
        return bool(value) and all(v is None or type(v) in (int, float) for v in value)
    return type(value) in (int, float)


def _only_zeros(metric: dict[str, Any]) -> bool:
    return not any(y for arm in metric["arms"] for seed in arm["seeds"] for y in seed["y"])


def _points(run: Run, split: str, name: str, layer: int | None = None, layers: Sequence[int] | None = None) -> Points:
    """Return the state's step -> value, the mean of layers or that of one; a training row of step s leads to state s + 1."""
    if layer is not None and (layers is None or layer not in layers):
        return {}
    place = layers.index(layer) if layers and layer is not None else None
    after = 1 if split == "train" else 0
    points = {}
    for row in run.by_split[split]:
        if name in row:
            value = row[name]
            if place is not None:
                value = value[place] if isinstance(value, list) and place < len(value) else None
            points[row["step"] + after] = plain_number(value)
    return points if any(v == v for v in points.values()) else {}


def drawn(material: Material, values: Sequence[Points], label: str, max_points: int, smooth: bool = False) -> dict[str, Any]:
    """Return a metric, given as points of every run, as it is drawn.

    {"label", "rows" (most of one run), "summary" (in words), "arms": [{"arm", "steps", "seeds": [{"run", "y", "smooth"?,
    "gaps"?}], "less"?}]}; "less" has "steps" and "seeds" of the difference from the control's run of the same seed, made of
    the whole records at the steps that both have, and thinned and smoothed after that.
    """
    arms, said, names = [], [], shorts(material)
    lost = {run.place for run in material.runs if run.standing.diverged}
    for number_of_arm, ((group, arm), runs) in enumerate(material.arms.items()):
        made = joined([run.place for run in runs], [values[run.place] for run in runs], max_points, smooth, lost)
        if made is None:
            continue
        said.append(f"{names[number_of_arm]} {_end(material, made['seeds'])}")
        less = _less(material, group, arm, values, max_points, smooth, lost)
        for part in (made, less or {"seeds": []}):
            for seed in part["seeds"]:
                seed.pop("end", None)
        arms.append({"arm": number_of_arm} | made | ({"less": less} if less else {}))
    summary = f"At the end, mean of seeds: {'; '.join(said)}." if said else ""
    return {"label": label, "rows": max(map(len, values), default=0), "arms": arms, "summary": summary}


def _end(material: Material, seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return what finished seeds (of none: all) reach on average, in words."""
    ends = [seed["end"] for seed in seeds if material.runs[seed["run"]].finished] or [seed["end"] for seed in seeds]
    mean = sum(ends) / len(ends)
    return f"{mean:.4g}" if mean == mean else "not finite"


def _less(
    material: Material, group: int, arm: str, values: Sequence[Points], max_points: int, smooth: bool, lost: Container[int]
) -> dict[str, Any] | None:
    """Return an arm's differences from the control as `joined` does; zeros for the control; None where there are none."""
    control = {run.seed: values[run.place] for run in reversed(material.arms.get((group, material.groups[group].control), []))}
    runs = material.arms[group, arm]
    if len(material.groups[group].arms) < 2:
        return None
    if arm == material.groups[group].control:
        steps = sorted({step for run in runs for step in values[run.place]})
        seeds = [{"run": run.place, "y": [0] * len(steps[:: len(steps) - 1 or 1])} for run in runs if values[run.place]]
        return {"steps": steps[:: len(steps) - 1 or 1], "seeds": seeds}
    differences = []
    for run in runs:
        mine, theirs = values[run.place], control.get(run.seed, {})
        differences.append({step: value - theirs[step] for step, value in mine.items() if step in theirs})
    return joined([run.place for run in runs], differences, max_points, smooth, lost)


def name_of(material: Material, group: int, arm: str) -> str:
    """Return how an arm is called in a page: with its sweep where there are several."""
    return f"{material.groups[group].name}: {arm}" if len(material.groups) > 1 and material.groups[group].name else arm


def shorts(material: Material) -> list[str]:
    """Return the arms' names, or what stands for them (A1, A2, ...) where a name is too long."""
    names = [name_of(material, *arm) for arm in material.arms]
    return [key or name for key, name in zip(keys(names), names, strict=True)]


def label_of(run: Run) -> str:
    """Return how a run is called in a page."""
    return f"{run.arm}, seed {run.seed}"
