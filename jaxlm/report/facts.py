"""What a report says in tables: how runs stand, what they differ in, what they cost, where they come from, what to doubt."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlm.report.curves import arms_of
from jaxlm.report.gather import Material, Run
from jaxlm.report.maps import label_of
from jaxlm.run.goodput import KINDS

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
        traceback = run.failure.get("traceback") or ""
        text = "\n".join(map(str, traceback)) if isinstance(traceback, list) else str(traceback)
        found.append({"run": label_of(run), "path": run.path, "kind": stands.kind, "why": why, "traceback": text.strip()})
    for group in material.groups:
        for arm, seed, folder in group.missing:
            found.append(
                {
                    "run": f"{arm}, seed {seed}",
                    "path": folder,
                    "kind": "missing",
                    "why": "no run that can be read",
                    "traceback": "",
                }
            )
    return found


def doubts(material: Material) -> list[str]:
    """Return what makes runs hard to compare: other code, packages or devices, uncommitted changes, data in another order."""
    starts = [start for run in material.runs for start in run.starts]
    said = []
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
                if row["split"] == "train" and row.get("batch_hash"):
                    batches.setdefault(row["step"], set()).add(row["batch_hash"])
        differ = sorted(step for step, hashes in batches.items() if len(hashes) > 1)
        if differ:
            said.append(
                f"Seed {seed}: arms did not read the same batches (from step {differ[0]} on, {len(differ)} of {len(batches)} "
                "steps), so that pairs by seed share no data order."
            )
    return said


def differences(material: Material) -> dict[str, Any]:
    """Return the fields in which arms differ, and all fields: {"arms", "differing": [(field, values)], "all": [...]}."""
    arms = arms_of(material)
    configs = [_config(material.of(*arm)) for arm in arms]
    fields = dict.fromkeys(field for config in configs for field in config if field not in OWN)
    known = [config for config in configs if config]
    rows = [(field, [_short(config.get(field, "–")) if config else "?" for config in configs]) for field in fields]
    differing = [(f, v) for f, v in rows if len({_short(config.get(f, "–")) for config in known}) > 1]
    return {"arms": [name for _, name in arms], "differing": differing, "all": rows}


def _config(runs: Sequence[Run]) -> dict[str, Any]:
    return next((run.standing.config for run in runs if run.standing.config), {})


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_short, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def costs(material: Material) -> dict[str, Any]:
    """Return what each run cost, and seconds by kind: {"rows": [...], "total": {...}, "kinds": [...], "seconds": [[...]]}."""
    rows, seconds = [], []
    for run in material.runs:
        spent = _seconds(run)
        train = [row for row in run.rows if row["split"] == "train"]
        total = sum(spent.values()) or (run.standing.seconds or 0.0)
        steps = (train[-1]["step"] + 1) if train else 0
        rows.append(
            {
                "run": label_of(run), "hours": total / 3600, "goodput": spent["stepping"] / total if total else None,
                "redone": spent["redone"], "starts": len(run.starts), "tokens": run.standing.tokens,
                "speed": _median(train, "tokens_per_second"), "mfu": _median(train, "mfu"),
                "flops": run.flops_per_step * steps if run.flops_per_step else None, "steps": steps,
            }
        )  # fmt: skip
        seconds.append([round(spent[kind], 1) for kind in KINDS])
    total = {
        name: sum(row[name] for row in rows if row[name] is not None)
        for name in ("hours", "redone", "starts", "tokens", "flops", "steps")
    }
    used = [place for place, _ in enumerate(KINDS) if any(line[place] for line in seconds)]
    return {
        "rows": rows, "total": total, "kinds": [KINDS[i] for i in used],
        "seconds": [[line[i] for i in used] for line in seconds],
    }  # fmt: skip


def _seconds(run: Run) -> dict[str, float]:
    """Return the seconds of each kind over all starts, as the newest goodput row has them."""
    newest = next(
        (row for row in reversed(run.rows) if row["split"] == "goodput" and isinstance(row.get("all_seconds"), dict)), {}
    )
    spent = newest.get("all_seconds", {})
    return {kind: float(spent.get(kind) or 0.0) for kind in KINDS}


def _median(rows: Iterable[dict[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if type(row.get(name)) in (int, float)]
    return statistics.median(known) if known else None


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
