"""What must be said below a sweep's table: what is missing from it, what is not alike, and which differences hold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxlm.run.directory import read_starts
from jaxlm.sweep.arms import Runs, speed_up, unlike
from jaxlm.sweep.read import Entry, Record
from jaxlm.sweep.trials import CODE


def said_of_runs(record: Record, runs: Mapping[str, Runs], failed: Mapping[str, Mapping[int, str]]) -> list[str]:
    """Say which trials have no result, or one that is not finite, or are of another version of the code."""
    notes = []
    missing = [e for e in record.trials if e.seed not in runs[e.arm] and e.seed not in failed[e.arm]]
    if missing:
        notes.append(f"{len(missing)} of {len(record.trials)} trials are not finished and not counted: {_named(missing)}.")
    for arm, entries in record.arms.items():
        if failed[arm]:
            why = "; ".join(f"{seed}: {words}" for seed, words in failed[arm].items())
            notes.append(f"{arm}: {len(failed[arm])} of {len(entries)} seeds failed and are not counted: {why}.")
    diverged = [entry for entry in record.trials if entry.seed in runs[entry.arm] and runs[entry.arm][entry.seed].diverged]
    if diverged:
        notes.append(f"Diverged, and counted as not finite: {_named(diverged)}.")
    others = [entry for entry in record.trials if entry.seed in runs[entry.arm] and (entry.other_code or _of_several(entry))]
    if others:
        notes.append(f"Trained, in whole or part, by another version of the code than {record.code[:CODE]}: {_named(others)}.")
    if any(runs.values()) and not any(run.rows for mine in runs.values() for run in mine.values()):
        notes.append("No run was validated: hold text out with data.validation_fraction, or name data.validation_sources.")
    return notes


def _named(entries: Iterable[Entry]) -> str:
    """Name trials arm by arm: "wide, seeds 0, 1; slow, seed 2"."""
    arms: dict[str, list[str]] = {}
    for entry in entries:
        arms.setdefault(entry.arm, []).append(str(entry.seed))
    return "; ".join(f"{arm}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for arm, seeds in arms.items())


def _of_several(entry: Entry) -> bool:
    """Whether a start of the run says that it was made by other code than its name says."""
    said = [start.get("code") for start in read_starts(entry.run) if isinstance(start, Mapping)]
    return any(isinstance(code, str) and code[:CODE] != entry.run.name[-CODE:] for code in said)


def said_of_conditions(runs: Mapping[str, Runs], control: str) -> list[str]:
    """Say in which respects arms are no like for like with the control, seed by seed, and why they have no speed-up."""
    notes = []
    for arm, mine in runs.items():
        common = [(mine[seed].conditions, runs[control][seed].conditions) for seed in mine if seed in runs[control]]
        if differing := unlike(common):
            notes.append(f"{arm} and {control} differ in {', '.join(differing)}: compare them with care.")
        if arm != control and (speed := speed_up(mine, runs[control])) and speed.why:
            notes.append(f"{arm} has no speed-up: {speed.why}.")
    return notes


def said_of_differences(arms: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Say what holds among all differences of a metric; nothing is to be said of one arm.

    None does of an arm that has failed seeds, or whose control has: which seeds are left is no longer a matter of chance.
    """
    adjusted = {arm["arm"]: (arm["metrics"][metric]["difference"] or {}).get("adjusted_p") for arm in arms}
    known = {arm: p for arm, p in adjusted.items() if p is not None}
    if len(known) < 2:
        return []
    failed = {arm["arm"] for arm in arms if arm["failed"]}
    if any(arm["control"] and arm["failed"] for arm in arms):
        failed = set(known)
    small = [arm for arm, p in known.items() if p < 0.05]
    holding, doubtful = [arm for arm in small if arm not in failed], [arm for arm in small if arm in failed]
    found = f"the differences of {'; '.join(holding)} hold" if holding else "no difference holds"
    said = f"{title(metric)}: {len(known)} arms were compared; by Holm's correction {found} at 5 %."
    return [said + (f" Not {'; '.join(doubtful)}: seeds failed." if doubtful else "")]


def title(metric: str) -> str:
    """Return what a metric is called in a heading."""
    return f"validation {metric.replace('_', ' ')}"
