"""Metrics of many runs as curves that a page can draw: along one axis of steps, thinned honestly, smoothed where noisy."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.report.gather import Material, Run

DIGITS = 6
# Noisy in training: drawn as running means, on request as they were.
NOISY = (
    "loss", "bits_per_byte", "gradient_norm", "accuracy", "perplexity", "tokens_per_second", "step_seconds", "mfu",
    "router_load_cv", "router_load_max", "router_dropped",
)  # fmt: skip
# Drawn with all the points that are asked for; others with half as many, or what a page can hold of so many.
HEADLINES = ("loss", "learning_rate", "gradient_norm")
MOST_NUMBERS, FEWEST_POINTS = 100_000, 24  # of all other metrics together; of any one of them
# What tells nothing as a curve.
LEFT_OUT = ("step", "start", "goodput", "tokens", "bytes", "documents", "pairs")
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


def number(value: float | None, digits: int = DIGITS) -> float | None:
    """Return a number as it is drawn and exported, with so many significant digits; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def metrics_of(material: Material, max_points: int) -> dict[str, dict[str, Any]]:
    """Return every numeric metric by "split/name", of routers by "split/name/layer" and, over all layers, "split/name".

    A metric: {"label", "split", "rows" (most of one run), "arms": [{"arm", "steps", "seeds": [{"run", "y", "smooth"?}]}]}.
    """
    names = _names(material)
    others = _most(names, material, max_points)
    found = {}
    for split, name, layers in names:
        most, label = max_points if name in HEADLINES else others, LABELS.get(name, name)
        read = _mean(name) if layers else _scalar(name)
        overall = f"{label}, mean of layers" if len(layers) > 1 else label
        found[f"{split}/{name}"] = _metric(material, split, name, overall, most, read)
        for place, layer in enumerate(layers if len(layers) > 1 else ()):
            made = _metric(material, split, name, f"{label}, layer {layer}", others // 2, _at(name, place), plain=True)
            found[f"{split}/{name}/{layer}"] = made
    return {name: metric for name, metric in found.items() if metric["arms"] and not _only_zeros(metric)}


def _names(material: Material) -> list[tuple[str, str, list[int]]]:
    """Return (split, name, numbers of the layers where it has one value for each) of all numeric metrics, in order."""
    names: dict[tuple[str, str], bool] = {}
    for run in material.runs:
        for row in run.rows:
            if row["split"] in ("train", "validation"):
                names |= {(row["split"], name): type(v) is list for name, v in row.items() if _is_metric(name, v)}
    return [(split, name, _layers(material, name) if many else []) for (split, name), many in sorted(names.items())]


def _most(names: Iterable[tuple[str, str, list[int]]], material: Material, max_points: int) -> int:
    """Return how many points a curve gets that is no headline, so that a page can hold all of them."""
    weight = sum(2 + len(layers) / 2 for split, name, layers in names if split == "train" and name not in HEADLINES)
    fits = int(MOST_NUMBERS / max(1.0, weight * len(material.runs)))
    return max(FEWEST_POINTS, min(max_points // 2, fits))


def _is_metric(name: str, value: Any) -> bool:
    if name in LEFT_OUT:
        return False
    if isinstance(value, list):
        return bool(value) and all(v is None or type(v) in (int, float) for v in value)
    return type(value) in (int, float)


def _only_zeros(metric: dict[str, Any]) -> bool:
    return not any(y for arm in metric["arms"] for seed in arm["seeds"] for y in seed["y"])


def _layers(material: Material, name: str) -> list[int]:
    """Return the numbers of the mixture layers, of the run that has the most."""
    best: list[int] = []
    for run in material.runs:
        most = max((len(row[name]) for row in run.rows if isinstance(row.get(name), list)), default=0)
        if most > len(best):
            layers = list(run.experiment.model.moe_layers) if run.experiment else []
            best = layers if len(layers) == most else list(range(most))
    return best


Reader = Callable[[Mapping[str, Any]], float | None]


def _scalar(name: str) -> Reader:
    return lambda row: row[name] if type(row.get(name)) in (int, float) else None


def _at(name: str, place: int) -> Reader:
    return lambda row: row[name][place] if isinstance(row.get(name), list) and place < len(row[name]) else None


def _mean(name: str) -> Reader:
    def read(row: Mapping[str, Any]) -> float | None:
        known = [v for v in row.get(name) or () if v is not None] if isinstance(row.get(name), list) else []
        return sum(known) / len(known) if known else None

    return read


def _metric(
    material: Material, split: str, name: str, label: str, max_points: int, read: Reader, *, plain: bool = False
) -> dict[str, Any]:
    arms, rows = [], 0
    for number_of_arm, (group, arm) in enumerate(arms_of(material)):
        runs = material.of(group, arm)
        values = [_points(run, split, read) for run in runs]
        rows = max([rows, *map(len, values)])
        smooth = split == "train" and name in NOISY and not plain
        made = joined([material.runs.index(run) for run in runs], values, max_points, smooth)
        if made:
            arms.append({"arm": number_of_arm} | made)
    return {"label": f"{label} ({split})" if split == "validation" else label, "split": split, "rows": rows, "arms": arms}


def summarized(material: Material, metrics: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the metrics, each with a "summary" in words: what every arm's finished seeds (of none: all) reach on average."""
    arms = arms_of(material)
    finished = {place for place, run in enumerate(material.runs) if run.standing.kind == "finished"}
    found = {}
    for name, metric in metrics.items():
        parts = []
        for arm in metric["arms"]:
            counted = [seed for seed in arm["seeds"] if seed["run"] in finished] or arm["seeds"]
            lines = [[v for v in seed.get("smooth", seed["y"]) if v is not None] for seed in counted]
            last = [line[-1] for line in lines if line]
            if last:
                parts.append(f"{name_of(material, *arms[arm['arm']])} {sum(last) / len(last):.4g}")
        found[name] = metric | {"summary": f"At the end, mean of seeds: {'; '.join(parts)}." if parts else ""}
    return found


def name_of(material: Material, group: int, arm: str) -> str:
    """Return how an arm is called in a page: with its sweep where there are several."""
    return f"{material.groups[group].name}: {arm}" if len(material.groups) > 1 and material.groups[group].name else arm


def arms_of(material: Material) -> list[tuple[int, str]]:
    """Return (group, arm) of every arm, in order: its place is its number in a page."""
    return [(number, arm) for number, group in enumerate(material.groups) for arm in group.arms]


def _points(run: Run, split: str, read: Reader) -> dict[int, float | None]:
    """Return the state's step -> value: a training row of step s leads to state s + 1."""
    after = 1 if split == "train" else 0
    points = {row["step"] + after: read(row) for row in run.rows if row["split"] == split}
    return points if any(v is not None for v in points.values()) else {}


def joined(
    runs: Sequence[int], values: Sequence[Mapping[int, float | None]], max_points: int, smooth: bool = False
) -> dict[str, Any] | None:
    """Return the curves of an arm's seeds over the same steps, at most `max_points` of them; None where there is nothing.

    Of each stretch of steps those two are kept where any seed is lowest and where any is highest, so that no peak is lost.
    """
    pairs = [(run, points) for run, points in zip(runs, values, strict=True) if points]
    if not pairs:
        return None
    steps = sorted(set(itertools.chain.from_iterable(points for _, points in pairs)))
    table = np.array([[_float(points.get(step)) for step in steps] for _, points in pairs])
    kept = thinned(table, max_points)
    seeds = []
    for (run, _), line in zip(pairs, table, strict=True):
        seed = {"run": run, "y": [number(v) for v in line[kept].tolist()]}
        if smooth:
            seed["smooth"] = [number(v) for v in running_mean(line)[kept].tolist()]
        seeds.append(seed)
    return {"steps": [steps[i] for i in kept], "seeds": seeds}


def _float(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)


def thinned(table: np.ndarray, most: int) -> np.ndarray:
    """Return which columns of [lines, steps] to draw: the first, the last, and of each stretch its lowest and its highest."""
    size = table.shape[1]
    if size <= most:
        return np.arange(size)
    stretches = max(1, (most - 2) // 2)
    edges = np.linspace(1, size - 1, stretches + 1).round().astype(int)
    low = np.where(np.isnan(table), np.inf, table).min(axis=0)
    high = np.where(np.isnan(table), -np.inf, table).max(axis=0)
    kept = {0, size - 1}
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            kept |= {begin + int(low[begin:end].argmin()), begin + int(high[begin:end].argmax())}
    return np.array(sorted(kept))


def running_mean(line: np.ndarray) -> np.ndarray:
    """Return means over about a fiftieth of the line around each point, shorter at its ends; what is not known is left out."""
    half = len(line) // 100
    known = ~np.isnan(line)
    sums = np.concatenate([[0.0], np.where(known, line, 0.0).cumsum()])
    counts = np.concatenate([[0], known.cumsum()])
    places = np.arange(len(line))
    begin, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(line))
    with np.errstate(invalid="ignore"):
        means = (sums[end] - sums[begin]) / (counts[end] - counts[begin])
    return np.where(known, means, np.nan)


def knots_of(run: Run, max_points: int) -> dict[str, list[float | None]]:
    """Return what a run had spent by some of its steps: tokens, FLOPs, hours in steps; between them a page interpolates.

    Rows written every n steps stand for the others.
    """
    every = run.experiment.log.every if run.experiment else 1
    rows = [row for row in run.rows if row["split"] == "train"]
    tokens = list(itertools.accumulate(every * _known(row, ("real_tokens", "tokens")) for row in rows))
    hours = list(itertools.accumulate(every * _known(row, ("step_seconds",)) / 3600 for row in rows))
    steps = [row["step"] + 1 for row in rows]
    kept = sorted({*range(0, len(rows), math.ceil(len(rows) / max(2, max_points // 2)) or 1), len(rows) - 1}) if rows else []
    per_step = run.flops_per_step
    return {
        "step": [0, *(steps[i] for i in kept)],
        "tokens": [0, *(number(tokens[i]) for i in kept)],
        "hours": [0, *(number(hours[i]) for i in kept)],
        "flops": [0, *(number(per_step * steps[i]) for i in kept)] if per_step else [],
    }


def _known(row: Mapping[str, Any], names: Iterable[str]) -> float:
    return next((row[name] for name in names if type(row.get(name)) in (int, float)), 0.0)
