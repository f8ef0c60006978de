"""Our train step beside those of PyTorch, in turns: nanoGPT's at two shapes, and Hugging Face's Llama, eager and compiled.

    python benchmarks/train_paired.py --torch OTHER/bin/python
    python benchmarks/train_paired.py --torch OTHER/bin/python --only llama --rounds 3 --seconds 3

OTHER is an environment with torch and transformers (nanogpt_torch.py and llama_torch.py say which). Ours is the whole step with
guard and metrics, of train_step.py, on one device and, beside nanoGPT, on two virtual devices. At every shape all sides must
have as many parameters; of the Llama also the FLOPs of a step and the first step's loss must agree, for weights and batches are
the same. Ratios are of tokens/s of neighbours in a round.
"""

import dataclasses
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import paired
import record
import tyro
from machine import threads

HERE = Path(__file__).parent
# For each shape: what our step is asked for, and the programs of PyTorch beside it, which is the shape's model there.
SHAPES = {
    "nanoGPT 4 x 128": ("--nanogpt small", "nanogpt_torch.py", ""),
    "nanoGPT 6 x 384": (
        "--nanogpt large", "nanogpt_torch.py", "--layers 6 --heads 6 --width 384 --length 256 --batch 8",
    ),
    "llama": ("--llama", "llama_torch.py", ""),
}  # fmt: skip
OURS, THEIRS = ("1 device", "2 devices"), ("eager", "torch.compile")
LOSS_TOLERANCE, FLOPS_TOLERANCE = 1e-4, 0.02  # relative


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to compare."""

    torch: Path  # A Python with torch and transformers
    only: tuple[str, ...] = tuple(SHAPES)  # Shapes, by name
    rounds: int = 5  # Undisturbed rounds of turns wanted at each shape
    seconds: float = 4.0  # Length of each measurement; half as long again at the larger of nanoGPT's shapes
    disturbance: float = 0.2  # Cores that others may use before a round is repeated
    compiled: bool = True  # Compare with torch.compile as well, which takes up to a minute to start
    json: Path | None = None  # Write everything measured here


def commands_of(shape: str, arguments: Arguments) -> list[tuple[str, str]]:
    """Return the (name, command) pairs of a shape."""
    ours, program, options = SHAPES[shape]
    mine = shlex.join([sys.executable, str(HERE / "train_step.py"), *ours.split(), "--serve"])
    theirs = shlex.join([str(arguments.torch), str(HERE / program), *options.split(), "--threads", str(threads()), "--serve"])
    found = [(OURS[0], mine)]
    if shape != "llama":
        found.append((OURS[1], f"{mine} --devices 2"))
    found.append((THEIRS[0], theirs))
    return [*found, (THEIRS[1], f"{theirs} --compile")] if arguments.compiled else found


def unlike(shape: str, found: paired.Comparison) -> str | None:
    """Return what differs between the sides that should not, or is not told by all that should tell it, or None."""
    answers = found.rounds[-1].answers
    counts = {name: answer["parameters"] for name, answer in answers.items()}
    if len(set(counts.values())) > 1:
        return f"the sides have different numbers of parameters: {counts}"
    # nanoGPT draws weights of its own, and does not count.
    for key, tolerance in (("step_flops", FLOPS_TOLERANCE), ("first_loss", LOSS_TOLERANCE)) if shape == "llama" else ():
        told = {name: answer.get(key) for name, answer in answers.items()}
        if None in told.values():
            return f"not all sides tell their {key.replace('_', ' ')}: {told}"
        if not all(math.isclose(value, told["1 device"], rel_tol=tolerance) for value in told.values()):
            return f"the sides differ in {key.replace('_', ' ')}: {told}"
    return paired.unlike_threads(found)


def results_of(shape: str, found: paired.Comparison) -> list[dict[str, Any]]:
    """Return the ratio of each of our ways to each of PyTorch's."""
    names = found.rounds[-1].answers
    pairs = [(ours, theirs) for ours in OURS for theirs in THEIRS if ours in names and theirs in names]
    return [
        record.compared(
            f"{shape}: {ours} / {theirs}", found.values(ours), found.values(theirs), "tokens/s", "higher",
            disturbed=not found.enough,
        )
        for ours, theirs in pairs
    ]  # fmt: skip


def main(arguments: Arguments) -> int:
    """Compare at all shapes; return 1 where a side fails, the sides differ, or a bar is missed."""
    results, turns, others, failure = [], {}, {}, None
    for shape in arguments.only:
        if shape not in SHAPES:
            raise SystemExit(f"there is no shape {shape!r}; there are {', '.join(SHAPES)}")
        commands = commands_of(shape, arguments)
        seconds = arguments.seconds * (1.5 if shape == "nanoGPT 6 x 384" else 1.0)
        found = paired.compare(
            commands, rounds=arguments.rounds, seconds=seconds, disturbance=arguments.disturbance, label=shape
        )
        failure = found.failure or unlike(shape, found)
        if failure:
            break
        paired.show(paired.summarise([name for name, _ in commands], found.used), commands[-1][0])
        results += results_of(shape, found)
        turns[shape] = [dataclasses.asdict(turn) for turn in found.rounds]
        others |= found.rounds[-1].answers["eager"]["versions"]
    return record.finish(
        "train", results, arguments.json, failure=failure, judged=arguments.compiled and set(arguments.only) == set(SHAPES),
        more_versions={name: version for name, version in others.items() if name in ("torch", "transformers")}, turns=turns,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
