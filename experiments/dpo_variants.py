"""Known reward against KL: DPO, IPO, KTO, SimPO, supervised training on the chosen, and best of n.

python experiments/dpo_variants.py                                # every arm and seed, the tables below
jaxlm train experiments/dpo_variants.py:base                      # the model of the grammar, in runs/dpo-variants-base
jaxlm train experiments/dpo_variants.py                           # one arm: DPO from it, on pairs that the grammar drew
jaxlm plan experiments/dpo_variants.py:pod --topology v5p:4x4x4   # IPO at Llama 3 8B's shape

Claim (arXiv:2305.18290, figure 2; arXiv:2310.12036): of equal divergence from the reference, DPO's policies have a reward as
high as any; supervised training on the chosen has less; a smaller beta goes further. Where preferences are without noise, DPO
has no optimum for any beta, and IPO a finite one (bandit.py).

Protocol: a model of short reviews (reviews.py); the reward is words of praise less words of blame. Four continuations of each
of 256 beginnings are drawn from the reference, and each two that differ are labelled by Bradley and Terry's model, with noise
therefore; for KTO a continuation is desirable with the probability that it beats the mean of its four. Every policy
then continues 128 beginnings that no training text has: reward, how many of its texts the grammar could have drawn, and
KL(policy || reference), the sum over a continuation of the exact divergences at its prefixes, are means over these, with
bootstrap intervals over beginnings. Best of n is of the reference: its reward from 8 continuations each, for its divergence
the upper bound log n - (n - 1) / n (arXiv:2401.01879), which lies above the truth where rewards are often equal, as here.

Result (one seed; last of 40 steps; 95 % intervals over beginnings; the reference has -0.03 (-0.26 to 0.20) and 28 %):

    arm               KL, nats a text           reward                   of the grammar
    DPO, beta 0.05    2.07 (1.89 to 2.26)       0.96 (0.76 to 1.15)      24 %
    DPO, beta 0.1     1.70 (1.53 to 1.89)       0.94 (0.73 to 1.14)      24 %
    DPO, beta 1       0.52 (0.44 to 0.61)       0.63 (0.41 to 0.84)      28 %
    DPO, beta 5       0.27 (0.20 to 0.36)       0.37 (0.14 to 0.58)      29 %
    IPO, beta 0.05    1.22 (1.07 to 1.40)       0.91 (0.70 to 1.11)      23 %
    IPO, beta 0.1     0.79 (0.68 to 0.91)       0.77 (0.57 to 0.97)      27 %
    IPO, beta 1       0.16 (0.13 to 0.20)       0.21 (0.01 to 0.42)      27 %
    IPO, beta 5       0.11 (0.08 to 0.14)       0.16 (-0.06 to 0.38)     30 %
    KTO, beta 0.1     1.74 (1.50 to 2.02)       0.56 (0.35 to 0.77)      34 %
    SimPO, beta 2     2.27 (2.09 to 2.46)       0.88 (0.68 to 1.06)      22 %
    SFT on chosen     0.39 (0.29 to 0.51)       0.28 (0.07 to 0.49)      30 %
    best of 2         0.19 (bound)              0.63 (0.54 to 0.72)
    best of 4         0.64 (bound)              1.23 (1.13 to 1.33)
    best of 8         1.20 (bound)              1.74 (1.61 to 1.88)

A smaller beta goes further in both, as claimed. DPO and IPO lie on one curve as far as the intervals tell. KTO lies below it,
SFT too by its mean, though its interval reaches up to it; best of n lies well above all of them. Training was not at its end:
from step 20 to 40 the reward still rose at much the same divergence (DPO, beta 0.1: from 0.56 to 0.94), so this says what short
training does, not where each loss ends.

Three answers, preferences without noise, log-ratio of y2 over y3 (bandit.py):

    loss    beta    1,000 steps    4,000     16,000     IPO's optimum    probability of y3
    DPO     0.05     9.16          30.50     104.82                      9e-92
    DPO     1        3.45           6.06      12.24                      2e-11
    DPO     5        1.17           1.71       2.95                      3e-3, and falling
    IPO     0.05     6.040          6.667      6.667     6.667           2e-6
    IPO     1        0.333          0.333      0.333     0.333           0.23
    IPO     5        0.067          0.067      0.066     0.067           0.31
"""

import argparse
import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bandit
import dpo_perplexity
import numpy as np
from clean_and_rubbish import held_out
from compare import command, show
from dpo_perplexity import LENGTH
from measured import compare_on, lay, params_at, sample_of, steps_of
from reviews import draw_body, draw_prompt, keeps_to_grammar, score
from tuned import bootstrap, kept, trained, write_results, write_rows

from jaxlm.commands.start import start_jax
from jaxlm.data.example_config import ExampleConfig
from jaxlm.experiment import CheckpointConfig, Experiment
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run.open import OpenRun, opened

DOCUMENTS, PROMPTS, COPIES, ASKED, TOKENS = 12_000, 256, 4, 128, 56
BETAS = (0.05, 0.1, 1.0, 5.0)
BEST_OF = (2, 4, 8)


@functools.cache
def prompts(count: int, seed: int, *, kept_out: bool = False) -> tuple[str, ...]:
    """Return beginnings of the training texts, or of those held out."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        prompt = draw_prompt(rng)
        if held_out(prompt) == kept_out:
            found.append(prompt)
    return tuple(found)


def base(seed: int = 0) -> Experiment:
    """The reference: the small model of dpo_perplexity.py, on clean reviews alone."""
    rng = random.Random(0)
    rows = [{"text": prompt + draw_body(prompt, rng)} for prompt in prompts(DOCUMENTS, 0)]
    same = dpo_perplexity.base("grammar", seed)
    data = dataclasses.replace(same.data, sources=(f"jsonl:{write_rows('reviews', rows)}",))
    return dataclasses.replace(same, name="dpo-variants-base", steps=200, data=data)


def label(groups: list[tuple[str, list[str]]], seed: int) -> dict[str, list[dict]]:
    """Return pairs and labelled examples of continuations, each group of one prompt."""
    rng, pairs, labels = random.Random(seed), [], []
    for prompt, bodies in groups:
        scores = [score(body) for body in bodies]
        for i, j in itertools.combinations(range(len(bodies)), 2):
            if bodies[i] != bodies[j] and bodies[i] and bodies[j]:
                first, second = (i, j) if rng.random() < _logistic(scores[i] - scores[j]) else (j, i)
                pairs.append({"prompt": prompt, "chosen": bodies[first], "rejected": bodies[second]})
        mean = sum(scores) / len(scores)
        labels += [
            {"prompt": prompt, "response": body, "label": rng.random() < _logistic(value - mean)}
            for body, value in zip(bodies, scores, strict=True)
            if body
        ]
    return {"preferences": pairs, "labels": labels}


def _logistic(difference: float) -> float:
    return 1.0 / (1.0 + math.exp(-difference))


def experiment() -> Experiment:
    """DPO with beta 0.1, on continuations that the grammar drew in the place of the reference."""
    rng = random.Random(0)
    groups = [(prompt, [draw_body(prompt, rng) for _ in range(COPIES)]) for prompt in prompts(PROMPTS, 1)]
    return arms("runs/dpo-variants-base", 0, label(groups, 0))["DPO, beta 0.1"]


def arms(init_from: str, seed: int, rows: dict[str, list[dict]]) -> dict[str, Experiment]:
    """Return every arm of a seed."""
    files = {name: write_rows(f"reviews-{name}", some) for name, some in rows.items()}
    same = dpo_perplexity.tuned("grammar", init_from, seed)

    def tuned(**fields: Any) -> Experiment:
        preference = PreferenceConfig(**fields)
        data = dataclasses.replace(
            same.data, form=preference.form, sources=(f"jsonl:{files[preference.form]}",), validation_sources=(),
            validation_fraction=0.05,
        )  # fmt: skip
        return dataclasses.replace(
            same, name="dpo-variants", preference=preference, data=data, checkpoint=CheckpointConfig(every=20, keep=1000)
        )

    chosen = tuned()
    data = dataclasses.replace(chosen.data, form="conversations", examples=ExampleConfig(response="chosen", packing=False))
    return {
        **{f"DPO, beta {beta:g}": tuned(beta=beta) for beta in BETAS},
        **{f"IPO, beta {beta:g}": tuned(loss="ipo_sum", beta=beta) for beta in BETAS},
        "KTO, beta 0.1": tuned(loss="kto", beta=0.1),
        "SimPO, beta 2": tuned(loss="simpo", beta=2.0),
        "SFT on chosen": dataclasses.replace(chosen, data=data),
    }


def pod() -> Experiment:
    """IPO of Llama 3 8B, as dpo_perplexity.py has DPO."""
    return dataclasses.replace(dpo_perplexity.pod(), name="dpo-variants-8b", preference=PreferenceConfig(loss="ipo", beta=0.1))


def reward_of(bodies: Sequence[str], asked: tuple[str, ...]) -> dict[str, list[float]]:
    """Return reward, and whether the text keeps to the grammar, of a continuation of each prompt."""
    return {
        "reward": [float(score(body)) for body in bodies],
        "grammatical": [float(keeps_to_grammar(prompt, body)) for prompt, body in zip(asked, bodies, strict=True)],
    }


def measure(folder: Path, run: OpenRun, seed: int) -> dict[str, dict[str, list[float]]]:
    """Return what the policy of every checkpoint writes, sample by sample."""
    asked, found = prompts(ASKED, 2, kept_out=True), {}
    for step in steps_of(folder):
        params = params_at(folder, step, run)
        samples = sample_of(run, params, asked, TOKENS, seed)
        rows = lay([(sample.prompt, sample.response) for sample in samples], LENGTH)
        compared = compare_on(params, run.params, rows, run.model, run.experiment.layout)
        found[str(step)] = reward_of([sample.text for sample in samples], asked) | {
            "kl": (compared.kl * rows.response).sum(axis=1).tolist(),
            "log_ratio": ((compared.log_probs - compared.reference) * rows.response).sum(axis=1).tolist(),
        }
    return found


def best_of(scores: np.ndarray, n: int) -> np.ndarray:
    """Return the expected greatest of n of each row's scores [prompts, copies], over all choices of n without order."""
    ordered, copies = np.sort(scores, axis=1), scores.shape[1]
    weights = [math.comb(rank, n - 1) / math.comb(copies, n) for rank in range(copies)]
    return ordered @ np.array(weights)


def run_seed(seed: int, runs: Path) -> dict[str, dict]:
    """Train the reference, draw from it, train every arm, and return what was measured of each."""
    reference = trained(base(seed), runs)
    asked = prompts(ASKED, 2, kept_out=True)
    with opened(reference) as run:
        bodies = kept(reference / "drawn.json", lambda: texts(run, prompts(PROMPTS, 1), seed, COPIES))
        own = kept(reference / "measured.json", lambda: texts(run, asked, seed, max(BEST_OF)))
    groups = [(prompt, bodies[COPIES * i : COPIES * (i + 1)]) for i, prompt in enumerate(prompts(PROMPTS, 1))]
    folders = {arm: trained(experiment, runs) for arm, experiment in arms(str(reference), seed, label(groups, seed)).items()}
    found = {"reference": {"0": reward_of(own[:: max(BEST_OF)], asked) | {"kl": [0.0] * ASKED}}}
    with opened(reference) as run:
        for arm, folder in folders.items():
            found[arm] = kept(folder / "measured.json", lambda folder=folder: measure(folder, run, seed))
    scores = np.array([score(text) for text in own], np.float64).reshape(ASKED, -1)
    for n in BEST_OF:
        bound = math.log(n) - (n - 1) / n
        found[f"best of {n}"] = {"0": {"reward": best_of(scores, n).tolist(), "kl": [bound] * ASKED}}
    return found


def texts(run: OpenRun, asked: tuple[str, ...], seed: int, copies: int) -> list[str]:
    """Return what the open run itself continues beginnings with."""
    return [sample.text for sample in sample_of(run, run.params, asked, TOKENS, seed, copies)]


def tabulate(found: dict[str, list[dict]]) -> list[list[str]]:
    """Return the table's lines, the heading first: each arm at its last checkpoint, means over seeds and beginnings."""
    lines = [["arm", "KL, nats a text", "reward", "of the grammar %"]]
    for arm, seeds in found.items():
        last = [seed[max(seed, key=int)] for seed in seeds]
        share = f"{100 * np.mean([each['grammatical'] for each in last]):.0f}" if "grammatical" in last[0] else "-"
        lines.append([arm, *(str(bootstrap(np.array([each[name] for each in last]))) for name in ("kl", "reward")), share])
    return lines


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Draw reward against divergence, means over seeds: thin lines are a run's checkpoints, thick ones the last of each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    paths: dict[str, list[list[list[float]]]] = {}
    for arm, seeds in found.items():
        kind = "best of n (bound)" if arm.startswith("best") else arm.split(",")[0]
        at = [
            [float(np.mean([seed[step][of] for seed in seeds])) for of in ("kl", "reward")]
            for step in sorted(seeds[0], key=int)
        ]
        paths.setdefault(kind, []).append(at)
    for color, (kind, of_kind) in enumerate(paths.items()):
        for each in of_kind:
            ax.plot(*zip(*each, strict=True), color=f"C{color}", lw=0.6, alpha=0.5)
        last = sorted(each[-1] for each in of_kind)
        ax.plot(*zip(*last, strict=True), "o-", color=f"C{color}", ms=4, lw=1.4, label=kind)
    ax.set(xlabel="KL(policy || reference), nats a text", ylabel="reward")
    ax.grid(alpha=0.25)
    ax.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run everything, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/dpo_variants"))
    arguments = parser.parse_args()
    start_jax(1)
    found: dict[str, list[dict]] = {}
    for seed in range(arguments.seeds):
        for arm, measured in run_seed(seed, arguments.runs).items():
            found.setdefault(arm, []).append(measured)
        lines, table = tabulate(found), bandit.tabulate(BETAS)  # after every seed, so that an early stop leaves a result
        show(lines, f"dpo_variants, {seed + 1} seeds")
        show(table, "three answers, preferences without noise")
        write_results(arguments.runs, "dpo_variants", [lines, table], found)
        draw(found, arguments.runs / "dpo_variants.png")
    return 0


if __name__ == "__main__":
    command(main)
