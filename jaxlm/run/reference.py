"""The model that preferences are measured against: which checkpoint it is, beside the policy or asked once."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import Experiment
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.param import check_layout
from jaxlm.run.agreement import agreed, told
from jaxlm.run.directory import CHECKPOINTS, TOKENIZER
from jaxlm.run.initial import same_function
from jaxlm.run.open import described, read_params
from jaxlm.run.reference_table import log_prob_table
from jaxlm.run.setup import Setup
from jaxlm.train import checkpoint
from jaxlm.train.saved import saved_steps


@dataclasses.dataclass(frozen=True)
class Reference:
    """The checkpoint that is the reference, of which no weight is read yet."""

    folder: Path
    step: int
    model: ModelConfig
    fingerprint: str

    def described(self) -> dict[str, Any]:
        """Return what the policy's checkpoints say of it."""
        return {"run": str(self.folder), "step": self.step, "fingerprint": self.fingerprint}


def with_reference(setup: Setup, saves: Path, out: Any) -> Setup:
    """Return the set-up with what its preferences are measured against, on the current mesh.

    A live reference is read whole; otherwise every pair's log-probabilities come from the cache, of which a sample is computed
    anew and compared, or are computed. `saves` holds the policy's checkpoints, which say what it was measured against before.
    Raises CheckpointError for a reference that cannot be read, has another tokenizer, is not what the policy began with, or
    whose cached numbers are not what it gives now.
    """
    experiment = setup.experiment
    if not (experiment.paired and experiment.preference.needs_reference) or experiment.reference_is_base:
        return setup
    folder = Path(experiment.preference.reference_run or experiment.init_from)
    own = told("own checkpoints", saved_steps(saves))
    before = told("reference so far", reference_so_far(saves, own))
    reference, params = read_reference(
        folder, before, experiment, setup.model, setup.prepared.tokenizer.digest, setup.mesh, out
    )
    setup = dataclasses.replace(setup, reference_described=reference.described())
    if experiment.reference_beside:
        return dataclasses.replace(setup, reference=params)
    splits = [split for split in ("train", "validation") if setup.prepared.split(split).rows]
    tables = {split: log_prob_table(setup, reference.fingerprint, reference.model, params, split, out) for split in splits}
    return dataclasses.replace(setup, reference_log_probs=tables)


def read_reference(
    folder: Path, before: Mapping[str, Any], experiment: Experiment, model: ModelConfig, tokenizer: str,
    mesh: jax.sharding.Mesh, out: Any,
) -> tuple[Reference, Any]:  # fmt: skip
    """Return the checkpoint of a run that is the reference, and its parameters on this mesh.

    It is the newest that can be read, or the one that a policy was measured against `before`. Raises CheckpointError or
    ConfigError where that one is gone, where its `tokenizer` (a digest) is not that of the data, and where its model cannot
    read the rows, lies badly on the mesh or, to stand beside the policy, is not the policy's.
    """
    saves = folder / CHECKPOINTS
    steps = told(f"list of checkpoints in {folder}", saved_steps(saves))
    if not steps:
        raise CheckpointError(f"the reference {folder} has no checkpoint: name a run that has one")
    if before:
        steps = [step for step in steps if step == before["step"]] or steps[-1:]

    def load(step: int) -> tuple[Reference, Any]:
        with agreed(f"reference {folder}, step {step}", timeout=3600):
            reference = _examined(folder, step, before, experiment, model, tokenizer, mesh)
            params = read_params(saves, step, reference.model, experiment.layout, mesh)
        return reference, params

    return checkpoint.newest_good(saves, load, lambda fault: out.print(f"[yellow]warning:[/] {fault}"), steps)[1]


def reference_so_far(saves: Path, steps: Sequence[int]) -> dict[str, Any]:
    """Return what the newest of these checkpoints that can be read says of its reference; nothing where there is none."""
    for step in reversed(steps):
        with suppress(CheckpointError):
            return checkpoint.description(saves, step).get("reference") or {}
    return {}


def _examined(
    folder: Path, step: int, before: Mapping[str, Any], experiment: Experiment, model: ModelConfig, tokenizer: str,
    mesh: jax.sharding.Mesh,
) -> Reference:  # fmt: skip
    """Return what a checkpoint says it is of, or raise what speaks against it as a reference."""
    saves, length = folder / CHECKPOINTS, experiment.data.sequence_length
    fingerprint = checkpoint.fingerprint(saves, step)
    if before and before["fingerprint"] != fingerprint:
        raise ConfigError(
            f"this run was measured against step {before['step']} of {before['run']}, which is gone or changed: {folder} now "
            f"gives step {step}. Bring it back, or begin anew in another --run-dir"
        )
    _, found = described(saves, step, mesh)
    if checkpoint.description(saves, step).get("tokenizer") != tokenizer:
        raise ConfigError(
            f"the reference {folder} has another tokenizer than the data: set --data.tokenizer.path {folder / TOKENIZER}"
        )
    if found.positions == "learned" and found.max_length < length:
        raise ConfigError(
            f"the reference {folder} knows {found.max_length} positions, and rows have {length} tokens: set "
            f"--data.sequence-length {found.max_length}"
        )
    if same_function(found, model):
        found = model  # with the policy's number format and kernel: the same parameters are to give the same numbers
    elif experiment.reference_beside:
        raise ConfigError(
            f"preference.reference = 'live' runs {folder} beside the policy, whose model is another: set "
            "--preference.reference cached, or name a run of the same model"
        )
    check_layout(transformer.spec(found), experiment.layout, dict(mesh.shape))
    return Reference(folder, step, found, fingerprint)
