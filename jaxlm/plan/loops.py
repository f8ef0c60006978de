"""Trip counts of a compiled program's loops, read from its text."""

import dataclasses
import math
import re

from jaxlm.plan.hlo import Instruction, Program

# Opcodes that hand their operand's value on unchanged.
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")


def trip_counts(program: Program) -> dict[str, int | None]:
    """Return for every while loop, by its name, how often its body runs, or None where the text does not tell.

    Taken from the compiler's `known_trip_count`; else from a condition that compares a counter with a constant. The counter's
    start and step are read where they are constants; else they are what `lax.scan` and `lax.fori_loop` make them: 0 and 1.
    """
    values = _Values(program)
    return {loop.name: _trip_count(program, loop, values) for loop, _ in values.loops}


def _trip_count(program: Program, loop: Instruction, values: "_Values") -> int | None:
    known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    called = loop.called
    if not all(name in program.computations for key in ("condition", "body") for name in called.get(key, ("",))):
        return None
    condition = program.root(called["condition"][0])
    frame: dict[int, Instruction] = {}
    while condition.opcode == "fusion":
        frame = dict(enumerate(condition.operands))
        condition = program.root(condition.called["calls"][0])
    if condition.opcode != "compare" or len(condition.operands) != 2:
        return None
    left, right = (values.read(operand, frame, loop) for operand in condition.operands)
    direction = condition.attribute("direction")
    if isinstance(left, int):
        left, right, direction = right, left, {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if not isinstance(right, int) or not isinstance(left, _Carry) or direction not in ("LT", "LE", "GT", "GE", "NE"):
        return None
    start, step = values.start(left, loop), values.step(left, loop)
    distance = right - start if step > 0 else start - right
    inclusive = direction in ("LE", "GE")
    return max(0, math.ceil((distance + inclusive) / abs(step)))


@dataclasses.dataclass(frozen=True)
class _Carry:
    """An element of a loop's carry."""

    index: int


class _Values:
    """Integers that the text of a program gives away."""

    def __init__(self, program: Program):
        self.program = program
        computations = program.computations.items()
        self.loops = [(each, name) for name, several in computations for each in several if each.opcode == "while"]
        bodies = {name: loop for loop, _ in self.loops for name in loop.called.get("body", ())}
        self._outer = {loop.name: bodies.get(name) for loop, name in self.loops}

    def read(self, each: Instruction, frame: dict[int, Instruction], loop: Instruction | None) -> "int | _Carry | None":
        """Return an instruction's value where it is a constant, or the element of the carry that it is.

        `frame` holds the operands of the fusion that `each` is inside of. An element that no iteration changes has the value
        the loop begins with.
        """
        while (each.opcode in _SAME and each.operands) or (each.opcode == "parameter" and frame):
            each, frame = (frame[int(each.arguments)], {}) if each.opcode == "parameter" else (each.operands[0], frame)
        if each.opcode == "constant":
            return int(each.arguments) if re.fullmatch(r"-?\d+", each.arguments) else None
        if each.opcode == "get-tuple-element" and each.operands and each.operands[0].opcode == "parameter":
            index = int(each.attribute("index"))
            if loop is not None and self._kept(index, loop):
                start = self._initial(index, loop)
                return start if isinstance(start, int) else _Carry(index)
            return _Carry(index)
        return None

    def start(self, carry: _Carry, loop: Instruction) -> int:
        value = self._initial(carry.index, loop)
        return value if isinstance(value, int) else 0

    def step(self, carry: _Carry, loop: Instruction) -> int:
        result = self._result(carry.index, loop)
        frame: dict[int, Instruction] = {}
        if result is not None and result.opcode == "fusion":
            frame = dict(enumerate(result.operands))
            result = self.program.root(result.called["calls"][0])
        if result is not None and result.opcode in ("add", "subtract"):
            values = [self.read(operand, frame, None) for operand in result.operands]
            constants = [value for value in values if isinstance(value, int) and value]
            if len(constants) == 1 and carry in values:
                return constants[0] if result.opcode == "add" else -constants[0]
        return 1

    def _initial(self, index: int, loop: Instruction) -> "int | _Carry | None":
        begin = loop.operands[0]
        if begin.opcode != "tuple" or index >= len(begin.operands):
            return None
        return self.read(begin.operands[index], {}, self._outer.get(loop.name))

    def _result(self, index: int, loop: Instruction) -> Instruction | None:
        end = self.program.root(loop.called["body"][0])
        return end.operands[index] if end.opcode == "tuple" and index < len(end.operands) else None

    def _kept(self, index: int, loop: Instruction) -> bool:
        result = self._result(index, loop)
        return result is not None and self.read(result, {}, None) == _Carry(index)
