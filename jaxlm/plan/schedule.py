"""How often each part of a compiled program runs, and what is scheduled beside what."""

import dataclasses
import functools
import itertools

from jaxlm.plan.hlo import Instruction, Program
from jaxlm.plan.loops import trip_counts


@dataclasses.dataclass(frozen=True)
class Runs:
    """How a computation is run."""

    times: int
    """Executions in one call of the program."""
    home: str
    """The computation whose schedule it is part of: its own name, or within a fusion the one that holds the fusion."""


class Schedule:
    """Executions, loops and order of a program: a fusion is one step of the schedule that it stands in.

    A loop whose trip count the text does not tell counts once. A conditional counts the one branch that is dearest by the
    compiler's cycles and, where these are equal, by the bytes of its results; the others run 0 times.
    """

    def __init__(self, program: Program):
        self.program = program
        order = _callees_first(program)
        self.trips = trip_counts(program)
        self._cost: dict[str, tuple[int, int]] = {}
        for name in order:
            steps = [self._step(each) for each in program.computations[name]]
            self._cost[name] = (sum(cycles for cycles, _ in steps), sum(size for _, size in steps))
        self.runs = {program.entry: Runs(1, program.entry)} if program.entry else {}
        """Computations that the entry reaches, callers first."""
        self._sites: dict[str, tuple[str, int]] = {}
        for name in reversed(order):
            for index, each in enumerate(program.computations[name]):
                for callee, times in self._calls(each):
                    self._sites.setdefault(callee, (name, index))
                    self._run(name, each, callee, times)

    @property
    def unknown_loops(self) -> tuple[Instruction, ...]:
        """Loops that count once because the text does not tell how often they turn."""
        return tuple(self.program.instructions[loop] for loop, count in self.trips.items() if count is None)

    def step(self, computation: str, instruction: Instruction) -> tuple[str, int]:
        """Return the schedule that an instruction is part of, and the number of its step there."""
        home = self.runs[computation].home
        if computation == home:
            return home, self._places(home)[instruction.name]
        while computation != home:
            computation, index = self._sites[computation]
        return home, index

    def done(self, start: Instruction, home: str) -> int | None:
        """Return the step of the `-done` that belongs to an asynchronous start in the same schedule."""
        return self._dones(home).get(start.name)

    def cycles_between(self, home: str, first: int, last: int) -> int:
        """Return the compiler's cycles of the steps behind `first` and in front of `last`."""
        sums = self._sums(home)
        return max(0, sums[last] - sums[first + 1])

    def _run(self, caller: str, call: Instruction, callee: str, times: int) -> None:
        above, before = self.runs[caller], self.runs.get(callee)
        home = above.home if call.opcode == "fusion" or above.home != caller else callee
        self.runs[callee] = Runs(above.times * times + (before.times if before else 0), before.home if before else home)

    def _calls(self, call: Instruction) -> list[tuple[str, int]]:
        """Return the computations that an instruction runs, and how often for each of its own executions."""
        names = [name for several in call.called.values() for name in several if name in self._cost]
        if call.opcode == "while":
            count = self.trips[call.name]
            return [(name, 1 if count is None else count) for name in names]
        if call.opcode == "conditional" and names:
            dearest = max(names, key=self._cost.__getitem__)
            return [(name, int(name == dearest)) for name in dict.fromkeys(names)]
        return [(name, 1) for name in names]

    def _step(self, each: Instruction) -> tuple[int, int]:
        """Return the cycles and the bytes of results of one execution, with those of what it calls."""
        cycles, size = each.cycles, sum(shape.bytes for shape in each.results)
        if each.opcode != "fusion":  # a fusion's estimate is its own
            for callee, times in self._calls(each):
                cycles, size = cycles + times * self._cost[callee][0], size + times * self._cost[callee][1]
        return cycles, size

    @functools.cache  # noqa: B019
    def _dones(self, computation: str) -> dict[str, int]:
        starts: dict[str, str] = {}
        dones = {}
        for index, each in enumerate(self.program.computations[computation]):
            if each.opcode.endswith(("-done", "-update")):
                start = next((starts.get(operand.name, operand.name) for operand in each.operands), "")
                starts[each.name] = start
                if each.opcode.endswith("-done"):
                    dones[start] = index
        return dones

    @functools.cache  # noqa: B019
    def _sums(self, computation: str) -> list[int]:
        return list(itertools.accumulate((self._step(each)[0] for each in self.program.computations[computation]), initial=0))

    @functools.cache  # noqa: B019
    def _places(self, computation: str) -> dict[str, int]:
        return {each.name: index for index, each in enumerate(self.program.computations[computation])}


def _callees_first(program: Program) -> list[str]:
    """Return the computations that the entry reaches, each behind all that it calls."""
    order: list[str] = []
    seen: set[str] = set()
    stack = [(program.entry, False)]
    while stack:
        name, done = stack.pop()
        if done:
            order.append(name)
        elif name not in seen and name in program.computations:
            seen.add(name)
            stack.append((name, True))
            called = [each.called for each in program.computations[name]]
            stack += [(callee, False) for one in called for several in one.values() for callee in several]
    return order
