"""Checkpoints written in the background, whole or not at all, and old ones retired."""

import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxlm.errors import CheckpointError
from jaxlm.train.checksums import write_checksums
from jaxlm.train.save_faults import SaveFaults
from jaxlm.train.saved import saved_steps
from jaxlm.train.step import TrainState

_UNFINISHED = ".orbax-checkpoint-tmp"  # what has this in its name is no checkpoint, and is cleared away by the next writer


class CheckpointWriter:
    """Writes checkpoints of a run without holding up its steps, and retires old ones."""

    def __init__(self, folder: Path, keep: int, keep_every: int = 0):
        """Open `folder`, to keep the newest `keep` checkpoints and every one whose step `keep_every` divides (0: none).

        What a killed process left half-written there is cleared away.
        """
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self.folder, self._keep, self._keep_every = folder, keep, keep_every
        self.last_step = max(saved_steps(folder), default=-1)
        self._pending: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._heard = SaveFaults() if jax.process_count() > 1 else None
        self._orbax = ocp.training.Checkpointer(
            folder.absolute(), preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
        )

    def save(self, state: TrainState, step: int, description: dict[str, Any]) -> None:
        """Start writing the state that step `step` begins from; wait only for a save still under way.

        `description` (JSON values) is kept with it: config, tokenizer, data position, versions. Raises CheckpointError
        where the previous save failed or this one cannot begin, for example on a full disk.
        """
        self._start(items(state), step, description)

    def save_params(self, params: Any, step: int, description: dict[str, Any]) -> None:
        """Write parameters alone, leaf by leaf, and wait: others can begin from them, but no training continues there.

        Unlike `save` it holds no copy of them, but of one leaf or two.
        """
        most = max(leaf.nbytes for leaf in jax.tree.leaves(params)) + 1024  # the limits themselves are refused
        few = ocp.Context()
        few.memory.transfer_concurrent_bytes = few.memory.write_concurrent_bytes = most
        few.memory.is_prioritized_key_fn = lambda path: False
        with few:
            self._start({"params": params}, step, description)
            self.wait()

    def _start(self, saved: dict[str, Any], step: int, description: dict[str, Any]) -> None:
        self.wait()
        try:
            response = self._orbax.save_checkpointables_async(step, saved, force=True, custom_metadata=description)
        except Exception as fault:
            raise self._explain(fault) from fault
        self._pending = threading.Thread(target=self._finish, args=(response, step), name="checkpoint")
        self._pending.start()

    def _finish(self, response: Any, step: int) -> None:
        try:
            response.result()
            if jax.process_index() == 0:
                write_checksums(self.folder / str(step))
            self.last_step = step
        except BaseException as fault:  # carried to the main thread, which raises it
            self._fault = fault

    def wait(self) -> None:
        """Return when nothing is being written; raise CheckpointError where a save failed."""
        if self._pending is not None:
            if self._heard is None:
                self._pending.join()
            elif fault := self._heard.until_done(self._pending):
                raise self._explain(fault) from fault
            self._pending = None
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise self._explain(fault) from fault

    def close(self) -> None:
        """Finish writing, retire what is one too many, and let go of the folder; CheckpointError where a save failed."""
        try:
            self.wait()
        finally:
            try:
                if self._pending is None:  # else Orbax waits for processes that will not come
                    self._orbax.close()
            except Exception as fault:  # it raises once more what a save has failed with
                raise self._explain(fault) from fault
            finally:
                if self._heard is not None:
                    self._heard.close()
        if jax.process_index() == 0:
            self._retire()

    def _retire(self) -> None:
        """Remove what is one too many: a process was killed between its last save and the removal of an older checkpoint."""
        for step in saved_steps(self.folder)[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                gone = self.folder / f"{step}{_UNFINISHED}-retired"
                with suppress(OSError):  # one too many harms nobody
                    (self.folder / str(step)).rename(gone)
                    shutil.rmtree(gone)

    def _explain(self, fault: BaseException) -> CheckpointError:
        free = shutil.disk_usage(self.folder).free / 2**20
        last = f"the last good checkpoint is step {self.last_step}" if self.last_step >= 0 else "there is no earlier checkpoint"
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        return CheckpointError(
            f"could not write a checkpoint in {self.folder} ({free:.0f} MiB free): {reason[:300]}; {last}. "
            "Free space or mend the folder, then run the same command to continue from there"
        )


def items(state: TrainState) -> dict[str, Any]:
    """Split the state as it is kept, so that a reader can ask for the parameters alone."""
    return {
        "params": state.params,
        "optimizer": state.optimizer,
        "progress": {"step": state.step, "rng": state.rng, "guard": state.guard},
    }
