"""What probes left at each checkpoint, by its form: a number becomes a curve, axes a picture, texts a table."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.report import maps
from jaxlm.report.curves import drawn, label_of
from jaxlm.report.grids import Grid, aligned, grid_of
from jaxlm.report.maps import Measured, even, picture, shares, size_of
from jaxlm.report.material import Material

MOST_COLUMNS = 8


class Measure(NamedTuple):
    """One measure of all runs."""

    axes: tuple[str, ...]
    texts: bool
    unit: str
    about: str
    runs: Measured
    left_out: list[str]
    """What could not be shown, in words."""


def probe_sections(material: Material, max_points: int) -> list[dict[str, Any]]:
    """Return, for each probe that any run has results of, its title, its drawings and its texts, within what a page holds.

    {"probe", "title", "metrics": {name: as curves.drawn}, "maps": [...], "texts": [...], "faults": [...]}
    """
    probes = dict.fromkeys(probe for run in material.runs for probe in (*run.analysis, *run.faults))
    read = {probe: _results(material, probe) for probe in sorted(probes)}
    sizes = {
        (probe, name): size_of(measure.runs)
        for probe, (_, measures) in read.items()
        for name, measure in measures.items()
        if measure and measure.axes and not measure.texts
    }
    room = shares(sizes, maps.MOST_NUMBERS)
    return [_section(material, probe, *read[probe], room, max_points) for probe in read]


def _results(material: Material, probe: str) -> tuple[str, dict[str, Measure | None]]:
    """Return a probe's title, and its measures by name."""
    results = {run.place: run.analysis[probe] for run in material.runs if run.analysis.get(probe)}
    one = next((result for steps in results.values() for result in steps.values()), {})
    names: dict[str, None] = {}
    for steps in results.values():
        for result in steps.values():
            names |= dict.fromkeys(result["measures"])
    return str(one.get("title") or probe), {name: _measure(material, results, name) for name in names}


def _measure(material: Material, results: Mapping[int, Mapping[int, Any]], name: str) -> Measure | None:
    """Return a measure of all runs, in the form that most of its results have; None where none can be read."""
    grids: dict[int, dict[int, Grid]] = {}
    forms: dict[tuple[int, int], tuple[tuple[str, ...], bool]] = {}
    said: dict[str, str] = {"unit": "", "about": ""}
    for place, steps in results.items():
        for step, result in sorted(steps.items()):
            given = result["measures"].get(name)
            if not isinstance(given, dict):
                continue
            axes = tuple(map(str, given["axes"])) if isinstance(given.get("axes"), list) else ()
            grid = grid_of(given.get("values"), axes, given.get("labels"))
            if grid is not None:
                grids.setdefault(place, {})[step] = grid
                forms[place, step] = axes, grid.texts
                said |= {key: str(given.get(key) or said[key]) for key in said}
    if not grids:
        return None
    form, _ = Counter(forms.values()).most_common(1)[0]
    odd = [f"{label_of(material.runs[place])}, step {step}" for (place, step), other in forms.items() if other != form]
    left = [f"{name} at {_few(odd)} is left out: it is of another form than elsewhere"] if odd else []
    runs = {}
    for place, steps in grids.items():
        if fitting := {step: grid for step, grid in steps.items() if forms[place, step] == form}:
            runs[place] = aligned(fitting)
            if out := runs[place].left_out:
                where = f"{label_of(material.runs[place])}, step {_few(out)}"
                left.append(f"{name} of {where} is left out: its places cannot be told to be those of step {max(fitting)}")
    return Measure(*form, said["unit"], said["about"], runs, left)


def _few(found: list[Any]) -> str:
    return ", ".join(map(str, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _section(
    material: Material, probe: str, title: str, measures: Mapping[str, Measure | None], room: Mapping[Any, int], points: int
) -> dict[str, Any]:
    metrics, pictures, texts, faults = {}, [], [], _faults(material, probe)
    for name, measure in measures.items():
        if measure is None:
            faults.append(f"{name}: its values are no full grid of numbers or texts")
            continue
        faults += measure.left_out
        if measure.texts:
            texts.append({"name": name, "about": measure.about, "runs": _texts(measure)})
        elif not measure.axes:
            label = f"{name}, {measure.unit}" if measure.unit else name
            values = [_curve(measure, run.place) for run in material.runs]
            metrics[f"probe/{probe}/{name}"] = drawn(material, values, label, points) | {
                "about": measure.about,
                "split": "probe",
            }
        else:
            made = picture(f"{probe}-{name}", name, measure.axes, measure.runs, measure.unit, room[probe, name])
            pictures.append(made | {"about": measure.about})
    return {"probe": probe, "title": title, "metrics": metrics, "maps": pictures, "texts": texts, "faults": faults}


def _curve(measure: Measure, place: int) -> dict[int, float]:
    return {step: float(v) for step, v in measure.runs[place].steps.items()} if place in measure.runs else {}


def _faults(material: Material, probe: str) -> list[str]:
    """Say where a probe failed, and why: each reason once."""
    places: dict[str, list[str]] = {}
    for run in material.runs:
        for step, why in sorted(run.faults.get(probe, {}).items()):
            places.setdefault(why, []).append(f"{label_of(run)}, step {step}")
    return [f"failed at {where[0]}{f' and {len(where) - 1} more' if where[1:] else ''}: {why}" for why, where in places.items()]


def _texts(measure: Measure) -> list[dict[str, Any]]:
    """Return, for each run, a table of texts: a row for each place along the axes, a column for each checkpoint."""
    tables = []
    for place, series in measure.runs.items():
        columns = even(sorted(series.steps), MOST_COLUMNS)
        rows = []
        for index in np.ndindex(*series.steps[columns[-1]].shape):
            names = [
                names[i] if names is not None else f"{axis} {i}"
                for axis, names, i in zip(measure.axes, series.names, index, strict=True)
            ]
            rows.append({"name": " · ".join(names), "texts": [series.steps[step][index] or "" for step in columns]})
        tables.append({"run": place, "steps": columns, "all": len(series.steps), "rows": rows})
    return tables
