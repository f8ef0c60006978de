"""What fills a device's memory, read from the compiler's reports."""

import re
from pathlib import Path
from typing import Any

from jaxlm.plan.hlo import parse

# The largest buffers that a report keeps.
LARGEST = 16
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_EXCEEDS = re.compile(rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)|Used {_SIZE} of {_SIZE} hbm")


def out_of_memory(message: str) -> dict[str, float]:
    """Return the bytes that a compiler says a program requires and may have; empty where it complains of another thing."""
    if not re.search(r"RESOURCE_EXHAUSTED|HbmOom|[Oo]ut of memory", message):
        return {}
    found = _EXCEEDS.search(message)
    numbers = [group for group in found.groups() if group is not None] if found else ["0", "", "0", ""]
    required, available = (float(numbers[at]) * UNITS[numbers[at + 1]] for at in (0, 2))
    return {"required": required, "available": available}


def peak_buffers(dump: Path) -> dict[str, Any]:
    """Return from a compiler's dump the bytes it lays out in device memory, and what is alive when most is.

    `laid_out` counts holes between buffers; `live` and its `parts` are the buffers alone, as the compiler simulates the
    schedule; `largest` has the biggest of them, each with its shape, operation and line of source. Empty where the compiler
    writes no such reports (a GPU's does not).
    """
    usage, ranges, texts = (
        sorted(dump.glob(f"*after_optimizations{end}.txt"), key=lambda path: path.stat().st_size)
        for end in ("-memory-usage-report", "-live-range", "")
    )
    if not (usage and ranges and texts):
        return {}
    total = re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", usage[-1].read_text(errors="replace"))
    live = _live_at_peak(ranges[-1].read_text(errors="replace"))
    program = parse(texts[-1].read_text(errors="replace"))
    arguments = {each.name for each in program.computations.get(program.entry, ())}
    parts: dict[str, int] = {}
    largest = []
    for name, size in live:
        each = program.instructions.get(name)
        if each and each.opcode == "parameter" and name not in arguments:
            continue  # a loop works on its caller's buffer
        op_name, source = each.origin if each else ("", "")
        part = part_of(op_name)
        parts[part] = parts.get(part, 0) + size
        if len(largest) < LARGEST:
            shape = str(max(each.results, key=lambda shape: shape.bytes)) if each and each.results else ""
            largest.append({"bytes": size, "shape": shape, "op_name": op_name or name, "source": source, "part": part})
    return {"laid_out": int(total[1]) if total else 0, "live": sum(parts.values()), "parts": parts, "largest": largest}


def _live_at_peak(report: str) -> list[tuple[str, int]]:
    """Return (instruction, bytes) of every buffer alive when most memory is in use, largest first."""
    _, _, section = report.partition("(peak):\n")
    found = []
    for line in section.splitlines():
        row = re.match(r"\s+([\w.\-]+)\{[\d,]*\}: (\d+) bytes", line)
        if not row:
            break
        found.append((row[1], int(row[2])))
    return found


def part_of(op_name: str) -> str:
    """Return what a buffer is for, by the operation that makes it (arguments by the name of the argument)."""
    if op_name.startswith("state.params"):
        return "parameters"
    if op_name.startswith("state."):
        return "optimizer and other state"
    if op_name.startswith("inputs[2]"):
        return "reference"
    if op_name.startswith("inputs"):
        return "batch"
    if "transpose(" in op_name:
        return "backward pass: gradients and temporaries"
    # What a scan over layers fills, layer by layer, or has made room for.
    if re.search(r"jvp\([^/]*\)/(while$|broadcast_in_dim$|while/body.*dynamic_update_)", op_name):
        return "activations kept for the backward pass"
    return "forward pass, update and others"
