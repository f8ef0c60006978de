"""Does DPO raise perplexity on the unfiltered distribution while it lowers it on the clean one?

python experiments/dpo_perplexity.py                               # every arm and seed, the tables below; --world library
jaxlm train experiments/dpo_perplexity.py:base                     # the model of the mixture, in runs/dpo-perplexity-base
jaxlm train experiments/dpo_perplexity.py                          # one arm: DPO from it, beta 0.1
jaxlm plan experiments/dpo_perplexity.py:pod --topology v5p:4x4x4  # the same objective at Llama 3 8B's shape

Claim, as a question with two sides: trained to prefer clean continuations to rubbish of the same beginning, a model becomes
worse at predicting documents of the mixture it was trained on (U), and better at their clean half (H). In a world of two modes,
each of half the documents, moving the mass of the clean one to q changes a document's loss by -ln(2q) nats on H and by
-ln(4q(1 - q)) / 2 on U: one cannot be had without the other. But DPO binds only the difference of two log-probabilities, and
mass that leaves both modes makes both worse (arXiv:2410.08847).

Protocol: U are 336 held-out documents, H those of them that were made clean and L the others; none begins as a training text
does. A document's bits per byte after training less those before are bootstrapped over documents (10,000 draws), the same
documents before and after. The claim holds for an arm where the intervals say U > 0 and H < 0. Arms are compared at equal
divergence from the reference, not at equal steps: of the checkpoints, one every second step, that one is taken whose
KL(policy || reference), exact at every prefix of 64 other documents of the mixture and added up over a document, is nearest to
the wanted number (none where it is not within a third of it). Controls: supervised training on the chosen continuations; DPO
with labels drawn by a coin; with both continuations drawn from the mixture; with a supervised term; another beta.

Result (grammar world, 3 seeds; change in bits per byte, KL in nats a document, 95 % intervals over documents of the mean over
the seeds that came near; in how many of these the claim holds; the change of log p of chosen and rejected responses, in nats):

    arm                  KL    U                             H                             holds    chosen   rejected
    DPO, beta 0.1       0.3    +0.0074 (+0.0054, +0.0096)    -0.0079 (-0.0087, -0.0071)    2 of 2    +0.4     -1.3
                        1.0    +0.0238 (+0.0199, +0.0280)    -0.0069 (-0.0081, -0.0058)    3 of 3    +0.3     -3.0
                        3.4    +0.0648 (+0.0565, +0.0735)    +0.0009 (-0.0012, +0.0031)    0 of 2    -0.1     -7.0
                       10.1    +0.1808 (+0.1594, +0.2033)    +0.0266 (+0.0234, +0.0298)    0 of 3    -1.3    -17.1
    DPO, beta 0.5       1.0    +0.0244 (+0.0204, +0.0286)    -0.0076 (-0.0088, -0.0065)    3 of 3    +0.3     -3.1
                        9.8    +0.1861 (+0.1660, +0.2071)    +0.0176 (+0.0148, +0.0205)    0 of 3    -0.6    -18.5
    DPO + SFT           1.0    +0.0217 (+0.0178, +0.0257)    -0.0084 (-0.0095, -0.0072)    3 of 3    +0.3     -2.9
                       10.0    +0.2109 (+0.1837, +0.2397)    +0.0083 (+0.0058, +0.0107)    0 of 3    -0.2    -21.6
    SFT on chosen       0.3    +0.0030 (+0.0013, +0.0047)    -0.0093 (-0.0103, -0.0083)    3 of 3    +0.4     -0.9
                        1.0    +0.0179 (+0.0137, +0.0223)    -0.0154 (-0.0166, -0.0142)    3 of 3    +0.8     -2.8
    DPO, coin labels    1.0    +0.0152 (+0.0131, +0.0172)    +0.0211 (+0.0195, +0.0226)    0 of 3    -1.1     -0.7
    DPO, random pairs   1.0    +0.0138 (+0.0114, +0.0164)    +0.0191 (+0.0165, +0.0216)    0 of 2    -1.1     -0.6

The claim holds near the reference and fails further away: up to about 1 nat of divergence U rises and H falls; at 3 H is back
where it began; at 10 it is worse, for the log-probability of the chosen responses has fallen too. It is not a matter of moving
as such (labels that say nothing make U and H worse at once), nor one of DPO alone: supervised training on the chosen does the
same, at 1 nat with twice the gain on H; in these 40 steps it went no further. A supervised term or a larger beta delays
the turn and does not prevent it. L became worse in every arm. The library's world was not run.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clean_and_rubbish import Corpus, Document, World, corpus, read_lines
from compare import command, show
from llama_8b import experiment as llama_8b
from measured import Compared, Rows, bits_per_byte, closest, compare_on, lay, params_at, steps_of
from tuned import bootstrap, kept, trained, write_results

from jaxlm.commands.start import start_jax
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run.open import OpenRun, opened
from jaxlm.train.optimizer import OptimizerConfig

BYTES = TokenizerConfig(kind="byte", vocab_size=259)
LENGTH, EVERY, CHOOSE_ON = 96, 2, 64
DIVERGENCES = (0.3, 1.0, 3.0, 10.0)  # nats a document
QUIET = {"sample": SampleConfig(tokens=0), "log": LogConfig(tensorboard=False)}


def base(world: World = "grammar", seed: int = 0) -> Experiment:
    """The reference: 158,000 parameters that read the mixture once, byte by byte."""
    return Experiment(
        name="dpo-perplexity-base",
        steps=300,
        batch_size=16,
        seed=seed,
        model=ModelConfig(
            vocab_size=259, num_layers=3, hidden_size=64, num_heads=4, intermediate_size=160, max_length=256
        ),
        data=DataConfig(sources=(f"jsonl:{corpus(world).mixture}",), tokenizer=BYTES, sequence_length=256),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=30),
        evaluation=EvaluationConfig(every=100, batches=16),
        checkpoint=CheckpointConfig(every=0, keep=1),
        **QUIET,
    )  # fmt: skip


def experiment() -> Experiment:
    """DPO with beta 0.1."""
    return tuned("grammar", "runs/dpo-perplexity-base", 0, PreferenceConfig(beta=0.1))


def tuned(
    world: World, init_from: str, seed: int, preference: PreferenceConfig = PreferenceConfig(), pairs: str = "pairs"
) -> Experiment:
    """Return an arm that learns from preferences."""
    files = corpus(world)
    return Experiment(
        name="dpo-perplexity",
        steps=40,
        batch_size=24,
        seed=seed,
        init_from=init_from,
        model=base(world).model,
        data=DataConfig(
            form="preferences", sources=(f"jsonl:{getattr(files, pairs)}",), tokenizer=BYTES, sequence_length=LENGTH,
            validation_sources=(f"jsonl:{files.held_out_pairs}",),
        ),
        preference=preference,
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup_steps=6, weight_decay=0.0),
        evaluation=EvaluationConfig(every=0, batches=4),
        checkpoint=CheckpointConfig(every=EVERY, keep=1000),
        **QUIET,
    )  # fmt: skip


def supervised(world: World, init_from: str, seed: int) -> Experiment:
    """Return the arm that learns to write the chosen continuations, of as many pairs a step as the others read."""
    arm = tuned(world, init_from, seed)
    data = dataclasses.replace(arm.data, form="conversations", examples=ExampleConfig(response="chosen", packing=False))
    return dataclasses.replace(arm, data=data)


def arms(world: World, init_from: str, seed: int) -> dict[str, Experiment]:
    """Return every arm of a seed, the one that the claim is about first."""

    def dpo(pairs: str = "pairs", **fields: Any) -> Experiment:
        return tuned(world, init_from, seed, PreferenceConfig(**fields), pairs)

    return {
        "DPO": dpo(),
        "DPO, beta 0.5": dpo(beta=0.5),
        "DPO + SFT": dpo(sft_weight=1.0),
        "SFT on chosen": supervised(world, init_from, seed),
        "DPO, coin labels": dpo(pairs="shuffled"),
        "DPO, random pairs": dpo(pairs="random"),
    }


def pod() -> Experiment:
    """DPO of Llama 3 8B: rows of 2,048 tokens, 256 pairs a step, the reference's log-probabilities from the cache."""
    return dataclasses.replace(
        llama_8b(),
        name="dpo-perplexity-8b",
        steps=1000,
        batch_size=256,
        init_from="runs/llama-8b",
        data=DataConfig(
            form="preferences",
            sources=("jsonl:preferences/*.jsonl",),
            tokenizer=dataclasses.replace(llama_8b().data.tokenizer, path="runs/llama-8b/tokenizer.model"),
            sequence_length=2048,
        ),
        preference=PreferenceConfig(beta=0.1),
        optimizer=OptimizerConfig(learning_rate=5e-7, schedule="constant", warmup_steps=150, weight_decay=0.0),
        mesh=MeshConfig(),
        checkpoint=CheckpointConfig(every=50, keep=20),
    )


def rows_of(documents: Sequence[Document], run: OpenRun) -> Rows:
    """Return documents as rows of ids, each from its bos to its eos."""
    encode, first, last = run.tokenizer.encode, run.tokenizer.bos_id, run.tokenizer.eos_id
    return lay([((first, *encode(each.prompt)), (*encode(each.body), last)) for each in documents], LENGTH)


def pairs_of(files: Corpus) -> list[Document]:
    """Return the first held-out pairs as documents: chosen, rejected, chosen, ..."""
    lines = read_lines(files.held_out_pairs)[:CHOOSE_ON]
    return [Document(line["prompt"], line[name], name == "chosen") for line in lines for name in ("chosen", "rejected")]


def measure(folder: Path, run: OpenRun, files: Corpus) -> dict[str, Any]:
    """Return the divergence of every checkpoint of an arm, and of those nearest to a wanted one what held-out documents say."""
    choosing, judged = files.held_out[:CHOOSE_ON], files.held_out[CHOOSE_ON:]
    sets = {name: rows_of(of, run) for name, of in (("choosing", choosing), ("judged", judged), ("pairs", pairs_of(files)))}
    size = np.array([len(document.text.encode()) for document in judged])

    def against(step: int, name: str) -> Compared:
        return compare_on(params_at(folder, step, run), run.params, sets[name], run.model, run.experiment.layout)

    divergences = {step: float(against(step, "choosing").kl.sum(axis=1).mean()) for step in steps_of(folder)}
    found = {}
    for wanted in DIVERGENCES:
        step = closest(divergences, wanted)
        if step is None:
            continue
        documents, pairs = against(step, "judged"), against(step, "pairs")
        gained = ((pairs.log_probs - pairs.reference) * sets["pairs"].response).sum(axis=1).reshape(-1, 2).mean(axis=0)
        change = bits_per_byte((documents.log_probs - documents.reference).sum(axis=1), size)
        found[f"{wanted:g}"] = {
            "step": step, "kl": float(documents.kl.sum(axis=1).mean()), "change": change.tolist(),
            "chosen": float(gained[0]), "rejected": float(gained[1]),
        }  # fmt: skip
    return {"divergences": divergences, "at": found}


def run_seed(world: World, seed: int, runs: Path) -> dict[str, dict[str, Any]]:
    """Train the reference and every arm of a seed, and return what was measured of each arm."""
    reference = trained(base(world, seed), runs)
    folders = {arm: trained(experiment, runs) for arm, experiment in arms(world, str(reference), seed).items()}
    with opened(reference) as run:
        return {
            arm: kept(folder / "measured.json", lambda folder=folder: measure(folder, run, corpus(world)))
            for arm, folder in folders.items()
        }


def judge(changes: np.ndarray, clean: np.ndarray) -> tuple[str, str, str, str]:
    """Return the intervals on U, H and L of changes [seeds, documents], and in how many seeds the claim holds by itself."""
    parts = [bootstrap(changes), bootstrap(changes[:, clean]), bootstrap(changes[:, ~clean])]
    holds = sum(bootstrap(change).low > 0 and bootstrap(change[clean]).high < 0 for change in changes)
    return *(f"{part.mean:+.4f} ({part.low:+.4f} to {part.high:+.4f})" for part in parts), f"{holds} of {len(changes)}"


def tabulate(found: dict[str, list[dict[str, Any]]], clean: np.ndarray) -> list[list[str]]:
    """Return the table's lines, the heading first: means over the seeds that came near a divergence."""
    lines = [["arm", "KL wanted", "KL", "U: bits per byte", "H", "L", "holds", "log p chosen", "log p rejected", "steps"]]
    for arm, seeds in found.items():
        for wanted in DIVERGENCES:
            at = [seed["at"][f"{wanted:g}"] for seed in seeds if f"{wanted:g}" in seed["at"]]
            if not at:
                lines.append([arm, f"{wanted:g}", *["-"] * 8])
                continue
            means = {name: np.mean([each[name] for each in at]) for name in ("kl", "chosen", "rejected")}
            steps = ", ".join(str(each["step"]) for each in at)
            lines.append([
                arm, f"{wanted:g}", f"{means['kl']:.2f}", *judge(np.array([each["change"] for each in at]), clean),
                f"{means['chosen']:+.2f}", f"{means['rejected']:+.2f}", steps,
            ])  # fmt: skip
    return lines


def draw(found: dict[str, list[dict[str, Any]]], clean: np.ndarray, path: Path, title: str) -> None:
    """Draw the change on U and on H against the divergence, a line an arm through means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for ax, (name, part) in zip(axes, (("U: the mixture", slice(None)), ("H: its clean half", clean)), strict=True):
        for color, (arm, seeds) in enumerate(found.items()):
            points = [(each["kl"], np.mean(np.array(each["change"])[part])) for seed in seeds for each in seed["at"].values()]
            ax.scatter(*zip(*points, strict=True), color=f"C{color}", s=12) if points else None
            middle = [[seed["at"][each] for seed in seeds if each in seed["at"]] for each in map("{:g}".format, DIVERGENCES)]
            line = [np.mean([(a["kl"], np.mean(np.array(a["change"])[part])) for a in at], axis=0) for at in middle if at]
            ax.plot(*zip(*line, strict=True), color=f"C{color}", lw=1, label=arm) if line else None
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=name, xlabel="KL(policy || reference), nats a document", ylabel="change in bits per byte", xscale="log")
        ax.set_yscale("symlog", linthresh=0.01)
        ax.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run everything, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=("grammar", "library"), default="grammar")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/dpo_perplexity"))
    arguments = parser.parse_args()
    start_jax(1)
    clean = np.array([document.clean for document in corpus(arguments.world).held_out[CHOOSE_ON:]])
    name, found = f"dpo_perplexity_{arguments.world}", {}
    for seed in range(arguments.seeds):
        for arm, measured in run_seed(arguments.world, seed, arguments.runs).items():
            found.setdefault(arm, []).append(measured)
        lines = tabulate(found, clean)  # after every seed, so that an early stop leaves a result
        show(lines, f"{name}, {seed + 1} seeds: changes over the reference, at equal divergence")
        write_results(arguments.runs, name, [lines], {"clean": clean.tolist(), "arms": found})
        draw(found, clean, arguments.runs / f"{name}.png", f"DPO for clean text over rubbish, {arguments.world} world")
    return 0


if __name__ == "__main__":
    command(main)
