"""What a report says in tables: how runs stand, what they differ in, where they come from, what to doubt."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.report.curves import label_of
from jaxlm.report.material import Material, Run
from jaxlm.sweep.arms import last, unlike

# Differ between the runs of any comparison, by their nature.
OWN = ("name", "seed")


def trouble(material: Material) -> list[dict[str, Any]]:
    """Return every trial that is not finished: what became of it, loudly; failures with the end of their traceback."""
    found = []
    for run in material.runs:
        stands = run.standing
        if stands.kind in ("finished", "imported"):
            continue
        why = stands.why or f"{stands.step or 0} of {stands.steps or '?'} steps"
        why += " (it diverged, and counts as not finite)" if stands.diverged else ""
        traceback = run.failure.get("traceback") or ""
        text = "\n".join(map(str, traceback)) if isinstance(traceback, list) else str(traceback)
        found.append({"run": label_of(run), "path": run.path, "kind": stands.kind, "why": why, "traceback": text.strip()})
    for group in material.groups:
        for arm, seed, folder in group.missing:
            where = {"run": f"{arm}, seed {seed}", "path": folder, "traceback": ""}
            found.append(where | {"kind": "missing", "why": "not begun, or nothing of it can be read"})
    return found


def doubts(material: Material) -> list[str]:
    """Return what makes runs hard to compare: other tasks, other code or devices, runs that diverged, data in another order."""
    said = [text for number, _ in enumerate(material.groups) for text in _other_tasks(material, number)]
    said += [f"{label_of(run)} finished, and its last loss is not finite." for run in material.runs if _diverged(run)]
    return said + _other_code(material) + _within_groups(material)


def _other_tasks(material: Material, number: int) -> list[str]:
    """Say in what arms differ from the control that makes their numbers mean something else: each difference once."""
    group = material.groups[number]
    control = material.arms.get((number, group.control), [])
    by_seed = {run.seed: run.conditions for run in reversed(control)}
    found: dict[tuple[str, ...], list[str]] = {}
    for arm in group.arms:
        runs = material.arms[number, arm] if control and arm != group.control else []
        pairs = [(run.conditions, by_seed.get(run.seed, control[0].conditions)) for run in runs]
        if differing := unlike(pairs):
            found.setdefault(tuple(differing), []).append(arm)
    said = []
    for differing, arms in found.items():
        names = "; ".join(arms[:4]) + (f" and {len(arms) - 4} more" if arms[4:] else "")
        what = ", ".join("prepared data, validation included" if name == "data" else name for name in differing)
        text = f"Not like for like with the control {group.control}: {names}. They differ in {what}."
        if "tokenizer" in differing:
            text += " A loss of another tokenizer's tokens is no loss of the same thing: compare bits_per_byte (--metrics)."
        if "objective" in differing:
            text += " Losses of different objectives are not compared."
        said.append(text)
    return said


def _diverged(run: Run) -> bool:
    newest = next((split for split in ("validation", "train") if any("loss" in row for row in run.by_split[split])), "")
    return run.standing.kind == "finished" and bool(newest) and not math.isfinite(last(run.by_split[newest], "loss", newest))


def _other_code(material: Material) -> list[str]:
    starts = [start for run in material.runs for start in run.starts]
    said: list[str] = []
    commits = {str(start.get("git_commit"))[:10] for start in starts if start.get("git_commit")}
    if len(commits) > 1:
        said.append(f"Runs come of {len(commits)} commits of the code: {', '.join(sorted(commits))}.")
    if dirty := sum(any(start.get("git_dirty") for start in run.starts) for run in material.runs):
        said.append(
            f"{dirty} of {len(material.runs)} runs had changes that were not committed: uncommitted-N.diff in each has them."
        )
    for what, values in (
        ("kinds of devices", {str(start.get("devices")) for start in starts if start.get("devices")}),
        ("sets of package versions", {_versions(start) for start in starts if start.get("versions")}),
    ):
        if len(values) > 1:
            said.append(f"Runs come of {len(values)} {what}: see Provenance.")
    return said


def _within_groups(material: Material) -> list[str]:
    said: list[str] = []
    for number, group in enumerate(material.groups):
        said += group.notes
        if len(group.arms) > 1:
            said += _order_of_data(material.of(number))
        seeds = Counter((run.arm, run.seed) for run in material.of(number))
        said += [f"{arm}, seed {seed}, is there {n} times; the first counts." for (arm, seed), n in seeds.items() if n > 1]
    return said


def _order_of_data(runs: Sequence[Run]) -> list[str]:
    """Say which seeds' arms did not read the same batches, by the hashes that runs keep of every batch."""
    said = []
    for seed in sorted({run.seed for run in runs}):
        batches: dict[int, set[str]] = {}
        for run in runs:
            for row in run.rows if run.seed == seed else ():
                if row["split"] == "train" and isinstance(row.get("batch_hash"), str):
                    batches.setdefault(row["step"], set()).add(row["batch_hash"])
        differ = sorted(step for step, hashes in batches.items() if len(hashes) > 1)
        if differ:
            said.append(
                f"Seed {seed}: arms did not read the same batches (from step {differ[0]} on, {len(differ)} of {len(batches)} "
                "steps), so that pairs by seed share no data order."
            )
    return said


def differences(material: Material) -> dict[str, Any]:
    """Return the fields in which arms differ, and all fields: {"arms", "differing": [(field, cells)], "all": [...]}.

    A cell is a text and whether it is a number. Of an arm without a run the sweep's record says what it changes.
    """
    configs, names = [], []
    for (number, arm), runs in material.arms.items():
        config = next((run.standing.config for run in runs if run.standing.config), None)
        changes = material.groups[number].changes.get(arm, {})
        configs.append(changes if config is None else config)
        names.append(arm if config is not None else f"{arm} ({'not begun' if changes else 'no configuration'})")
    fields = dict.fromkeys(field for config in configs for field in config if field not in OWN)
    rows = [(field, [_cell(config, field) for config in configs]) for field in fields]
    differing = [
        (field, cells)
        for field, cells in rows
        if len({_short(config.get(field, "–")) for config in configs if field in config}) > 1
    ]
    return {"arms": names, "differing": differing, "all": rows}


def _cell(config: Mapping[str, Any], field: str) -> tuple[str, bool]:
    value = config.get(field, "–")
    return _short(value), type(value) in (int, float)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_short, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def provenance(material: Material) -> dict[str, Any]:
    """Return every start of every run, and the sets of package versions that they had."""
    sets: dict[str, list[str]] = {}
    starts = []
    for run in material.runs:
        for number, start in enumerate(run.starts):
            command = start.get("command")
            sets.setdefault(_versions(start), []).append(label_of(run))
            mesh = start.get("mesh") if isinstance(start.get("mesh"), dict) else {}
            starts.append(
                {
                    "run": label_of(run), "path": run.path, "number": number, "time": start.get("time", "–"),
                    "commit": str(start.get("git_commit") or "–")[:10], "dirty": bool(start.get("git_dirty")),
                    "digest": start.get("config_digest", "–"), "data": start.get("data", "–"),
                    "devices": start.get("devices", "–"), "processes": start.get("processes", 1),
                    "mesh": " × ".join(f"{axis} {size}" for axis, size in mesh.items() if size != 1) or "one device",
                    "command": " ".join(map(str, command)) if isinstance(command, list) else str(command or "–"),
                }
            )  # fmt: skip
    return {"starts": starts, "versions": [(text, len(set(runs))) for text, runs in sets.items() if text]}


def _versions(start: dict[str, Any]) -> str:
    versions = start.get("versions") if isinstance(start.get("versions"), dict) else {}
    return ", ".join(f"{name} {version}" for name, version in [("python", start.get("python", "?")), *versions.items()])
