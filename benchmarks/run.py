"""Run every benchmark, hold each result against its bar, and write docs/benchmarks.md.

    python -m benchmarks.run --torch OTHER/bin/python      # everything: half an hour of two quiet cores
    python -m benchmarks.run decode data                   # these parts; the page keeps what it has of the others
    python -m benchmarks.run --quick                       # fewer rounds, no page: does it run, and is nothing badly wrong?
    python -m benchmarks.run --list

Parts run one after another, each in a process of its own, on the CPU; one that fails does not stop the others. The exit status
is 1 where one fails or misses a bar of bars.json; else 3 where something could not be measured here (unless with --quick), for
then nothing is said of its bars; 2 is for what the caller can mend. Nothing else should run meanwhile: what a part's rounds
were disturbed by is said, but a disturbed ratio means little. OTHER is an environment with torch and transformers; without it
what is measured beside them is listed as not run, and what the page has of it stays, with its date. The GPU has a command of
its own, `python -m benchmarks.gpu`.
"""

import dataclasses
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from benchmarks.apart import run_apart
from benchmarks.bars import absent, judge, read_bars, value_of
from benchmarks.machine import machine, processor
from benchmarks.page import number, page_of, verdict
from benchmarks.parts import PARTS, ROOT, Part, check_bars, chosen, find_torch
from benchmarks.stored import store
from jaxlm.data.storage import write_atomically
from jaxlm.errors import JaxlmError

TAIL = 12  # lines of a failing part's output that are shown
NOT_MEASURED = 3  # the exit status where nothing failed, but something was not measured


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to run and where to write it."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PART ...]")] = ()
    """Parts; all by default."""
    torch: Annotated[str | None, tyro.conf.arg(metavar="PYTHON")] = None
    """The Python of an environment with torch and transformers."""
    quick: bool = False
    """Fewer rounds; writes no page unless --out is given."""
    patience: float = 3.0
    """A part is stopped after this many times the minutes that --list gives it, and two minutes more."""
    list: bool = False
    """List the parts and their bars, and run nothing."""
    out: Path | None = None
    """Folder for benchmarks.md, and benchmarks/ beside it with pictures and results.json; docs by default."""


def run_part(name: str, part: Part, arguments: Arguments, beat: Any) -> dict[str, Any]:
    """Measure one part and judge it; return its record with `status`: passed, bar missed, failed or not run.

    `beat` is called twice a second while it runs.
    """
    again = f"python -m benchmarks.run {name}" + (" --torch OTHER/bin/python" if part.torch else "")
    found: dict[str, Any] = {"command": again, "quick": arguments.quick, "took": 0.0, "results": []}
    lacking = part.lacks(arguments.torch)
    if lacking:
        return found | {"status": "not run", "reason": lacking}
    found["machine_before"], began = machine(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "record.json", Path(folder) / "log"
        command = part.command(output, quick=arguments.quick, torch=arguments.torch)
        limit = 60 * (2 + arguments.patience * part.minutes)
        status = run_apart(command, Path(folder), log, limit, beat)
        said = log.read_text(errors="replace").splitlines()[-TAIL:]
        measured = json.loads(output.read_text()) if output.exists() else None
    found["took"] = time.monotonic() - began
    # What was written is of no use where the program did not end by itself.
    if measured is None or status is None:
        too_long = f"it took more than {limit / 60:.0f} minutes and was stopped"
        why = too_long if status is None else f"it ended with status {status}"
        return found | {"status": "failed", "reason": _plain("\n".join([why, *said]), arguments)}
    try:
        found = settle(name, part, found | measured, arguments)
    except (KeyError, TypeError, ValueError) as fault:  # a record without what it should hold
        return found | {"status": "failed", "reason": f"its record cannot be judged: {fault!r}"}
    if status and found["status"] == "passed":
        why = f"it ended with status {status} although no bar was missed"
        found |= {"status": "failed", "reason": _plain("\n".join([why, *said]), arguments)}
    return found


def settle(name: str, part: Part, found: dict[str, Any], arguments: Arguments) -> dict[str, Any]:
    """Return a record that was measured with its bars and its status."""
    if part.carries_bars:
        found["results"], missed = laws_results(found["laws"], held=not arguments.quick)
        found["not_run"], found["lacks"] = list(found["not_measured"]), list(found["not_measured"].values())
        found["failure"] = "\n".join(found.get("failures", ()))
    elif found["judged"]:
        bars = read_bars(processor=processor())[name]
        missed = judge(found["results"], bars, found["lacks"])
        found["not_run"] = [name for name in absent(found["results"], bars) if bars[name].needs in found["lacks"]]
    else:
        missed = [] if arguments.quick else ["it was not measured at the shapes that its bars are for"]
    found["missed"] = missed
    if found.get("failure"):
        return found | {"status": "failed", "reason": _plain(found["failure"], arguments), "failure": None}
    return found | ({"status": "bar missed", "reason": "; ".join(missed)} if missed else {"status": "passed"})


def laws_results(laws: list[dict[str, Any]], *, held: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the exponents of laws in the form of other results, with the bars that they bring, and what misses one."""
    results = []
    for law in laws:
        for what in ("seconds", "bytes"):
            exponent, error, most = law[f"exponent_{what}"], law[f"exponent_{what}_error"], law["bar"][what]
            if exponent is None and most is None:
                continue
            keeps, name = law["shown"] and not law["faults"][what], f"{law['name']}: exponent of {what}{dated(law)}"
            ends = [None, None] if exponent is None else [exponent - (error or 0.0), exponent + (error or 0.0)]
            results.append({
                "name": name, "shown": law["shown"], "ours": exponent, "theirs": None, "ratio": None, "unit": "",
                "low": ends[0], "high": ends[1], "rounds": law[f"points_{what}"], "better": "lower", "bar": most,
                "passed": keeps if held and most is not None else None, "why": law["why"],
            })  # fmt: skip
    missed = [f"{law['name']}: {', '.join(law.get('missed') or ['its bar'])}" for law in laws if held and not law["passed"]]
    return results, missed


def dated(law: dict[str, Any]) -> str:
    """Return when a law was measured, where it comes from a record."""
    return f", {law['measured']['when'][:10]} at {law['measured']['commit']}" if "measured" in law else ""


def _plain(text: str, arguments: Arguments) -> str:
    """Return a text without this machine's paths: it stands on a page that others read."""
    for path, name in (
        (arguments.torch, "OTHER/bin/python"),
        (sys.executable, "python"),
        (str(ROOT), "."),
        (str(Path.home()), "~"),
    ):
        text = text.replace(path, name) if path else text
    return text


def write_page(folder: Path) -> Path:
    """Write the page and its pictures from the results that are stored in a folder."""
    from benchmarks.pictures import draw

    parts = json.loads((folder / "benchmarks" / "results.json").read_text())["parts"]
    page = folder / "benchmarks.md"
    write_atomically(page, page_of(parts, draw(parts, folder / "benchmarks")))
    return page


def show_parts(out: Console) -> None:
    """Print every part with what it takes and its bars."""
    table = Table("part", "minutes", "result", "bar", "aim", box=None)
    bars = read_bars(processor=processor())
    for name, part in PARTS.items():
        table.add_row(f"[bold]{name}[/]", f"{part.minutes:g}", part.title, "" if bars.get(name) else "brings its own")
        for bar in bars.get(name, {}).values():
            limit = f"{'>=' if bar.better == 'higher' else '<='} {number(bar.limit)}"
            table.add_row("", "", f"  {bar.name}", limit, number(bar.aim))
    out.print(table)


def overview(parts: dict[str, Part], done: dict[str, dict[str, Any]], now: str | None, since: float) -> Table:
    """Return the live table: what each part came to."""
    table = Table("part", "status", "seconds", "nearest to its bar", box=None)
    colors = {"passed": "green", "not run": "yellow", "bar missed": "red", "failed": "red"}
    for name in parts:
        if name in done:
            found = done[name]
            judged = [each for each in found["results"] if each.get("passed") is not None]
            nearest = min(judged, key=_margin, default=None)
            said = f"{nearest['name']}: {number(value_of(nearest))}, bar {number(nearest['bar'])}" if nearest else ""
            color = colors[found["status"]]
            table.add_row(name, f"[{color}]{found['status']}[/]", f"{found['took']:.0f}", escape(said))
        elif name == now:
            table.add_row(name, "[bold]running[/]", f"{time.monotonic() - since:.0f}", "")
        else:
            table.add_row(name, "[dim]waiting[/]", "", "")
    return table


def _margin(result: dict[str, Any]) -> float:
    from benchmarks.pictures import margin

    return margin(value_of(result), result["bar"], result["better"])


def tell(out: Console, name: str, found: dict[str, Any]) -> None:
    """Print what a part came to, a line a result."""
    out.print(f"[bold]{name}[/]: {found['status']}, {found['took']:.0f} s")
    for each in found["results"]:
        spread = f" ({number(each['low'])} to {number(each['high'])})" if each["rounds"] > 1 else ""
        unit = each["unit"] if each["ratio"] is None else ""
        worth = verdict(each).replace("**", "") + (", disturbed" if each.get("disturbed") else "")
        out.print(f"  {escape(each['name'])}: {number(value_of(each))} {unit}{spread}, {worth}")
    for name in found.get("not_run", ()):
        out.print(f"  {escape(name)}: not run, there is no {' or '.join(found['lacks'])}", style="yellow")
    if found.get("reason"):
        out.print(escape(found["reason"]), style="yellow" if found["status"] == "not run" else "red")


def _redraw(live: Live, *what: Any) -> None:
    live.update(overview(*what), refresh=True)


def main(arguments: Arguments) -> int:
    """Run, show and write; return the exit status that the module tells of."""
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    try:
        check_bars()
        parts = chosen(list(arguments.names))
        find_torch(arguments.torch)
    except JaxlmError as fault:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(fault))}", soft_wrap=True)
        return 2
    if arguments.list:
        show_parts(out)
        return 0
    folder = arguments.out or (None if arguments.quick else ROOT / "docs")
    if folder is not None and not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        Console(stderr=True).print(f"[bold red]error:[/] cannot write in {folder}")
        return 2
    done: dict[str, dict[str, Any]] = {}
    with Live(console=out, auto_refresh=False) as live:
        for name, part in parts.items():
            since = time.monotonic()
            beat = functools.partial(_redraw, live, parts, done, name, since)
            beat()
            done[name] = run_part(name, part, arguments, beat)
            tell(out, name, done[name])
            beat()
            if folder is not None:  # after every part: a machine that goes away takes no results with it
                store(folder, {name: done[name]})
    if not out.is_terminal:
        out.print()
    if folder is not None:
        out.print(f"wrote {write_page(folder)}")
    if arguments.quick:
        out.print("fewer rounds than a full run: what they say is rough")
    if any(found["status"] in ("failed", "bar missed") for found in done.values()):
        return 1
    absent = [name for name, found in done.items() if found["status"] == "not run" or found.get("not_run")]
    if absent and not arguments.quick:
        out.print(f"not everything was measured: {', '.join(absent)} (status {NOT_MEASURED})", style="yellow")
        return NOT_MEASURED
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
