"""Induction heads and few-shot accuracy over checkpoints and sizes: when do models learn from their own context?

jaxlm sweep experiments/in_context.py                                   # 1, 2 and 4 layers, two widths, three seeds
jaxlm analyze runs/sweeps/in_context --probes experiments/probes/few_shot.py attention
python experiments/in_context.py                                        # the tables below and the picture
jaxlm report runs/sweeps/in_context --out in_context.html
jaxlm train experiments/in_context.py                                   # one of them: two layers, 64 wide
jaxlm plan experiments/in_context.py:pod --topology v5p:4x4x4           # Llama 3 8B with as many checkpoints

Claim (arXiv:2209.11895): heads that look at what followed an earlier copy of the token (induction heads) form early, within a
short stretch of training, in models of two or more layers and never in those of one; with them come the power to go on with
what has been seen once, and most of what context does for the loss.

Protocol: rows are documents of 126 bytes, random text that repeats and letters with labels, which probes/few_shot.py asks for.
One row in ten is of the standard library: with three in ten this model had not begun to copy after 700 steps. Positions are
ALiBi's, under which it begins soonest. All sizes read the same rows in the same order. One layer is the control: to find what
followed an earlier copy, one head must write at each place what stood before it, and another, in a later layer, look for that.
The induction score is the attention that the best head pays, in random text said again, to what followed the first copy. The
probe `attention` adds what else heads look at to the report. Intervals are 95 %, over seeds.

Result (0.02M to 0.18M parameters, 1.8M tokens each, 3 seeds; means at step 900, few-shot with 8 examples of each kind):

    layers, width    induction score    copies right    half of them from step    few-shot (chance 0.25)
    1, 32 or 64      0.02               0.07            never                     0.26, 0.24
    2, 32            0.44               0.72            650                       0.53
    2, 64            0.62               0.84            600                       0.74
    4, 32            0.30               0.45            never                     0.46
    4, 64            0.61               0.90            600                       0.97

One layer stays where it began in all seeds; with two or more, the score leaves the ground between steps 300 and 500 and copies
and few-shot answers leave it with the score. When that is differs by hundreds of steps from seed to seed, so that the intervals
of two layers are wide. Context does not lower the loss on text at this size (0.06 nats at most): that part does not show.
"""

import argparse
import dataclasses
import functools
import random
import string
from collections.abc import Iterator, Mapping
from pathlib import Path

import llama_8b
import numpy as np
from compare import command, show
from fact_answers import spell
from long_context import BYTES
from probes.few_shot import EXAMPLES, KINDS, draw_labels
from tuned import write_results, write_rows

from jaxlm.analysis.store import read_all
from jaxlm.data.prepare import DataConfig
from jaxlm.errors import DataError
from jaxlm.eval.comparison import summary
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.sweep.combine import Trial, named, product, trials
from jaxlm.sweep.read import Record, read_record
from jaxlm.train.optimizer import OptimizerConfig

LENGTH, SIZE = 128, 126  # a document with bos and eos is a row
PERIODS = (8, 24)
DOCUMENTS = 20_000
LAYERS, WIDTHS, SEEDS = (1, 2, 4), (32, 64), 3
# What is shown of each checkpoint, and what the probe calls it.
MEASURES = {
    "induction score": "induction_score",
    "copies right": "copy_accuracy",
    "few-shot answers right (8 examples)": "few_shot_accuracy",
    "in-context score, nats": "in_context_score",
}


def draw_pairs(rng: random.Random) -> str:
    """Return letters with labels, as the few-shot questions have them."""
    labels, kinds = draw_labels(rng), rng.choices(range(len(KINDS)), k=SIZE // 3)
    return "".join(f"{rng.choice(KINDS[kind])}{labels[kind]} " for kind in kinds)


def draw_repeated(rng: random.Random) -> str:
    """Return random letters and digits that come again and again."""
    block = "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(*PERIODS)))
    return (block * -(-SIZE // len(block)))[:SIZE]


@functools.cache
def source(kind: str) -> str:
    """Return such documents as a source: "pairs" or "repeated"."""
    rngs = (random.Random(f"{kind} {number}") for number in range(DOCUMENTS))
    texts = (draw_pairs(rng) if kind == "pairs" else draw_repeated(rng) for rng in rngs)
    return f"jsonl:{write_rows(f'in-context-{kind}', ({'text': text} for text in texts))}"


def experiment() -> Experiment:
    """Two layers, 64 wide."""
    return Experiment(
        name="in-context",
        steps=900,
        batch_size=16,
        model=ModelConfig(
            vocab_size=259, num_layers=2, hidden_size=64, num_heads=4, intermediate_size=128, max_length=LENGTH,
            positions="alibi", embedding_init_std=0.3,
        ),
        data=DataConfig(
            sources=("stdlib", source("repeated"), source("pairs")), weights=(0.1, 0.6, 0.3), tokenizer=BYTES,
            sequence_length=LENGTH,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=50),
        evaluation=EvaluationConfig(every=100, batches=16),
        checkpoint=CheckpointConfig(every=50, keep=1, keep_every=50),
        sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip


def sweep() -> Iterator[Trial]:
    """Every depth at every width; one layer of the smaller one is the control."""
    depths = {f"{n} layer{'s' * (n > 1)}": {"model.num_layers": n} for n in LAYERS}
    widths = {f"{width} wide": {"model.hidden_size": width, "model.intermediate_size": 2 * width} for width in WIDTHS}
    return trials(experiment(), product(named(depths), named(widths)), seeds=SEEDS)


def pod() -> Experiment:
    """The first 5B tokens of Llama 3 8B, in which the paper sees induction heads form, with 20 checkpoints."""
    checkpoints = CheckpointConfig(every=250, keep=20)
    return dataclasses.replace(llama_8b.experiment(), name="in-context-8b", steps=5000, checkpoint=checkpoints)


Curves = dict[str, dict[str, dict[int, list[float]]]]
"""By measure, arm and step the values of all seeds."""


def curves(record: Record) -> Curves:
    """Return what the probe found of every run of the sweep, at every checkpoint."""
    found: Curves = {name: {arm: {} for arm in record.arms} for name in MEASURES}
    for entry in record.trials:
        for step, result in read_all(entry.run).get("few_shot", {}).items():
            for name, measure in MEASURES.items():
                value = np.ravel(result["measures"][measure]["values"])[-1]  # of few-shot answers, with most examples
                found[name][entry.arm].setdefault(step, []).append(float(value))
    return found


def at_the_end(record: Record, found: Curves) -> list[list[str]]:
    """Return a table of all measures at the last checkpoint, and the step at which half of the copies are right."""
    lines = [["arm", *MEASURES, "step of half of the copies"]]
    for arm in record.arms:
        cells = [spell(summary(of[arm][max(of[arm])])) if of[arm] else "-" for of in found.values()]
        reached = [step for step, values in sorted(found["copies right"][arm].items()) if np.mean(values) >= 0.5]
        lines.append([arm, *cells, str(reached[0]) if reached else "never"])
    return lines


def by_examples(record: Record) -> list[list[str]]:
    """Return a table of few-shot answers at the last checkpoint, by the number of examples of each kind."""
    lines = [["arm", *(f"{number} examples" for number in EXAMPLES)]]
    for arm, entries in record.arms.items():
        results = [read_all(entry.run).get("few_shot", {}) for entry in entries]
        last = [of[max(of)]["measures"]["few_shot_accuracy"]["values"] for of in results if of]
        lines.append([arm, *(spell(summary(values)) for values in zip(*last, strict=True))] if last else [arm, *"-----"])
    return lines


def draw(found: Mapping[str, Mapping[str, Mapping[int, list[float]]]], path: Path) -> None:
    """Draw every measure against the step, a line an arm: its mean, and all seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(17, 4.2), layout="constrained")
    for ax, (name, arms) in zip(axes, found.items(), strict=True):
        for place, (arm, steps) in enumerate(arms.items()):
            if steps:
                at, values = sorted(steps), [steps[step] for step in sorted(steps)]
                style = "-" if place % len(WIDTHS) else "--"
                color = f"C{place // len(WIDTHS)}"
                ax.plot(at, [np.mean(seeds) for seeds in values], style, color=color, label=arm)
                ax.fill_between(at, [min(seeds) for seeds in values], [max(seeds) for seeds in values], color=color, alpha=0.15)
        ax.set(title=name, xlabel="step")
        ax.grid(alpha=0.25)
    axes[2].axhline(1 / len(KINDS), color="black", lw=0.8, ls=":")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Print, write and draw what the probes have found of the sweep's runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, default=Path("runs/sweeps/in_context"))
    parser.add_argument("--picture", type=Path, default=Path("docs/in_context.png"))
    arguments = parser.parse_args()
    record = read_record(arguments.sweep)
    found = curves(record)
    if not all(any(arms.values()) for arms in found.values()):
        raise DataError("these runs are not analyzed yet: run `jaxlm analyze` as the top of this file has it")
    tables = {"at the last checkpoint": at_the_end(record, found), "few-shot answers right": by_examples(record)}
    for title, lines in tables.items():
        show(lines, title)
    write_results(arguments.sweep, "in_context", list(tables.values()), found)
    draw(found, arguments.picture)
    return 0


if __name__ == "__main__":
    command(main)
