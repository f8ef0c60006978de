"""What probes and routers left at each checkpoint, as pictures with named axes: any measure, whatever its probe."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.report.curves import arms_of, joined, number
from jaxlm.report.gather import Material, Run

# Numbers of all pictures together that a page holds, about; places along an axis of one, at most and where room is short.
MOST_NUMBERS, MOST_PLACES, FEWEST_PLACES = 150_000, 128, 16


def router_loads(material: Material) -> dict[str, Any] | None:
    """Return the share of assignments of every expert at every validation, over an even share, layer by layer."""
    frames: dict[int, dict[int, np.ndarray]] = {}
    layers: dict[int, list[int]] = {}
    for place, run in enumerate(material.runs):
        loads = {
            row["step"]: _array(row["router_load"]) for row in run.rows if row["split"] == "validation" and "router_load" in row
        }
        loads = {step: load * load.shape[1] for step, load in loads.items() if load is not None and load.ndim == 2}
        if loads:
            frames[place] = loads
            known = list(run.experiment.model.moe_layers) if run.experiment else []
            count = len(next(iter(loads.values())))
            layers[place] = known if len(known) == count else list(range(count))
    if not frames:
        return None
    made = _map("router-load", "Load of every expert", ("layer", "expert"), frames, {}, "1 is an even share", MOST_NUMBERS // 4)
    for run in made["runs"]:
        run["labels"]["layer"] = [str(layer) for layer in layers[run["run"]]]
    return made | {
        "about": "Share of assignments of every expert at each validation, over an even share.",
        "mid": 1,
        "over_steps": True,
    }


def probe_sections(material: Material, max_points: int) -> list[dict[str, Any]]:
    """Return, for each probe that any run has results of, its title, its drawings and its texts, within what a page holds.

    {"probe", "title", "metrics": {name: as curves.metrics_of}, "maps": [...], "texts": [...], "faults": [...]}
    """
    probes = dict.fromkeys(probe for run in material.runs for probe in (*run.analysis, *run.faults))
    read = {probe: _results(material, probe) for probe in sorted(probes)}
    sizes = {
        (p, m): _size(found[0])
        for p, (_, measures) in read.items()
        for m, found in measures.items()
        if found and found[1]["axes"]
    }
    room = shares(sizes, MOST_NUMBERS)
    return [_section(material, probe, *read[probe], room, max_points) for probe in read]


def shares(sizes: Mapping[Any, int], total: int) -> dict[Any, int]:
    """Return how much of `total` each gets: what it asks for, where that is no more than its fair share of what is left."""
    given, left = {}, total
    for place, (key, size) in enumerate(sorted(sizes.items(), key=lambda entry: entry[1])):
        given[key] = min(size, left // (len(sizes) - place))
        left -= given[key]
    return given


def _size(values: "Values", places: int = MOST_PLACES) -> int:
    """Return how many numbers a measure has with so many places along an axis, when none of its checkpoints is left out."""
    return sum(math.prod(min(places, n) for n in array.shape) for steps in values.values() for array in steps.values())


def _results(material: Material, probe: str) -> tuple[str, dict[str, Any]]:
    """Return a probe's title, and by name what `_measure` finds."""
    results = {place: run.analysis[probe] for place, run in enumerate(material.runs) if run.analysis.get(probe)}
    one = next((result for steps in results.values() for result in steps.values()), {})
    measures: dict[str, None] = {}
    for steps in results.values():
        for result in steps.values():
            measures |= dict.fromkeys(result.get("measures", {}))
    return str(one.get("title") or probe), {name: _measure(results, name) for name in measures}


def _section(
    material: Material, probe: str, title: str, measures: Mapping[str, Any], room: Mapping[Any, int], max_points: int
) -> dict[str, Any]:
    metrics, maps, texts, faults = {}, [], [], _faults(material, probe)
    for name, found in measures.items():
        if found is None:
            faults.append(f"{name}: its values are no full grid of numbers or texts")
            continue
        values, facts, left = found
        faults += left
        label = f"{name}, {facts['unit']}" if facts["unit"] else name
        if facts["texts"]:
            texts.append({"name": name, "about": facts["about"], "runs": _texts(values, facts)})
        elif not facts["axes"]:
            metrics[f"probe/{probe}/{name}"] = _curve(material, values, label, facts["about"], max_points)
        else:
            made = _map(f"{probe}-{name}", name, facts["axes"], values, facts["labels"], facts["unit"], room[probe, name])
            maps.append(made | {"about": facts["about"]})
    return {"probe": probe, "title": title, "metrics": metrics, "maps": maps, "texts": texts, "faults": faults}


def _faults(material: Material, probe: str) -> list[str]:
    """Say where a probe failed, and why: each reason once."""
    places: dict[str, list[str]] = {}
    for run in material.runs:
        for step, why in sorted(run.faults.get(probe, {}).items()):
            places.setdefault(why, []).append(f"{label_of(run)}, step {step}")
    return [f"failed at {where[0]}{f' and {len(where) - 1} more' if where[1:] else ''}: {why}" for why, where in places.items()]


Values = dict[int, dict[int, np.ndarray]]


def _measure(results: Mapping[int, Mapping[int, Any]], name: str) -> tuple[Values, dict[str, Any], list[str]] | None:
    """Return a measure's arrays by run and step, what it says of itself, and what had to be left out."""
    values: Values = {}
    facts: dict[str, Any] = {}
    shapes: Counter[tuple] = Counter()
    for place, steps in results.items():
        for step, result in sorted(steps.items()):
            given = result.get("measures", {}).get(name)
            array = _array(given.get("values")) if isinstance(given, dict) else None
            axes = tuple(map(str, given.get("axes") or ())) if isinstance(given, dict) else ()
            if array is None or array.ndim != len(axes):
                continue
            texts = array.dtype == object
            shapes[len(axes), texts] += 1
            values.setdefault(place, {})[step] = array
            facts = {
                "axes": axes, "labels": given.get("labels") or {}, "unit": str(given.get("unit") or ""),
                "about": str(given.get("about") or ""), "texts": texts,
            }  # fmt: skip
    if not values:
        return None
    kind = (len(facts["axes"]), facts["texts"])
    values = {p: {s: a for s, a in steps.items() if (a.ndim, a.dtype == object) == kind} for p, steps in values.items()}
    odd = sum(shapes.values()) - shapes[kind]
    left = [f"{name}: {odd} results of another form than the newest are left out"] if odd else []
    return {p: steps for p, steps in values.items() if steps}, facts, left


def _array(values: Any) -> np.ndarray | None:
    """Return a grid of finite numbers and NaN, or of texts (dtype object); None for anything else."""
    if isinstance(values, str):
        return np.array(values, dtype=object)
    try:
        raw = np.array(values, dtype=object)
        flat = raw.ravel().tolist()
        if flat and any(isinstance(v, str) for v in flat):
            return raw if all(v is None or isinstance(v, str) for v in flat) else None
        return raw.astype(np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        return None


def _curve(material: Material, values: Values, label: str, about: str, max_points: int) -> dict[str, Any]:
    arms = []
    for place_of_arm, (group, arm) in enumerate(arms_of(material)):
        runs = [material.runs.index(run) for run in material.of(group, arm)]
        made = joined(runs, [{s: float(v) for s, v in values.get(run, {}).items()} for run in runs], max_points)
        if made:
            arms.append({"arm": place_of_arm} | made)
    rows = max(map(len, values.values()))
    return {"label": label, "about": about, "split": "probe", "rows": rows, "arms": arms}


def _map(
    key: str, title: str, axes: Sequence[str], values: Values, labels: Mapping[str, Sequence[str]], unit: str, room: int
) -> dict[str, Any]:
    """Return frames over checkpoints of every run within `room` numbers: fewer checkpoints, means of neighbours."""
    notes: list[str] = []
    frames = sum(len(steps) for steps in values.values())
    most, places = max(map(len, values.values())), MOST_PLACES
    while places > FEWEST_PLACES and 2 * _size(values, places) > room * most:  # not even two checkpoints would fit
        places //= 2
    each = max(2, room * most // max(1, _size(values, places)))
    if most > each:
        notes.append(f"{each} of up to {most} checkpoints of each run are shown, evenly spaced ({frames} were measured)")
    runs = []
    for place, steps in values.items():
        kept = _even(sorted(steps), each)
        arrays, ways = [], [1] * len(axes)
        for step in kept:
            array, ways = _coarse(steps[step], places)
            arrays.append([number(v, 5) for v in array.ravel().tolist()])
        shape = list(_coarse(steps[kept[-1]], places)[0].shape)
        same = [i for i, flat in enumerate(arrays) if len(flat) == math.prod(shape)]
        for axis, many in zip(axes, ways, strict=True):
            note = f"along {axis}, each place is the mean of {many}"
            notes += [note] if many > 1 and note not in notes else []
        named = {axis: _named(labels.get(axis), size, many) for axis, size, many in zip(axes, shape, ways, strict=True)}
        runs.append(
            {
                "run": place,
                "steps": [kept[i] for i in same],
                "shape": shape,
                "labels": named,
                "values": [arrays[i] for i in same],
            }
        )
    return {"id": key, "title": title, "axes": list(axes), "unit": unit, "runs": runs, "notes": notes, "mid": _mid(runs)}


def _mid(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return 0 where numbers of both signs ask for a scale with a middle."""
    flat = [v for run in runs for frame in run["values"] for v in frame if v is not None]
    return 0 if flat and min(flat) < 0 < max(flat) and min(flat) < -0.05 * max(flat) else None


def _even(steps: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the steps, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[i] for i in dict.fromkeys(np.linspace(0, len(steps) - 1, most).round().astype(int).tolist())]


def _coarse(array: np.ndarray, places: int) -> tuple[np.ndarray, list[int]]:
    """Return an array of at most `places` along each axis, means over neighbours, and how many each is the mean of."""
    ways = [math.ceil(size / places) or 1 for size in array.shape]
    for axis, many in enumerate(ways):
        if many > 1:
            pieces = np.array_split(array, range(many, array.shape[axis], many), axis=axis)
            array = np.stack([_mean(piece, axis) for piece in pieces], axis=axis)
    return array, ways


def _mean(piece: np.ndarray, axis: int) -> np.ndarray:
    known = ~np.isnan(piece)
    with np.errstate(invalid="ignore"):
        return np.where(known, piece, 0.0).sum(axis=axis) / known.sum(axis=axis)


def _named(given: Sequence[str] | None, size: int, many: int) -> list[str]:
    """Return the names of an axis's places; of several neighbours, of the first and the last."""
    if many == 1:
        return [str(name) for name in given][:size] if given and len(given) >= size else [str(i) for i in range(size)]
    return [f"{i * many}–{i * many + many - 1}" for i in range(size)]


def _texts(values: Values, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each run, a table of texts: a row for each place along the axes, a column for each checkpoint."""
    runs = []
    for place, steps in values.items():
        columns = _even(sorted(steps), 8)
        shape = steps[columns[-1]].shape
        same = [step for step in columns if steps[step].shape == shape]
        rows = []
        for index in np.ndindex(*shape):
            names = [
                str(facts["labels"].get(axis, ())[i]) if i < len(facts["labels"].get(axis, ())) else f"{axis} {i}"
                for axis, i in zip(facts["axes"], index, strict=True)
            ]
            rows.append({"name": " · ".join(names), "texts": [steps[step][index] or "" for step in same]})
        runs.append({"run": place, "steps": same, "all": len(steps), "rows": rows})
    return runs


def label_of(run: Run) -> str:
    """Return how a run is called in a page."""
    return f"{run.arm}, seed {run.seed}"
