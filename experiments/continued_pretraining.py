"""A model of Python code goes on to learn the language reference: from scratch, continued, continued with old text replayed.

jaxlm train experiments/continued_pretraining.py:base --run-dir runs/continued_base
jaxlm train experiments/continued_pretraining.py        # from there, a quarter of the rows old
python experiments/continued_pretraining.py             # the base and every arm, three seeds, the table below
jaxlm plan experiments/continued_pretraining.py:pod --topology v5p:4x4x4   # Llama 3 8B, continued

Claim (arXiv:2403.08763, section 4): continuing beats starting anew on the new text, forgets old text, and a little replay
keeps most of it at next to no cost on the new.

Result (0.9M parameters; 0.8M tokens of the standard library, then 0.3M of the reference; 3 seeds, intervals 95 %; bits per byte
of held-out text):

    arm                               new text           old text
    base                              2.079 ± 0.108      1.801 ± 0.079
    from scratch                      1.454 ± 0.039      3.695 ± 0.071
    continued                         1.189 ± 0.054      2.672 ± 0.206
    continued, a quarter replayed     1.233 ± 0.051      1.871 ± 0.055

The claim holds: continuing is 0.26 bits better on the new text than as many steps from scratch and 0.87 worse than before on
the old; with a quarter of the rows old it is 0.07 worse there, for 0.04 on the new.
"""

import argparse
import dataclasses
import pydoc_data.topics
from pathlib import Path

import jax
import llama_8b
from compare import command, interval, show
from tuned import library, trained

from jaxlm.commands.start import start_jax
from jaxlm.data.mixture import Batches
from jaxlm.data.prepare import DataConfig, prepare
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.eval.language_model import evaluate, target_bytes
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.objective import language_model
from jaxlm.run.open import opened
from jaxlm.train.optimizer import OptimizerConfig

RUNS, BASE = Path("runs/continued_pretraining"), Path("runs/continued_base")
REFERENCE = f"text:{pydoc_data.topics.__file__}#2048"


def old_text() -> str:
    """The standard library without the reference, which is one of its files."""
    return library("pydoc_data/topics.py")


def base() -> Experiment:
    """The model that has read the standard library alone."""
    return Experiment(
        name="base", steps=400, batch_size=16,
        model=ModelConfig(
            vocab_size=2048, num_layers=3, hidden_size=128, num_heads=4, intermediate_size=384, max_length=128
        ),
        data=DataConfig(sources=(old_text(),), tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048), sequence_length=128),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=40),
        evaluation=EvaluationConfig(every=0), checkpoint=CheckpointConfig(every=0, keep=1), sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip


def arms(seed: int = 0, begun: Path = BASE) -> dict[str, Experiment]:
    """The control first; the others begin from the base in `begun`, of the same seed."""
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=2048, path=str(begun / "tokenizer.model"))
    new = dataclasses.replace(base().data, sources=(REFERENCE,), tokenizer=tokenizer)
    steep = OptimizerConfig(learning_rate=4e-3, warmup_steps=15)
    scratch = dataclasses.replace(base(), name="from scratch", steps=150, seed=seed, data=new, optimizer=steep)
    gentle = OptimizerConfig(learning_rate=2e-3, warmup_steps=15)
    continued = dataclasses.replace(scratch, name="continued", init_from=str(begun), optimizer=gentle)
    old = dataclasses.replace(new, sources=(REFERENCE, old_text()), weights=(0.75, 0.25))
    return {
        "from scratch": scratch,
        "continued": continued,
        "continued, a quarter replayed": dataclasses.replace(continued, name="replayed", data=old),
    }


def experiment() -> Experiment:
    """Continued pretraining with replay."""
    return arms()["continued, a quarter replayed"]


def pod() -> Experiment:
    """Llama 3 8B, begun from a run of it, on text of its own."""
    data = DataConfig(
        sources=("jsonl:/data/new/*.jsonl.gz", "jsonl:/data/old/*.jsonl.gz"), weights=(0.75, 0.25), sequence_length=8192,
        tokenizer=dataclasses.replace(llama_8b.experiment().data.tokenizer, path="runs/llama-8b/tokenizer.model"),
    )  # fmt: skip
    gentle = OptimizerConfig(learning_rate=3e-5, warmup_steps=500)
    return dataclasses.replace(
        llama_8b.experiment(), name="llama-8b-continued", data=data, optimizer=gentle, init_from="runs/llama-8b"
    )


def held_out(folder: Path, data: DataConfig) -> float:
    """Return the bits per byte of a run's newest checkpoint on the held-out documents of some data."""
    with opened(folder) as run:
        batches, sizes = Batches(prepare(data), "validation", 32, 0), run.needs_tokenizer().token_bytes()
        place = jax.NamedSharding(run.mesh, run.experiment.layout.spec("batch", "length"))
        sums = jax.jit(lambda params, batch: language_model.loss(params, batch, run.model, run.experiment.layout)[1])
        read = (batches.batch(index) for index in range(batches.num_batches))
        placed = ((jax.device_put(batch, place), target_bytes(batch.targets, batch.weights, sizes)) for batch in read)
        return evaluate(sums, run.params, placed)["bits_per_byte"]


def main() -> int:
    """Train what is missing, then measure every arm on held-out new and old text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    start_jax(1)
    new: dict[str, list[float]] = {}
    old: dict[str, list[float]] = {}
    for seed in range(seeds):
        begun = trained(dataclasses.replace(base(), seed=seed), RUNS)
        folders = {"base": begun} | {arm: trained(experiment, RUNS) for arm, experiment in arms(seed, begun).items()}
        before = arms(seed, begun)["from scratch"].data
        for arm, folder in folders.items():
            new.setdefault(arm, []).append(held_out(folder, before))
            old.setdefault(arm, []).append(held_out(folder, dataclasses.replace(before, sources=(old_text(),))))
    lines = [["arm", "bits per byte, new text", "old text"]]
    lines += [[arm, interval(new[arm]), interval(old[arm])] for arm in new]
    show(lines, f"held-out text, {seeds} seeds")
    return 0


if __name__ == "__main__":
    command(main)
