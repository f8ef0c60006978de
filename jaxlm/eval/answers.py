"""What a model answers to tasks: whether greedy generation would write the answer, without generating."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import DataError
from jaxlm.eval.reach import check_reach
from jaxlm.eval.retrieval import Task
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.ops.masks import Tokens


class Answer(NamedTuple):
    """What a model made of a task."""

    correct: bool
    """Each token of the answer is the likeliest after those before it: greedy generation would write it."""
    token_accuracy: float
    """The part of them that are."""
    log_prob: float
    """Of the answer, in nats."""
    tokens: tuple[int, ...]
    """The likeliest token at each place of the answer, after the right ones before it."""
    text: str | None
    """Their text; None without a tokenizer."""


def solve(
    params: Any, tasks: Sequence[Task], model: ModelConfig, layout: Layout, batch_size: int = 1,
    tokenizer: Tokenizer | None = None, report: Callable[[int], None] | None = None,
) -> list[Answer]:  # fmt: skip
    """Return what the model answers to each task, from one forward pass over prompt and answer.

    `report` is told of the tokens that were read. Tasks of like length share a batch and a compiled program, and only places of
    answers get logits. Where RoPE frequencies depend on a row's length, they are those of the whole row; generation has those
    of the row so far. Raises DataError where the model cannot read so long a row, does not know a token, or nothing stands
    before an answer.
    """
    if not tasks:
        return []
    for number, task in enumerate(tasks):
        if not task.prompt or not task.answer:
            raise DataError(f"task {number} has no token of {'an answer' if task.prompt else 'a prompt'}: it needs one or more")
    check_reach(max(len(task.prompt) + len(task.answer) for task in tasks), model, "tasks")
    greatest = max(max(task.prompt + task.answer) for task in tasks)
    if greatest >= model.vocab_size:
        raise DataError(f"the tasks have token {greatest}, and the model knows 0 to {model.vocab_size - 1}")
    places = max(len(task.answer) for task in tasks)
    by_width: dict[int, list[int]] = {}
    for number, task in enumerate(tasks):
        by_width.setdefault(row_width(task), []).append(number)
    answers: dict[int, Answer] = {}
    for width, numbers in by_width.items():
        for start in range(0, len(numbers), batch_size):
            part = [numbers[i % len(numbers)] for i in range(start, start + batch_size)]  # filled up: one shape is compiled
            rows = _rows([tasks[number] for number in part], width, places)
            found = zip(part, *map(np.asarray, _at_answers(params, *rows, model, layout)), strict=True)
            answers |= {number: _answer(tasks[number], *at_places, tokenizer) for number, *at_places in found}
            if report:
                report(width * min(batch_size, len(numbers) - start))
    return [answers[number] for number in range(len(tasks))]


def _answer(task: Task, likeliest: np.ndarray, log_probs: np.ndarray, tokenizer: Tokenizer | None) -> Answer:
    tokens = tuple(likeliest[: len(task.answer)].tolist())
    right = [ours == theirs for ours, theirs in zip(tokens, task.answer, strict=True)]
    total = float(log_probs[: len(task.answer)].sum(dtype=np.float64))
    text = None if tokenizer is None else tokenizer.decode_bytes(tokens).decode("utf-8", errors="replace")
    return Answer(all(right), sum(right) / len(right), total, tokens, text)


def row_width(task: Task) -> int:
    """Return the width that tasks of about this length share when they are read: at most an eighth, or 15, more than it."""
    length = max(task.length, len(task.prompt) + len(task.answer))
    step = max(16, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


def _rows(tasks: Sequence[Task], width: int, places: int) -> tuple[np.ndarray, ...]:
    """Return tokens and positions [B, L], and of each answer the places that predict it and its tokens [B, A], int32.

    Padding stands where the last token stands, which predicts nothing: no token that does sees it, and no row looks longer.
    """
    tokens, (at, targets) = np.zeros((len(tasks), width), np.int32), np.zeros((2, len(tasks), places), np.int32)
    positions = np.zeros_like(tokens)
    for row, task in enumerate(tasks):
        ids = task.prompt + task.answer
        tokens[row, : len(ids)] = ids
        positions[row] = np.minimum(np.arange(width), len(ids) - 1)
        targets[row, : len(task.answer)] = task.answer
        at[row] = np.minimum(len(task.prompt) - 1 + np.arange(places), len(ids) - 1)
    return tokens, positions, at, targets


@functools.partial(jax.jit, static_argnames=("model", "layout"))
def _at_answers(
    params: Any, tokens: Array, positions: Array, at: Array, targets: Array, model: ModelConfig, layout: Layout
) -> tuple[Array, Array]:
    """Return the likeliest token at each place [B, A], and the log-probability of its target, float32."""
    tokens, positions = (jax.reshard(x, layout.spec("batch", "length")) for x in (tokens, positions))
    at, targets = (jax.reshard(x, layout.spec("batch", None)) for x in (at, targets))
    x_BLD, _ = transformer.forward(params, tokens, Tokens(positions), model, layout)
    x_BLD = jax.reshard(x_BLD, layout.spec("batch", None, None))
    x_BAD = jnp.take_along_axis(x_BLD, at[:, :, None], axis=1)
    logits_BAV = transformer.unembed(params, x_BAD, model, dataclasses.replace(layout, length=None))
    logits_BAV = jax.reshard(logits_BAV, layout.spec("batch", None, None))
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits_BAV), targets[:, :, None], axis=2)[:, :, 0]
    return jnp.argmax(logits_BAV, axis=-1), log_probs
