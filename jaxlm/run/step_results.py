"""Results of training steps: read one step behind, so that devices never wait, told, and written down."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import jax

from jaxlm.errors import DivergedError
from jaxlm.eval.language_model import summarize
from jaxlm.experiment import GuardConfig
from jaxlm.run import decisions
from jaxlm.run.display import TrainingDisplay
from jaxlm.run.metrics import MetricsLog
from jaxlm.run.rows import summarize_rows
from jaxlm.run.setup import Setup
from jaxlm.train.checkpoint_writer import CheckpointWriter


class StepResults:
    """What steps gave and nobody has read yet, in their order."""

    def __init__(self, setup: Setup, log: MetricsLog, progress: TrainingDisplay, writer: CheckpointWriter):
        self.setup, self.log, self.progress, self.writer = setup, log, progress, writer
        self.asked = False
        """Whether a process has been asked to stop: of several any may be, and each step's results tell it to all."""
        self._waiting: deque[tuple[int, dict[str, Any], dict[str, Any]]] = deque()
        self._since = time.monotonic()

    def skip_time(self) -> None:
        """Count nothing of the time until now as a step's."""
        self._since = time.monotonic()

    def add(self, step: int, facts: dict[str, Any], results: dict[str, Any]) -> None:
        """Take what a step will give, and read what the one before it gave; DivergedError after too many skipped."""
        self._waiting.append((step, facts, results))
        self.settle(keep=1)

    def settle(self, keep: int = 0) -> None:
        """Read, tell and write down all but the last `keep`; DivergedError after too many skipped in a row."""
        experiment = self.setup.experiment
        while len(self._waiting) > keep:
            step, facts, results = self._waiting.popleft()
            results = jax.device_get(results)
            if jax.process_count() > 1:
                facts |= summarize_rows(results.pop("rows"))
                self.asked |= bool(results.pop("stop"))
            if "decisions" in results:
                decided = results.pop("decisions")
                decisions.write_decisions(Path(experiment.router.record), step, decided, facts["batch_hash"])
            values = {name: value.tolist() for name, value in results.items()}
            self._since, seconds = time.monotonic(), time.monotonic() - self._since
            made = _row(self.setup, values, facts, seconds)
            row = self.log.write(step, "train", made, keep=step % experiment.log.every == 0)
            self.progress.update(row, last=step + 1 == experiment.steps)
            _check_streak(values, experiment.guard, self.writer)


def _row(setup: Setup, values: dict[str, float], facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return what metrics.jsonl says of a training step."""
    tokens, speed = values["tokens"], facts["real_tokens"] / seconds
    row = values | {"real_tokens": facts["real_tokens"], "batch_hash": facts["batch_hash"]}
    if not setup.experiment.paired:
        summary = summarize(values["loss"] * tokens, values["accuracy"] * tokens, tokens, facts["bytes"])
        row |= {"bits_per_byte": summary["bits_per_byte"], "perplexity": summary["perplexity"]}
    row |= {"tokens_per_second": speed, "step_seconds": seconds, "data_wait_seconds": facts["data_wait_seconds"]}
    utilisation = setup.utilisation(speed)
    return row | ({"mfu": utilisation} if utilisation is not None else {})


def _check_streak(values: dict[str, float], guard: GuardConfig, writer: CheckpointWriter) -> None:
    """Raise DivergedError once too many steps in a row had to be skipped."""
    if values["skipped_in_a_row"] >= guard.max_skipped_in_a_row:
        kept = f"the checkpoint of step {writer.last_step} is kept" if writer.last_step >= 0 else "no checkpoint was due before"
        raise DivergedError(
            f"{guard.max_skipped_in_a_row} steps in a row had a loss or gradient that is not finite or that spikes; {kept}. "
            "Lower --optimizer.learning-rate, lengthen --optimizer.warmup-steps, or raise --guard.spike-factor"
        )
