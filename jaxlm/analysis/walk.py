"""`jaxlm analyze`: every probe at every checkpoint of runs, each once; what fails is listed, and the rest goes on."""

import dataclasses
import functools
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.analysis import store
from jaxlm.analysis.findings import show_findings
from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.probe_files import Probe
from jaxlm.analysis.series import ROWS, Reads, Series, opened_series
from jaxlm.analysis.view import View
from jaxlm.data.prepare import Report
from jaxlm.errors import CheckpointError, JaxlmError
from jaxlm.run import display
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.train.saved import saved_steps

RETIRED = "it was retired while the analysis went on"
SHOWN = 8  # folders that a line names


@dataclasses.dataclass
class Walked:
    """What came of an analysis."""

    made: int = 0
    """Results that were made."""
    kept: int = 0
    """Results that were there, and still hold."""
    not_suited: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    """(run, probe) -> why it says nothing of this model."""
    faults: dict[tuple[str, str, str], list[int]] = dataclasses.field(default_factory=dict)
    """(run, probe or "checkpoint" or "run", what is wrong) -> at which steps."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """By probe, of the results that were made."""

    def fault(self, run: Path, what: str, fault: BaseException | str, step: int | None = None) -> None:
        """Note something that went wrong; the rest goes on."""
        said = fault if isinstance(fault, str) else describe(fault)
        at = self.faults.setdefault((str(run), what, said), [])
        at += [step] if step is not None and step not in at else []


def describe(fault: BaseException) -> str:
    """Return what went wrong in a line: of what the user cannot mend also its kind and place."""
    if isinstance(fault, JaxlmError):
        return str(fault)
    places = traceback.extract_tb(fault.__traceback__)
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(fault).__name__}: {str(fault).partition(chr(10))[0]:.300}{where}"


def analyze(
    folders: Sequence[Path], probes: Sequence[Probe], *, steps: Sequence[int] = (), rows: int = ROWS,
    sources: Sequence[str] = (), out: Console | None = None,
) -> Walked:  # fmt: skip
    """Run probes at checkpoints of runs (`steps`; none: all) and keep what they find; what still holds is not made anew.

    A run, checkpoint or probe that fails is noted and the rest goes on. Each result is written whole as soon as it is there, so
    that an analysis that was stopped goes on where it was.
    """
    out, walked = out or display.console(), Walked()
    for folder in folders:
        try:
            with opened_series(folder, rows=rows, sources=sources, report=_told(out)) as series:
                todo = _todo(series, probes, _asked(series, steps, walked), walked)
                if any(todo.values()):
                    _walk(series, todo, walked, out)
        except Exception as fault:
            walked.fault(folder, "run", fault)
    return walked


def _told(out: Console) -> Report:
    """Return a report of the preparation of text: a line for each part, above the bar of the analysis."""
    said: set[str] = set()

    def report(what: str, fraction: float) -> None:
        if what not in said:
            said.add(what)
            out.print(f"{what} ...", soft_wrap=True)

    return report


def _asked(series: Series, steps: Sequence[int], walked: Walked) -> list[int]:
    """Return those of the steps that there are; the others are noted."""
    known = ", ".join(map(str, series.steps))
    for step in sorted(set(steps) - set(series.steps)):
        walked.fault(series.folder, "checkpoint", f"there is no checkpoint of this step: the run has {known}", step)
    return sorted(set(steps) & set(series.steps)) if steps else list(series.steps)


def _todo(series: Series, probes: Sequence[Probe], steps: Sequence[int], walked: Walked) -> dict[int, list[Probe]]:
    """Return which probes are to be run at which steps."""
    todo: dict[int, list[Probe]] = {step: [] for step in steps}
    for step in steps:
        for probe in probes:
            result = _kept(series, probe, step)
            if result is None:
                todo[step].append(probe)
                continue
            walked.kept += 1
            if "not_suited" in result:
                walked.not_suited[str(series.folder), probe.name] = result["not_suited"]
    return todo


def _kept(series: Series, probe: Probe, step: int) -> dict[str, Any] | None:
    try:
        return store.valid_result(series, probe, step)
    except (JaxlmError, OSError):  # what it read cannot be had now: the probe itself will say so
        return None


def _walk(series: Series, todo: dict[int, list[Probe]], walked: Walked, out: Console) -> None:
    saves = series.folder / CHECKPOINTS
    with display.measuring(out, sum(map(len, todo.values()))) as advance:
        for step, probes in todo.items():
            series.steps = tuple(sorted({*series.steps} & {*saved_steps(saves)}))  # a run at work retires some
            view, left = View(series, step), len(probes)
            for probe in probes:
                advance(0, f"{series.folder.name}  step {step}  {probe.name}")
                try:
                    _measure(series, view, probe, walked)
                except CheckpointError as fault:
                    gone = step not in saved_steps(saves)
                    walked.fault(series.folder, "checkpoint", RETIRED if gone else fault, step)
                    if gone or step in series.unread:
                        break
                left -= 1
                advance(1, f"{series.folder.name}  step {step}  {probe.name}")
            advance(left, "")


def _measure(series: Series, view: View, probe: Probe, walked: Walked) -> None:
    """Run one probe at one checkpoint and keep what comes of it; CheckpointError where one of the run cannot be read."""
    series.reads, begun = Reads(), time.perf_counter()
    found: Any = {}
    reason = ""
    try:
        found = probe(view)
    except NotSuited as fault:
        reason = walked.not_suited[str(series.folder), probe.name] = str(fault)
    except (Exception, SystemExit) as fault:
        if any(fault is known for known in series.unread.values()):  # one that the probe raises itself is its own
            raise
        _failed(series, view, probe, walked, fault)
        return
    seconds = time.perf_counter() - begun
    try:
        store.write_result(series, probe, view.step, seconds, found, reason)
    except CheckpointError:
        raise
    except Exception as fault:
        _failed(series, view, probe, walked, fault)
        return
    walked.made += 1
    walked.seconds[probe.name] = walked.seconds.get(probe.name, 0.0) + seconds


def _failed(series: Series, view: View, probe: Probe, walked: Walked, fault: BaseException) -> None:
    if any(fault is known for known in series.untold):  # no fault of the probe, nor of this checkpoint
        walked.fault(series.folder, "text", fault)
    else:
        walked.fault(series.folder, probe.name, fault, view.step)
    with suppress(OSError):  # it is listed all the same
        store.write_fault(series, probe, view.step, describe(fault))


def analyze_runs(
    folders: Sequence[Path], probes: Sequence[Probe], steps: Sequence[int], rows: int, sources: Sequence[str],
    unread: Mapping[Path, Exception] = {}, not_yet: Sequence[Path] = (),
) -> bool:  # fmt: skip
    """Analyze runs and say what was found; return whether all went well.

    `unread` are folders that could not be looked into, and why; `not_yet` trials without a checkpoint so far.
    """
    out, begun = display.console(), time.monotonic()
    walked = analyze(folders, probes, steps=steps, rows=rows, sources=sources, out=out)
    for folder, fault in unread.items():
        walked.fault(folder, "sweep", fault)
    show = functools.partial(out.print, soft_wrap=True, markup=False)
    if not_yet:
        named = ", ".join(map(str, not_yet[:SHOWN])) + (f" and {len(not_yet) - SHOWN} more" if len(not_yet) > SHOWN else "")
        show(f"not yet: {named} {'has' if len(not_yet) == 1 else 'have'} no checkpoint so far", style="dim")
    for folder in folders:
        show_findings(folder, [probe.name for probe in probes])
    for (run, probe), reason in walked.not_suited.items():
        show(f"{probe} says nothing of {run}: {reason}", style="dim")
    for (run, what, fault), at in walked.faults.items():
        where = f" at step {', '.join(map(str, at))}" if at else ""
        out.print("[bold red]fault:[/] ", end="")
        show(f"{what} of {run}{where}: {fault}")
    took = time.monotonic() - begun
    show(f"{walked.made} results made, {walked.kept} were there; {took:.1f} s. They are in RUN/{store.ANALYSIS}")
    return not walked.faults
