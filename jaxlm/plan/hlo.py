"""Compiled programs as text: HLO instructions, where they come from, and how often each of them runs.

Reads what `compiled.as_text()` gives for a TPU or a GPU: optimised and scheduled, one device's share of the work. Neither a
device nor a compiler is needed to read it. What moves between devices is told by `jaxlm.plan.collectives`, how often it
runs by `jaxlm.plan.schedule`, what it all costs by `jaxlm.plan.costs`, whose `program_costs` is the way in.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

# Bits of an element, where its name does not end in them.
BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
# Opcodes that run other computations. What `reduce` or `sort` applies to elements counts as part of them; `async-update`
# and `async-done` name again the computation that `async-start` has begun.
CALLERS = ("fusion", "call", "while", "conditional", "async-start")
# What takes no time by itself, or is counted with what it belongs to; ends of asynchronous work (`-done`) besides.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "partition-id",
    "replica-id", "after-all", "opt-barrier", "domain", "add-dependency", "async-start", "async-update", "recv",
}  # fmt: skip

_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([^\]]*)\]")
_INSTRUCTION = re.compile(r"^[ \t]+(?:ROOT )?%?([\w.\-]+) = ", re.M)
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{$", re.M)
_OPCODE = re.compile(r"\s([a-z][\w\-]*)\(")
_BRACKETS = re.compile(r'[(){}\[\]]|"(?:[^"\\]|\\.)*"')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|branch_computations|true_computation|false_computation|called_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's element type and its dimensions on one device."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its elements, without what a layout pads."""
        digits = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = BITS[self.dtype] if self.dtype in BITS else int(digits[1]) if digits else 0
        return math.ceil(math.prod(self.dims) * bits / 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@functools.lru_cache(maxsize=4096)
def shapes(text: str) -> tuple[Shape, ...]:
    """Return every array in a type, be it an array's or a (nested) tuple's, in order."""
    found = []
    for dtype, dims in _SHAPE.findall(text):
        found.append(Shape(dtype, tuple(int(size.strip(" <=")) for size in dims.split(",") if size)))
    return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One instruction of a computation; name, type and opcode are cut out at once, the rest is read when it is asked for."""

    program: "Program" = dataclasses.field(repr=False)
    name: str
    type: str
    """Its result's type, as written."""
    opcode: str
    arguments: str
    attributes: str
    root: bool

    @property
    def results(self) -> tuple[Shape, ...]:
        """Its result's arrays."""
        return shapes(self.type)

    @property
    def operands(self) -> tuple["Instruction", ...]:
        """The instructions whose results it reads."""
        known = self.program.instructions
        named = re.findall(r"([A-Za-z_][\w.\-]*)(?:#(\d+))?", _without_comments(self.arguments))
        return tuple(known[name].element(int(index)) if index else known[name] for name, index in named if name in known)

    def element(self, index: int) -> "Instruction":
        """Return what the get-tuple-element would be that newer compilers do not write: they name `%tuple#index`."""
        inside, start = _without_comments(self.type).strip()[1:-1], 0
        for _ in range(index):
            start = _part(inside, start) + 2
        kind = inside[start : _part(inside, start)]
        return Instruction(
            self.program, f"{self.name}#{index}", kind, "get-tuple-element", f"%{self.name}", f", index={index}", False
        )

    @property
    def reads(self) -> tuple[Shape, ...]:
        """The arrays it reads."""
        return tuple(shape for operand in self.operands for shape in operand.results)

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations it runs, by the attribute that names them (`calls`, `body`, ...)."""
        if self.opcode not in CALLERS:
            return {}
        head = re.split(r", (?:metadata|backend_config)=", self.attributes, maxsplit=1)[0]
        return {
            attribute: tuple(name.strip(" %") for name in (several or one).split(","))
            for attribute, several, one in _CALLED.findall(head)
        }

    @property
    def config(self) -> dict[str, Any]:
        """Its backend_config; empty where there is none, or not in JSON."""
        start = self.attributes.find("backend_config=")
        if start < 0:
            return {}
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(self.attributes, start + len("backend_config="))
            value = json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def op_name(self) -> str:
        """The operation of the traced program that it comes from, behind the transformations that made it."""
        found = re.search(r'\bop_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """The line of Python that it comes from, `file:line`, or an empty string; packages without where they are installed."""
        frame = re.search(r"\bstack_frame_id=(\d+)", self.attributes)
        if frame:
            return self.program.sources.get(int(frame[1]), "")
        file, line = (re.search(rf'\bsource_{what}="?([^"\s}}]*)', self.attributes) for what in ("file", "line"))
        return f"{_short(file[1])}:{line[1]}" if file and line else ""

    @property
    def origin(self) -> tuple[str, str]:
        """Its op_name and source; where it has none, those of the nearest one inside or in front of it, at last its opcode."""
        near, seen = [self], {self.name}
        while near and len(seen) < 64:
            each = near.pop(0)
            if each.op_name:
                return each.op_name, each.source
            inside = [self.program.root(name) for names in each.called.values() for name in names if each.opcode == "fusion"]
            near += [one for one in (*inside, *each.operands) if one.name not in seen]
            seen.update(one.name for one in near)
        return self.opcode, ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one execution, in cycles of a TPU core's clock; 0 where it makes none.

        It behaves as a roofline with tiles: arithmetic and memory, but nothing that moves between devices.
        """
        found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(found[1]) if found and int(found[1]) < 2**60 else 0  # beyond: the compiler's "not known"

    def attribute(self, name: str) -> str:
        """Return an attribute's value as written, or an empty string."""
        found = re.search(rf"(?<![\w\"]){re.escape(name)}=", self.attributes)
        return _value(self.attributes, found.end()) if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A parsed module."""

    computations: dict[str, list[Instruction]]
    instructions: dict[str, Instruction]
    """Every instruction by its name, which no other has."""
    entry: str
    """The computation that a call of the program runs."""
    sources: dict[int, str]
    """Stack frames: the innermost `file:line` of each that is not inside JAX."""
    num_partitions: int
    """Devices that share the work."""

    def root(self, computation: str) -> Instruction:
        """Return the instruction whose result is the computation's."""
        instructions = self.computations[computation]
        return next((each for each in instructions if each.root), instructions[-1])


def parse(text: str) -> Program:
    """Parse a module's text in linear time; lines that are not understood are left out, for compilers' versions differ."""
    headers = list(_HEADER.finditer(text))
    preamble = text[: headers[0].start()] if headers else text
    partitions = re.search(r"\bnum_partitions=(\d+)", preamble)
    computations: dict[str, list[Instruction]] = {}
    entry = next((header[2] for header in headers if header[1]), headers[-1][2] if headers else "")
    program = Program(computations, {}, entry, _sources(preamble), int(partitions[1]) if partitions else 1)
    for header, after in zip(headers, [*headers[1:], None], strict=True):
        body = text[header.end() : after.start() if after else len(text)]
        computations[header[2]] = list(_instructions(program, body))
        program.instructions.update((each.name, each) for each in computations[header[2]])
    return program


def _instructions(program: Program, body: str) -> Iterator[Instruction]:
    # Lines that begin no instruction, such as those inside a kernel's metadata, belong to the one before them.
    starts = list(_INSTRUCTION.finditer(body))
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        stop = after.start() if after else len(body)
        begin = start.end()
        opcode = _OPCODE.search(body, _skip(body, begin) if body[begin] == "(" else begin, stop)
        if opcode:
            close = _skip(body, opcode.end() - 1)
            kind, arguments = body[begin : opcode.start()], body[opcode.end() : close - 1]
            root = "ROOT " in start[0]
            yield Instruction(program, start[1], kind, opcode[1], arguments, body[close:stop], root)


def _skip(text: str, start: int) -> int:
    """Return the place behind the bracket that closes the one at `start`."""
    depth = 0
    for found in _BRACKETS.finditer(text, start):
        if found[0] in "({[":
            depth += 1
        elif found[0] in ")}]":
            depth -= 1
            if depth == 0:
                return found.end()
    return len(text)


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text)


def _part(text: str, start: int) -> int:
    """Return where the part of a list ends that begins at `start`: at a comma outside brackets, or where the text ends."""
    while start < len(text) and text[start] != ",":
        start = _skip(text, start) if text[start] in "({[" else start + 1
    return start


def _value(text: str, start: int) -> str:
    """Return the value of an attribute that begins at `start`: quoted, or up to a comma or blank outside brackets."""
    quoted = _QUOTED.match(text, start)
    if quoted:
        return quoted[0]
    stop = start
    while stop < len(text):
        # Groups over a mesh are written in up to three parts: mesh['a'=4,'b'=4], device_ids=(...) {'b'}.
        joint = re.compile(r", (?=device_ids=)| (?=\{')").match(text, stop)
        if joint:
            stop = joint.end()
        elif text[stop] in ", \n":
            break
        else:
            stop = _skip(text, stop) if text[stop] in "({[" else stop + 1
    return text[start:stop]


def _sources(preamble: str) -> dict[int, str]:
    """Return the line of every stack frame from the tables in front of the computations."""
    tables: dict[str, dict[int, str]] = {}
    rows: dict[int, str] = {}
    for line in preamble.splitlines():
        number, _, value = line.partition(" ")
        if number.isdecimal():
            rows[int(number)] = value
        elif line and " " not in line:
            rows = tables.setdefault(line, {})

    def field(row: str, name: str) -> int:
        found = re.search(rf"\b{name}=(\d+)", row)
        return int(found[1]) if found else 0

    def line(frame: int) -> str:
        location = tables.get("FileLocations", {}).get(field(frames.get(frame, ""), "file_location_id"), "")
        file = tables.get("FileNames", {}).get(field(location, "file_name_id"), "").strip('"')
        return f"{_short(file)}:{field(location, 'line')}" if file else ""

    frames = tables.get("StackFrames", {})
    found = {}
    for frame in frames:
        # A kernel of JAX's own belongs to the line that calls it. Parents are written one too high: 0 is for none.
        outer = frame
        while line(outer).startswith("jax/") and outer > 0:
            parent = field(frames.get(outer, ""), "parent_frame_id") - 1
            outer = parent if parent < outer else 0
        found[frame] = line(outer) or line(frame)
    return found


def _short(file: str) -> str:
    return re.sub(r"^(?:.*/)?(?:site-packages/|(?=jaxlm/))", "", file)
