"""docs/benchmarks.md: what every part measured, beside its bars, written from the stored results."""

import math
from typing import Any

from benchmarks.bars import value_of
from benchmarks.parts import PARTS

HEAD = """# Benchmarks

Written by `python -m benchmarks.run --torch OTHER/bin/python`; OTHER is an environment with torch and transformers, without
which what is measured beside them is not run. The numbers behind this page are in [results.json](benchmarks/results.json).

What stands beside something else took turns with it, and ratios are of neighbours in time: shown are the median over rounds
and, in brackets, the least and the greatest. A **bar** is what a result must keep on this machine, or the command ends with
status 1: a floor of regression, recorded in `benchmarks/bars.json` with its reason, whose figures are of an AMD EPYC where no
processor is named. An **aim** is what the project wants; where it is not met, that is said. What a run cannot measure stays
as it was measured before, with its date, and that run ends with status 3.
"""


def page_of(parts: dict[str, dict[str, Any]], pictures: list[str]) -> str:
    """Return the page for the stored records of parts, with the pictures that were drawn."""
    lines = [HEAD, _made_on(parts), "", *(f"![{name.removesuffix('.png')}](benchmarks/{name})\n" for name in pictures)]
    lines += ["", *_overview(parts)]
    for name, part in PARTS.items():
        if name in parts:
            lines += ["", *_section(name, part.title, parts[name])]
    lines += [
        "",
        "## On a GPU",
        "",
        "`python -m benchmarks.gpu` is written and tried at tiny shapes on a CPU; no GPU has run it yet.",
    ]
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    """Return a number with three digits that count."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(result: dict[str, Any]) -> str:
    """Return what a result is worth beside its bar, and its aim."""
    if result.get("passed") is None:
        return "no bar"
    if not result["passed"]:
        if not result.get("shown", True):
            return "**not shown as far as was asked**"
        return "**below its bar**" if result["better"] == "higher" else "**above its bar**"
    return {True: "bar kept, aim met", False: "bar kept, **aim not met**", None: "bar kept"}[result.get("aim_met")]


def _made_on(parts: dict[str, dict[str, Any]]) -> str:
    """Return what the parts were measured on, a line for each way in which they differ."""
    found: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part["status"] != "not run" and part.get("machine"):
            about = part["machine"]
            versions = ", ".join(f"{package} {version}" for package, version in part["versions"].items())
            said = (
                f"{part['when'][:10]}, commit {part['commit']}: {about['processor']}, {about['cores']} cores, "
                f"{part['threads']} threads, {about.get('memory_gib', '?')} GiB, {about['system']}; {versions}"
            )
            said += "; **the sources changed while it was measured**" if part.get("changed_meanwhile") else ""
            said += "; **fewer rounds than a full run** (`--quick`)" if part.get("quick") else ""
            found.setdefault(said, []).append(name)
    return "\n".join(f"- {', '.join(names)}: {said}." for said, names in found.items())


def status_of(part: dict[str, Any]) -> str:
    """Return what a part came to when it was measured, and that the last run could not measure it."""
    return part["status"] + (", not run since" if "not_run_now" in part else "")


def _overview(parts: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| part | status | load before | took |", "|---|---|---:|---:|"]
    for name in PARTS:
        part = parts.get(name)
        if part is None:
            lines.append(f"| {name} | never run | | |")
        else:
            load = (part.get("machine_before") or {}).get("load", "")
            lines.append(f"| [{name}](#{name}) | {status_of(part)} | {load} | {part['took']:.0f} s |")
    return lines


def _section(name: str, title: str, part: dict[str, Any]) -> list[str]:
    lines = [f"## {name}", "", f"{title}. Alone: `{part['command']}`."]
    if part.get("reason"):
        first, *more = part["reason"].splitlines()
        lines += ["", f"**{part['status'].capitalize()}**: {first}", *(["", "```text", *more, "```"] if more else [])]
    if "not_run_now" in part:
        now = part["not_run_now"]
        lines += ["", f"**Not run on {now['when'][:10]}**: {now['reason']}. What follows was measured on {part['when'][:10]}."]
    if not part.get("results"):
        return lines
    lines += ["", "| | ours | beside it | judged | aim | bar | |", "|---|---:|---:|---:|---:|---:|---|"]
    earlier = part.get("earlier", [])
    for result in [*part["results"], *earlier]:
        unit = f" {result['unit']}" if result["unit"] else ""
        spread = f" ({number(result['low'])} to {number(result['high'])})" if result["rounds"] > 1 else ""
        theirs = f"{number(result['theirs'])}{unit}" if result["theirs"] is not None else ""
        bar = f"{'≥' if result['better'] == 'higher' else '≤'} {number(result['bar'])}" if result["bar"] is not None else ""
        lines.append(
            f"| {result['name']} | {number(result['ours'])}{unit} | {theirs} | {number(value_of(result))}{spread} "
            f"| {number(result.get('aim'))} | {bar} | {verdict(result)}{', disturbed' if result.get('disturbed') else ''}"
            f"{', measured ' + result['measured']['when'][:10] + ', not run since' if 'measured' in result else ''} |"
        )
    for absent in [name for name in part.get("not_run", ()) if name not in {each["name"] for each in earlier}]:
        lines.append(f"| {absent} | | | | | | not run: there is no {' or '.join(part['lacks']) or 'result'} |")
    reasons = dict.fromkeys(result["why"] for result in [*part["results"], *earlier] if result.get("why"))
    return [*lines, "", *(f"- {reason}" for reason in reasons)]
