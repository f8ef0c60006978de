"""What a compiled program moves between devices: which bytes, over which axes of the mesh, how often, for which code."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from jaxlm.plan.groups import Axes, permuted, replica_group, slices, split, varying
from jaxlm.plan.hlo import FREE, Instruction
from jaxlm.plan.schedule import Schedule

Kind = Literal[
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "send"
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a program, as every device of the mesh takes part in it."""

    kind: Kind
    bytes: int
    """Payload of one execution on one device: of an all-gather the gathered result, of all others the operand."""
    wire_bytes: int
    """What a device sends in one execution with ring algorithms: of n devices' payload (n-1)/n, of an all-reduce twice that.

    Of a permutation or a send all of it. A ragged all-to-all is counted as if its operand were full.
    """
    dtype: str
    group_size: int
    """Devices that take part together; of a permutation, those that one chain of pairs links."""
    axes: tuple[str, ...]
    """Mesh axes along which the devices of a group differ."""
    times: int
    """Executions in one call of the program."""
    asynchronous: bool
    """Whether other work is scheduled between its start and its end."""
    cycles_beside: int
    """The compiler's cycles of that work in one execution; collectives that run at the same time each count it."""
    op_name: str
    source: str
    """`file:line`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What all collectives of one kind over the same axes move in one call of the program, a device."""

    kind: Kind
    axes: tuple[str, ...]
    bytes: int
    wire_bytes: int
    asynchronous_wire_bytes: int
    """Those of `wire_bytes` that asynchronous collectives move."""
    count: int
    """Executions."""


def summary(collectives: Iterable[Collective]) -> tuple[Traffic, ...]:
    """Return bytes and wire bytes of one call per kind and axes, most wire bytes first."""
    totals: dict[tuple[Kind, tuple[str, ...]], list[int]] = {}
    for each in collectives:
        wire = each.wire_bytes * each.times
        total = totals.setdefault((each.kind, each.axes), [0, 0, 0, 0])
        for index, value in enumerate((each.bytes * each.times, wire, wire * each.asynchronous, each.times)):
            total[index] += value
    rows = [
        Traffic(kind=kind, axes=axes, bytes=size, wire_bytes=wire, asynchronous_wire_bytes=beside, count=count)
        for (kind, axes), (size, wire, beside, count) in totals.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.wire_bytes))


def collectives(schedule: Schedule, mesh_shape: Mapping[str, int]) -> tuple[Collective, ...]:
    """Return every collective that a program runs, but for those of one device alone.

    `mesh_shape` gives the axes of the mesh in order; partitions are counted row by row, as JAX assigns them. A program for
    several slices holds one slice's share: the leading axes tell slices apart, and what goes between slices is a `send`, a
    collective of its own that the network's hosts carry out (wire bytes by what it stands for).

    Of a collective that the compiler has spread over several fusions the start counts. An all-reduce of which each device
    keeps its part in the same instruction is a reduce-scatter; one that is cut up later moves all its bytes.
    """
    program = schedule.program
    across, within = split(mesh_shape, program.num_partitions)
    found: list[Collective] = []
    chains: dict[tuple[str, str, str], list[tuple[str, int, Collective]]] = {}
    for name, run in schedule.runs.items():
        for each in program.computations[name] if run.times else ():
            one = _collective(name, each, run.times, across, within)
            if one is None:
                continue
            home, step = schedule.step(name, each)
            if not each.op_name:
                op_name, source = program.computations[home][step].origin
                one = dataclasses.replace(one, op_name=op_name, source=source)
            chain = re.search(r'\bchain_id="(\d+)"', each.attributes)
            if chain:
                ends = {"AsyncCollectiveStart": "start", "AsyncCollectiveDone": "done"}
                others = " ".join(other.attributes for other in program.computations[name] if other.opcode == "custom-call")
                part = next((part for target, part in ends.items() if target in others), "")
                chains.setdefault((home, chain[1], each.attribute("channel_id")), []).append((part, step, one))
                continue
            done = schedule.done(each, home) if each.opcode.endswith("-start") or one.kind == "send" else None
            found.append(_beside(schedule, one, home, step, done))
    for (home, _, _), links in chains.items():
        starts = [(step, one) for part, step, one in links if part == "start"] or [links[0][1:]]
        for step, one in starts:
            done = next((end for part, end, _ in links if part == "done" and end > step), None)
            found.append(_beside(schedule, one, home, step, done))
    return tuple(found)


def _beside(schedule: Schedule, one: Collective, home: str, start: int, done: int | None) -> Collective:
    """Return a collective with what is scheduled between its start and its end."""
    steps = schedule.program.computations[home][start + 1 : done] if done else ()
    idle = FREE - {"while", "conditional", "call"} | {"send"}
    work = any(each.opcode not in idle and not each.opcode.endswith(("-start", "-done")) for each in steps)
    cycles = schedule.cycles_between(home, start, done) if done else 0
    return dataclasses.replace(one, asynchronous=work, cycles_beside=cycles)


def _collective(computation: str, each: Instruction, times: int, across: Axes, within: Axes) -> Collective | None:
    kind = each.opcode.removesuffix("-start")
    if kind not in get_args(Kind):
        return None
    operands = each.reads
    if kind in ("collective-permute", "ragged-all-to-all", "send"):
        operands = operands[:1]  # the others say where to write
    moves = kind
    if kind == "send":
        group, axes = slices(each.attribute("_xla_megascale_target"), math.prod(size for _, size in across)), across
        moves = each.attribute("_xla_megascale_transfer_type").strip('"').lower().replace("_", "-")
    elif kind == "collective-permute":
        group, axes = permuted(each.attribute("source_target_pairs")), within
    else:
        group, axes = replica_group(each.attribute("replica_groups"), math.prod(size for _, size in within)), within
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        kind = moves = "reduce-scatter"
    n = len(group)
    if n < 2:
        return None
    payload = sum(shape.bytes for shape in operands) * (n if moves == "all-gather" else 1)
    share = {"all-reduce": 2 * (n - 1), "collective-permute": n, "send": n, "one-to-one": n}.get(moves, n - 1)
    return Collective(
        kind=kind, bytes=payload, wire_bytes=payload * share // n, dtype=operands[0].dtype if operands else "", group_size=n,
        axes=varying(group, axes), times=times, op_name=each.op_name, source=each.source,
        asynchronous=False, cycles_beside=0,
    )  # fmt: skip
