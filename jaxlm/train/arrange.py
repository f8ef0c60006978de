"""Choosing a mesh: what a step keeps and moves on a device, by arithmetic alone, and the arrangement that makes least of it."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Literal

from jaxlm import param
from jaxlm.errors import ConfigError
from jaxlm.hardware import GIB, Chip
from jaxlm.layout import MESH_AXES, Layout, MeshConfig, ways
from jaxlm.model import flops, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.param import Param

# Float32 copies of the parameters that an optimizer keeps (Adafactor's sums over rows and columns are next to nothing).
OPTIMIZER_COPIES = {"adamw": 2, "muon": 2, "lion": 1, "sgd": 1, "adafactor": 0}
# The part of a device's memory that an estimate may fill: it knows nothing of padding and of a kernel's scratch space.
USABLE = 0.9
# A processor's virtual devices share its memory; only the ratio of these matters.
CPU_PEAK, CPU_BANDWIDTH = 1e11, 1e10
# The part of its peak that matrix products reach when nothing is waited for.
EFFICIENCY = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one step computes, of whatever mesh."""

    model: ModelConfig
    """Settled for its platform."""
    layout: Layout
    rows: int
    """Of a microbatch, over all devices."""
    length: int
    """Tokens of a row."""
    accumulate: int
    """Microbatches of a step."""
    optimizer: Literal["adamw", "muon", "lion", "sgd", "adafactor"]
    remat: transformer.Remat
    trained: float = 1.0
    """The part of the parameters that has gradients: adapters have few."""
    reference: bool = False
    """Whether a second set of parameters lies beside the first: a live reference."""
    reference_forward: bool = False
    """Whether a live reference, be it the base under adapters, runs forward besides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step would take of one device. All of it arithmetic over shapes: nothing is compiled or measured."""

    memory: dict[str, float]
    """Bytes: parameters, optimizer, gradients, activations, and weights gathered for use."""
    wire: dict[str, float]
    """Bytes that a device sends in a step, by what for: weights (over data, expert and context), model, context, expert,
    replica."""
    seconds: float
    """Modelled time of a step: matrix products at 0.6 of the peak, all traffic waited for (compilers hide little of it:
    docs/plans.md)."""

    @property
    def bytes(self) -> float:
        """All memory together."""
        return sum(self.memory.values())


def estimate(work: Work, shape: Mapping[str, int], chip: Chip | None = None, slices: int = 1) -> Estimate:
    """Return what a step takes of each device of a mesh of this shape; `chip` None stands for a processor's devices."""
    memory, wire = _memory(work, shape), _wire(work, shape)
    tokens = work.rows * work.length * work.accumulate / math.prod(shape.values())
    peak = chip.peak_flops if chip else CPU_PEAK
    computing = tokens * flops.train_flops_per_token(work.model, work.length, work.trained) / (EFFICIENCY * peak)
    if work.remat == "full":
        computing *= 4 / 3
    if work.reference_forward:
        computing += tokens * flops.forward_flops_per_token(work.model, work.length) / (EFFICIENCY * peak)
    waits = (sent / _bandwidth(name, shape, chip, slices) for name, sent in wire.items())
    return Estimate(memory=memory, wire=wire, seconds=computing + sum(waits))


def activation_bytes(work: Work, shape: Mapping[str, int]) -> float:
    """Return roughly what one device keeps of a microbatch's forward pass: what matrix products gave, or layer inputs alone.

    Kernels that are written out (plain, blocked) keep float32 attention logits, fused ones (cudnn, splash) do not.
    """
    model, layout = work.model, work.layout
    itemsize = 2 if model.compute_dtype == "bfloat16" else 4
    kept = float(model.hidden_size * itemsize)
    if work.remat == "full":
        return _tokens(work, shape) * model.num_layers * kept
    heads, ffn = layout.ways("heads", shape), layout.ways("ffn", shape)
    kept += (2 * model.num_heads / heads + 2 * model.kv_heads / layout.ways("kv_heads", shape)) * model.head_size * itemsize
    kept += 2 * model.hidden_size * itemsize
    if model.attention_kernel in ("plain", "blocked"):
        kept += 4 * model.num_heads / heads * work.length
    gates = 2 if model.gated else 1
    hidden = (model.num_layers - len(model.moe_layers)) * model.intermediate_size * gates
    moe = model.moe
    visits = moe.experts_per_token * (moe.capacity_factor or 1.0)
    size = (moe.expert_size or model.intermediate_size) * gates
    hidden += len(model.moe_layers) * (visits * (size + 2 * model.hidden_size * ffn) + moe.shared_experts * size)
    return _tokens(work, shape) * (model.num_layers * kept + hidden / ffn * itemsize)


def _tokens(work: Work, shape: Mapping[str, int]) -> float:
    """Return the tokens of a microbatch on one device."""
    return work.rows * work.length / work.layout.ways("batch", shape) / work.layout.ways("length", shape)


def _memory(work: Work, shape: Mapping[str, int]) -> dict[str, float]:
    spec = transformer.spec(work.model)
    held = param.bytes_per_device(spec, work.layout, shape)
    itemsize = 2 if work.model.compute_dtype == "bfloat16" else 4
    layers = max(1, work.model.num_layers // work.model.period)
    used = [_used(work.layout, p, shape) / (layers if name.startswith("blocks") else 1) for name, p in _leaves(spec)]
    return {
        "parameters": held * (2 if work.reference else 1),
        "optimizer": held * work.trained * OPTIMIZER_COPIES[work.optimizer],
        "gradients": held * work.trained * (2 if work.accumulate > 1 else 1),
        "activations": activation_bytes(work, shape),
        "gathered weights": 2 * itemsize * sum(used),
    }


def _leaves(spec: transformer.Transformer) -> list[tuple[str, Param]]:
    return list(param.named_leaves(spec).items())


def _used(layout: Layout, leaf: Param, shape: Mapping[str, int]) -> float:
    """Return how many elements of a weight a device computes with: all but what tensor and expert parallelism leave out."""
    split = math.prod(layout.ways(axis, shape) for axis in leaf.axes if axis and axis != "embed")
    return math.prod(leaf.shape) / split


def _wire(work: Work, shape: Mapping[str, int]) -> dict[str, float]:
    model, layout = work.model, work.layout
    itemsize = 2 if model.compute_dtype == "bfloat16" else 4
    weights = replica = 0.0
    for _, leaf in _leaves(transformer.spec(model)):
        entries = dict(zip(leaf.axes, layout.spec(*leaf.axes), strict=True))
        over = ways(entries.get("embed"), shape)
        used = _used(layout, leaf, shape) * itemsize
        # Gathered forwards (by a reference, too) and, kept by nobody, backwards; gradients added up and scattered.
        weights += (2 + work.trained + work.reference_forward) * used * (over - 1) / over
        replica += 2 * work.trained * used / over * (1 - 1 / shape.get("replica", 1))
    passes = 3 if work.remat == "full" else 2
    stream = _tokens(work, shape) * model.hidden_size * itemsize
    tensor, parts, experts = layout.ways("ffn", shape), layout.ways("length", shape), layout.ways("expert", shape)
    keys = 2 * model.kv_heads * model.head_size / layout.ways("kv_heads", shape)
    moe = model.moe
    visits = moe.experts_per_token * moe.capacity_factor if moe.capacity_factor else float(experts)
    sums = {
        "weights": weights,
        "replica": replica,
        # Two sums over the parts in each pass of a layer, at the ends of attention and feed-forward.
        "model": passes * model.num_layers * 2 * stream * 2 * (tensor - 1) / tensor,
        "context": (passes + 1) * model.num_layers * _tokens(work, shape) * keys * itemsize * (parts - 1),
        "expert": passes * len(model.moe_layers) * 2 * stream * visits * (experts - 1) / experts if moe.num_experts else 0.0,
    }
    return {name: value * work.accumulate for name, value in sums.items()}


def _bandwidth(what: str, shape: Mapping[str, int], chip: Chip | None, slices: int) -> float:
    """Return bytes/s one way that a device has for this traffic."""
    if chip is None:
        return CPU_BANDWIDTH
    network = chip.network_bandwidth or chip.link_bandwidth or CPU_BANDWIDTH
    if what == "replica" and slices > 1:
        return network
    if chip.is_tpu:
        # A ring in both directions along one dimension of the torus.
        return 2 * chip.link_bandwidth / chip.devices_per_chip
    outermost = "data" if what == "weights" else what
    span = math.prod(shape.get(axis, 1) for axis in MESH_AXES[MESH_AXES.index(outermost) :])
    return (chip.link_bandwidth or network) if span <= chip.host_devices else network


@dataclasses.dataclass(frozen=True)
class Choice:
    """A mesh, and in a sentence an axis why."""

    shape: dict[str, int]
    reasons: tuple[str, ...]


def choose(
    work: Work,
    mesh: MeshConfig,
    num_devices: int,
    check: Callable[[Mapping[str, int]], None],
    chip: Chip | None = None,
    slices: int = 1,
) -> Choice:
    """Return the arrangement of these devices with the least modelled step time among those that fit in memory.

    Sizes that `mesh` gives other than their default are kept, and every slice is a replica. `check(shape)` raises ConfigError
    for a shape that model or batch do not divide over. ConfigError where there is no other.
    """
    given = {axis: getattr(mesh, axis) for axis in MESH_AXES if getattr(mesh, axis) != (0 if axis == "data" else 1)}
    asked, given = given, {"replica": slices} | given
    found, fault = [], None
    for shape in _shapes(work, given, num_devices):
        try:
            check(shape)
        except ConfigError as refusal:
            fault = fault or refusal
            continue
        found.append((estimate(work, shape, chip, slices), shape))
    if not found and fault is None:
        sizes = " x ".join(f"mesh.{axis} = {size}" for axis, size in asked.items())
        raise ConfigError(
            f"mesh = auto: {sizes}, as given, is no part of {num_devices} devices: leave it to be chosen with "
            + " ".join(f"--mesh.{axis} {0 if axis == 'data' else 1}" for axis in asked)
        )
    if not found:
        raise ConfigError(f"mesh = auto: no arrangement of {num_devices} devices works. Of the simplest: {fault}")
    limit = USABLE * chip.memory_bytes if chip else math.inf
    best, shape = min(found, key=lambda pair: (max(pair[0].bytes, limit), pair[0].seconds, -pair[1]["data"]))
    reasons = [_reason(axis, shape, best, given, found, limit) for axis in MESH_AXES if shape[axis] > 1]
    if best.bytes > limit:
        reasons.append(
            f"no arrangement fits: this one needs about {best.bytes / GIB:.1f} GiB of {chip.memory_bytes / GIB:.1f} a device; "
            "try --remat full, a larger --accumulate, or more devices"
        )
    return Choice(shape, tuple(reasons) or ("one device",))


def _shapes(work: Work, given: Mapping[str, int], num_devices: int) -> list[dict[str, int]]:
    """Return the candidates, plain data parallelism first; tensor parallelism of more than 16 ways pays nowhere."""
    experts, length = work.model.moe.num_experts, work.length
    sizes = {
        "expert": [n for n in _divisors(num_devices) if experts and experts % n == 0] or [1],
        "context": [n for n in _divisors(num_devices) if length % n == 0 and length // n >= 1024] or [1],
        "model": [n for n in _divisors(num_devices) if n <= 16],
    }
    sizes = {axis: [given[axis]] if axis in given else some for axis, some in sizes.items()}
    shapes = []
    for expert, context, model in itertools.product(*sizes.values()):
        others = given["replica"] * expert * context * model
        data = num_devices // others
        if data * others == num_devices and given.get("data", data) == data:
            shapes.append(dict(zip(MESH_AXES, (given["replica"], data, expert, context, model), strict=True)))
    return shapes


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _reason(axis: str, shape: dict[str, int], best: Estimate, given: Mapping[str, int], found: list, limit: float) -> str:
    """Return why an axis has its size: what the best arrangement without it would cost."""
    text = f"{axis} {shape[axis]}: "
    if axis in given:
        return text + ("one replica a slice, gradients alone cross between" if axis == "replica" else "as given")
    if axis == "data":
        return text + "rows and fully sharded weights over all that is left"
    without = [pair for pair in found if pair[1][axis] == 1]
    if not without:
        return text + "rows or weights do not divide over the devices without it"
    other = min(without, key=lambda pair: (max(pair[0].bytes, limit), pair[0].seconds))[0]
    if other.bytes > limit:
        return text + f"without it a device would need about {other.bytes / GIB:.1f} GiB, {limit / GIB:.1f} can be used"
    return text + f"modelled step {best.seconds:.3g} s, {other.seconds:.3g} s without it"
