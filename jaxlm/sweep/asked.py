"""What the command line asks of a sweep, and the sweep opened for it: every fault before anything is written."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from jaxlm.errors import ConfigError, suggest
from jaxlm.experiment import Experiment
from jaxlm.sweep.read import Record, Sweep, load_sweep, settle


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says of a sweep beside its file."""

    runs: Path = Path("runs/sweeps")
    max_parallel: int = 1
    only: str = ""
    any_code: bool = False
    metrics: tuple[str, ...] = ("loss",)
    name: str = ""
    """Of the sweep, in the place of its file's."""
    retry: bool = False
    """Begin trials again that diverged."""

    def check_only(self, record: Record) -> None:
        """Raise ConfigError where the arm to be trained alone is none."""
        if self.only and self.only not in record.arms:
            near = suggest(self.only, record.arms)
            raise ConfigError(f"--only {self.only}: no arm.{near} They are {', '.join(record.arms)}")


def open_sweep(file: Path, asked: Asked) -> tuple[Sweep, Record, dict[str, Experiment]]:
    """Return a sweep, the runs of its trials (nothing is written), and the experiment of each by its label."""
    sweep = load_sweep(file, asked.name)
    check_metrics(asked.metrics, (trial.experiment for trial in sweep.trials))
    record = settle(sweep, asked.runs, any_code=asked.any_code)
    asked.check_only(record)
    return sweep, record, {e.label: t.experiment for e, t in zip(record.trials, sweep.trials, strict=True)}


def check_metrics(metrics: Iterable[str], experiments: Iterable[Experiment]) -> None:
    """Raise ConfigError for a metric that the validation of none of these experiments has."""
    kinds = {(experiment.paired, experiment.model.moe.num_experts > 0) for experiment in experiments}
    known = {name for kind in kinds for name in validated(*kind)}
    for metric in metrics:
        if metric not in known:
            near, names = suggest(metric, known), ", ".join(sorted(known))
            raise ConfigError(f"--metrics {metric}: no validation has it.{near} It has {names}")


def validated(paired: bool, mixture: bool) -> set[str]:
    """Return the names of what a validation measures: of preferences or text, and of a mixture's routers."""
    import jax
    import jax.numpy as jnp

    from jaxlm.eval.language_model import summarize
    from jaxlm.objective.preference import PreferenceSums, Responses
    from jaxlm.ops import routing

    number = jax.ShapeDtypeStruct((), jnp.float32)
    if paired:
        both = {name: Responses(*[number] * len(Responses._fields)) for name in ("chosen", "rejected")}
        sums = {name: number for name in PreferenceSums._fields if name not in ("router", "decisions")}
        names = set(jax.eval_shape(PreferenceSums.metrics, PreferenceSums(**sums | both)))
    else:
        names = set(summarize(0.0, 0.0, 1.0, 1.0))
    if mixture:
        layers = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in routing.Statistics._fields}
        experts = {name: jax.ShapeDtypeStruct((1, 2), jnp.float32) for name in ("load", "kept")}
        names |= {*jax.eval_shape(routing.summarize, routing.Statistics(**layers | experts)), "router_load"}
    return names
