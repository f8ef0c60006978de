"""Arithmetic word problems with solutions step by step: right ones, and wrong ones by the faults that people make.

    problems = draw_problems(100, seed=0)
    pairs = [{"prompt": p.question, "chosen": write_solution(p), "rejected": draw_wrong(p, rng).text} for p in problems]

A solution is a sentence with an equation for each step and a last line "Answer: N", which `final_answer` reads. What is held
out is decided by the problem, not by a draw: one set of numbers in five of every template (by a hash), and all of HELD_OUT.
"""

import operator
import re
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
INSTEAD = {"+": "-*", "-": "+", "*": "+", "/": "*-"}
FAULTS = ("operation", "slip", "dropped step", "final number")
WHO = (
    "Ana",
    "Ben",
    "Chloe",
    "Dan",
    "Ella",
    "Finn",
    "Grace",
    "Hugo",
    "Ines",
    "Jack",
    "Kim",
    "Leo",
    "Maya",
    "Noah",
    "Olga",
    "Paul",
)
THINGS = ("apples", "books", "cards", "coins", "cups", "eggs", "marbles", "pears", "pens", "shells", "stamps", "stickers")

Split = Literal["train", "held-out numbers", "held-out templates"]


class Step(NamedTuple):
    """A sentence `before` equation `after`, where the equation is left operation right = result, by names of quantities."""

    before: str
    left: str
    operation: str
    right: str
    result: str
    after: str


class Template(NamedTuple):
    """A kind of problem: its text, its steps, and the range that each number in it is drawn from, both ends included."""

    text: str
    steps: tuple[Step, ...]
    ranges: dict[str, tuple[int, int]]


class Problem(NamedTuple):
    """A problem with its right answer."""

    question: str
    answer: int
    template: Template
    words: dict[str, str]
    numbers: dict[str, int]


class Wrong(NamedTuple):
    """A wrong solution, and which of FAULTS made it so."""

    text: str
    fault: str


Course = tuple[list[tuple[Step, str]], int]
"""Steps with their equations, and the answer."""


def _template(text: str, *steps: str, **ranges: tuple[int, int]) -> Template:
    """Make a template of sentences such as "That is [a * b = x] pens."."""
    parsed = []
    for step in steps:
        before, left, operation, right, result, after = re.fullmatch(r"(.*)\[(\w) (.) (\w) = (\w)\](.*)", step).groups()
        parsed.append(Step(before, left, operation, right, result, after))
    return Template(text, tuple(parsed), ranges)


TEMPLATES = (
    _template("{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?",
              "{who} now has [a + b = x] {things}.", a=(3, 60), b=(3, 60)),
    _template("{who} has {a} {things} and gives {b} to {friend}. How many {things} are left?",
              "There are [a - b = x] {things} left.", a=(12, 90), b=(3, 60)),
    _template("{who} fills {a} bags with {b} {things} each. How many {things} is that?",
              "That is [a * b = x] {things}.", a=(2, 12), b=(3, 12)),
    _template("{who} shares {a} {things} equally among {b} friends. How many does each get?",
              "Each gets [a / b = x] {things}.", a=(12, 96), b=(2, 9)),
    _template("{who} buys {a} boxes of {b} {things} and gives {c} away. How many {things} are left?",
              "The boxes hold [a * b = x] {things}.", "After giving some away there are [x - c = y] left.",
              a=(2, 9), b=(3, 12), c=(2, 20)),
    _template("{who} has {a} {things}. {friend} has {b} more than that. How many have they together?",
              "{friend} has [a + b = x] {things}.", "Together they have [a + x = y].", a=(3, 40), b=(2, 20)),
    _template("{who} had {a} {things}, lost {b} and then found {c}. How many {things} has {who} now?",
              "After the loss there are [a - b = x] {things}.", "With those found there are [x + c = y].",
              a=(15, 80), b=(3, 30), c=(2, 30)),
    _template("{who} sells {a} {things} at {b} dollars each and pays {c} dollars for the stall. How much is left?",
              "The sale brings [a * b = x] dollars.", "Without the stall it is [x - c = y] dollars.",
              a=(4, 15), b=(2, 9), c=(3, 20)),
    _template("{who} packs {a} {things} into boxes of {b} and sells {c} boxes. How many boxes are left?",
              "{who} packs [a / b = x] boxes.", "There are [x - c = y] boxes left.", a=(24, 96), b=(3, 8), c=(1, 8)),
    _template("{who} finds {a} {things} a day for {b} days and {friend} finds {c} in all. How many have they together?",
              "{who} finds [a * b = x] {things}.", "Together they have [x + c = y].", a=(3, 12), b=(3, 9), c=(4, 40)),
    _template("{who} and {friend} have {a} and {b} {things} and share them equally among {c} children. How many does each get?",
              "Together they have [a + b = x] {things}.", "Each child gets [x / c = y].", a=(5, 50), b=(5, 50), c=(2, 8)),
    _template("A cup costs {a} dollars and a plate {b}. {who} buys {c} of each. How many dollars is that?",
              "A cup and a plate cost [a + b = x] dollars.", "All of them cost [c * x = y] dollars.",
              a=(2, 12), b=(2, 12), c=(2, 8)),
    _template("{who} had {a} dollars and bought {b} {things} at {c} dollars each. How many dollars are left?",
              "The {things} cost [b * c = x] dollars.", "There are [a - x = y] dollars left.", a=(30, 99), b=(2, 9), c=(2, 9)),
    _template("{who} has {a} bags of {b} {things} and {c} bags of {d}. How many {things} is that?",
              "The first bags hold [a * b = x] {things}.", "The others hold [c * d = y].", "In all that is [x + y = z].",
              a=(2, 6), b=(3, 9), c=(2, 6), d=(3, 9)),
)  # fmt: skip
HELD_OUT = (
    _template("{who} reads {a} pages a day for {b} days of a book with {c} pages. How many pages are left?",
              "{who} reads [a * b = x] pages.", "There are [c - x = y] pages left.", a=(5, 12), b=(3, 7), c=(50, 99)),
    _template("{who} picks {a} {things} and {friend} picks {b}. They eat {c}. How many {things} are left?",
              "They pick [a + b = x] {things}.", "After eating there are [x - c = y] left.", a=(5, 45), b=(5, 45), c=(3, 20)),
    _template("A bus with {a} people stops. {b} get off and {c} get on. How many people are on the bus?",
              "After some get off there are [a - b = x] people.", "Then there are [x + c = y].",
              a=(15, 60), b=(2, 20), c=(2, 20)),
    _template("{who} cuts {a} metres of rope into pieces of {b} and {friend} brings {c} pieces. How many pieces are there?",
              "{who} cuts [a / b = x] pieces.", "With the others there are [x + c = y].", a=(20, 96), b=(2, 8), c=(2, 20)),
)  # fmt: skip


def draw_problems(count: int, seed: int, split: Split = "train") -> list[Problem]:
    """Return `count` different problems of a split; the same for the same seed. A split's problems are in no other.

    Raises ValueError where so many are not found in a thousand draws each.
    """
    rng, found = np.random.default_rng(seed), {}
    templates = HELD_OUT if split == "held-out templates" else TEMPLATES
    wanted = None if split == "held-out templates" else split == "held-out numbers"
    for turn in range(1000 * count):
        problem = _draw(templates[turn % len(templates)], rng)
        if problem is not None and (wanted is None or _held_out(problem) == wanted):
            found.setdefault(problem.question, problem)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"there are fewer than {count} different problems in the split {split!r}: ask for fewer")


def _draw(template: Template, rng: np.random.Generator) -> Problem | None:
    """Return a problem of the template, None where an intermediate result of these numbers is no positive integer."""
    numbers = {name: int(rng.integers(low, high + 1)) for name, (low, high) in template.ranges.items()}
    who, friend = rng.choice(WHO, 2, replace=False)
    words = {"who": str(who), "friend": str(friend), "things": str(rng.choice(THINGS))}
    found = _follow(template, numbers)
    if found is None:
        return None
    return Problem(template.text.format(**words, **numbers), found[1], template, words, numbers)


def _held_out(problem: Problem) -> bool:
    """Return whether the numbers of a problem, whatever its names, are kept for validation."""
    return zlib.crc32(f"{problem.template.text}{sorted(problem.numbers.items())}".encode()) % 5 == 0


def _follow(
    template: Template,
    numbers: dict[str, int],
    *,
    operations: Sequence[str] = (),
    slip: tuple[int, int] = (-1, 0),
    drop: int = -1,
) -> tuple[list[tuple[Step, str]], int] | None:
    """Return each step with its equation, and the result; None where a result is no positive integer.

    `operations` stand in the place of the template's, `slip` (step, by how much) goes wrong in one, `drop` is left out.
    """
    values, written = dict(numbers), []
    for index, step in enumerate(template.steps):
        if index == drop:
            # As if what was found so far were the result already.
            values[step.result] = values[step.left if step.right in numbers else step.right]
            continue
        sign = operations[index] if operations else step.operation
        result = OPERATIONS[sign](values[step.left], values[step.right]) + slip[1] * (index == slip[0])
        if result != int(result) or result <= 0:
            return None
        values[step.result] = int(result)
        written.append((step, f"{values[step.left]} {sign} {values[step.right]} = {int(result)}"))
    return written, values[template.steps[-1].result]


def _text(problem: Problem, written: Sequence[tuple[Step, str]], answer: int) -> str:
    sentences = [
        step.before.format(**problem.words) + equation + step.after.format(**problem.words) for step, equation in written
    ]
    return "\n".join([*sentences, f"Answer: {answer}"])


def write_solution(problem: Problem) -> str:
    """Return the right solution."""
    return _text(problem, *_follow(problem.template, problem.numbers))


def draw_wrong(problem: Problem, rng: np.random.Generator, fault: str | None = None) -> Wrong:
    """Return a solution with another answer, by a fault (None: any of FAULTS; a step is dropped only where there are two)."""
    kinds = [kind for kind in FAULTS if kind != "dropped step" or len(problem.template.steps) > 1]
    for _ in range(1000):
        kind = fault or kinds[rng.integers(len(kinds))]
        made = _spoil(problem, kind, rng)
        if made is not None and made[1] != problem.answer:
            return Wrong(_text(problem, *made), kind)
    raise ValueError(f"the fault {fault!r} cannot be made in {problem.question!r}: take one of {', '.join(FAULTS)}")


def _spoil(problem: Problem, kind: str, rng: np.random.Generator) -> Course | None:
    template, numbers = problem.template, problem.numbers
    index = int(rng.integers(len(template.steps)))
    if kind == "operation":
        signs = [step.operation for step in template.steps]
        signs[index] = str(rng.choice(list(INSTEAD[signs[index]])))
        return _follow(template, numbers, operations=signs)
    if kind == "slip":
        return _follow(template, numbers, slip=(index, int(rng.choice([-10, -2, -1, 1, 2, 10]))))
    if kind == "dropped step":
        return _follow(template, numbers, drop=index) if len(template.steps) > 1 else None
    if kind == "final number":
        written, right = _follow(template, numbers)
        # A number of the problem or of a step, or the right one with its digits turned round.
        seen = [int(n) for _, equation in written for n in re.findall(r"\d+", equation)] + [int(str(right)[::-1])]
        return written, int(rng.choice(seen))
    raise ValueError(f"no fault {kind!r}: take one of {', '.join(FAULTS)}")


def final_answer(text: str) -> float | None:
    """Return the number of the last line that gives an answer ("Answer: 7", "A: 1,200", "#### $7.50"), None without one."""
    found = re.findall(r"^\W*(?:Answer:|A:|####)\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?)", text, re.MULTILINE)
    return float(found[-1].replace(",", "")) if found else None
