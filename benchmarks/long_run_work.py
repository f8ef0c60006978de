"""What a long run does: training with everything on, preferences, or one generation after the other."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.long_run import lines_of
from benchmarks.long_run_judge import check_disk
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, SampleConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.train.optimizer import OptimizerConfig

BYTES = TokenizerConfig(kind="byte", vocab_size=259)


@dataclasses.dataclass(frozen=True)
class Work:
    """Something that takes many steps."""

    run: Callable[[], None]
    step: Callable[[], int]
    """How many it has taken."""
    check: Callable[[], list[str]]
    """What is wrong with what it has left, when it has ended."""


def experiment(home: Path, steps: int) -> Experiment:
    """A model of 30 thousand parameters on two devices; 40 checkpoints and 80 validations over the run."""
    for k in range(20):
        (home / f"{k}.txt").write_text(" ".join(f"{n * k % 97} bottles of {n % 7}" for n in range(400)))
    model = ModelConfig(vocab_size=259, num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_length=64)
    return Experiment(
        name="long", steps=steps, batch_size=8, model=model, mesh=MeshConfig(cpu_devices=2),
        data=DataConfig(
            sources=(f"text:{home}/*.txt",), validation_fraction=0.3, sequence_length=32, tokenizer=BYTES,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=3), sample=SampleConfig(tokens=0),
        evaluation=EvaluationConfig(every=max(1, steps // 80), batches=2),
        checkpoint=CheckpointConfig(every=max(1, steps // 40), keep=3),
    )  # fmt: skip


def training(home: Path, steps: int, made: Experiment | None = None) -> Work:
    """Training."""
    from jaxlm.run.loop import train

    made, folder = made or experiment(home, steps), home / "run"
    saves, validations = made.checkpoint.every, len({*range(made.evaluation.every, steps + 1, made.evaluation.every), steps})
    return Work(
        lambda: train(made, folder) and None, lines_of(folder / "metrics.jsonl"),
        lambda: check_disk(folder, steps, saves, made.checkpoint.keep, validations),
    )  # fmt: skip


def preferences(home: Path, steps: int) -> Work:
    """DPO from a run of a few steps, against a table of its log-probabilities."""
    from jaxlm.run.loop import train

    base = experiment(home, 20)
    train(base, home / "base")
    with (home / "sums.jsonl").open("w") as out:
        for a in range(20):
            for b in range(20):
                out.write(json.dumps({"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 7)}) + "\n")
    data = replace(base.data, sources=(f"jsonl:{home}/sums.jsonl",), form="preferences", validation_fraction=0.2)
    long = experiment(home, steps)
    asked = replace(
        long, name="preferences", data=data, init_from=str(home / "base"), evaluation=replace(long.evaluation, batches=1)
    )
    return training(home, steps, asked)


def generation(home: Path, steps: int) -> Work:
    """Generations of one text after the other, of lengths that come again and again."""
    import jax

    from jaxlm import param
    from jaxlm.data.byte_tokenizer import ByteTokenizer
    from jaxlm.decode.generate import generate_text
    from jaxlm.decode.sampling import Sampling
    from jaxlm.layout import Layout, make_mesh
    from jaxlm.model import transformer

    model, taken = experiment(home, 10).model.for_platform("cpu"), [0]

    def run() -> None:
        layout = Layout(batch=None)
        with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
            params = jax.jit(lambda: param.initialize(transformer.spec(model), jax.random.key(0), layout))()
            for number in range(steps):
                prompts = ["to be " * (1 + number % 5)] * (1 + number % 3)
                generate_text(params, model, layout, ByteTokenizer(), prompts, 4 + number % 7, Sampling(), number)
                taken[0] = number + 1

    return Work(run, lambda: taken[0], lambda: [])


WORKS: dict[str, Callable[[Path, int], Work]] = {
    "training": training, "preferences": preferences, "generation": generation,
}  # fmt: skip
