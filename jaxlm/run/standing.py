"""How a run stands, from its directory alone: no array is read, nothing raised, and no more of the record than its end."""

import dataclasses
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxlm.config import digest, flatten, from_dict
from jaxlm.errors import ConfigError, DivergedError
from jaxlm.run import goodput
from jaxlm.run.directory import CHECKPOINTS, CONFIG, METRICS, RECORD, SUMMARY, in_use
from jaxlm.run.failure import FAILURE
from jaxlm.run.objects import check_regular, explain, read_object
from jaxlm.run.tail import Tail, read_tail
from jaxlm.train.saved import saved_steps

LOCK = "lock"
MARKS = (CONFIG, METRICS, RECORD, FAILURE, LOCK, CHECKPOINTS)
"""What a run's directory consists of; how a run stands changes only with one of these, or when its process ends."""

Kind = Literal["finished", "running", "stopped", "failed", "empty", "imported", "broken", "foreign"]


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a run stands; what is not known is empty, 0 or None.

    "stopped" continues with the same command; "failed" ended with an error; "empty" has not taken a step; "imported" is a
    model from elsewhere; "broken" has a file that cannot be read, and what the others say; "foreign" is no run.
    """

    folder: Path
    kind: Kind
    why: str = ""
    """The error of a failed run, the fault of a broken one, where a stopped one continues, what an imported one was."""
    name: str = ""
    steps: int = 0
    """Asked for."""
    step: int = 0
    """Taken."""
    seed: int | None = None
    digest: str = ""
    """Of the configuration."""
    started: str = ""
    """The first start, in ISO 8601."""
    updated: str = ""
    """The newest change of record, checkpoints or configuration, in ISO 8601."""
    seconds: float = 0.0
    """Of all starts, as far as they are accounted for."""
    goodput: float | None = None
    """Share of the seconds in steps that count."""
    tokens: int = 0
    """Places for tokens in the rows trained on."""
    last: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The newest validation row."""
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The newest training row."""
    checkpoints: tuple[int, ...] = ()
    """Their steps, oldest first."""
    devices: str = ""
    commit: str = ""
    """Of the code at the newest start; a + after it stands for changes that were not committed."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Dotted fields and their plain values."""
    fault: str = ""
    """The kind of error that a failed run ended with."""

    @property
    def diverged(self) -> bool:
        """Whether it failed because losses were not finite: the same run would do so again."""
        return self.kind == "failed" and self.fault == DivergedError.__name__


def standing(folder: Path, known: Standing | None = None) -> Standing:
    """Return how the run in `folder` stands; never raises.

    Lines of the record behind the newest row of each split are not looked at. `known` is an earlier answer whose config.json
    has not changed since, and saves checking it again.
    """
    try:
        return _standing(folder, known)
    except Exception as fault:  # whatever lies there, one folder must not end the listing of thousands
        return Standing(folder, "broken", f"cannot be read: {type(fault).__name__}: {fault}")


def sentence(found: Standing) -> str:
    """Return in a few words how a run stands."""
    words = {
        "finished": f"finished, {found.steps} steps",
        "running": f"running, {found.step} of {found.steps} steps",
        "stopped": f"stopped after {found.step} of {found.steps} steps",
        "failed": f"failed after {found.step} of {found.steps} steps" if found.steps else "failed before its first step",
        "empty": "has not taken a step",
    }.get(found.kind, found.kind)
    link = {"stopped": "; ", "failed": ": ", "broken": ": ", "foreign": ": "}.get(found.kind, ", ")
    return words + (link + found.why if found.why else "")


def is_complete(found: Standing) -> bool:
    """Return whether a run has nothing left to do: it is finished, and its summary, which comes last, is there."""
    return found.kind == "finished" and _exists(found.folder / SUMMARY)


class _Facts(NamedTuple):
    """What the files of a folder say, and what is wrong with them, in the order of its weight."""

    config: Mapping[str, Any]
    digest: str
    starts: list[dict[str, Any]]
    tail: Tail
    saves: tuple[int, ...]
    failure: dict[str, Any]
    faults: list[str]


def _standing(folder: Path, known: Standing | None) -> Standing:
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return Standing(folder, "foreign", "not a folder")
    except FileNotFoundError:
        return Standing(folder, "empty", "there is no such folder")
    except OSError as fault:
        return Standing(folder, "broken", f"cannot be read: {fault.strerror}")
    facts = _read(folder, known)
    config, tail, saves = facts.config, facts.tail, facts.saves
    newest = facts.starts[-1] if facts.starts else {}
    steps, taken = _whole(config.get("steps")) or _whole(facts.failure.get("steps")), tail.train.get("step", -1) + 1
    step = max(taken, tail.validation.get("step", 0), max(saves, default=0))
    kind, why = _kind(folder, facts, step, steps)
    spent = sum(tail.seconds.values())
    pairs = 2 if config.get("data.form") in ("preferences", "labels") else 1
    trained = step * pairs * _whole(config.get("batch_size")) * _whole(config.get("data.sequence_length"))
    return Standing(
        folder, kind, why, name=_text(config.get("name")), steps=steps, step=step,
        seed=config["seed"] if type(config.get("seed")) is int else None, digest=facts.digest,
        started=_text(facts.starts[0].get("time")) if facts.starts else "", updated=_updated(folder), seconds=spent,
        goodput=goodput.share(tail.seconds) if spent else None, tokens=trained, last=tail.validation, train=tail.train,
        checkpoints=saves, devices=_text(newest.get("devices")),
        commit=_text(newest.get("git_commit")) + ("+" if newest.get("git_dirty") and newest.get("git_commit") else ""),
        config=config, fault=_text(facts.failure.get("kind")) if kind == "failed" else "",
    )  # fmt: skip


def _read(folder: Path, known: Standing | None) -> _Facts:
    """Read what there is, and note what cannot be."""
    faults: list[str] = []

    def read(name: str) -> dict[str, Any]:
        try:
            return read_object(folder / name)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as fault:
            faults.append(f"{name} {explain(fault)}")
            return {}

    if known is not None and known.digest:
        config, fingerprint = known.config, known.digest
    else:
        config, fingerprint, fault = _configuration(read(CONFIG))
        faults += [fault] * bool(fault)
    record = read(RECORD)
    starts = record.get("starts")
    if record and not (isinstance(starts, list) and starts and all(isinstance(start, dict) for start in starts)):
        faults.append(f"{RECORD} has no list of starts")
        starts = []
    tail = Tail({}, {}, {}, "")
    try:
        check_regular(folder / METRICS)
        tail = read_tail(folder / METRICS, len(starts or []))
        faults += [f"{METRICS}, {tail.fault}"] * bool(tail.fault)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as fault:
        faults.append(f"{METRICS} {explain(fault)}")
    saves: tuple[int, ...] = ()
    try:
        saves = tuple(saved_steps(folder / CHECKPOINTS))
        if not saves and (folder / CHECKPOINTS).exists() and not (folder / CHECKPOINTS).is_dir():
            faults.append(f"{CHECKPOINTS} is no folder")
    except OSError as fault:
        faults.append(f"{CHECKPOINTS} {explain(fault)}")
    return _Facts(config, fingerprint, starts or [], tail, saves, read(FAILURE), faults)


def _kind(folder: Path, facts: _Facts, step: int, steps: int) -> tuple[Kind, str]:
    """Return the kind of a folder that is there, and the reason."""
    there = {name for name in MARKS if _exists(folder / name)}
    tail, saves, failure = facts.tail, facts.saves, facts.failure
    ours = bool(facts.digest or facts.starts or tail.train or tail.validation or "message" in failure or LOCK in there)
    if not ours and not {"model.vocab_size", "data.sequence_length"} <= facts.config.keys():
        return "foreign", "not a run" if there else "nothing of a run is in it"
    if in_use(folder):
        return "running", _heard(folder / METRICS)
    since = _text(facts.starts[-1].get("time")) if facts.starts else ""
    failed = _text(failure.get("time")) >= since and bool(failure)  # a later start may have been killed without a word
    if failed and not facts.faults:
        return "failed", f"{failure.get('kind', 'error')}: {failure.get('message', '')}"
    if there == {LOCK}:
        return "empty", f"a start ended before it wrote {CONFIG}"
    if facts.faults or CONFIG not in there:
        return "broken", "; ".join(facts.faults) or f"{CONFIG} is missing"
    origin = facts.starts[0].get("imported") if facts.starts else None
    if isinstance(origin, dict):
        kinds = ", ".join(origin.get("dtypes", ()))
        return "imported", f"{origin.get('family')} ({kinds}) from {origin.get('source')}"
    if saves and max(saves) >= steps:
        return "finished", ""
    if not step:
        return "empty", ""
    again = f"continues at step {saves[-1]}" if saves else "begins anew, for it has no checkpoint"
    return "stopped", f"the same command {again}"


def _configuration(values: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """Return a configuration's dotted fields, its digest, and what is wrong with it."""
    if not values:
        return {}, "", ""
    from jaxlm.experiment import Experiment  # it brings JAX, which a run whose configuration is known does without

    try:
        experiment = from_dict(Experiment, values)
        return flatten(experiment), digest(experiment), ""
    except (ConfigError, TypeError, ValueError) as fault:
        return _flatten(values), "", f"{CONFIG} is not a configuration of this version of jaxlm: {fault}"


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def _updated(folder: Path) -> str:
    times = []
    for name in (CONFIG, METRICS, RECORD, FAILURE, CHECKPOINTS):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else ""


def _heard(metrics: Path) -> str:
    try:
        return f"last heard of {max(0.0, datetime.now(UTC).timestamp() - metrics.stat().st_mtime):.0f} s ago"
    except OSError:
        return ""


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
