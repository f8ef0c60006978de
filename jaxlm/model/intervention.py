"""Doing things to routers from outside, to learn what they do: an `edit` made from a configuration."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged
from jaxlm.ops import routing
from jaxlm.param import tree_map

Index = Annotated[int, Range(0)]


@config
class RouterIntervention:
    """What is done to the routers of a mixture of experts, in training or evaluation."""

    layers: tuple[Index, ...] = ()
    """Layers meant, by their number in the model, 0 the first; none named: every mixture layer."""
    random: bool = False
    """Tokens visit experts drawn at random, with the gates that the router gives to those."""
    knock_out: tuple[Index, ...] = ()
    """Experts that no token visits."""
    knock_out_by: Literal["rerouting", "dropping"] = "rerouting"
    """Tokens that would have visited one go to their next best, or go without."""
    force_tokens: tuple[Index, ...] = ()
    """Token ids that visit `force_expert` first, whatever their router says."""
    force_expert: Index = 0
    """Where `force_tokens` go."""
    freeze: bool = False
    """In training: the routers of all layers keep the weights they have."""
    record: str = ""
    """Folder to write all decisions to: experts, gates and who got a place, one file a step or batch."""
    replay: str = ""
    """Folder of recorded decisions to follow, step by step, on the same data; gates are of the router as it is."""

    def check_model(self, model: ModelConfig) -> None:
        """Raise ConfigError where the model has not what is to be changed."""
        if self == RouterIntervention():
            return
        self._check_effect()
        if not model.moe.num_experts:
            raise ConfigError("router.* changes routers, and the model has none: set --model.moe.num-experts")
        wrong = [layer for layer in self.layers if not model.is_moe(layer)]
        if wrong:
            raise ConfigError(f"router.layers names layer {wrong[0]}, which is no mixture: those are {model.moe_layers}")
        experts = model.moe.num_experts
        forced = (self.force_expert,) if self.force_tokens else ()
        for name, numbers in (("knock_out", self.knock_out), ("force_expert", forced)):
            if any(number >= experts for number in numbers):
                raise ConfigError(f"router.{name} = {max(numbers)}: the experts are 0 to {experts - 1}")
        if experts - len(set(self.knock_out)) < model.moe.experts_per_token:
            raise ConfigError(
                f"router.knock_out leaves {experts - len(set(self.knock_out))} of {experts} experts, a token visits "
                f"{model.moe.experts_per_token}: leave at least as many"
            )
        if any(token >= model.vocab_size for token in self.force_tokens):
            raise ConfigError(f"router.force_tokens = {max(self.force_tokens)}: the vocabulary ends at {model.vocab_size - 1}")
        if model.moe.router == "expert_choice" and (self.random or self.force_tokens or self.replay):
            raise ConfigError(
                "router.random, force_tokens and replay set a token's experts; in expert choice experts set their tokens"
            )

    def _check_effect(self) -> None:
        """Raise ConfigError where fields contradict one another, or say how to do what is not to be done."""
        others = {"random": self.random, "force_tokens": self.force_tokens, "knock_out": self.knock_out}
        if self.replay and any(others.values()):
            given = " and ".join(f"router.{name}" for name, value in others.items() if value)
            raise ConfigError(f"router.replay sets every token's experts: take out {given}")
        if self.random and self.force_tokens:
            raise ConfigError("router.random sends every token anywhere, router.force_tokens some to one expert: take one out")
        if self.force_tokens and self.force_expert in self.knock_out:
            raise ConfigError(f"router.force_expert = {self.force_expert} is knocked out: take it out of router.knock_out")
        if self.force_expert and not self.force_tokens:
            raise ConfigError(f"router.force_expert = {self.force_expert} forces no token: name some with router.force_tokens")
        if self.knock_out_by == "dropping" and not self.knock_out:
            raise ConfigError("router.knock_out_by = 'dropping' drops nothing: name experts with router.knock_out")
        if self.layers and not self.edits:
            raise ConfigError(
                "router.layers says where, but not what: set router.random, knock_out, force_tokens or replay, or leave it out"
            )

    @property
    def edits(self) -> bool:
        """Whether anything is changed in the forward pass."""
        return bool(self.random or self.knock_out or self.force_tokens or self.replay)


def make_edit(
    wanted: RouterIntervention, model: ModelConfig, tokens_BL: Array, key: Array | None = None, replayed: Array | None = None
) -> Edit:
    """Return the edit that does what is wanted to a forward pass over these tokens.

    `replayed` holds recorded experts, [mixture layers, B, L, K]. Random routing draws from `key`, the same draw every time
    without one.
    """
    if not wanted.edits:
        return unchanged
    key = jax.random.key(0) if key is None else key
    recorded = jnp.array([sum(map(model.is_moe, range(layer))) for layer in range(model.num_layers)], jnp.int32)
    out = jnp.zeros(model.moe.num_experts, bool).at[jnp.array(wanted.knock_out, jnp.int32)].set(True)

    def edit(site: str, layer: Array | int, x: Array) -> Array:
        if site == "router_logits" and wanted.knock_out and wanted.knock_out_by == "rerouting":
            return where(layer, jnp.where(out.reshape(1, 1, -1), 10 * routing.EXCLUDED, x), x)
        if site != "experts":
            return x
        experts = x
        if replayed is not None:
            experts = jax.lax.dynamic_index_in_dim(replayed, recorded[layer], keepdims=False).astype(x.dtype)
        if wanted.random:
            experts = _random_experts(x, model.moe.num_experts, out, jax.random.fold_in(key, layer))
        if wanted.force_tokens:
            experts = _forced(experts, tokens_BL, wanted)
        if wanted.knock_out and wanted.knock_out_by == "dropping":
            gone = _among(experts, wanted.knock_out)
            experts = jnp.where(gone, model.moe.num_experts, experts)
        return where(layer, experts, x)

    def where(layer: Array | int, new: Array, old: Array) -> Array:
        if not wanted.layers:
            return new
        return jnp.where(jnp.any(jnp.array(wanted.layers) == layer), new, old)

    return edit


def _random_experts(experts_BLK: Array, num_experts: int, out: Array, key: Array) -> Array:
    """Draw K different experts for each token, uniformly from those that are not knocked out."""
    B, L, K = experts_BLK.shape
    sharding = jax.typeof(experts_BLK).sharding
    scores = jax.random.uniform(jax.random.fold_in(key, 1), (B, L, num_experts), out_sharding=sharding)
    return routing.top_k(jnp.where(out.reshape(1, 1, -1), -1.0, scores), K)


def _forced(experts_BLK: Array, tokens_BL: Array, wanted: RouterIntervention) -> Array:
    """Put the forced expert first for the tokens meant; where it was chosen already, it changes places with the first."""
    meant = _among(tokens_BL, wanted.force_tokens)[..., None]
    first = jax.lax.broadcasted_iota(jnp.int32, (1, 1, experts_BLK.shape[2]), 2) == 0
    swapped = jnp.where(experts_BLK == wanted.force_expert, experts_BLK[..., :1], experts_BLK)
    return jnp.where(meant, jnp.where(first, wanted.force_expert, swapped), experts_BLK)


def _among(x: Array, values: tuple[int, ...]) -> Array:
    """Return where x is one of these (`jnp.isin` would lay split rows end to end)."""
    found = jnp.zeros(x.shape, bool, out_sharding=jax.typeof(x).sharding)
    for value in values:
        found |= x == value
    return found


def freeze_routers(spec: Any) -> Any:
    """Return the spec of a model with its routers as state: no gradient and no decay moves them."""

    def frozen(block: Any) -> Any:
        if block.moe is None:
            return block
        state = {
            name: tree_map(lambda p: dataclasses.replace(p, kind="state"), getattr(block.moe, name))
            for name in ("router", "noise")
        }
        return block.replace(moe=block.moe.replace(**state))

    return spec.replace(blocks=tuple(frozen(block) for block in spec.blocks))
