"""What a report is made of: runs as they were found, the arms and groups that they belong to."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.experiment import Experiment
from jaxlm.model.flops import train_flops_per_token
from jaxlm.run.directory import METRICS
from jaxlm.run.standing import Standing
from jaxlm.run.tail import read_tail
from jaxlm.sweep.arms import Conditions, Finished, conditions_of


@dataclass(frozen=True)
class Run:
    """One run: where it belongs in a comparison, how it stands, and everything it wrote down."""

    folder: Path
    group: int
    arm: str
    seed: int
    changes: dict[str, Any]
    standing: Standing
    rows: list[dict[str, Any]] = field(repr=False)
    starts: list[dict[str, Any]] = field(repr=False)
    failure: dict[str, Any] = field(repr=False)
    analysis: dict[str, dict[int, dict[str, Any]]] = field(repr=False)
    faults: dict[str, dict[int, str]] = field(repr=False)
    """Why probes failed, by probe and step."""
    experiment: Experiment | None = field(repr=False)
    place: int = 0
    """Its number among all runs."""

    @property
    def finished(self) -> bool:
        """Whether it counts in a comparison: it came to its end, or diverged, which is a result."""
        return self.standing.kind == "finished" or self.standing.diverged

    @functools.cached_property
    def by_split(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of "train" and of "validation"."""
        return {split: [row for row in self.rows if row["split"] == split] for split in ("train", "validation")}

    @functools.cached_property
    def conditions(self) -> Conditions:
        """What its numbers depend on."""
        return conditions_of(self.folder, self.standing.config, self.starts)

    @functools.cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of each kind over all starts."""
        try:
            found = read_tail(self.folder / METRICS, len(self.starts)).seconds
        except OSError:
            return {}
        return {kind: spent for kind, spent in found.items() if math.isfinite(spent)}

    def layers(self, size: int) -> list[int] | None:
        """Return of which layers so many values are, the mixtures or all; None where the configuration does not say."""
        model = self.experiment.model if self.experiment else None
        known = [list(model.moe_layers), list(range(model.num_layers))] if model else []
        return next((layers for layers in known if len(layers) == size), None)

    @property
    def path(self) -> str:
        """The folder as it was found, for people."""
        return str(self.folder)

    @functools.cached_property
    def flops_per_step(self) -> float | None:
        """FLOPs of one training step; None where the configuration cannot be read."""
        experiment = self.experiment
        if experiment is None:
            return None
        length = experiment.data.sequence_length
        return train_flops_per_token(experiment.model, length, experiment.trained_share) * experiment.rows * length


@dataclass(frozen=True)
class Group:
    """Arms that are compared with one control: a sweep, or the runs that were given by themselves."""

    name: str
    about: str
    file: str
    control: str
    code: str
    arms: tuple[str, ...]
    missing: tuple[tuple[str, int, str], ...]
    """(arm, seed, folder) of trials that have no run yet."""
    notes: tuple[str, ...] = ()
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """arm -> the fields that the sweep sets in it."""


@dataclass(frozen=True)
class Material:
    """Everything a report says, before it is drawn."""

    groups: tuple[Group, ...]
    runs: tuple[Run, ...]
    unread: tuple[tuple[str, str, str], ...]
    """(folder, kind, why) of what was found and is no readable run."""

    @functools.cached_property
    def arms(self) -> dict[tuple[int, str], list[Run]]:
        """(group, arm) -> its runs, seed by seed; the place of an arm here is its number in a page."""
        found: dict[tuple[int, str], list[Run]] = {
            (number, arm): [] for number, group in enumerate(self.groups) for arm in group.arms
        }
        for run in self.runs:
            found[run.group, run.arm].append(run)
        return found

    def of(self, group: int) -> list[Run]:
        """Return the runs of a group, arm by arm."""
        return [run for arm in self.groups[group].arms for run in self.arms[group, arm]]

    def finished(self, group: int) -> dict[str, dict[int, Finished]]:
        """Return the runs of every arm of a group that finished or diverged, by seed; of one that is there twice, the first."""
        found: dict[str, dict[int, Finished]] = {arm: {} for arm in self.groups[group].arms}
        for run in self.of(group):
            if run.finished:
                found[run.arm].setdefault(run.seed, Finished(run.rows, run.conditions, run.standing.diverged))
        return found
