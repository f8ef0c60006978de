"""What a step of preference optimisation costs beside a step of supervised tuning over the same rows.

    python benchmarks/dpo_step.py                       # 7M parameters, 4 pairs of 256 tokens
    python benchmarks/dpo_step.py --experts 4 --rounds 20

Programs are those that `jaxlm train` compiles. They take turns, a step each, in one process; each round gives the ratio of
every program's step to the supervised one's, and medians over rounds are shown with their quartiles. The batch is the same for
all: rows of random tokens, the second half of each row counted as response.

    sft         next-token prediction on the responses
    cached      DPO against log-probabilities that were computed before
    live        DPO with the reference beside the policy; beside sft and forward together
    lora        DPO on adapters of rank 16, the base itself being the reference
    forward     the reference's log-probabilities alone: what a live reference adds

Exit status 1 where a bar of bars.json is missed.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
import tyro
from rich.console import Console
from rich.table import Table

from jaxlm.data.packing import Batch
from jaxlm.data.pairs import PairBatch
from jaxlm.data.prepare import DataConfig
from jaxlm.experiment import Experiment
from jaxlm.layout import make_mesh
from jaxlm.model.config import ModelConfig
from jaxlm.model.lora import LoraConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective.preference import reference_log_probs
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run.memory import keep_freed_memory
from jaxlm.run.programs import make_step
from jaxlm.run.setup import spec_of
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer
from jaxlm.train.step import init_state

WARM_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The shape of the model and of the batch."""

    layers: int = 6
    width: int = 256
    vocab: int = 8192
    length: int = 256
    pairs: int = 4
    experts: int = 0
    """Of a Switch layer in every second layer; 0: a dense model."""
    rounds: int = 15
    devices: int = 1
    json: Path | None = None
    """Write everything measured here."""


def experiments(arguments: Arguments) -> dict[str, Experiment]:
    """Return what each program trains."""
    moe = MoeConfig(num_experts=arguments.experts, every=2) if arguments.experts else MoeConfig()
    model = ModelConfig(
        vocab_size=arguments.vocab, num_layers=arguments.layers, hidden_size=arguments.width,
        num_heads=arguments.width // 64, intermediate_size=8 * arguments.width // 3 // 64 * 64,
        max_length=arguments.length, moe=moe,
    )  # fmt: skip
    data = DataConfig(sequence_length=arguments.length, form="preferences")
    dpo = Experiment(
        name="dpo", steps=1000, batch_size=arguments.pairs, model=model, data=data, init_from="reference",
        optimizer=OptimizerConfig(learning_rate=1e-6, schedule="constant"),
    )  # fmt: skip
    live = dataclasses.replace(dpo, preference=PreferenceConfig(reference="live"))
    text = dataclasses.replace(data, form="conversations")
    return {
        "sft": dataclasses.replace(dpo, data=text, batch_size=2 * arguments.pairs, init_from=""),
        "cached": dpo,
        "live": live,
        "lora": dataclasses.replace(live, lora=LoraConfig(rank=16)),
    }


def draw(experiment: Experiment) -> PairBatch:
    """Return rows of random tokens, each a prompt and, from its middle on, a response."""
    shape = experiment.rows, experiment.data.sequence_length
    tokens = np.random.default_rng(0).integers(0, experiment.model.vocab_size, (shape[0], shape[1] + 1), np.int32)
    place = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return PairBatch(
        tokens=tokens[:, :-1].copy(), targets=tokens[:, 1:].copy(), weights=(place >= shape[1] // 2).astype(np.float32),
        segments=np.ones(shape, np.int32), positions=place.copy(), labels=np.tile(np.float32([1, 0]), shape[0] // 2),
        reference=np.full(shape[0], -9.0 * shape[1] / 2, np.float32),
    )  # fmt: skip


def programs(arguments: Arguments) -> dict[str, Callable[[], None]]:
    """Return a function for each program that takes one step and waits for it."""
    found: dict[str, Callable[[], None]] = {}
    for name, experiment in experiments(arguments).items():
        model = experiment.model.for_platform(jax.default_backend())
        spec = spec_of(experiment, model)
        optimizer = make_optimizer(experiment.optimizer, experiment.steps, spec)
        state = jax.jit(lambda spec=spec, optimizer=optimizer, e=experiment: init_state(spec, optimizer, e.layout, 0))()
        batch = draw(experiments(arguments)["cached"])
        placed: Any = jax.device_put(batch) if experiment.paired else jax.device_put(Batch(*batch[:5]))
        reference = jax.tree.map(lambda x: x.copy(), state.params) if name == "live" else None
        inputs = placed, None, reference
        step = make_step(experiment, model, spec, optimizer)
        found[name] = _taking(jax.jit(step, donate_argnums=0).lower(state, inputs).compile(), state, inputs)
        if name == "live":
            program = jax.jit(lambda params, batch, e=experiment, m=model: reference_log_probs(params, batch, m, e.layout))
            found["forward"] = lambda run=program, p=reference, batch=placed: run(p, batch).block_until_ready()
    return found


def _taking(step: Any, state: Any, inputs: Any) -> Callable[[], None]:
    held = [state]

    def take() -> None:
        held[0], metrics = step(held[0], inputs)
        jax.block_until_ready((held[0], metrics))

    return take


def measure(arguments: Arguments) -> dict[str, list[float]]:
    """Return seconds of a step of every program, round by round."""
    mesh = make_mesh({"data": arguments.devices}, jax.devices()[: arguments.devices])
    with jax.set_mesh(mesh):
        taking = programs(arguments)
        times: dict[str, list[float]] = {name: [] for name in taking}
        for turn in range(arguments.rounds + WARM_STEPS):
            for name, take in taking.items():
                began = time.perf_counter()
                take()
                if turn >= WARM_STEPS:
                    times[name].append(time.perf_counter() - began)
    return times


def main(arguments: Arguments) -> int:
    """Measure and judge."""
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    keep_freed_memory()
    times = measure(arguments)
    ratios = {name: [t / s for t, s in zip(taken, times["sft"], strict=True)] for name, taken in times.items()}
    explained = [
        live / (sft + forward) for live, sft, forward in zip(times["live"], times["sft"], times["forward"], strict=True)
    ]
    table = Table(title=f"{arguments.pairs} pairs of {arguments.length} tokens, {jax.devices()[0].device_kind}", box=None)
    for column in ("program", "step ms", "over sft", "quartiles"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        table.add_row(name, f"{1000 * statistics.median(taken):.1f}", f"{middle:.3f}", f"{low:.3f} - {high:.3f}")
    out = Console()
    out.print(table)
    results = [
        record.compared("cached reference / supervised", times["cached"], times["sft"], "s", "lower"),
        record.measured("live reference / supervised and forward", explained, "ratio", "lower"),
        record.compared("adapters of rank 16 / supervised", times["lora"], times["sft"], "s", "lower"),
    ]
    for result in results:
        out.print(f"{result['name']}: {result['ratio'] or result['ours']:.3f}")
    shape = {k: v for k, v in dataclasses.asdict(arguments).items() if k not in ("json", "rounds")}
    standard = shape == {k: v for k, v in dataclasses.asdict(Arguments()).items() if k in shape}
    return record.finish("dpo", results, arguments.json, judged=standard, arguments=shape, seconds=times)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
