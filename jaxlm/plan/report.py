"""A plan as people and programs read it: tables, and the same facts as JSON."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxlm.experiment import Experiment
from jaxlm.plan.assumptions import assumptions
from jaxlm.plan.compiled import Compiled
from jaxlm.plan.estimate import Estimate
from jaxlm.plan.remedies import Remedy
from jaxlm.plan.topology import Topology

GIB = 2**30


def as_json(
    experiment: Experiment,
    topology: Topology,
    compiled: Compiled,
    estimated: Estimate | None,
    remedies: list[Remedy] = (),
) -> dict[str, Any]:
    """Return a plan as plain values: bytes a device, seconds a step, FLOPs a device and step."""
    facts = compiled.facts
    found = {
        "experiment": experiment.name,
        "fits": facts["fits"],
        "stage": compiled.stage,
        "topology": topology.name,
        "slices": topology.slices,
        "devices": topology.num_devices,
        "mesh": facts["mesh"],
        "memory": {
            "available": topology.chip.memory_bytes,
            "required": facts.get("required") or facts.get("laid_out"),
            "state": facts["bytes"],
            "parts_at_peak": facts.get("parts", {}),
            "live_at_peak": facts.get("live"),
            "largest": facts.get("largest", []),
        }
        | {f"compiler_{name}": value for name, value in facts.get("memory", {}).items()},
        "compile": {name: facts[name] for name in ("lower_seconds", "compile_seconds", "host_bytes")}
        | {"cached": compiled.cached},
        "versions": facts["versions"],
        "assumptions": assumptions(compiled, topology, estimated),
    }
    if estimated:
        found["flops"] = {"model": estimated.model_flops, "hardware": estimated.hardware_flops}
        found["collectives"] = [
            dataclasses.asdict(wire.traffic) | {"seconds": wire.seconds, "group": dataclasses.asdict(wire.joined)}
            for wire in estimated.wires
        ]
        times = {name: getattr(estimated, name) for name in ("overlapped", "scheduled", "exposed")}
        found["modelled"] = {
            "cycles": compiled.costs.cycles,
            **{
                name: getattr(estimated, name) for name in ("cycles_seconds", "kernel_seconds", "other_seconds", "wire_seconds")
            },
            "step_seconds": times,
            "mfu": {name: estimated.utilisation(seconds) for name, seconds in times.items()},
            "tokens_per_second": {name: estimated.tokens / seconds for name, seconds in times.items()},
        }
    if not facts["fits"]:
        found["remedies"] = [dataclasses.asdict(remedy) for remedy in remedies]
    return found


def show(plan: dict[str, Any], topology: Topology, out: Console) -> None:
    """Print what `as_json` returns."""
    memory = plan["memory"]
    needed, available = memory["required"], memory["available"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    verdict = "[bold green]fits[/]" if plan["fits"] else "[bold red]does not fit[/]"
    if needed:
        verdict += f": {needed / GIB:.2f} of {available / GIB:.2f} GiB a device"
    out.print(f"[bold]{plan['experiment']}[/] on {topology}, mesh {mesh}\n{verdict}\n", soft_wrap=True)
    out.print(_memory(plan))
    if plan["memory"]["largest"]:
        out.print(_buffers(plan))
    if "modelled" in plan:
        out.print(_collectives(plan))
        out.print(_time(plan, topology))
    for remedy in plan.get("remedies", ()):
        size = f"{remedy['laid_out'] / GIB:.2f} GiB" if remedy["laid_out"] else "compiles"
        out.print(f"[bold green]fits with[/] {remedy['flags']}  ({size}; {remedy['cost']})", soft_wrap=True)
    if not plan["fits"] and not plan["remedies"]:
        out.print("No change of remat, accumulate or mesh that was tried makes it fit: take more devices or a smaller model.")
    notes = _table("", "assumed", title="Assumptions")
    for number, line in enumerate(plan["assumptions"], 1):
        notes.add_row(str(number), line)
    out.print(notes)
    compiled = plan["compile"]
    stage = "scheduled" if plan["stage"] == "schedule" else "compiled"
    again = ", from the cache" if compiled["cached"] else ""
    out.print(
        f"{stage} in {compiled['compile_seconds']:.0f} s with {compiled['host_bytes'] / GIB:.1f} GiB of host memory{again}; "
        + ", ".join(f"{name} {plan['versions'][name]}" for name in ("jax", "libtpu") if name in plan["versions"]),
        soft_wrap=True,
    )


def _table(*columns: str, title: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left", title_style="bold")
    for column in columns:
        right = column in ("GiB", "GB sent", "times", "ms", "seconds", "MFU", "tokens/s", "share")
        table.add_column(column, justify="right" if right else "left")
    return table


def _memory(plan: dict[str, Any]) -> Table:
    memory = plan["memory"]
    table = _table("part", "GiB", title="Memory of a device")
    for name, size in sorted(memory["parts_at_peak"].items(), key=lambda pair: -pair[1]):
        table.add_row(name, f"{size / GIB:.2f}")
    if memory["live_at_peak"] and memory["required"]:
        table.add_row("holes between buffers", f"{max(0, memory['required'] - memory['live_at_peak']) / GIB:.2f}")
    if not memory["parts_at_peak"]:
        for name, size in memory["state"].items():
            table.add_row(name, f"{size / GIB:.2f}")
    if memory.get("compiler_generated_code"):
        table.add_row("machine code", f"{memory['compiler_generated_code'] / GIB:.2f}")
    if memory.get("compiler_peak"):
        table.add_row("the compiler's own peak", f"{memory['compiler_peak'] / GIB:.2f}")
    table.add_row("the device's", f"{memory['available'] / GIB:.2f}")
    return table


def _buffers(plan: dict[str, Any]) -> Table:
    table = _table("GiB", "shape", "operation", "source", title="\nLargest buffers when most is in use")
    for row in plan["memory"]["largest"][: 5 if plan["fits"] else 12]:
        operation = "/".join(row["op_name"].split("/")[-3:])
        table.add_row(f"{row['bytes'] / GIB:.2f}", escape(row["shape"]), escape(operation), row["source"])
    return table


def _collectives(plan: dict[str, Any]) -> Table:
    table = _table("collective", "over", "times", "GB sent", "ms", "started ahead", title="\nWhat a device sends in a step")
    for row in plan["collectives"]:
        if row["wire_bytes"] < 1e5 and len(table.rows) > 2:
            continue
        ahead = row["asynchronous_wire_bytes"] / row["wire_bytes"] if row["wire_bytes"] else 0
        time = "unknown" if row["seconds"] is None else f"{1e3 * row['seconds']:.2f}"
        sent = f"{row['wire_bytes'] / 1e9:.3f}"
        table.add_row(row["kind"], " x ".join(row["axes"]), f"{row['count']:,}", sent, time, f"{100 * ahead:.0f} %")
    return table


def _time(plan: dict[str, Any], topology: Topology) -> Table:
    modelled, flops = plan["modelled"], plan["flops"]
    table = _table("modelled step", "seconds", "MFU", "tokens/s", title="\nTime, modelled")
    rows = [("cycles of the compiler", "cycles_seconds"), ("kernels", "kernel_seconds"), ("other operations", "other_seconds")]
    for name, key in (*rows, ("collectives", "wire_seconds")):
        table.add_row(name, f"{modelled[key]:.4f}")
    names = {"overlapped": "step, all overlapped", "scheduled": "step, as scheduled", "exposed": "step, nothing overlapped"}
    for key, name in names.items():
        speed = f"{modelled['tokens_per_second'][key]:,.0f}"
        table.add_row(f"[bold]{name}[/]", f"{modelled['step_seconds'][key]:.4f}", f"{100 * modelled['mfu'][key]:.1f} %", speed)
    sent = sum(row["wire_bytes"] for row in plan["collectives"])
    chip = topology.chip
    extra = flops["hardware"] / flops["model"] if flops["model"] else 0
    caption = f"FLOPs a device: model {flops['model']:.3e}, executed {flops['hardware']:.3e} ({extra:.2f} x)"
    if sent and chip.link_bandwidth:
        balance = chip.peak_flops / chip.link_bandwidth
        caption += f"; {flops['hardware'] / sent:,.0f} FLOPs a byte sent (one link keeps up from {balance:,.0f})"
    table.caption, table.caption_justify = caption, "left"
    return table
