"""How well a tuned model follows instructions, against the number, the quality and the variety of the examples it was shown.

jaxlm train experiments/lima.py:base --run-dir runs/lima-base     # the model to tune
jaxlm train experiments/lima.py                                   # one tuned model: 256 good examples
python experiments/lima.py                                        # every arm, three seeds, the tables below
jaxlm plan experiments/lima.py:pod --topology v5p:4x4x4           # a thousand examples at Llama 3 70B's shape

Claim (arXiv:2305.11206): what a model can do comes from pretraining; a few good and varied examples teach it to answer, and
quality and variety count for more than number.

The base model has learnt what lines of Python print, which do what the instructions ask (experiments/instructions.py), and
sentences of Python's documentation, but no instruction. Every arm takes the same number of steps on the same number of rows. An
answer passes where it is the right one to the letter; the instructions are new, and three kinds are in no arm's examples.

Result (0.9M parameters, 1 seed so far, 220 held-out instructions of 11 kinds, bootstrap over them; 8 min on two busy cores):

    arm                16               64               256              1024
    good examples      0.009 ± 0.012    0.073 ± 0.034    0.291 ± 0.062    0.750 ± 0.057
    half of them bad   0.000            0.027 ± 0.021    0.064 ± 0.034    0.209 ± 0.055

Asked in Python the base model is right in 0.986 (0.968 to 1.000), asked in English never. Quality counts: 1,024 examples of
which half are bad teach no more than 256 good ones, although 512 of them are good. But number counts as much, up to the
largest: what the paper saw of a large model does not show here. 256 examples of 2 kinds alone give 0.38 on these kinds, of 5
kinds 0.61, of all 11 kinds 0.29; a kind without examples is hardly ever followed (at most 0.03), though the base can do it.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from compare import command, interval, show
from instructions import HELD_OUT_KINDS, KINDS, TRAINED_KINDS, Example, draw_examples, draw_line, draw_sentences, passes, spoil
from tuned import answer, bootstrap, kept, trained, write_results, write_rows

from jaxlm.commands.start import start_jax
from jaxlm.config import config
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.decode.generate import encode_prompt
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.model.presets import llama_70b
from jaxlm.run.open import opened
from jaxlm.train.optimizer import OptimizerConfig

BASE = Path("runs/lima-base")
MODEL = ModelConfig(
    vocab_size=1024, num_layers=4, hidden_size=128, num_heads=4, num_kv_heads=2, intermediate_size=352, max_length=256
)
QUIET = {"sample": SampleConfig(tokens=0), "log": LogConfig(tensorboard=False)}
EACH = 20  # held-out instructions of a kind


@config
class Shown:
    """What an arm's examples are."""

    number: int
    bad: float = 0.0
    """The share of them with a bad answer."""
    kinds: int = len(TRAINED_KINDS)
    """Of how many kinds they are."""


ARMS = {
    **{f"{number} good": Shown(number=number) for number in (16, 64, 256, 1024)},
    **{f"{number}, half bad": Shown(number=number, bad=0.5) for number in (16, 64, 256, 1024)},
    **{f"256 of {kinds} kinds": Shown(number=256, kinds=kinds) for kinds in (2, 5)},
}


def base() -> Experiment:
    """0.9M parameters on lines of Python sessions, learning what they print, and on sentences of Python's documentation."""
    rng = np.random.default_rng(0)
    rows = write_rows("python-sessions", [*(draw_line(rng) for _ in range(50_000)), *draw_sentences(5000, rng)])
    return Experiment(
        name="lima-base",
        steps=600,
        batch_size=16,
        model=MODEL,
        data=DataConfig(
            form="conversations", sources=(f"jsonl:{rows}",), tokenizer=TokenizerConfig(vocab_size=1024), sequence_length=128
        ),
        optimizer=OptimizerConfig(kind="muon", learning_rate=4e-3, warmup_steps=50),
        evaluation=EvaluationConfig(every=200, batches=16),
        checkpoint=CheckpointConfig(every=0, keep=1),
        **QUIET,
    )


def tune(shown: Shown, seed: int = 0, base: Path = BASE) -> Experiment:
    """Return the tuning of the base model on such examples; seeds differ in them and in their order."""
    examples = examples_of(shown, seed)
    rows = write_rows("instructions", [{"prompt": f"{e['prompt']}\n", "response": e["response"]} for e in examples])
    return Experiment(
        name="lima",
        steps=120,
        batch_size=8,
        model=MODEL,
        data=DataConfig(
            form="conversations", sources=(f"jsonl:{rows}",), validation_fraction=0.0, sequence_length=128,
            tokenizer=TokenizerConfig(path=str(base / "tokenizer.model"), vocab_size=MODEL.vocab_size),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_steps=6),
        init_from=str(base),
        seed=seed,
        evaluation=EvaluationConfig(every=0),
        checkpoint=CheckpointConfig(every=0, keep=1),
        **QUIET,
    )  # fmt: skip


def experiment() -> Experiment:
    """256 good examples of all eleven kinds."""
    return tune(ARMS["256 good"])


def pod() -> Experiment:
    """The paper's recipe: a thousand conversations, 15 epochs, all weights trained, on Llama 3 70B's shape."""
    return Experiment(
        name="lima-llama-70b",
        steps=240,
        batch_size=64,
        model=llama_70b(),
        data=DataConfig(
            form="conversations", sources=("jsonl:lima/train.jsonl",), validation_sources=("jsonl:lima/validation.jsonl",),
            tokenizer=TokenizerConfig(path="runs/llama-70b/tokenizer.model", vocab_size=128_000), sequence_length=2048,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="linear", final_fraction=0.1, b2=0.95, weight_decay=0.1),
        init_from="runs/llama-70b",
        remat="full",
        mesh=MeshConfig(model=8),
        evaluation=EvaluationConfig(every=48),
        checkpoint=CheckpointConfig(every=48, keep=3),
    )  # fmt: skip


def held_out() -> list[Example]:
    """Return the instructions that models are measured on, of all kinds."""
    return draw_examples(EACH * len(KINDS), seed=1, kinds=tuple(KINDS))


def examples_of(shown: Shown, seed: int) -> list[Example]:
    """Return an arm's examples; a smaller set is the beginning of a larger one, and none is held out."""
    # Which few kinds are taken differs by seed.
    kinds = [str(kind) for kind in np.random.default_rng(seed).permutation(TRAINED_KINDS)[: shown.kinds]]
    good = draw_examples(shown.number, 100 + seed, kinds, {example["prompt"] for example in held_out()})
    return spoil(good, shown.bad, seed) if shown.bad else good


def follow(folder: Path, asked_by: str = "prompt") -> list[bool]:
    """Return which of the held-out instructions a run follows, with its likeliest tokens, asked by prompt or in Python."""

    def passed() -> list[bool]:
        asked = held_out()
        with opened(folder) as run:
            prompts = [encode_prompt(run.needs_tokenizer(), f"{example[asked_by]}\n") for example in asked]
            texts = answer(run, prompts, 48, stop=("\n",))
        return [passes(example, text) for example, text in zip(asked, texts, strict=True)]

    return kept(folder / f"held_out_{asked_by}.json", passed)


def run_arms(seeds: int, runs: Path) -> dict[str, list[list[bool]]]:
    """Return what every arm and seed passes, seed by seed; "base" is the model before any tuning."""
    before = trained(base(), runs)
    found = {"base, asked in Python": [follow(before, "python")], "base": [follow(before)]}
    for seed in range(seeds):
        for name, shown in ARMS.items():
            found.setdefault(name, []).append(follow(trained(tune(shown, seed, before), runs)))
    return found


def tabulate(found: dict[str, list[list[bool]]]) -> list[list[str]]:
    """Return the table's lines: shares passed, with the bootstrap over instructions, and Student's t over seeds."""
    lines = [["arm", "11 kinds", "over seeds", "3 kinds in no arm", "kinds it was shown", "other kinds"]]
    kinds = np.array([example["kind"] for example in held_out()])
    for arm, seeds in found.items():
        passed, shown = np.array(seeds, float), ARMS.get(arm)
        trained_on = ~np.isin(kinds, HELD_OUT_KINDS)
        own = [
            np.isin(kinds, [e["kind"] for e in examples_of(shown, seed)]) if shown else np.zeros(len(kinds), bool)
            for seed in range(len(seeds))
        ]
        cells = [str(bootstrap(passed[:, trained_on])), interval(passed[:, trained_on].mean(axis=1).tolist())]
        cells.append(str(bootstrap(passed[:, ~trained_on])))
        for which in (own, [~of for of in own]):
            shares = [float(row[of].mean()) for row, of in zip(passed, which, strict=True) if of.any()]
            cells.append(interval(shares) if shares else "-")
        lines.append([arm, *cells])
    return lines


def by_kind(found: dict[str, list[list[bool]]]) -> list[list[str]]:
    """Return the share passed of every kind, over seeds."""
    kinds = np.array([example["kind"] for example in held_out()])
    lines = [["arm", *KINDS]]
    for arm, seeds in found.items():
        lines.append([arm, *(f"{np.array(seeds)[:, kinds == kind].mean():.2f}" for kind in KINDS)])
    return lines


def draw(found: dict[str, list[list[bool]]], path: Path) -> None:
    """Draw the share passed against the number of examples, good and half bad, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    trained_on = np.array([example["kind"] not in HELD_OUT_KINDS for example in held_out()])
    figure, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for color, (label, bad, kinds) in enumerate(
        (("good", 0.0, 11), ("half bad", 0.5, 11), ("2 kinds", 0.0, 2), ("5 kinds", 0.0, 5))
    ):
        arms = {s.number: found[n] for n, s in ARMS.items() if n in found and (s.bad, s.kinds) == (bad, kinds)}
        shares = {number: np.array(seeds, float)[:, trained_on].mean(axis=1) for number, seeds in arms.items()}
        ax.plot(list(shares), [of.mean() for of in shares.values()], "o-", color=f"C{color}", label=label)
        for number, of in shares.items():
            ax.plot([number] * len(of), of, ".", color=f"C{color}", alpha=0.5)
    ax.set(xscale="log", xlabel="examples", ylabel="share of held-out instructions followed", ylim=(0, 1))
    ax.grid(alpha=0.25)
    ax.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run every arm, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/lima"))
    options = parser.parse_args()
    start_jax(1)
    found = run_arms(options.seeds, options.runs)
    lines, kinds = tabulate(found), by_kind(found)
    show(lines, f"share of held-out instructions followed, {options.seeds} seeds")
    show(kinds, "by kind")
    results: dict[str, Any] = {"arms": {n: dataclasses.asdict(s) for n, s in ARMS.items()}, "passed": found}
    write_results(options.runs, "lima", [lines, kinds], results)
    draw(found, options.runs / "lima.png")
    return 0


if __name__ == "__main__":
    command(main)
