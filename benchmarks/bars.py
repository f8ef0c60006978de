"""The bars of every benchmark, kept in bars.json, and what a result is worth beside its own.

A bar is a floor (or, where less is better, a ceiling) that holds on the machine it was measured on: a result on its wrong side
is a regression. A ratio of two programs differs from processor to processor, so a bar may have other numbers "on" those whose
name holds a word. An aim is what the project wants, everywhere; it is shown, met or not, and is no bar.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("bars.json")


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a result must be, `at_least` or `at_most`, what it should be, and where both come from."""

    name: str
    why: str
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None
    needs: str = ""  # what must be there for it to be measured: "torch", "browser"

    def __post_init__(self):
        limits = [limit for limit in (self.at_least, self.at_most) if limit is not None]
        numbers = [*limits, *([] if self.aim is None else [self.aim])]
        if len(limits) != 1 or not all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers):
            raise ValueError(f"the bar of {self.name!r} needs one positive number, at_least or at_most")
        if not self.why:
            raise ValueError(f"the bar of {self.name!r} does not say where it comes from")
        if self.aim is not None and not self.holds(self.aim):
            raise ValueError(f"the aim of {self.name!r}, {self.aim:g}, is itself on the wrong side of its bar, {self.limit:g}")

    @property
    def limit(self) -> float:
        """The number of the bar."""
        return self.at_least if self.at_least is not None else self.at_most

    @property
    def better(self) -> str:
        """Whether a "higher" or a "lower" result is better."""
        return "higher" if self.at_least is not None else "lower"

    def holds(self, value: float) -> bool:
        """Whether a result is on the right side; NaN never is."""
        return value >= self.at_least if self.at_least is not None else value <= self.at_most

    def meets_aim(self, value: float) -> bool | None:
        """Whether a result is what the project wants; None where it has named nothing beyond the bar."""
        if self.aim is None:
            return None
        return value >= self.aim if self.at_least is not None else value <= self.aim


def read_bars(file: Path = FILE, processor: str = "") -> dict[str, dict[str, Bar]]:
    """Return a processor's bars by part and name of result; ValueError where the file contradicts itself."""
    found: dict[str, dict[str, Bar]] = {}
    for part, entries in json.loads(file.read_text()).items():
        bars = [bar_on(processor, **entry) for entry in entries]
        found[part] = {bar.name: bar for bar in bars}
        if len(found[part]) != len(bars):
            raise ValueError(f"two bars of {part} have the same name")
    return found


def bar_on(processor: str, on: Mapping[str, float] | None = None, **entry: Any) -> Bar:
    """Return the bar of an entry; its number is that of the first word of `on` that a processor's name holds, else its own."""
    base, kind = Bar(**entry), "at_least" if "at_least" in entry else "at_most"
    others = {word: dataclasses.replace(base, **{kind: limit}) for word, limit in (on or {}).items()}
    return next((bar for word, bar in others.items() if word in processor), base)


def value_of(result: dict[str, Any]) -> float:
    """Return the number that is judged: the ratio, or where nothing stands beside ours, ours."""
    value = result["ours"] if result["ratio"] is None else result["ratio"]
    return math.nan if value is None else value


def judge(results: list[dict[str, Any]], bars: dict[str, Bar], lacks: Collection[str] = ()) -> list[str]:
    """Write its bar and verdict into every result, and return a sentence for each bar that is missed or has no result.

    A result with no bar keeps a verdict of None. Bars that need something of `lacks` may have no result.
    """
    missed = []
    for result in results:
        bar = bars.get(result["name"])
        value = value_of(result)
        if bar is None:
            result["passed"] = None
            continue
        if bar.better != result["better"]:
            raise ValueError(f"{result['name']!r} is better {result['better']}, its bar says {bar.better}")
        result.update(bar=bar.limit, aim=bar.aim, passed=bar.holds(value), aim_met=bar.meets_aim(value), why=bar.why)
        if not result["passed"]:
            unit = f" {result['unit']}" if result["ratio"] is None else ""
            missed.append(f"{result['name']}: {value:.3g}{unit}, {wanted(bar.better, bar.limit)}")
    return missed + [f"{name}: not measured" for name in absent(results, bars) if bars[name].needs not in lacks]


def absent(results: list[dict[str, Any]], bars: dict[str, Bar]) -> list[str]:
    """Return the names of bars that no result has."""
    there = {result["name"] for result in results}
    return [name for name in bars if name not in there]


def wanted(better: str, limit: float) -> str:
    """Return what a bar asks for, in words."""
    return f"to be {limit:g} at {'least' if better == 'higher' else 'most'}"
