"""Training: from an experiment to a run directory. Plain code; an experiment that needs another loop writes its own."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxlm import param
from jaxlm.data.mixture import prefetch
from jaxlm.data.prepare import DataConfig, prepare
from jaxlm.data.sources import parse_source
from jaxlm.data.tokenizer import train_tokenizer
from jaxlm.errors import JaxlmError
from jaxlm.eval.language_model import summarize
from jaxlm.experiment import Experiment, GuardConfig, check_devices
from jaxlm.layout import make_mesh
from jaxlm.run import decisions, directory, display, report
from jaxlm.run.metrics import MetricsLog
from jaxlm.run.router_report import draw_routers
from jaxlm.run.setup import Setup, compile_step, describe_checkpoint, make_validate, restore_or_begin, set_up
from jaxlm.train.checkpoint import CheckpointWriter
from jaxlm.train.step import TrainState


def train(experiment: Experiment, folder: Path, *, allow_config_change: bool = False) -> list[dict[str, Any]]:
    """Run an experiment in `folder`, or continue the run that is there, and return its metrics rows.

    On SIGTERM or Ctrl-C it saves and returns. Raises JaxlmError with what is wrong and what to do: before any device is
    used where the configuration is at fault, with the last good checkpoint kept where the run is.
    """
    out = display.console()
    check_inputs(experiment.data)
    with directory.opened_for_writing(folder):
        for name, before, now in directory.settle_config(folder, experiment, allow_change=allow_config_change):
            out.print(f"changed: {name} {before!r} -> {now!r}")
        devices = jax.devices()
        mesh_shape = check_devices(experiment, len(devices))
        with display.preparation(out) as progress:
            prepared = prepare(experiment.data, report=progress)
        mesh = make_mesh(mesh_shape)
        setup = set_up(experiment, prepared, mesh)
        prepared.tokenizer.save(folder / directory.TOKENIZER)
        facts = {"devices": f"{len(devices)} x {devices[0].device_kind}", "mesh": mesh_shape, "data": prepared.key}
        directory.record_start(folder, experiment, facts)
        with jax.set_mesh(mesh):
            return _run(setup, folder, out)


def check_inputs(data: DataConfig) -> None:
    """Raise ConfigError or DataError for a source or tokenizer file that is missing or not what it should be."""
    for spelling in (*data.sources, *data.validation_sources):
        parse_source(spelling)
    if data.tokenizer.path:
        train_tokenizer(data.tokenizer, ())


def _run(setup: Setup, folder: Path, out: Any) -> list[dict[str, Any]]:
    """Restore or begin, take the steps, and leave curves, samples and a summary behind."""
    experiment, saves = setup.experiment, folder / directory.CHECKPOINTS
    state = restore_or_begin(setup, saves, out.print)
    first = int(state.step)
    log = MetricsLog(folder / directory.METRICS, first, folder / "tensorboard" if experiment.log.tensorboard else None)
    mesh = " x ".join(f"{name} {size}" for name, size in setup.mesh.shape.items())
    out.print(
        f"[bold]{experiment.name}[/]: {f'continuing at step {first}' if first else 'training'}, "
        f"{param.count(setup.spec) / 1e6:.1f}M parameters on {setup.mesh.devices.flat[0].device_kind} ({mesh}), "
        f"{setup.prepared.train.tokens / 1e6:.1f}M training tokens, in {folder}"
    )
    writer = CheckpointWriter(saves, experiment.checkpoint.keep, experiment.checkpoint.keep_every)
    try:
        if first < experiment.steps:
            with stop_signals() as stop:
                state = _take_steps(setup, state, first, log, writer, out, stop)
            writer.wait()
        if int(state.step) < experiment.steps:
            out.print(f"stopped and saved after step {int(state.step)}: run the same command to continue")
        else:
            samples = report.write_samples(setup, state.params)
            report.draw_curves(log.rows, folder / "curves.png", experiment.name)
            if setup.model.moe_layers:
                draw_routers(log.rows, setup.model.moe_layers, folder / "routers.png", experiment.name)
            report.write_summary(setup, log.rows, samples, folder, out)
    finally:
        log.close()
        writer.close()
    return log.rows


def _take_steps(
    setup: Setup, state: TrainState, first: int, log: MetricsLog, writer: CheckpointWriter, out: Any, stop: Callable[[], bool]
) -> TrainState:
    """Take steps until the last or until asked to stop. Results are read one step behind, so that devices never wait."""
    experiment = setup.experiment
    validate, step_program = make_validate(setup), None
    progress = display.TrainingDisplay(out, first, experiment.steps)
    feed = prefetch(setup.batches("train"), first, experiment.steps)
    pending: deque[tuple[int, dict[str, Any], dict[str, Any]]] = deque()
    since = time.monotonic()

    def settle(keep: int) -> None:
        nonlocal since
        while len(pending) > keep:
            step, facts, results = pending.popleft()
            results = jax.device_get(results)
            if "decisions" in results:
                decided = results.pop("decisions")
                decisions.write_decisions(Path(experiment.router.record), step, decided, facts["batch_hash"])
            values = {name: value.tolist() for name, value in results.items()}
            since, seconds = time.monotonic(), time.monotonic() - since
            row = log.write(step, "train", _row(setup, values, facts, seconds), keep=step % experiment.log.every == 0)
            progress.update(row, last=step + 1 == experiment.steps)
            _check_streak(values, experiment.guard, writer)

    try:
        with jax.transfer_guard("disallow"):
            for step in range(first, experiment.steps):
                waiting = time.monotonic()
                batch, digest = next(feed)
                facts = {"batch_hash": digest, "bytes": setup.bytes_of(batch), "data_wait_seconds": time.monotonic() - waiting}
                inputs = setup.place(batch, experiment.accumulate), setup.place_replayed(step, digest)
                if step_program is None:
                    step_program = compile_step(setup, state, inputs)
                    since = time.monotonic()
                state, results = step_program(state, inputs)
                pending.append((step, facts, results))
                settle(keep=1)
                done, stopping = step + 1, stop()
                last = done == experiment.steps
                if validate is not None and (_due(done, experiment.evaluation.every) or last):
                    settle(keep=0)
                    row = log.write(done, "validation", validate(state.params))
                    progress.say(f"validation after step {done}: {display.describe(row)}")
                    since = time.monotonic()
                if _due(done, experiment.checkpoint.every) or last or stopping:
                    settle(keep=0)
                    log.sync()
                    writer.save(state, done, describe_checkpoint(setup, done))
                    since = time.monotonic()
                if stopping:
                    break
            return state
    finally:
        feed.close()
        progress.close()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _row(setup: Setup, values: dict[str, float], facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return what metrics.jsonl says of a training step."""
    tokens = values["tokens"]
    summary = summarize(values["loss"] * tokens, values["accuracy"] * tokens, tokens, facts["bytes"])
    speed = tokens / seconds
    row = values | {
        "bits_per_byte": summary["bits_per_byte"],
        "perplexity": summary["perplexity"],
        "batch_hash": facts["batch_hash"],
    }
    row |= {"tokens_per_second": speed, "step_seconds": seconds, "data_wait_seconds": facts["data_wait_seconds"]}
    utilisation = setup.utilisation(speed)
    return row | ({"mfu": utilisation} if utilisation is not None else {})


def _check_streak(values: dict[str, float], guard: GuardConfig, writer: CheckpointWriter) -> None:
    """Raise JaxlmError once too many steps in a row had to be skipped."""
    if values["skipped_in_a_row"] >= guard.max_skipped_in_a_row:
        kept = f"the checkpoint of step {writer.last_step} is kept" if writer.last_step >= 0 else "no checkpoint was due before"
        raise JaxlmError(
            f"{guard.max_skipped_in_a_row} steps in a row had a loss or gradient that is not finite or that spikes; {kept}. "
            "Lower --optimizer.learning-rate, lengthen --optimizer.warmup-steps, or raise --guard.spike-factor"
        )


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that turns true on SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
