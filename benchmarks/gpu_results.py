"""What the turns of benchmarks/gpu.py come to: speeds, utilisation and ratios, each beside its target."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

MFU_1B, TORCH_1B, SWITCH = 0.55, 1.05, 0.75
DENSE = {"switch": "350m", "tiny-switch": "tiny"}  # the dense shape that a Switch model is held against


@dataclasses.dataclass(frozen=True)
class Case:
    """A model at a length."""

    shape: str
    length: int
    packed: bool = False

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.shape}, {self.length:,} tokens{', packed' if self.packed else ''}"


def targets(cases: Sequence[Case]) -> dict[str, tuple[float, str]]:
    """Return, for each name of a result that has one, its target, and what is needed for it to be measured."""
    found = {}
    for case in cases:
        if case.shape == "1b":
            found[f"{case.name}: MFU"] = (MFU_1B, "")
            if not case.packed:
                found[f"{case.name}: jaxlm / torch"] = (TORCH_1B, "torch")
        if case.shape == "switch":
            found[f"{case.name} / {DENSE[case.shape]}"] = (SWITCH, "")
    return found


def result(name: str, ours: Sequence[float], theirs: Sequence[float] | None, unit: str, bar: float | None) -> dict[str, Any]:
    """Return one measure in the form of all benchmarks: medians, and least and greatest over the rounds."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)] if theirs else list(ours)
    return {
        "name": name, "ours": statistics.median(ours), "theirs": statistics.median(theirs) if theirs else None,
        "ratio": statistics.median(values) if theirs else None, "low": min(values), "high": max(values), "rounds": len(values),
        "unit": unit, "bar": bar, "better": "higher",
    }  # fmt: skip


def results_of(measured: dict[Case, list[dict[str, dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Return speed, utilisation and ratios of every case, with the target where there is one."""
    found = []
    bars = {name: target for name, (target, _) in targets(list(measured)).items()}
    for case, rounds in measured.items():
        speeds = [turn["jaxlm"]["tokens_per_second"] for turn in rounds]
        found.append(result(f"{case.name}: tokens/s", speeds, None, "tokens/s", None))
        shares = [turn["jaxlm"]["mfu"] for turn in rounds]
        if None not in shares:
            found.append(result(name := f"{case.name}: MFU", shares, None, "", bars.get(name)))
        if "torch" in rounds[0]:
            others = [turn["torch"]["tokens_per_second"] for turn in rounds]
            found.append(result(name := f"{case.name}: jaxlm / torch", speeds, others, "tokens/s", bars.get(name)))
        dense = Case(DENSE.get(case.shape, ""), case.length)
        if dense in measured:
            others = [turn["jaxlm"]["tokens_per_second"] for turn in measured[dense]]
            found.append(result(name := f"{case.name} / {dense.shape}", speeds, others, "tokens/s", bars.get(name)))
    return found


def missed(results: Sequence[dict[str, Any]], cases: Sequence[Case], lacks: Sequence[str] = ()) -> list[str]:
    """Return in words which targets of the cases asked for are not reached, or have no result though nothing was lacking."""
    said, values = [], {each["name"]: each["ours"] if each["ratio"] is None else each["ratio"] for each in results}
    for name, (target, needs) in targets(cases).items():
        if name in values and not values[name] >= target:  # NaN never is
            said.append(f"{name}: {values[name]:.3g}, {target:g} wanted")
        elif name not in values and needs not in lacks:
            said.append(f"{name}: not measured, {target:g} wanted")
    return said
