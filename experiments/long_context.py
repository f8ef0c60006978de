"""What experiments on long contexts share: small models that retrieve, trained on rows of 256, and what is measured.

    base()                                        # the model; base(positions="alibi") the same with other positions
    measured(folder, Extension(), 1024)           # its loss by position and its retrieval, read at 1,024 tokens

Loss alone says little of long contexts, for most of it is decided nearby. So seven training rows in ten are made of documents
whose ends can only be predicted by looking back: passkeys between sentences, named keys, random text that repeats. They
have exactly 62 or 254 bytes, so that with bos and eos a row holds four of them or one, and none is cut.
"""

import argparse
import functools
import hashlib
import random
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from compare import show
from scipy import stats
from tuned import Interval, bootstrap, kept, write_results, write_rows

from jaxlm.commands.start import start_jax
from jaxlm.config import digest
from jaxlm.data.long_rows import documents_of, long_rows
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.eval.answers import solve
from jaxlm.eval.by_position import strided_losses, token_losses
from jaxlm.eval.retrieval import Style, passkey_tasks
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension
from jaxlm.model.rope_config import RopeScaling, SelfExtend
from jaxlm.run.open import OpenRun, opened
from jaxlm.train.optimizer import OptimizerConfig

LENGTH, LENGTHS = 256, (256, 512, 1024, 2048)
SHORT = 62
DEPTHS, TRIALS, ROWS = (0.0, 0.25, 0.5, 0.75, 1.0), 10, 16
BYTES = TokenizerConfig(kind="byte", vocab_size=259)
FILLER = (
    "The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. ",
    "A dog runs by. ", "It rained all day. ", "He reads a book. ",
)  # fmt: skip
STYLE = Style(
    opening="",
    needle="The pass key is {key}. Remember it. ",
    filler=FILLER,
    question="What is the pass key? The pass key is ",
)
NAMES = ("ada", "ben", "cleo", "dan", "eve", "finn", "gus", "hana", "ivo", "jo", "kim", "lea")


def draw_documents(count: int, size: int, seed: int) -> Iterator[str]:
    """Yield documents of exactly `size` ASCII characters, 62 or more, whose ends follow from what stands before them."""
    kinds = (draw_repeated, draw_passkey, draw_number if size < LENGTH // 2 else draw_named)
    for number in range(count):
        rng = random.Random(f"{seed} {size} {number}")
        text = rng.choice(kinds)(size, rng)
        yield (text + draw_filler(size - len(text) + max(map(len, FILLER)), rng))[:size]


def draw_passkey(size: int, rng: random.Random) -> str:
    """Return a key, told anywhere between sentences and asked for at the end, in the form of the probe."""
    key = draw_key(rng)
    needle, question = STYLE.needle.format(key=key), f"{STYLE.question}{key}. "
    if size < len(needle) + len(question):
        return f"The pass key is {key}. The pass key is {key}. "
    room = size - len(needle) - len(question)
    before = draw_filler(rng.randint(0, room), rng)
    return before + needle + draw_filler(room - len(before), rng) + question


def draw_named(size: int, rng: random.Random) -> str:
    """Return several keys of different names, and each of them again in another order."""
    lines = [f"The key of {name} is {draw_key(rng)}. " for name in rng.sample(NAMES, min(size // 60, len(NAMES)))]
    again = rng.sample(lines, len(lines))
    return "".join(lines) + draw_filler(rng.randint(0, max(0, size - 2 * len("".join(lines)))), rng) + "".join(again)


def draw_number(size: int, rng: random.Random) -> str:
    """Return a number of 4 to 20 digits again and again."""
    number = "".join(rng.choices(string.digits, k=rng.randint(4, 20))) + " "
    return number * (size // len(number))


def draw_repeated(size: int, rng: random.Random) -> str:
    """Return random letters and digits again and again, with a period of 4 to half the size (short ones as often as long)."""
    period = int(4 * (size / 8) ** rng.random())
    block = "".join(rng.choices(string.ascii_lowercase + string.digits, k=period))
    return (block * -(-size // period))[:size]


def draw_key(rng: random.Random) -> str:
    """Return random digits."""
    return "".join(rng.choices(string.digits, k=STYLE.digits))


def draw_filler(size: int, rng: random.Random) -> str:
    """Return random sentences of together at most `size` characters, as many as fit."""
    found, shortest = "", min(map(len, FILLER))
    while size - len(found) >= shortest:
        found += rng.choice([sentence for sentence in FILLER if len(sentence) <= size - len(found)])
    return found


@functools.cache
def source(count: int, size: int, seed: int = 0) -> str:
    """Return documents of this size as a source."""
    return f"jsonl:{write_rows(f'recall-{size}', ({'text': text} for text in draw_documents(count, size, seed)))}"


def base(seed: int = 0, positions: str = "rope") -> Experiment:
    """A model of the standard library, byte by byte, that finds in a row what it is asked for."""
    return Experiment(
        name="long-context-base",
        steps=3500,
        batch_size=4,
        seed=seed,
        model=ModelConfig(
            vocab_size=259, num_layers=3, hidden_size=128, num_heads=4, intermediate_size=384, max_length=LENGTH,
            positions=positions, embedding_init_std=0.3,
        ),
        data=DataConfig(
            sources=("stdlib", source(20_000, SHORT), source(5_000, LENGTH - 2)), weights=(0.3, 0.35, 0.35), tokenizer=BYTES,
            sequence_length=LENGTH,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        evaluation=EvaluationConfig(every=500, batches=64),
        checkpoint=CheckpointConfig(every=0, keep=1),
        sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip


def scaled(kind: str, factor: float, length: int) -> Extension:
    """Return a scaling of rotary frequencies, read at `length` tokens."""
    scaling = RopeScaling(kind=kind, factor=factor, original_length=LENGTH)
    return Extension(rope_scaling=scaling, max_length=length)


def grouped(group_size: int, window_size: int, length: int, scale_base: float = 0.0) -> Extension | None:
    """Return Self-Extend, or None where it does not reach `length`."""
    extend = SelfExtend(group_size=group_size, window_size=window_size, scale_base=scale_base)
    return Extension(self_extend=extend, max_length=length) if extend.longest(LENGTH) >= length else None


def windowed(length: int) -> Extension:
    """Return a sliding window of as many tokens as a row had in training; through three layers it reaches thrice as far."""
    return Extension(attention_window=LENGTH, max_length=length)


class Measured(NamedTuple):
    """What was measured of one model, read in one way at one length."""

    bits: np.ndarray
    """Bits per byte, float64 [rows, length / 128]: means over stretches of 128 positions."""
    passkey: np.ndarray
    """Whether the whole key was right, float64 [depths, trials]."""
    digits: np.ndarray
    """The part of its digits that were right, each after the right ones before it; a guess is right in one of ten."""

    @property
    def late(self) -> np.ndarray:
        """Bits per byte of each row's second half [rows]."""
        return self.bits[:, self.bits.shape[1] // 2 :].mean(axis=1)


Found = dict[str, dict[int, list[Measured]]]
"""What was measured: by arm and length, of each seed."""
QUANTITIES = {
    "late": "bits per byte, second half of a row", "passkey": "passkeys right, %", "digits": "digits of passkeys right, %",
}  # fmt: skip


def measured(folder: Path, extension: Extension | None, length: int) -> Measured:
    """Return what is measured of a run at one length: computed once, and kept in the run's folder.

    None is the control: of every row the model is given no more than the last `LENGTH` tokens.
    """
    protocol = hashlib.sha256(repr((DEPTHS, TRIALS, ROWS, LENGTHS, STYLE)).encode()).hexdigest()[:8]
    reading = f"last-{LENGTH}" if extension is None else digest(extension)
    path = folder / f"long_context-{protocol}" / f"{reading}-{length}.json"
    path.parent.mkdir(exist_ok=True)

    def compute() -> dict[str, Any]:
        with opened(folder, extension=extension or Extension()) as run:
            return measure(run, length, truncated=extension is None)

    found = kept(path, compute)
    return Measured(*(np.array(found[name]) for name in Measured._fields))


def measure(run: OpenRun, length: int, truncated: bool) -> dict[str, Any]:
    """Return the fields of `Measured` of an open run, as it is to be read."""
    layout, rows, batch_size = run.experiment.layout, rows_of(run, length), max(1, 8192 // length)
    tasks = passkey_tasks(run.needs_tokenizer(), (length,), DEPTHS, TRIALS, seed=1, style=STYLE)
    if truncated:
        losses = strided_losses(run.params, rows, run.model, layout, LENGTH, LENGTH // 4, 8192 // LENGTH)
        tasks = [task._replace(prompt=task.prompt[len(task.answer) - LENGTH :], length=LENGTH) for task in tasks]
    else:
        losses = token_losses(run.params, rows, run.model, layout, batch_size)
    answers = solve(run.params, tasks, run.model, layout, batch_size)

    def by_depth(values: Iterable[float]) -> list[list[float]]:
        return np.array([*values], np.float64).reshape(len(DEPTHS), TRIALS).tolist()

    return {
        "bits": (losses.reshape(len(losses), -1, 128).mean(axis=2, dtype=np.float64) / np.log(2)).tolist(),
        "passkey": by_depth(answer.correct for answer in answers),
        "digits": by_depth(answer.token_accuracy for answer in answers),
    }


def rows_of(run: OpenRun, length: int) -> np.ndarray:
    """Return the beginnings of held-out modules of the standard library, the same ones at every length."""
    documents = documents_of(DataConfig(sources=("stdlib",), tokenizer=BYTES), "validation")
    return long_rows(documents, run.needs_tokenizer(), ROWS, max(LENGTHS), whole_documents=True)[:, : length + 1]


def add(found: Found, of_seed: Mapping[str, Mapping[int, Measured]]) -> None:
    """Add what was measured of one more seed."""
    for arm, lengths in of_seed.items():
        for length, each in lengths.items():
            found.setdefault(arm, {}).setdefault(length, []).append(each)


def tabulate(found: Found, quantity: str) -> list[list[str]]:
    """Return a table's lines, the heading first: a row an arm, a column a length, means and intervals over items."""
    columns = sorted({length for lengths in found.values() for length in lengths})
    lines = [["arm", *map(str, columns)]]
    for arm, lengths in found.items():
        cells = []
        for seeds in (lengths.get(length, []) for length in columns):
            values = [np.ravel(getattr(seed, quantity)) for seed in seeds]
            of = (proportion if quantity == "passkey" else bootstrap)(np.array(values)) if seeds else None
            if of and quantity != "late":
                cells.append(f"{100 * of.mean:.0f} ({100 * of.low:.0f} to {100 * of.high:.0f})")
            else:
                cells.append(str(of) if of else "-")
        lines.append([arm, *cells])
    return lines


def proportion(right: np.ndarray) -> Interval:
    """Return the part of all seeds' tasks that are right, and its 95 % interval (Wilson 1927), which is no point at 0 and 1."""
    result = stats.binomtest(int(right.sum()), right.size)
    return Interval(result.statistic, *result.proportion_ci(method="wilson"))


def run_seeds(
    name: str, run_seed: Callable[[int, Path], Mapping[str, Mapping[int, Measured]]], seeds: int, runs: Path,
    draw: Callable[[Found, Path], None] | None = None,
) -> int:  # fmt: skip
    """Measure every seed and report after each, so that an early stop leaves a result; return the exit status."""
    start_jax(1)
    found: Found = {}
    for seed in range(seeds):
        add(found, run_seed(seed, runs))
        report(found, runs, name)
        if draw:
            draw(found, runs / f"{name}.png")
    return 0


def options(description: str) -> argparse.ArgumentParser:
    """Return the options that experiments on long contexts share."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/long_context"))
    return parser


def report(found: Found, runs: Path, name: str) -> None:
    """Print a table of each quantity, and write them with all numbers behind them."""
    tables = [tabulate(found, quantity) for quantity in QUANTITIES]
    for lines, title in zip(tables, QUANTITIES.values(), strict=True):
        show(lines, f"{name}: {title} (seeds: {max(len(seeds) for of in found.values() for seeds in of.values())})")
    numbers = {
        arm: {length: [{field: values.tolist() for field, values in seed._asdict().items()} for seed in seeds]
              for length, seeds in lengths.items()}
        for arm, lengths in found.items()
    }  # fmt: skip
    write_results(runs, name, tables, numbers)
