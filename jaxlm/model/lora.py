"""Low-rank adapters (LoRA, arXiv:2106.09685): small matrices that are trained in the place of a model's own."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn import initializers

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError, suggest
from jaxlm.param import Param, tree_map

ATTENTION, FEED_FORWARD = ("q", "k", "v", "o"), ("gate", "up", "down")


@config
class LoraConfig:
    """Which weights get an adapter, and of what rank."""

    rank: Annotated[int, Range(0)] = 0
    """Inner size of every adapter; 0: none, all weights are trained."""
    alpha: Annotated[float, Range(0)] = 16.0
    """The product of an adapter's matrices is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Weights that get one, of q, k, v, o (attention) and gate, up, down (feed-forward layers, and the expert of a mixture that
    every token visits); empty: all of them that the model has."""

    def check(self) -> None:
        """Raise ConfigError for targets that are none, and a scale that leaves adapters without effect."""
        known = (*ATTENTION, *FEED_FORWARD)
        for name in (name for name in self.targets if name not in known):
            near = suggest(name.removesuffix("_proj"), known)
            raise ConfigError(
                f"lora.targets = {name!r} is no weight that can have an adapter.{near} There are {', '.join(known)}"
            )
        if self.targets and not self.rank:
            raise ConfigError(
                "lora.targets names weights for adapters of rank 0, and all weights would be trained: set --lora.rank 16"
            )
        if self.rank and not self.alpha:
            raise ConfigError("lora.alpha = 0 takes all effect from the adapters: set --lora.alpha 16, or --lora.rank 0")


@struct.dataclass
class Adapted:
    """A frozen weight and its adapter: together they stand for weight + scale down up, which is never formed.

    Of a weight [inputs, outputs] (each may be several dimensions, and stacked layers lie in front) the adapter reads with
    `down` [inputs, rank] and writes with `up` [rank, outputs].
    """

    weight: Array
    down: Array
    up: Array
    scale: float = struct.field(pytree_node=False)

    @property
    def ndim(self) -> int:
        """Dimensions of the weight."""
        return self.weight.ndim


def adapt(spec: Any, config: LoraConfig) -> Any:
    """Return the spec of a model whose adapters alone are trained; with rank 0, the spec as it is.

    All else becomes state. Routers and the experts that they choose from stay frozen and have none. Raises ConfigError
    for a target that the model does not have.
    """
    if not config.rank:
        return spec
    targets, there = config.targets or (*ATTENTION, *FEED_FORWARD), dict[str, None]()

    def adapted(part: Any, names: tuple[str, ...]) -> Any:
        weights = {name: getattr(part, name) for name in names if getattr(part, name) is not None}
        there.update(dict.fromkeys(weights))
        return part.replace(**{name: _adapter(weight, config) for name, weight in weights.items() if name in targets})

    def block(p: Any) -> Any:
        p = p.replace(attention=adapted(p.attention, ATTENTION))
        if p.mlp is not None:
            return p.replace(mlp=adapted(p.mlp, FEED_FORWARD))
        if p.moe.shared is not None:
            return p.replace(moe=p.moe.replace(shared=adapted(p.moe.shared, FEED_FORWARD)))
        return p

    frozen = tree_map(lambda p: dataclasses.replace(p, kind="state"), spec)
    adapted_spec = frozen.replace(blocks=tuple(block(p) for p in frozen.blocks))
    missing = [name for name in config.targets if name not in there]
    if missing:
        raise ConfigError(
            f"lora.targets = {missing[0]!r}: this model has no such weight, but for experts, which get no adapters. It has "
            f"{', '.join(there)}; without lora.targets all of these are adapted"
        )
    return adapted_spec


def _adapter(weight: Param, config: LoraConfig) -> Adapted:
    """Return the spec of a weight with its adapter, which starts at zero: uniform `down`, `up` of zeros.

    The bound is 1 / sqrt(inputs), as that of the authors' code and of PEFT (Kaiming's, with a = sqrt(5)).
    """
    inner = weight.stack + weight.inputs
    places = tuple(range(weight.stack, inner))
    uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform", places, inner, tuple(range(weight.stack)))
    down = Param(
        (*weight.shape[:inner], config.rank), (*weight.axes[:inner], None), uniform, inputs=weight.inputs, stack=weight.stack
    )
    up = Param(
        (*weight.shape[: weight.stack], config.rank, *weight.shape[inner:]),
        (*weight.axes[: weight.stack], None, *weight.axes[inner:]),
        initializers.zeros,
        stack=weight.stack,
    )
    return Adapted(weight, down, up, config.alpha / config.rank)


def attach(params: Any, adapted: Any) -> Any:
    """Return the adapters of `adapted`, a model of the same shapes, on the weights of `params`, a plain one."""
    return _map(lambda p, weight: p.replace(weight=weight), lambda _, weight: weight, adapted, params)


def merge(params: Any) -> Any:
    """Return the plain model that computes what the adapted one does: every adapter added to its weight, in float32."""
    return _map(_merged, lambda p: p, params)


def detach(params: Any) -> Any:
    """Return the plain model under the adapters: what training began with."""
    return _map(lambda p: p.weight, lambda p: p, params)


def _map(of_adapted: Callable[..., Any], of_others: Callable[..., Any], params: Any, *rest: Any) -> Any:
    def one(p: Any, *others: Any) -> Any:
        return (of_adapted if isinstance(p, Adapted) else of_others)(p, *others)

    return jax.tree.map(one, params, *rest, is_leaf=lambda p: isinstance(p, Adapted))


def _merged(p: Adapted) -> Array:
    stack = p.down.ndim + p.up.ndim - 2 - p.weight.ndim
    layers = tuple(range(stack))
    update = jax.lax.dot_general(
        p.down, p.up, (((p.down.ndim - 1,), (stack,)), (layers, layers)), precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32, out_sharding=jax.typeof(p.weight).sharding.spec,
    )  # fmt: skip
    return p.weight + p.scale * update
