"""Loss by kind of token.

Of every target that counts in the rows: its loss by how frequent it is in the training text, how many tokens of its document
come before it, what kind of text it stands for and which source it is from; and how well the model's confidence in its
likeliest token is borne out (expected calibration error, Guo et al. 2017, arXiv:1706.04599).
"""

from typing import Annotated

import numpy as np

from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.token_classes import CLASSES, in_context
from jaxlm.analysis.view import View
from jaxlm.config import Range, config

TENTHS = 10
UNSEEN = "unseen"


@config
class LossSettings:
    """How targets are grouped."""

    training_rows: Annotated[int, Range(0)] = 256
    """Rows of the training text that tokens are counted in; 0: in the rows themselves."""
    confidence_bins: Annotated[int, Range(1)] = 10
    """Stretches of confidence that calibration is measured in."""


SETTINGS = LossSettings()


def probe(view: View, settings: LossSettings) -> dict[str, Measure | float]:
    """Return losses in nats by group, with how many targets each mean is of; a group without any has none."""
    scores, rows = view.scores(), view.rows
    counts = rows.weights != 0
    losses, targets = scores.loss[counts], rows.targets[counts]
    correct, confidence = scores.correct[counts], scores.confidence[counts]
    found: dict[str, Measure | float] = {
        "loss": Measure(losses.mean(), unit="nats", about="mean loss of the targets that count"),
        "accuracy": Measure(correct.mean(), about="share of targets that are the likeliest token"),
        "entropy": Measure(scores.entropy[counts].mean(), unit="nats", about="of the predicted distribution, mean"),
    }
    error, by_confidence = calibration(confidence, correct, settings.confidence_bins)
    about = "mean difference between confidence in the likeliest token and how often it is right"
    found |= {"calibration_error": Measure(error, about=about), "accuracy_by_confidence": by_confidence}
    places = frequency_tenths(_counted(view, settings.training_rows))
    labels = [f"{10 * tenth}-{10 * tenth + 10} %" for tenth in range(TENTHS)] + [UNSEEN]
    about = "tokens from the most frequent tenth of the training text to the rarest"
    found |= grouped("frequency", losses, places[targets], labels, about)
    before = rows.positions[counts] + 1
    place, labels = by_doubling(before)
    found |= grouped("position", losses, place, labels, "tokens of its document before it, as far as the row holds them")
    if view.tokenizer is not None:
        kinds = in_context(view.tokenizer, rows.targets, rows.tokens)[counts]
        found |= grouped("class", losses, kinds, CLASSES, "what kind of text a token stands for")
    sources = list(dict.fromkeys(view.row_sources))
    if len(sources) > 1:
        of_row = np.array([sources.index(source) for source in view.row_sources])
        place = np.broadcast_to(of_row[:, None], counts.shape)[counts]
        found |= grouped("source", losses, place, sources, "which source the row is from")
    return found


def grouped(axis: str, losses: np.ndarray, group: np.ndarray, labels: tuple[str, ...] | list[str], about: str) -> dict:
    """Return the mean loss of each group, NaN where it has no target, and how many targets it has."""
    counts = np.bincount(group, minlength=len(labels))
    sums = np.bincount(group, losses.astype(np.float64), minlength=len(labels))
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    named = {axis: labels}
    return {
        f"loss_by_{axis}": Measure(means, (axis,), named, "nats", f"mean loss by {axis}: {about}"),
        f"targets_by_{axis}": Measure(counts, (axis,), named, "targets", "how many targets each mean is of"),
    }


def frequency_tenths(counts: np.ndarray) -> np.ndarray:
    """Return the tenth of a text that each token belongs to, 0 for the most frequent, from its counts [V]; 10 where unseen.

    Tokens are ordered by frequency; one belongs to the tenth of the text in which its first occurrence then lies.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    tenth = np.empty(len(counts), int)
    tenth[order] = np.minimum(TENTHS * before // max(1, counts.sum()), TENTHS - 1)
    return np.where(counts > 0, tenth, TENTHS)


def by_doubling(numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the group of each number from 1 on (1, 2-3, 4-7, ...), and the names of the groups."""
    place = np.log2(numbers).astype(int)
    labels = [f"{1 << n}-{(2 << n) - 1}" if n else "1" for n in range(int(place.max(initial=0)) + 1)]
    return place, labels


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int) -> tuple[float, Measure]:
    """Return the expected calibration error over bins of equal width, and the accuracy in each, of what is finite."""
    known = np.isfinite(confidence)
    confidence, correct = confidence[known], correct[known]
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    right, sure = (np.bincount(place, x.astype(np.float64), minlength=bins) for x in (correct, confidence))
    error = float(np.abs(right - sure).sum() / len(place)) if len(place) else float("nan")
    labels = {"confidence": [f"{n / bins:.2g}-{(n + 1) / bins:.2g}" for n in range(bins)]}
    accuracy = np.where(counts > 0, right / np.maximum(counts, 1), np.nan)
    return error, Measure(accuracy, ("confidence",), labels, about="how often the likeliest token is right, by its probability")


def _counted(view: View, rows: int) -> np.ndarray:
    """Return how often each token occurs in the training text, as far as it is looked at."""
    try:
        text = view.training_rows(rows) if rows else view.rows
    except NotSuited:
        text = view.rows
    return np.bincount(text.tokens[text.segments != 0], minlength=view.model.vocab_size)
