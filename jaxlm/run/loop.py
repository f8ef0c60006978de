"""Training: from an experiment to a run directory. Plain code; an experiment that needs another loop writes its own."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxlm import param
from jaxlm.config import digest
from jaxlm.data.mixture import prefetch
from jaxlm.experiment import Experiment
from jaxlm.run import directory, display, goodput, processes, report
from jaxlm.run.agreement import agreed, announced, same
from jaxlm.run.continued import check_inputs_are_the_same
from jaxlm.run.failure import failure_recorded, forget_failure
from jaxlm.run.functions import keep_functions
from jaxlm.run.metrics import MetricsLog, read_rows
from jaxlm.run.preflight import (
    check_functions,
    check_inputs,
    check_processes,
    check_shared,
    check_trainable,
    laid_out,
    prepared_data,
)
from jaxlm.run.programs import compile_step, make_validate
from jaxlm.run.reference import with_reference
from jaxlm.run.rows import summarize_rows
from jaxlm.run.setup import Setup, describe_checkpoint, restore_or_begin, set_up
from jaxlm.run.sources import code_digest
from jaxlm.run.step_results import StepResults
from jaxlm.run.unread import describe_unread
from jaxlm.train.checkpoint_writer import CheckpointWriter
from jaxlm.train.step import TrainState


def train(
    experiment: Experiment, folder: Path, *, allow_config_change: bool = False, clock: goodput.Clock | None = None
) -> list[dict[str, Any]]:
    """Run an experiment in `folder`, or continue the run that is there, and return its metrics rows.

    On SIGTERM or Ctrl-C it saves and returns. Raises JaxlmError with what is wrong and what to do: before any device is
    used where the configuration is at fault, with the last good checkpoint kept where the run is. `clock` has counted the
    time before. Of several processes all call it alike; process 0 alone locks and writes the directory and shows progress,
    and returns rows: the others return none.
    """
    clock, leading = clock or goodput.Clock(), processes.index() == 0
    code = code_digest() if leading else ""  # before anything else takes time: sources may change under a long start
    out = display.console(quiet=not leading)
    same("configuration", digest(experiment), "start all processes with the same files and options")
    with ExitStack() as held:
        with agreed("configuration"):
            check_trainable(experiment.model)
            check_inputs(experiment, folder)
            check_processes(experiment)
            check_functions(experiment)
            if leading:
                held.enter_context(directory.opened_for_writing(folder))
                for name, before, now in directory.settle_config(folder, experiment, allow_change=allow_config_change):
                    out.print(f"changed: {name} {before!r} -> {now!r}")
                keep_functions(folder, experiment)
                for line in describe_unread(experiment):
                    out.print("[yellow]warning:[/]", line)
                held.enter_context(failure_recorded(folder))
        devices = jax.devices()
        with agreed("mesh"):
            mesh = laid_out(experiment, devices, out)
        with clock.during("preparing"):
            prepared = prepared_data(experiment.data, out)
        start = 0
        check_shared(folder)
        with agreed("set-up"):
            setup = set_up(experiment, prepared, mesh)
            if leading:
                saves = folder / directory.CHECKPOINTS
                if changed := check_inputs_are_the_same(folder, saves, prepared, allow_change=allow_config_change):
                    out.print(changed, soft_wrap=True, markup=False)
                prepared.tokenizer.save(folder / directory.TOKENIZER)
                kind = f"{len(devices)} x {devices[0].device_kind}"
                facts = {"devices": kind, "mesh": dict(mesh.shape), "data": prepared.key, "code": code}
                facts["processes"] = processes.count()
                start = directory.record_start(folder, experiment, facts)
                forget_failure(folder)
        with jax.set_mesh(mesh):
            return _run(setup, folder, out, clock, start)


def _run(setup: Setup, folder: Path, out: Any, clock: goodput.Clock, start: int) -> list[dict[str, Any]]:
    """Restore or begin, take the steps, and leave curves, samples and a summary behind."""
    experiment, saves, leading = setup.experiment, folder / directory.CHECKPOINTS, jax.process_index() == 0
    with clock.during("preparing"):  # before there is a state: a reference that is only asked once is gone by then
        setup = with_reference(setup, saves, out)
    with clock.during("restoring"), agreed("state"):
        state = restore_or_begin(setup, saves, out.print)
    first = int(state.step)
    with agreed("record"):
        log, account = _open_log(experiment, folder, first, clock, start)
    mesh = " x ".join(f"{name} {size}" for name, size in setup.mesh.shape.items() if size > 1) or "one device"
    out.print(
        f"[bold]{experiment.name}[/]: {f'continuing at step {first}' if first else 'training'}, "
        f"{param.count(setup.spec) / 1e6:.1f}M parameters on {setup.mesh.devices.flat[0].device_kind} ({mesh}), "
        f"{setup.prepared.train.tokens / 1e6:.1f}M training tokens, in {folder}"
    )
    with ExitStack() as closing:
        closing.callback(log.close)
        writer = CheckpointWriter(saves, experiment.checkpoint.keep, experiment.checkpoint.keep_every)
        closing.callback(writer.close)
        with announced():
            if first < experiment.steps:
                with stop_signals() as stop:  # schedulers may say it twice: a save that is under way is not to be cut off
                    state = _take_steps(setup, state, first, log, writer, out, stop, clock, account)
                    clock.turn("other")
                    writer.wait()
            if int(state.step) < experiment.steps:
                out.print(f"stopped and saved after step {int(state.step)}: run the same command to continue")
            else:
                samples = report.write_samples(setup, state.params)
                if leading:
                    report.write_all(setup, log.read(), samples, folder, out)
            if first < experiment.steps:
                account(int(state.step))
    return log.read()


def _open_log(
    experiment: Experiment, folder: Path, first: int, clock: goodput.Clock, start: int
) -> tuple[MetricsLog, Callable[[int], None]]:
    """Return the record, open in process 0, and account(step), which writes there where the time went."""
    if jax.process_index() > 0:
        return MetricsLog(None, first), lambda step: None
    path = folder / directory.METRICS
    before = read_rows(path)
    earlier, said = goodput.settle_earlier(before, first, experiment.log.every), goodput.by_start(before)
    log = MetricsLog(path, first, folder / "tensorboard" if experiment.log.tensorboard else None)

    def account(step: int, number: int = start, seconds: dict[str, float] | None = None) -> None:
        others = [spent for n, spent in earlier.items() if n < number]
        log.write(step, "goodput", goodput.row_of(seconds or clock.read(), number, others))

    for number, seconds in earlier.items():
        if seconds != said[number]:
            account(first, number, seconds)
    return log, account


def _take_steps(
    setup: Setup, state: TrainState, first: int, log: MetricsLog, writer: CheckpointWriter, out: Any, stop: Callable[[], bool],
    clock: goodput.Clock, account: Callable[[int], None],
) -> TrainState:  # fmt: skip
    """Take steps until the last or until asked to stop; several processes stop after the same one."""
    experiment, many = setup.experiment, jax.process_count() > 1
    validate, step_program = make_validate(setup), None
    progress = display.TrainingDisplay(out, first, experiment.steps)
    results = StepResults(setup, log, progress, writer)
    feed = prefetch(setup.reader("train"), first, experiment.steps)
    try:
        with jax.transfer_guard("disallow"):
            for step in range(first, experiment.steps):
                clock.turn("waiting")
                waiting = time.monotonic()
                batch, described = next(feed)
                facts = {} if many else summarize_rows(described)
                facts["data_wait_seconds"] = time.monotonic() - waiting
                clock.turn("stepping")
                inputs = setup.inputs(step, batch, described, stop())
                if step_program is None:
                    with clock.during("compiling"):
                        step_program = compile_step(setup, state, inputs)
                    results.skip_time()
                state, given = step_program(state, inputs)
                results.add(step, facts, given)
                if step == first + 1:
                    account(step)
                done, stopping = step + 1, results.asked if many else stop()
                last = done == experiment.steps
                if validate is not None and (_due(done, experiment.evaluation.every) or last):
                    results.settle()
                    with clock.during("evaluating"):
                        row = log.write(done, "validation", validate(state.params))
                    progress.say(f"validation after step {done}: {display.describe(row)}")
                    results.skip_time()
                if _due(done, experiment.checkpoint.every) or last or stopping:
                    results.settle()
                    with clock.during("saving"):
                        log.sync()
                        writer.save(state, done, describe_checkpoint(setup, done))
                    account(done)
                    results.skip_time()
                if stopping:
                    break
            return state
    finally:
        feed.close()
        progress.close()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


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
