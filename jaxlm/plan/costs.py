"""What one call of a compiled program costs, by the compiler's own estimates, by operation and by line of code."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from jaxlm.plan.collectives import Collective, Kind, collectives
from jaxlm.plan.hlo import Shape, parse
from jaxlm.plan.kernels import Work, kernel, product_flops, uncosted
from jaxlm.plan.schedule import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Cycles of one operation of the traced program."""

    op_name: str
    source: str
    """`file:line`."""
    cycles: int
    """Of all executions in one call of the program together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramCosts:
    """What one call of a program costs on each device."""

    cycles: int
    """The compiler's estimates times executions, in cycles of a TPU core's clock; 0 for a GPU, whose compiler makes none.

    Holds arithmetic and memory traffic of fusions and single operations. Not in it: `collectives`, `kernels`, `uncosted`.
    """
    flops: float
    """Floating-point operations of matrix products and convolutions outside of kernels, loops as often as they turn."""
    cycles_by_source: tuple[Cost, ...]
    """Largest first; they add up to `cycles`."""
    collectives: tuple[Collective, ...]
    kernels: tuple[Work, ...]
    """Calls of kernels written by hand or from a library, which the compiler does not cost."""
    uncosted: tuple[Work, ...]
    """Gathers, scatters, sorts, copies and custom calls that the compiler does not cost; on a GPU all that is no kernel."""
    unknown_loops: tuple[str, ...]
    """op_names of loops that count once, for the text does not tell how often they turn (data decides)."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json`; `from_json` reads them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "ProgramCosts":
        """Return the costs whose `to_json` this is."""

        def work(row: Mapping[str, Any]) -> Work:
            arrays = {
                key: tuple(Shape(shape["dtype"], tuple(shape["dims"])) for shape in row[key]) for key in ("operands", "results")
            }
            return Work(**{**row, **arrays})

        return cls(
            cycles=stored["cycles"], flops=stored["flops"], unknown_loops=tuple(stored["unknown_loops"]),
            cycles_by_source=tuple(Cost(**row) for row in stored["cycles_by_source"]),
            collectives=tuple(Collective(**{**row, "axes": tuple(row["axes"])}) for row in stored["collectives"]),
            kernels=tuple(map(work, stored["kernels"])), uncosted=tuple(map(work, stored["uncosted"])),
        )  # fmt: skip


def program_costs(text: str, mesh_shape: Mapping[str, int]) -> ProgramCosts:
    """Return what a compiled program costs, from its text (`compiled.as_text()`).

    `mesh_shape` gives the axes of the mesh it was compiled for, in order, as `mesh.shape` does; devices are counted row by row.
    What is modelled: the compiler's estimate of every fusion (a roofline with tiles), and the bytes of every collective.
    Not modelled: the time of collectives and what hides behind what, kernels but for FLOPs and bytes, traffic of other
    programs, and the memory's layouts beyond what the compiler's estimate knows of them.
    """
    program = parse(text)
    schedule = Schedule(program)
    cycles: dict[tuple[str, str], int] = {}
    flops = 0.0
    kernels: list[Work] = []
    rest: list[Work] = []
    for name, run in schedule.runs.items():
        for each in program.computations[name] if run.times else ():
            flops += run.times * product_flops(each)
            if run.home != name or each.opcode.removesuffix("-start") in get_args(Kind):
                continue
            if each.cycles:
                place = each.origin
                cycles[place] = cycles.get(place, 0) + run.times * each.cycles
            elif work := kernel(each, run.times):
                kernels.append(work)
            elif work := uncosted(program, each, run.times):
                rest.append(work)
    rows = [Cost(op_name=op_name, source=source, cycles=count) for (op_name, source), count in cycles.items()]
    return ProgramCosts(
        cycles=sum(cycles.values()), flops=flops, cycles_by_source=tuple(sorted(rows, key=lambda row: -row.cycles)),
        collectives=collectives(schedule, mesh_shape), kernels=_alike(kernels), uncosted=_alike(rest),
        unknown_loops=tuple(loop.op_name for loop in schedule.unknown_loops),
    )  # fmt: skip


def _alike(works: list[Work]) -> tuple[Work, ...]:
    """Return one entry for those that differ in nothing but their executions, most bytes first."""
    times: dict[Work, int] = {}
    for work in works:
        key = dataclasses.replace(work, times=0)
        times[key] = times.get(key, 0) + work.times
    merged = [dataclasses.replace(work, times=count) for work, count in times.items()]
    return tuple(sorted(merged, key=lambda work: -work.bytes * work.times))


Measure = Literal["cycles", "wire bytes", "kernel bytes", "uncosted bytes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What became dearer or cheaper between two programs."""

    measure: Measure
    what: str
    """The operation: its op_name, and of a collective or a kernel in front of that which."""
    source: str
    before: int
    after: int

    def __str__(self) -> str:
        change = self.after - self.before
        share = f"{change / self.before:+.1%}" if self.before else "new"
        return f"{change:+,} {self.measure} ({self.before:,} -> {self.after:,}, {share})  {self.what}  {self.source}".rstrip()


def difference(before: ProgramCosts, after: ProgramCosts) -> tuple[Change, ...]:
    """Return what differs by operation and source line, largest first by its share of that measure's total before.

    Where only lines have moved, by edits above them, operations are the same ones.
    """
    old, new = _measured(before), _measured(after)
    totals: dict[Measure, int] = {}
    for (measure, _, _), value in old.items():
        totals[measure] = totals.get(measure, 0) + value
    moved = _moved(old, new)
    old = {moved.get(place, place): value for place, value in old.items()}
    changes = [
        Change(measure=place[0], what=place[1], source=place[2], before=old.get(place, 0), after=new.get(place, 0))
        for place in dict.fromkeys((*old, *new))
        if old.get(place, 0) != new.get(place, 0)
    ]
    return tuple(sorted(changes, key=lambda each: -abs(each.after - each.before) / max(totals.get(each.measure, 0), 1)))


Place = tuple[Measure, str, str]


def _measured(costs: ProgramCosts) -> dict[Place, int]:
    found: dict[Place, int] = {("cycles", row.op_name, row.source): row.cycles for row in costs.cycles_by_source}

    def add(measure: Measure, what: str, source: str, value: int) -> None:
        found[measure, what, source] = found.get((measure, what, source), 0) + value

    for one in costs.collectives:
        add("wire bytes", f"{one.kind} over {' x '.join(one.axes)}: {one.op_name}", one.source, one.wire_bytes * one.times)
    for measure, works in (("kernel bytes", costs.kernels), ("uncosted bytes", costs.uncosted)):
        for work in works:
            add(measure, f"{work.name}: {work.op_name}", work.source, work.bytes * work.times)
    return found


def _moved(old: Mapping[Place, int], new: Mapping[Place, int]) -> dict[Place, Place]:
    """Return where places lie now whose lines have moved: in order, for operations that have as many lines as before."""
    lines: dict[tuple[str, str], tuple[list[Place], list[Place]]] = {}
    for side, places in enumerate((old, new)):
        for place in places:
            lines.setdefault(place[:2], ([], []))[side].append(place)

    def order(place: Place) -> tuple[str, int]:
        file, _, line = place[2].rpartition(":")
        return file, int(line or 0)

    moved = {}
    for was, now in lines.values():
        if len(was) == len(now):
            moved.update(zip(sorted(was, key=order), sorted(now, key=order), strict=True))
    return moved
