"""The problems, instructions and wrong answers that experiments learn from are what they claim to be."""

import contextlib
import io
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import instructions
from word_problems import FAULTS, OPERATIONS, draw_problems, draw_wrong, final_answer, write_solution


def wrong_equations(text: str) -> list[str]:
    """Return the equations "a + b = c" of a text that do not hold."""
    number = r"(-?\d+(?:\.\d+)?)"
    equations = re.finditer(rf"(?<![\d+*/.-]){number} ([-+*/]) {number} = {number}", text)
    return [found[0] for found in equations if not _holds(*found.groups())]


def _holds(left: str, operation: str, right: str, result: str) -> bool:
    if operation == "/" and not float(right):
        return False
    return abs(OPERATIONS[operation](float(left), float(right)) - float(result)) < 1e-6


def test_right_solutions_hold_and_end_in_the_answer():
    for problem in draw_problems(300, seed=0) + draw_problems(40, seed=0, split="held-out templates"):
        solution = write_solution(problem)
        assert not wrong_equations(solution)
        assert final_answer(solution) == problem.answer > 0
        assert solution.count("=") == len(problem.template.steps)
        assert "{" not in problem.question + solution


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_solutions_are_wrong_by_the_fault_alone(fault):
    rng = np.random.default_rng(0)
    for problem in [p for p in draw_problems(150, seed=1) if fault != "dropped step" or len(p.template.steps) > 1]:
        wrong = draw_wrong(problem, rng, fault)
        assert wrong.fault == fault
        assert final_answer(wrong.text) not in (None, problem.answer)
        # Only a slip breaks an equation; only a final number belies the last one.
        assert len(wrong_equations(wrong.text)) == (fault == "slip")
        last = wrong.text.split("\n")[-2].split(" = ")[1].split(" ")[0].rstrip(".")
        assert (float(last) == final_answer(wrong.text)) == (fault != "final number")
        right = write_solution(problem).count("\n")
        assert wrong.text.count("\n") == (right - 1 if fault == "dropped step" else right)


def test_all_faults_are_drawn_and_draws_follow_the_seed():
    problems = draw_problems(200, seed=2)
    assert problems == draw_problems(200, seed=2) != draw_problems(200, seed=3)
    drawn = [draw_wrong(problem, np.random.default_rng(5)) for problem in problems]
    assert drawn == [draw_wrong(problem, np.random.default_rng(5)) for problem in problems]
    rng = np.random.default_rng(6)
    counts = Counter(draw_wrong(problem, rng).fault for problem in problems)
    assert set(counts) == set(FAULTS) and min(counts.values()) > 20


def test_splits_share_no_numbers_and_no_templates():
    splits = {name: draw_problems(250, seed=3, split=name) for name in ("train", "held-out numbers", "held-out templates")}
    numbers = {name: {(p.template.text, *p.numbers.values()) for p in found} for name, found in splits.items()}
    assert not numbers["train"] & numbers["held-out numbers"]
    templates = {name: {p.template.text for p in found} for name, found in splits.items()}
    assert templates["train"] == templates["held-out numbers"]
    assert not templates["train"] & templates["held-out templates"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("2 + 2 = 4\nAnswer: 4", 4), ("A: 1,200", 1200), ("so it is\n#### $7.50", 7.5), ("Answer: 3\nAnswer: -5.", -5),
     ("The Answer: 3", None), ("", None)],
)  # fmt: skip
def test_final_answers_are_read_from_the_last_line_that_gives_one(text, answer):
    assert final_answer(text) == answer


def test_equations_are_checked_wherever_they_stand():
    assert wrong_equations("That is 3 * 4 = 12 and 12 / 5 = 2.4 and 7 - 9 = -2.") == []
    assert wrong_equations("That is 3 * 4 = 13, and 1 + 1 = 2, and 5 / 0 = 5") == ["3 * 4 = 13", "5 / 0 = 5"]


def test_every_instruction_s_answer_is_what_its_line_of_python_prints():
    rng = np.random.default_rng(0)
    for name, kind in instructions.KINDS.items():
        for _ in range(5):
            arguments, printed = instructions._draw(rng), io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(instructions._fill(kind.python, arguments))
            assert printed.getvalue() == kind.answer(arguments) + "\n", name


def test_examples_are_balanced_and_new():
    held_out = instructions.draw_examples(110, seed=0)
    prompts = {example["prompt"] for example in held_out}
    examples = instructions.draw_examples(220, seed=0, without=prompts)
    assert not prompts & {example["prompt"] for example in examples} and len({e["prompt"] for e in examples}) == 220
    assert set(Counter(example["kind"] for example in examples).values()) == {20}
    assert not set(instructions.HELD_OUT_KINDS) & {example["kind"] for example in examples}
    assert all(instructions.passes(example, f" {example['response']}\n") for example in examples)
    assert not any(instructions.passes(example, example["response"] + ".") for example in examples)


def test_bad_answers_take_the_share_asked_for_and_never_pass():
    examples = instructions.draw_examples(110, seed=4)
    spoiled = instructions.spoil(examples, 0.5, seed=4)
    changed = [(good, bad) for good, bad in zip(examples, spoiled, strict=True) if good != bad]
    assert len(changed) == 55
    assert not any(instructions.passes(good, bad["response"]) for good, bad in changed)
    assert [good["prompt"] for good in examples] == [bad["prompt"] for bad in spoiled]
