"""The content of a report: which figures there are, what stands in its tables, and the numbers behind them."""

import re
from collections.abc import Sequence
from typing import Any

from jaxlm.report import facts
from jaxlm.report.costs import costs, knots_of
from jaxlm.report.curves import ROUTERS, label_of, metrics_of, name_of
from jaxlm.report.maps import router_loads
from jaxlm.report.material import Material
from jaxlm.report.naming import keys
from jaxlm.report.probes import probe_sections
from jaxlm.report.verdict import check, table_of, verdicts

# (id, title, metric)
HEADLINES = (
    ("validation-loss", "Validation loss", "validation/loss"),
    ("training-loss", "Training loss", "train/loss"),
    ("learning-rate", "Learning rate", "train/learning_rate"),
    ("gradient-norm", "Gradient norm", "train/gradient_norm"),
)
Figure = dict[str, Any]


def content(material: Material, max_points: int, metrics: Sequence[str]) -> dict[str, Any]:
    """Return what the page says, `data` of it as numbers for its figures; ConfigError for a metric that no run has."""
    check(material, metrics)
    drawn = metrics_of(material, max_points)
    probes, loads, spent = probe_sections(material, max_points), router_loads(material), costs(material)
    curves, routers = _curve_figures(drawn), _router_figures(drawn)
    for place, section in enumerate(probes):
        section["figures"] = _probe_figures(place, section)
        drawn |= section.pop("metrics")
    figures = [*curves, *routers, *(figure for section in probes for figure in section["figures"])]
    charts = {}
    for figure in figures:
        if "map" in figure:
            charts[figure["id"]] = {"kind": "map"} | figure.pop("map")
        else:
            charts[figure["id"]] = {"kind": "curves", "metrics": figure["metrics"]}
            figure["summary"] = drawn[figure["metrics"][0]]["summary"]
    if loads:
        routers.insert(0, _map_figure("router-load", loads["title"], loads))
        charts["router-load"] = {"kind": "map"} | routers[0].pop("map")
    if spent["kinds"]:
        charts["seconds"] = {"kind": "bars", "kinds": spent["kinds"], "seconds": spent["seconds"], "unit": "seconds"}
    return {
        "groups": _groups(material), "verdicts": _verdicts(material, metrics), "trouble": facts.trouble(material),
        "doubts": facts.doubts(material), "unread": material.unread, "differences": facts.differences(material),
        "curves": curves, "routers": routers, "probes": probes, "costs": spent, "provenance": facts.provenance(material),
        "codes": [(group.name, group.code) for group in material.groups if group.code],
        "runs": [{"label": label_of(run), "path": run.path, "standing": run.standing} for run in material.runs],
        "diverged": any(run.standing.diverged for run in material.runs),
        "max_points": max_points, "one_seed": all(len(runs) < 2 for runs in material.arms.values()),
        "validated": any(run.by_split["validation"] for run in material.runs), "keys": list(_keys(material).values()),
        "data": {"arms": _arms(material), "runs": _runs(material, max_points), "metrics": drawn, "charts": charts},
    }  # fmt: skip


def _groups(material: Material) -> list[dict[str, Any]]:
    found = []
    for number, group in enumerate(material.groups):
        parts = [part for part in re.split(r"\n\s*\n", group.about.strip("\n")) if part.strip()]
        found.append({"group": group, "lead": parts[:1], "rest": parts[1:], "runs": len(material.of(number))})
    return found


def _verdicts(material: Material, metrics: Sequence[str]) -> list[dict[str, Any]]:
    short = _keys(material)
    return [
        {
            "group": group.name, "metric": verdict.metric, "comparisons": verdict.comparisons, "chance": verdict.chance,
            "control": group.control, "zero": verdict.place(0.0),
            "rows": [row | {"key": short[number, row["arm"]]} for row in table_of(verdict)],
        }
        for number, group in enumerate(material.groups)
        for verdict in verdicts(material, number, metrics)
    ]  # fmt: skip


def _keys(material: Material) -> dict[tuple[int, str], str]:
    """Return what stands for an arm where names are too long: A1, A2 and so on; empty texts where none is."""
    return dict(zip(material.arms, keys([name_of(material, *arm) for arm in material.arms]), strict=True))


def _arms(material: Material) -> list[dict[str, Any]]:
    """Return the arms as figures know them."""
    controls = [material.groups[group].control for group, _ in material.arms]
    short = _keys(material)
    found = []
    for (group, arm), control in zip(material.arms, controls, strict=True):
        name = name_of(material, group, arm)
        found.append({"name": name, "key": short[group, arm], "control": arm == control})
    return found


def _runs(material: Material, max_points: int) -> list[dict[str, Any]]:
    numbers = {arm: number for number, arm in enumerate(material.arms)}
    return [
        {
            "label": label_of(run), "arm": numbers[run.group, run.arm], "seed": run.seed, "path": run.path,
            "finished": run.finished, "knots": knots_of(run, max_points),
        }
        for run in material.runs
    ]  # fmt: skip


def _curve_figures(drawn: dict[str, Any]) -> list[Figure]:
    figures = [_figure(key, title, [name]) for key, title, name in HEADLINES if name in drawn]
    shown = _shown(figures)
    rest = [name for name in drawn if not name.partition("/")[2].startswith("router_") and name not in shown]
    return figures + ([_figure("any-metric", "Any metric", [*rest, *shown])] if rest else [])


def _shown(figures: Sequence[Figure]) -> list[str]:
    return [name for figure in figures for name in figure["metrics"]]


def _router_figures(drawn: dict[str, Any]) -> list[Figure]:
    figures = []
    for name, label in ROUTERS:
        layers = [key for key in drawn if key == f"train/{name}" or key.startswith(f"train/{name}/")]
        if layers:
            figures.append(_figure(f"train-{name}".replace("_", "-"), label[0].upper() + label[1:], layers))
    shown = _shown(figures)
    others = [name for name in drawn if name.partition("/")[2].startswith("router_") and name not in shown]
    return figures + ([_figure("any-router", "Other metrics of routers", others)] if others else [])


def _probe_figures(place: int, section: dict[str, Any]) -> list[Figure]:
    figures = []
    for number, (name, metric) in enumerate(section["metrics"].items()):
        figures.append(_figure(f"probe-{place}-curve-{number}", metric["label"], [name], metric["about"]))
    for number, found in enumerate(section["maps"]):
        title = f"{found['title']}, by {' × '.join(found['axes'])}" + (f" ({found['unit']})" if found["unit"] else "")
        figures.append(_map_figure(f"probe-{place}-map-{number}", title, found))
    return figures


def _figure(key: str, title: str, metrics: list[str], about: str = "") -> Figure:
    return {"id": key, "title": title, "metrics": metrics, "about": about, "summary": "", "notes": []}


def _map_figure(key: str, title: str, found: dict[str, Any]) -> Figure:
    """Return the figure of a map, with what it shows in words."""
    flat = [v for run in found["runs"] for frame in run["values"] for v in frame if v is not None]
    steps = {step for run in found["runs"] for step in run["steps"]}
    counts = f"{len(found['runs'])} run{'s' * (len(found['runs']) != 1)}, {len(steps)} checkpoint{'s' * (len(steps) != 1)}"
    values = f", values from {min(flat):.4g} to {max(flat):.4g}" if flat else ""
    return {
        "id": key, "title": title, "about": found["about"], "notes": found["notes"], "summary": f"{counts}{values}.",
        "map": found,
    }  # fmt: skip
