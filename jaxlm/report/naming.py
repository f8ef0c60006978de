"""What arms are called where nobody named them: by the fewest fields of their configurations that tell them apart."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_VALUE, LONGEST_NAME = 22, 34

Settings = Mapping[str, Any]


def arm_names(own: Sequence[str], settings: Sequence[Settings], fields: Sequence[str] = ()) -> list[str]:
    """Return a name for each arm: its run's own, with the fields that set it apart from others of that name.

    `fields` are those by which runs were put into arms, where that was asked for. Arms that no field tells apart get numbers.
    """
    names = []
    chosen = {name: _telling([s for s, theirs in zip(settings, own, strict=True) if theirs == name]) for name in set(own)}
    for name, mine in zip(own, settings, strict=True):
        shown = list(fields) if fields else chosen[name]
        said = ", ".join(f"{label} {_short(mine.get(field, '–'))}" for field, label in _labels(shown).items())
        names.append(f"{name} ({said})" if said and len(set(own)) > 1 else said or name)
    seen: dict[str, int] = {}
    for place, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[place] = name if seen[name] == 1 else f"{name} [{seen[name]}]"
    return names


def _telling(settings: Sequence[Settings]) -> list[str]:
    """Return the fields that tell these apart, few of them: first what reads well, then paths, lists and long texts."""
    texts = [{field: json.dumps(value, default=str) for field, value in s.items()} for s in settings]
    values = {field: [t.get(field, "") for t in texts] for field in dict.fromkeys(f for t in texts for f in t)}
    values = {field: column for field, column in values.items() if len(set(column)) > 1}
    parts = [0] * len(settings)
    chosen: list[str] = []
    for readable in (True, False):
        able = [f for f, column in values.items() if all(map(_reads_well, column)) == readable]
        while able and len(set(parts)) < len(settings):
            best = max(able, key=lambda field: len(set(zip(parts, values[field], strict=True))))
            joined = list(zip(parts, values[best], strict=True))
            if len(set(joined)) == len(set(parts)):
                break
            numbers = {each: number for number, each in enumerate(dict.fromkeys(joined))}
            parts = [numbers[each] for each in joined]
            chosen.append(best)
            able.remove(best)
    most = len(set(parts))
    for field in list(chosen):  # what later fields made needless
        rest = [other for other in chosen if other != field]
        if len(set(zip(*(values[other] for other in rest), strict=True))) == most and rest:
            chosen = rest
    return chosen


def _reads_well(text: str) -> bool:
    return len(text) <= LONGEST_VALUE and not any(sign in text for sign in "/[{")


def _labels(fields: Sequence[str]) -> dict[str, str]:
    """Return the last word of each dotted field, or as many as tell it from the others."""
    labels = {}
    for field in fields:
        words = field.split(".")
        others = [other.split(".") for other in fields if other != field]
        most = next((n for n in range(1, len(words)) if all(o[-n:] != words[-n:] for o in others)), len(words))
        labels[field] = ".".join(words[-most:])
    return labels


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
    return shortened(text, LONGEST_VALUE)


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many signs, what is too much taken out of its middle: paths differ at their ends."""
    if len(text) <= most:
        return text
    front = (most - 1) // 3
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"


def keys(names: Sequence[str]) -> list[str]:
    """Return A1, A2 and so on where a name is too long for a legend, and empty texts where none is."""
    return [f"A{place}" if any(len(name) > LONGEST_NAME for name in names) else "" for place, _ in enumerate(names, start=1)]
