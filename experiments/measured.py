"""What two models say of the same texts: log-probabilities, the divergence at every prefix, bits per byte; what one writes."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.decode.generate import Request, encode_prompt, generate
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.ops.log_probs import compare
from jaxlm.ops.masks import Tokens
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.run.open import OpenRun, read_params
from jaxlm.train.saved import saved_steps

DRAWN_TOGETHER = 256


class Rows(NamedTuple):
    """Texts of ids, one a row, [N, L] each; `real` is 1 where a target counts, `response` where it belongs to the answer."""

    tokens: np.ndarray
    targets: np.ndarray
    real: np.ndarray
    response: np.ndarray


class Compared(NamedTuple):
    """float32 [N, L] in nats: what a model and a reference give each target, and KL(model || reference) where it is drawn."""

    log_probs: np.ndarray
    reference: np.ndarray
    kl: np.ndarray


def lay(texts: Sequence[tuple[Sequence[int], Sequence[int]]], length: int) -> Rows:
    """Return rows of (prompt with its bos, response with its eos); ValueError where one is longer than `length` + 1 ids."""
    rows = Rows(*(np.zeros((len(texts), length), kind) for kind in (np.int32, np.int32, np.float32, np.float32)))
    for row, (prompt, response) in enumerate(texts):
        ids = [*prompt, *response]
        if len(ids) > length + 1:
            raise ValueError(f"text {row} has {len(ids)} ids, and rows hold {length + 1}")
        rows.tokens[row, : len(ids) - 1], rows.targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        rows.real[row, : len(ids) - 1] = rows.response[row, len(prompt) - 1 : len(ids) - 1] = 1
    return rows


@functools.partial(jax.jit, static_argnames=("model", "layout"))
def _compare(params: Any, reference: Any, tokens: Array, targets: Array, model: ModelConfig, layout: Layout) -> tuple:
    tokens, targets = (jax.reshard(ids, layout.spec("batch", "length")) for ids in (tokens, targets))
    at = Tokens(jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1, out_sharding=jax.typeof(tokens).sharding))
    (x, _), (y, _) = (transformer.forward(weights, tokens, at, model, layout) for weights in (params, reference))
    heads = transformer.head(params), transformer.head(reference)
    scores, other, kl = compare(x, heads[0], y, heads[1], targets, softcap=model.logit_softcap)
    return scores.log_probs, other, kl


def compare_on(params: Any, reference: Any, rows: Rows, model: ModelConfig, layout: Layout, batch_size: int = 64) -> Compared:
    """Return what two models of one shape say of rows, on the current mesh; what is past a row's end counts 0."""
    parts = []
    for start in range(0, len(rows.tokens), batch_size):
        # The last batch is filled up, so that one shape is compiled.
        picks = np.arange(start, start + batch_size) % len(rows.tokens)
        found = _compare(params, reference, rows.tokens[picks], rows.targets[picks], model, layout)
        parts.append(
            [np.asarray(each)[: len(rows.tokens) - start] * rows.real[picks][: len(rows.tokens) - start] for each in found]
        )
    return Compared(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def steps_of(folder: Path) -> list[int]:
    """Return the steps whose checkpoints a run has kept."""
    return saved_steps(folder / CHECKPOINTS)


def params_at(folder: Path, step: int, run: OpenRun) -> Any:
    """Return the parameters of another run of the same model at a step, placed as those of the open one."""
    return read_params(folder / CHECKPOINTS, step, run.model, run.experiment.layout, run.mesh)


def bits_per_byte(log_probs: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """Return bits per byte of each text, from summed log-probabilities [..., N] in nats and its bytes [N]."""
    return -log_probs / math.log(2) / num_bytes


def closest(divergences: dict[int, float], wanted: float) -> int | None:
    """Return the step whose divergence is nearest to `wanted`, by ratio; None where none lies within a third of it."""
    ratios = {step: abs(math.log(max(kl, 1e-12) / wanted)) for step, kl in divergences.items()}
    step = min(ratios, key=ratios.get, default=None)
    return step if step is not None and ratios[step] <= math.log(4 / 3) else None


class Sample(NamedTuple):
    """A continuation that a model drew of a prompt."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    """With its eos, unless it was cut."""
    text: str


def sample_of(run: OpenRun, params: Any, prompts: Sequence[str], tokens: int, seed: int, copies: int = 1) -> list[Sample]:
    """Return `copies` continuations of each prompt, one after the other, drawn from the model's own distribution."""
    tokenizer, found = run.needs_tokenizer(), []
    asked = [prompt for prompt in prompts for _ in range(copies)]
    for start in range(0, len(asked), DRAWN_TOGETHER):
        part = (asked[start:] * DRAWN_TOGETHER)[:DRAWN_TOGETHER]  # filled up, so that one shape is compiled
        requests = [
            Request(prompt=encode_prompt(tokenizer, prompt), seed=seed, sample=start + place)
            for place, prompt in enumerate(part)
        ]
        made = generate(params, run.model, run.experiment.layout, requests, tokens, tokenizer=tokenizer)
        for request, completion in zip(requests[: len(asked) - start], made, strict=False):
            last = (tokenizer.eos_id,) if completion.finish == "stop" else ()
            found.append(Sample(tuple(request.prompt), (*completion.tokens, *last), completion.text))
    return found
