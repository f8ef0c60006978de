"""Patching and steering: which layers carry the answer, and what a direction of the residual stream does.

Activations of a clean prompt are put into a corrupted one, and the recovered part of logit(answer) - logit(wrong) is measured
(Zhang & Nanda 2023, arXiv:2309.16042). Without a file the prompts are random tokens that begin again: the answer is a copy.
Steering adds a difference of mean residuals (arXiv:2308.10248): without a file towards a frequent target of the rows.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from jaxlm.analysis.interventions import PATCHED, Pairs, batch_of, direction, filled, pairs_of, patched, repetitions, steer
from jaxlm.analysis.lines import read_lines
from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.random_text import vocabulary
from jaxlm.analysis.similarity import evenly
from jaxlm.analysis.token_classes import spelled
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.data.packing import Batch
from jaxlm.errors import DataError


@config
class PatchingConfig:
    """What is patched and steered."""

    pairs: str = ""
    """A JSONL file of {"clean", "corrupted", "answer", "wrong"}: prompts of as many tokens, and what may follow, of which the
    first token counts; empty for random tokens that repeat."""
    repetitions: Annotated[int, Range(1)] = 8
    """How many such pairs are made."""
    length: Annotated[int, Range(2)] = 16
    """Tokens before they begin again."""
    steering: str = ""
    """A JSONL file whose lines have "toward" and "away" (texts that make the direction) or "prompt" and "target" (of which the
    target's tokens are measured), or all; empty for the rows that are read."""
    layer: Annotated[int, Range(-1)] = -1
    """Where the direction is added; -1 for the middle layer."""
    strengths: tuple[float, ...] = (-1.0, 1.0, 2.0)
    """Multiples of the direction."""
    rows: Annotated[int, Range(2)] = 4
    """Rows of those read that make and test the direction, half each, where no file does."""


SETTINGS = PatchingConfig()


def probe(view: View, settings: PatchingConfig) -> dict[str, Measure]:
    """Return what clean activations bring back of a logit difference, and what steering does to targets."""
    pairs = _read_pairs(view, settings) if settings.pairs else _repetitions(view, settings)
    found = patched(view, pairs)
    axes, labels = ("site", "group", "layer"), {"site": PATCHED, "group": list(pairs.groups)}
    about = "part of the difference between clean and corrupted that a patch of the clean activation brings back"
    effect, recovered = found.clean - found.corrupted, found.recovered
    if abs(effect) < 2 * found.error:
        # A share of what is not there would be noise.
        recovered, about = np.full(recovered.shape, np.nan), f"not known, as clean and corrupted hardly differ: {about}"
    measures = {
        "clean": Measure(found.clean, unit="nats", about="logit(answer) - logit(wrong) after the clean prompt"),
        "corrupted": Measure(found.corrupted, unit="nats", about="the same after the corrupted prompt"),
        "effect": Measure(effect, unit="nats", about="clean less corrupted"),
        "effect_error": Measure(found.error, unit="nats", about="standard error of that, over pairs"),
        "recovered": Measure(recovered, axes, labels, "", about),
    }
    return measures | _steering(view, settings)


def _repetitions(view: View, settings: PatchingConfig) -> Pairs:
    known, start = vocabulary(view), () if view.tokenizer is None else view.tokenizer.prefix_ids
    length = min(settings.length, len(known) - 1, (view.model.max_length - len(start)) // 2)
    if length < 2:
        raise NotSuited(f"{len(known)} tokens with a text and rows of {view.model.max_length} leave nothing to repeat")
    return repetitions(known, settings.repetitions, length, start)


def _read_pairs(view: View, settings: PatchingConfig) -> Pairs:
    encode, prompts = _encoder(view, settings.pairs), []
    for line in read_lines(Path(settings.pairs), ("clean", "corrupted", "answer", "wrong")):
        answer, wrong = (encode(line[name]) for name in ("answer", "wrong"))
        clean, corrupted = ((*view.tokenizer.prefix_ids, *encode(line[name])) for name in ("clean", "corrupted"))
        prompts.append((clean, corrupted, answer[0], wrong[0]))
    return pairs_of(prompts)


def _encoder(view: View, path: str) -> Any:
    if view.tokenizer is None:
        raise NotSuited(f"{path} has texts, and the model came without a tokenizer")

    def encode(text: str) -> list[int]:
        ids = view.tokenizer.encode(text)
        if not ids:
            raise DataError(f"{path}: a text without a token, where one or more is needed")
        return ids

    return encode


class Asked(NamedTuple):
    """What a direction is made of, and on what it is tested."""

    toward: Batch
    away: Batch
    masks: tuple[Any, Any]
    test: Batch
    counted: np.ndarray
    """bool [R, L]: the targets that are measured."""
    about: str


def _steering(view: View, settings: PatchingConfig) -> dict[str, Measure]:
    asked = _read_steering(view, settings) if settings.steering else _frequent(view, settings)
    if asked is None:
        return {}
    layer = (view.model.num_layers - 1) // 2 if settings.layer < 0 else settings.layer
    if layer >= view.model.num_layers:
        raise DataError(f"patching.layer = {layer}, and the layers are 0 to {view.model.num_layers - 1}")
    arrow = direction(view, layer, asked.toward, asked.away, asked.masks)
    changes = steer(view, arrow, layer, settings.strengths, asked.test)
    about = f"change of the log-probability of {asked.about} with the direction added after layer {layer}"
    labels = {"strength": [f"{strength:g}" for strength in settings.strengths]}
    return {
        "steered": Measure(changes[:, asked.counted].mean(axis=1), ("strength",), labels, "nats", about),
        "direction": Measure(float(np.linalg.norm(arrow)), about=f"norm of that direction after layer {layer}"),
    }


def _frequent(view: View, settings: PatchingConfig) -> Asked | None:
    """Return a target that is frequent in two halves of the rows against all others: one makes the direction, one tests it.

    None where the halves have no target in common.
    """
    picked = evenly(np.arange(len(view.rows.tokens)), settings.rows)
    halves = np.array_split(picked, 2)
    made, test = (Batch(*(x[part] for x in view.rows[:5])) for part in halves)
    counts = [np.bincount(half.targets[half.weights != 0], minlength=view.model.vocab_size) for half in (made, test)]
    token = int(np.minimum(*counts).argmax())
    of_it, tested = ((half.weights != 0) & (half.targets == token) for half in (made, test))
    others = (made.weights != 0) & ~of_it
    if not (of_it.any() and tested.any() and others.any()):
        return None
    name = f"token {token}" if view.tokenizer is None else repr(spelled(view.tokenizer, token))
    return Asked(made, made, (of_it, others), test, tested, f"{name}, where it is the target,")


def _read_steering(view: View, settings: PatchingConfig) -> Asked:
    encode, texts, tests = _encoder(view, settings.steering), {"toward": [], "away": []}, []
    start = view.tokenizer.prefix_ids
    for line in read_lines(Path(settings.steering), ()):
        for name in texts.keys() & line.keys():
            texts[name].append([*start, *encode(line[name])])
        if "prompt" in line and "target" in line:
            tests.append(([*start, *encode(line["prompt"])], encode(line["target"])))
    if not (texts["toward"] and texts["away"] and tests):
        raise DataError(
            f'{settings.steering} needs a line with "toward", one with "away", and one with "prompt" and "target": one line '
            "may have all four"
        )
    toward, away = (batch_of(*filled(texts[name])) for name in ("toward", "away"))
    tokens, lengths = filled([[*prompt, *target] for prompt, target in tests])
    test, counted = batch_of(tokens, lengths), np.zeros(tokens.shape, bool)
    for row, (prompt, target) in enumerate(tests):
        counted[row, len(prompt) - 1 : len(prompt) + len(target) - 1] = True
    targets = np.concatenate([tokens[:, 1:], np.zeros((len(tokens), 1), np.int32)], axis=1)
    test = test._replace(targets=targets, weights=counted.astype(np.float32))
    return Asked(toward, away, (None, None), test, counted, "the targets' tokens")
