"""Routers of a mixture: load, what experts specialise in, churn between checkpoints, how alike experts are.

Specialisation is the mutual information, in bits, of a token's first expert with its class and with the token itself, beside
what a shuffle gives. Churn is the part of tokens whose first expert is another than at the checkpoint before.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.information import by_chance, entropy, mutual_information, telling
from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.similarity import evenly, gram, pairwise
from jaxlm.analysis.token_classes import CLASSES, in_context, spelled
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.function_file import names_function
from jaxlm.model import layers
from jaxlm.model.config import ModelConfig
from jaxlm.model.layers import Mlp
from jaxlm.model.moe_config import MoeConfig
from jaxlm.ops import routing


@config
class RoutersConfig:
    """What is measured of routers."""

    top: Annotated[int, Range(1)] = 5
    """Tokens named of each expert."""
    tokens: Annotated[int, Range(4)] = 256
    """Tokens that all experts are applied to, to see how alike they are."""
    last: bool = True
    """Churn towards the last checkpoint, too; in a run that still trains, that changes and all is measured again."""


SETTINGS = RoutersConfig()


class Choices(NamedTuple):
    """What routers did with rows [R, L]; by mixture layer."""

    real: np.ndarray  # bool [R, L]
    logits: np.ndarray  # [layers, R, L, E]
    experts: np.ndarray  # int [layers, R, L, K]: E where there is none

    @property
    def first(self) -> np.ndarray:
        """The first expert of each real token, [layers, tokens]; E where an expert's choice left it none."""
        E = self.logits.shape[-1]
        scores = np.concatenate([self.logits, np.full((*self.logits.shape[:-1], 1), -np.inf)], axis=-1)
        best = np.take_along_axis(scores, self.experts, axis=-1).argmax(axis=-1)
        # Token choice lists the best first, whatever bias its choice had; expert choice lists experts by number.
        by_number = self.experts.shape[-1] == E
        place = best[..., None] if by_number else np.zeros_like(best)[..., None]
        return np.take_along_axis(self.experts, place, axis=-1)[..., 0][:, self.real]

    @property
    def load(self) -> np.ndarray:
        """Each expert's share of the assignments before dropping, [layers, E]."""
        E = self.logits.shape[-1]
        counts = np.stack([np.bincount(layer[self.real].ravel(), minlength=E + 1)[:E] for layer in self.experts])
        return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def probe(view: View, settings: RoutersConfig) -> dict[str, Measure]:
    """Return loads, what routers go by, how they changed since other checkpoints, and how alike experts are."""
    if not view.model.moe_layers:
        raise NotSuited("no layer of this model is a mixture of experts")
    choices, names = choices_of(view), {"layer": list(map(str, view.model.moe_layers))}
    found = _load(choices, view.model.moe, names) | _specialisation(view, choices, settings, names)
    for which, other in (("previous", view.previous), ("last", view.last if settings.last else None)):
        if other is not None:
            about = f"part of the tokens whose first expert is another than at the {which} checkpoint"
            moved = churn(choices, choices_of(other))
            found[f"churn_{which}"] = Measure(moved, ("layer",), names, "", about)
            found[f"mean_churn_{which}"] = Measure(moved.mean(), about=f"{about}, mean over layers")
    return found | _similarity(view, choices, settings, names)


def choices_of(view: View) -> Choices:
    """Return what a checkpoint's routers do with the rows, as in evaluation: nothing dropped, no noise."""
    seen, mixtures, real = view.activations("router_logits", "experts"), view.model.moe_layers, view.rows.segments != 0
    logits, experts = (np.stack([seen[site][layer] for layer in mixtures]) for site in ("router_logits", "experts"))
    return Choices(real, logits, np.where(real[None, ..., None], experts, view.model.moe.num_experts).astype(np.int32))


def churn(now: Choices, then: Choices) -> np.ndarray:
    """Return the part of tokens whose first expert differs between two checkpoints that read the same rows, [layers]."""
    return np.mean(now.first != then.first, axis=-1)


def dropped(choices: Choices, settings: MoeConfig) -> np.ndarray:
    """Return the part of assignments without a place at the training capacity, [layers].

    Whoever comes first, an expert leaves out as many of a group's as exceed its places. Groups are those of training, without
    its jitter and noise, of as many rows as divide those at hand. 0 for dropless routing and expert choice.
    """
    if settings.capacity_factor is None or settings.router == "expert_choice":
        return np.zeros(len(choices.experts))
    _, rows, length, k = choices.experts.shape
    group = int(np.gcd(settings.rows_per_group, rows)) * length
    factor, E = settings.capacity_factor, settings.num_experts
    places = min(routing.capacity(factor, k, group, E, settings.min_capacity), group)
    by_group = choices.experts.reshape(len(choices.experts), -1, group * k)
    load = np.stack([np.count_nonzero(by_group == expert, axis=-1) for expert in range(E)], axis=-1)
    return np.maximum(load - places, 0).sum(axis=(1, 2)) / np.maximum(load.sum(axis=(1, 2)), 1)


def _load(choices: Choices, settings: MoeConfig, names: dict[str, list[str]]) -> dict[str, Measure]:
    load, logits = choices.load, choices.logits[:, choices.real].astype(np.float64)
    p = 1 / (1 + np.exp(-logits)) if settings.router == "sigmoid" else np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    of_layer = {
        "load_cv": (load.std(axis=-1) / load.mean(axis=-1), "", "coefficient of variation of the experts' loads"),
        "load_max": (load.max(axis=-1) / load.mean(axis=-1), "", "load of the busiest expert over the mean"),
        "dead": ((load == 0).sum(axis=-1), "experts", "experts that no token of the rows visits"),
        "entropy": (-np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1).mean(axis=-1), "nats", "of the router's distribution"),
        "dropped": (dropped(choices, settings), "", "part of assignments without a place at the training capacity"),
    }
    if names_function(settings.router):  # what distribution a rule makes of its logits, the logits do not tell
        del of_layer["entropy"]
    about = "share of the assignments that an expert gets, before dropping"
    found = {name: Measure(values, ("layer",), names, *rest) for name, (values, *rest) in of_layer.items()}
    (dead, *_), (busiest, *_) = of_layer["dead"], of_layer["load_max"]
    return {
        "load": Measure(load, ("layer", "expert"), names, "", about),
        "dead_experts": Measure(dead.sum(), unit="experts", about="experts of all layers that no token of the rows visits"),
        "max_load": Measure(busiest.max(), about="load of the busiest expert of any layer over the mean of its layer"),
    } | found


def _specialisation(view: View, choices: Choices, settings: RoutersConfig, names: dict[str, list[str]]) -> dict[str, Measure]:
    tokens, first, E = view.rows.tokens[choices.real], choices.first, view.model.moe.num_experts
    of_layer = {
        "choice_entropy": ([entropy(layer) for layer in first], "of the first experts' shares: the most there is to tell"),
        "token_information": (
            [mutual_information(tokens, layer) for layer in first], "mutual information of token and first expert"
        ),
        "token_information_by_chance": (
            [by_chance(tokens, layer) for layer in first], "the same with experts shuffled over tokens"
        ),
    }  # fmt: skip
    found = {}
    if view.tokenizer is not None:
        before = np.concatenate([np.full((len(view.rows.tokens), 1), -1), view.rows.tokens[:, :-1]], axis=1)
        classes = in_context(view.tokenizer, view.rows.tokens, before)[choices.real]
        of_layer["class_information"] = (
            [mutual_information(classes, layer, corrected=True) for layer in first],
            "mutual information of token class and first expert, Miller-Madow corrected",
        )
        of_layer["class_information_by_chance"] = (
            [by_chance(classes, layer) for layer in first], "the same, uncorrected, with experts shuffled over tokens"
        )  # fmt: skip
        shares = np.full((len(first), len(CLASSES), E), np.nan)
        for place, layer in enumerate(first):
            for label in np.unique(classes):
                chosen = np.bincount(layer[classes == label], minlength=E + 1)[:E]
                shares[place, label] = chosen / max(chosen.sum(), 1)
        labels = names | {"class": CLASSES}
        about = "share of a class's tokens that go to each expert first"
        found["load_by_class"] = Measure(shares, ("layer", "class", "expert"), labels, "", about)
    found |= {name: Measure(values, ("layer",), names, "bits", about) for name, (values, about) in of_layer.items()}
    about = "tokens that tell most of an expert: frequent there, rarer elsewhere"
    top = [_named(view, telling(tokens[layer < E], layer[layer < E], E, settings.top), settings.top) for layer in first]
    return found | {"top_tokens": Measure(top, ("layer", "expert", "rank"), names, "", about)}


def _named(view: View, tokens: list[list[int]], count: int) -> list[list[str]]:
    """Return the texts of each expert's tokens, empty ones where it has fewer."""
    texts = [[str(token) if view.tokenizer is None else spelled(view.tokenizer, token) for token in row] for row in tokens]
    return [row + [""] * (count - len(row)) for row in texts]


def _similarity(view: View, choices: Choices, settings: RoutersConfig, names: dict[str, list[str]]) -> dict[str, Measure]:
    weights, period = view.params.blocks, len(view.params.blocks)
    read = view.activations("ffn_in")["ffn_in"]
    of_weights, of_outputs, ckas = [], [], []
    for layer in view.model.moe_layers:
        stacked = weights[layer % period].moe.experts
        experts = Mlp(**{name: None if x is None else np.asarray(x[layer // period]) for name, x in vars(stacked).items()})
        x = read[layer][choices.real]
        outputs = outputs_of(experts, x[evenly(np.arange(len(x)), settings.tokens)], view.model)
        of_weights.append(cosines(np.concatenate([w.reshape(len(w), -1) for w in vars(experts).values() if w is not None], 1)))
        of_outputs.append(np.mean([cosines(outputs[:, token]) for token in range(outputs.shape[1])], axis=0))
        ckas.append(pairwise([gram(each) for each in outputs]))
    axes = ("layer", "expert", "other_expert")
    return {
        "weight_cosine": Measure(of_weights, axes, names, "", "cosine between all weights of two experts"),
        "output_cosine": Measure(
            of_outputs, axes, names, "", "mean cosine between what two experts make of the same tokens, before gates"
        ),
        "output_cka": Measure(ckas, axes, names, "", "debiased linear CKA between what two experts make of the same tokens"),
    }


def outputs_of(experts: Mlp, x_TD: np.ndarray, model: ModelConfig) -> np.ndarray:
    """Return what each expert makes of each token, float32 [E, T, D], gates left out; leaves have a leading E."""

    def product(x: np.ndarray, weights: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray | None:
        if weights is None:
            return None
        y = np.matmul(x, weights)
        return y if bias is None else y + bias[:, None]

    x_ETD = np.broadcast_to(x_TD, (len(experts.up), *x_TD.shape))
    up, gate = product(x_ETD, experts.up, experts.up_bias), product(x_ETD, experts.gate, experts.gate_bias)
    hidden = layers.activate(model.activation, jnp.asarray(up), None if gate is None else jnp.asarray(gate))
    return product(np.asarray(hidden), experts.down, experts.down_bias)


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of vectors [n, d], float64 [n, n]; 0 with a vector of zeros."""
    vectors = vectors.astype(np.float64)
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    return units @ units.T
