"""`jaxlm plan --search`: meshes, rematerialisation and accumulation by the compiler's word, the likeliest first."""

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import get_args, get_type_hints

from rich.console import Console
from rich.table import Table

from jaxlm.errors import ConfigError, JaxlmError, PlanError
from jaxlm.experiment import Experiment
from jaxlm.experiment_mesh import check_devices, work_of
from jaxlm.layout import MESH_AXES
from jaxlm.plan.compiled import Compiled, compile_for, need_compiler
from jaxlm.plan.estimate import Estimate, estimate
from jaxlm.plan.remedies import flags
from jaxlm.plan.topology import Topology
from jaxlm.train import arrange

# A step whose estimate needs this much of a device's memory is not worth compiling: estimates err, by less than this.
HOPELESS = 1.5
# Tensor parallelism of more ways pays nowhere; shorter stretches of a row leave attention nothing to hide its gathers behind.
MOST_MODEL, LEAST_STRETCH = 16, 1024
# Copies of all weights within a slice: FSDP over a part of it moves less, where memory allows.
MOST_REPLICAS = 8
# What a candidate's guess is raised by for each of the same mesh before it.
REPEATED = 0.1
# Of those that fit, how many are compiled to machine code for the compiler's cycles.
FINALISTS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a search goes."""

    budget: float = 1200.0
    """Seconds after which nothing new is compiled."""
    candidates: int = 12
    """Candidates to compile."""
    capacity_factors: tuple[float, ...] = ()
    """Of a mixture of experts: capacity factors to try besides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One arrangement of a run."""

    experiment: Experiment
    shape: dict[str, int]
    guess: arrange.Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A candidate and what the compiler said of it."""

    candidate: Candidate
    compiled: Compiled
    modelled: Estimate | None
    """None where it does not fit."""


def variants(experiment: Experiment, topology: Topology, limits: Limits) -> Iterator[Experiment]:
    """Yield the experiment on every mesh, with every policy of remat, and with up to 32 times as many microbatches."""
    model, length = experiment.model, experiment.data.sequence_length
    experts = model.moe.num_experts
    per_slice = topology.num_devices // topology.slices
    divisors = [n for n in range(1, per_slice + 1) if per_slice % n == 0]
    sizes = itertools.product(
        [n for n in divisors if n <= MOST_REPLICAS],
        [n for n in divisors if (experts % n == 0 if experts else n == 1)],
        [n for n in divisors if n == 1 or (length % n == 0 and length // n >= LEAST_STRETCH)],
        [n for n in divisors if n <= MOST_MODEL],
    )
    factors = [model.moe.capacity_factor, *(f for f in limits.capacity_factors if experts)]
    splits = [n for n in (experiment.accumulate * 2**power for power in range(6)) if experiment.batch_size % n == 0]
    policies = get_args(get_type_hints(Experiment)["remat"])
    for replica, expert, context, model_ways in sizes:
        ways = replica * expert * context * model_ways
        if per_slice % ways:
            continue
        shape = dict(zip(MESH_AXES, (topology.slices * replica, per_slice // ways, expert, context, model_ways), strict=True))
        mesh = dataclasses.replace(experiment.mesh, auto=False, **shape)
        for remat, accumulate, factor in itertools.product(policies, splits, dict.fromkeys(factors)):
            moe = dataclasses.replace(model.moe, capacity_factor=factor)
            yield dataclasses.replace(
                experiment, mesh=mesh, remat=remat, accumulate=accumulate, model=dataclasses.replace(model, moe=moe)
            )


def prune(experiments: Iterator[Experiment], topology: Topology) -> tuple[list[Candidate], Counter[str]]:
    """Return the candidates worth compiling, the fastest by arithmetic first, and how many others fell for which reason."""
    kept, dropped = [], Counter()
    chip, fits = topology.chip, {}
    for experiment in experiments:
        try:
            place = (experiment.mesh, experiment.accumulate)
            if place not in fits:
                fits[place] = None
                fits[place] = check_devices(experiment, topology.num_devices, chip, topology.slices)
            if fits[place] is None:
                raise ConfigError("rows of a microbatch, or the model, do not divide over the mesh")
        except ConfigError as fault:
            dropped[_reason(str(fault))] += 1
            continue
        guess = arrange.estimate(work_of(experiment, chip), fits[place], chip, topology.slices)
        if guess.bytes > HOPELESS * chip.memory_bytes:
            dropped[f"by arithmetic needs more than {HOPELESS:g} x the memory of a device"] += 1
            continue
        kept.append(Candidate(experiment=experiment, shape=fits[place], guess=guess))
    return sorted(kept, key=lambda each: promise(each, chip.memory_bytes)), dropped


def promise(candidate: Candidate, available: float) -> tuple[float, float]:
    """Return what candidates are tried in the order of: guessed seconds, the more where it may not fit; then guessed bytes."""
    guess = candidate.guess
    return guess.seconds * max(1.0, guess.bytes / available) ** 2, guess.bytes


def _reason(fault: str) -> str:
    if "batch_size" in fault or "rows" in fault:
        return "rows of a microbatch do not divide over the mesh"
    return "the model does not divide over the mesh"


def hungrier(one: Experiment, other: Experiment) -> bool:
    """Return whether `one` needs at least the memory of `other`: on the same mesh, not more microbatches, remat or drops."""
    order = list(get_args(get_type_hints(Experiment)["remat"]))  # from none to full
    same = dataclasses.replace(
        one, remat=other.remat, accumulate=other.accumulate, model=dataclasses.replace(one.model, moe=other.model.moe)
    )
    factors = [each.model.moe.capacity_factor or math.inf for each in (one, other)]
    return (
        same == other and one.accumulate <= other.accumulate
        and (one.accumulate > 1 or other.accumulate == 1)  # one microbatch needs no sum of gradients besides
        and order.index(one.remat) <= order.index(other.remat)
        and factors[0] >= factors[1]
    )  # fmt: skip


def search(
    experiment: Experiment, topology: Topology, limits: Limits, out: Console, show: Callable[[Result], None]
) -> tuple[list[Result], Counter[str]]:
    """Return what was compiled, those that fit first and the fastest of them foremost; and why others were not.

    Each candidate is compiled to its schedule, which settles memory and traffic; the best few of those that fit then to machine
    code, and rank by the compiler's cycles. Everything compiled is kept in the cache: the same search again goes on from there.
    """
    began = time.monotonic()
    need_compiler(topology)
    waiting, dropped = prune(variants(experiment, topology, limits), topology)
    if not waiting:
        raise PlanError(f"no arrangement on {topology} is worth compiling: {_told(dropped)}")
    out.print(f"{len(waiting)} candidates on {topology}; not compiled: {_told(dropped)}", soft_wrap=True)
    results: list[Result] = []
    while waiting and len(results) < limits.candidates and time.monotonic() - began < limits.budget:
        candidate = min(waiting, key=lambda each: _turn(each, results, topology.chip.memory_bytes))
        waiting.remove(candidate)
        label = f"{len(results) + 1}/{limits.candidates} {describe(candidate)}"
        result = _compile(candidate, topology, "schedule", label, out, dropped)
        if result is None:  # most often a mesh that does not suit the wires, whatever else is changed
            same = [each for each in waiting if each.shape == candidate.shape]
            dropped["on a mesh that the compiler has refused"] += len(same)
            waiting = [each for each in waiting if each not in same]
        if result:
            results.append(result)
            show(result)
        if result and not result.modelled:
            more = [each for each in waiting if hungrier(each.experiment, candidate.experiment)]
            dropped["needs more than one that does not fit"] += len(more)
            waiting = [each for each in waiting if each not in more]
    results = rank(results)
    for result in [each for each in results if each.modelled][:FINALISTS]:
        if time.monotonic() - began < limits.budget and topology.chip.is_tpu:
            better = _compile(result.candidate, topology, "code", f"cycles of {describe(result.candidate)}", out, dropped)
            if better:
                results[results.index(result)] = better
                show(better)
    return rank(results), dropped


def _turn(candidate: Candidate, results: list[Result], available: float) -> float:
    """Return a candidate's promise, the less the more of its own mesh have been compiled: others are worth a look as well."""
    same = sum(result.candidate.shape == candidate.shape for result in results)
    return promise(candidate, available)[0] * (1 + REPEATED * same)


def _compile(
    candidate: Candidate, topology: Topology, stage: str, label: str, out: Console, dropped: Counter[str]
) -> Result | None:
    try:
        compiled = compile_for(candidate.experiment, topology, stage=stage, label=label, out=out)
    except JaxlmError as fault:
        dropped[str(fault).splitlines()[0][:120]] += 1
        return None
    modelled = estimate(candidate.experiment, compiled, topology) if compiled.costs else None
    return Result(candidate=candidate, compiled=compiled, modelled=modelled)


def rank(results: list[Result]) -> list[Result]:
    """Return those compiled to machine code first, then those that fit, each by modelled step time, then the others."""

    def order(result: Result) -> tuple[int, float]:
        if not result.modelled:
            return 2, result.compiled.facts["required"]
        return 0 if result.compiled.stage == "code" else 1, result.modelled.scheduled

    return sorted(results, key=order)


def _told(dropped: Counter[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "none"


def describe(candidate: Candidate) -> str:
    """Return a candidate in a few words."""
    shape = " x ".join(f"{axis} {size}" for axis, size in candidate.shape.items() if size > 1) or "one device"
    factor = candidate.experiment.model.moe.capacity_factor
    places = f", capacity {factor:g}" if candidate.experiment.model.moe.num_experts and factor else ""
    return f"{shape}, remat {candidate.experiment.remat}, accumulate {candidate.experiment.accumulate}{places}"


def line(result: Result) -> str:
    """Return what became of a candidate in one line."""
    text = f"{describe(result.candidate)}: "
    if not result.modelled:
        return text + f"does not fit, {result.compiled.facts['required'] / 2**30:.1f} GiB"
    known = "cycles" if result.compiled.stage == "code" else "schedule"
    return (
        text
        + f"fits, modelled step {result.modelled.scheduled:.3f} s ({known}; guessed {result.candidate.guess.seconds:.3f} s)"
    )


def table(results: list[Result], dropped: Counter[str], base: Experiment) -> Table:
    """Return the ranking as a table, with the flags that make each candidate of the experiment."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "candidate", "GiB", "guess s", "modelled s", "MFU", "tokens/s", "known to"):
        shown.add_column(column, justify="right" if column in ("GiB", "guess s", "modelled s", "MFU", "tokens/s") else "left")
    for place, result in enumerate(results, 1):
        facts, modelled = result.compiled.facts, result.modelled
        size = f"{(facts.get('required') or facts.get('laid_out') or facts['memory']['peak']) / 2**30:.2f}"
        guess = f"{result.candidate.guess.seconds:.3f}"
        numbers = ("does not fit", "", "")
        if modelled:
            step = modelled.scheduled
            numbers = (f"{step:.3f}", f"{100 * modelled.utilisation(step):.1f} %", f"{modelled.tokens / step:,.0f}")
        shown.add_row(str(place), describe(result.candidate), size, guess, *numbers, result.compiled.stage if modelled else "")
    caption = f"not compiled: {_told(dropped)}"
    if results and results[0].modelled:
        caption = f"best: {flags(base, results[0].candidate.experiment) or 'the experiment as it is'}\n{caption}"
    shown.caption, shown.caption_justify = caption, "left"
    return shown
