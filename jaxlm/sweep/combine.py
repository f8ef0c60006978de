"""Which experiments a sweep consists of: lists of changes, made and put together by plain functions.

A variant is a dict of dotted fields and their values: {"model.moe.num_experts": 8}. `grid`, `zipped`, `named` and `seeds` make
lists of variants, `product`, `chain` and `subsample` make lists of lists, and `trials` makes experiments of them.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxlm.config import flatten, from_own, to_dict
from jaxlm.errors import ConfigError, suggest
from jaxlm.experiment import FREE_FIELDS, Experiment
from jaxlm.sweep.trials import deciding

Variant = dict[str, Any]

ARM, SEED = "arm", "seed"  # keys of a variant that are not changes of an arm: its name, and which of its repetitions it is


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    arm: str
    """What it is called in tables: trials of one arm differ in their seeds alone."""
    experiment: Experiment
    """With its seed: trials of the same seed read the same data in the same order, and are compared in pairs."""
    changes: dict[str, Any]
    """The dotted fields in which the arm differs from what it was made of, without the seed."""
    control: bool = False
    """Whether its arm is the one that others are compared with."""


def grid(fields: Mapping[str, Iterable[Any]]) -> list[Variant]:
    """Return every combination of the fields' values; the last field varies fastest."""
    values = [_values(name, given) for name, given in fields.items()]
    return [dict(zip(fields, chosen, strict=True)) for chosen in itertools.product(*values)]


def zipped(fields: Mapping[str, Iterable[Any]]) -> list[Variant]:
    """Return the fields' first values together, their second ones, and so on; ConfigError where one has more than another."""
    values = {name: _values(name, given) for name, given in fields.items()}
    if len({len(given) for given in values.values()}) > 1:
        sizes = ", ".join(f"{name} has {len(given)}" for name, given in values.items())
        raise ConfigError(f"zipped() takes as many values of every field, and {sizes}: grid() makes all combinations")
    return [dict(zip(values, chosen, strict=True)) for chosen in zip(*values.values(), strict=True)]


def named(arms: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """Return variants that tables call by these names, in place of their fields and values."""
    for name, variant in arms.items():
        if not isinstance(name, str) or not name.strip() or not isinstance(variant, Mapping):
            raise ConfigError(
                f"named() takes names and their changes, {{'dense': {{'model.moe.num_experts': 0}}}}, not {name!r}"
            )
    return [{ARM: name, **variant} for name, variant in arms.items()]


def seeds(number: int) -> list[Variant]:
    """Return the seeds 0 to number - 1 as variants; `trials(..., seeds=number)` does the same to all arms."""
    return [{SEED: seed} for seed in range(_repetitions(number))]


def product(*lists: Sequence[Variant]) -> list[Variant]:
    """Return every choice of a variant from each list, merged; ConfigError where two of them set the same field."""
    return [_merged(chosen) for chosen in itertools.product(*lists)]


def chain(*lists: Sequence[Variant]) -> list[Variant]:
    """Return the variants of all lists, one list after the other."""
    return [dict(variant) for variants in lists for variant in variants]


def subsample(variants: Sequence[Variant], number: int, seed: int = 0) -> list[Variant]:
    """Return `number` of the variants, drawn without replacement, in their order.

    The draw depends on the seed and the variants alone, and a greater number adds to what a smaller one drew: what has been
    run stays part of the sweep. ConfigError where there are fewer.
    """
    if type(number) is not int or not 0 <= number <= len(variants):
        raise ConfigError(f"subsample() is asked for {number!r} of {len(variants)} variants: give 0 to {len(variants)}")

    def rank(place: int) -> bytes:
        text = json.dumps([seed, {name: _plain(value) for name, value in variants[place].items()}], sort_keys=True)
        return hashlib.sha256(text.encode()).digest()

    drawn = sorted(sorted(range(len(variants)), key=rank)[:number])
    return [dict(variants[place]) for place in drawn]


def trials(
    base: Experiment, variants: Iterable[Mapping[str, Any]], *, control: Mapping[str, Any] | str | None = None, seeds: int = 1
) -> Iterator[Trial]:
    """Return an experiment for every variant of `base` and each of `seeds` seeds, from the base's seed on.

    All arms of a seed come before the next seed, so that a sweep that ends early leaves whole comparisons. `control` is the arm
    that others are compared with: its name, or its changes, which become an arm where no arm is the same ({} is the base as it
    is); the first arm by default. Raises ConfigError for fields that do not exist, values that do not suit, and arms that
    cannot be told apart.
    """
    given = [dict(variant) for variant in variants]
    if isinstance(control, Mapping):
        same = next((variant for variant in given if _decided(base, variant) == _decided(base, control)), None)
        given = [dict(control), *given] if same is None else given
        control = given[0] if same is None else same
    if not given:
        raise ConfigError("trials() got no variants: a sweep needs one arm or more")
    if any(SEED in variant for variant in given) and seeds != 1:
        raise ConfigError(f"seeds = {seeds} repeats variants that have seeds of their own: leave out one of the two")
    leaves = _short_names(name for variant in given for name in _changes(variant))
    arms = [variant.get(ARM) or _describe(variant, leaves) or base.name for variant in given]
    chosen = _control(control, given, arms)
    made = []
    for repetition in range(_repetitions(seeds)):
        for arm, variant in zip(arms, given, strict=True):
            changes = {name: _plain(value) for name, value in _changes(variant).items()}
            seed = _plain(variant.get(SEED, base.seed + repetition))
            experiment = _changed(base, changes | {"name": f"{base.name}: {arm}", SEED: seed}, arm)
            made.append(Trial(arm, experiment, changes, arm == chosen))
    check_arms(made)
    return iter(made)


def check_arms(made: Sequence[Trial]) -> None:
    """Raise ConfigError where two trials cannot be told apart.

    That is where they have the same arm and seed, where an arm stands for several sets of changes, and where two arms of a seed
    differ in nothing that decides results: one run would be compared with itself.
    """
    seen: dict[tuple[str, int], Trial] = {}
    first: dict[str, Trial] = {}
    alike: dict[str, Trial] = {}
    for trial in made:
        key = trial.arm, trial.experiment.seed
        if first.setdefault(trial.arm, trial).changes != trial.changes:
            raise ConfigError(
                f"the arm {trial.arm!r} has two sets of changes, {first[trial.arm].changes} and {trial.changes}: "
                "give each a name of its own with named()"
            )
        if key in seen:
            raise ConfigError(
                f"the arm {trial.arm!r} has seed {key[1]} twice: leave one out, or give the arms names with named()"
            )
        seen[key] = trial
        same = alike.setdefault(json.dumps(deciding(trial.experiment), sort_keys=True), trial)
        if same is not trial:
            free = [name for name in {**same.changes, **trial.changes} if name.startswith(FREE_FIELDS)]
            why = f"{', '.join(free)} {'does' if len(free) == 1 else 'do'} not decide results" if free else "nothing differs"
            raise ConfigError(
                f"the arms {same.arm!r} and {trial.arm!r} are one run, which would be compared with itself: {why}. Leave one "
                f"out; control={trial.arm!r} names an arm as the control"
            )


def _repetitions(number: int) -> int:
    number = _plain(number)
    if type(number) is not int or number < 1:
        raise ConfigError(f"seeds = {number!r} is no number of repetitions: give a whole number of 1 or more")
    return number


def _values(name: str, given: Iterable[Any]) -> list[Any]:
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise ConfigError(f"the values of {name} are {given!r}: give several, for example {{{name!r}: ({given!r},)}}")
    return list(given)


def _changes(variant: Mapping[str, Any]) -> Variant:
    return {name: value for name, value in variant.items() if name not in (ARM, SEED)}


def _merged(chosen: Sequence[Variant]) -> Variant:
    merged: Variant = {}
    for variant in chosen:
        for name in variant.keys() - {ARM}:
            if name in merged:
                raise ConfigError(
                    f"product() sets {name} twice, to {merged[name]!r} and to {variant[name]!r}: leave it out of one list"
                )
        merged |= {name: value for name, value in variant.items() if name != ARM}
    if any(ARM in variant for variant in chosen):
        leaves = _short_names(name for variant in chosen for name in _changes(variant))
        merged[ARM] = ", ".join(filter(None, (variant.get(ARM) or _describe(variant, leaves) for variant in chosen)))
    return merged


def _describe(variant: Mapping[str, Any], leaves: Mapping[str, str]) -> str:
    """Return an arm's name made of its changes: "num_experts=8, top_k=2"."""
    return ", ".join(f"{leaves[name]}={_spell(value)}" for name, value in _changes(variant).items())


def _spell(value: Any) -> str:
    value = _plain(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each dotted name as much of its end as tells it from the others."""
    whole, short = list(dict.fromkeys(names)), {}
    for name in whole:
        parts = name.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        short[name] = next(e for e in ends if sum(f".{other}".endswith(f".{e}") for other in whole) == 1 or e == name)
    return short


def _control(control: Mapping[str, Any] | str | None, given: Sequence[Variant], arms: Sequence[str]) -> str:
    if isinstance(control, Mapping):
        return next(arm for arm, variant in zip(arms, given, strict=True) if variant is control)
    if control is not None and control not in arms:
        raise ConfigError(
            f"control = {control!r} is none of the arms.{suggest(control, arms)} They are {', '.join(dict.fromkeys(arms))}"
        )
    return arms[0] if control is None else control


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a number of NumPy's as the plain number that it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else to_dict(value)


def _decided(base: Experiment, variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the results of a variant, of the base's seed."""
    arm = variant.get(ARM) or _describe(variant, {name: name for name in _changes(variant)}) or base.name
    return deciding(_changed(base, _changes(variant), arm))


def _changed(base: Experiment, changes: Mapping[str, Any], arm: str) -> Experiment:
    """Return the experiment with dotted fields changed; the more general ones first."""
    values, known = to_dict(base), flatten(base)
    for field in sorted(changes, key=lambda name: name.count(".")):
        *path, last = field.split(".")
        inner = values
        for part in path:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise ConfigError(f"arm {arm!r}: an experiment has no field {field!r}.{suggest(field, known)}")
        inner[last] = _plain(changes[field])
    try:
        return from_own(Experiment, values)
    except ConfigError as fault:
        raise ConfigError(f"arm {arm!r}: {fault}") from fault
