"""Memorisation: what the model completes word for word, of planted texts or of rows it was trained on.

A text counts as memorised where greedy decoding from its prefix gives its suffix (Carlini et al. 2022, arXiv:2202.07646), which
is tested by reading it. Rows of the training split stand beside rows it never saw; of planted secrets with candidates there is
also the exposure log2 N - log2 rank (Carlini et al. 2019, arXiv:1802.08232).
"""

import itertools
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from jaxlm.analysis.lines import read_lines
from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.data.packing import Batch
from jaxlm.errors import DataError
from jaxlm.eval.answers import solve
from jaxlm.eval.retrieval import Task

Size = Annotated[int, Range(1)]
_AT_ONCE = 16


@config
class MemorizationConfig:
    """What is looked for."""

    texts: str = ""
    """A JSONL file of planted texts {"prompt", "answer"}, with other answers as "candidates" where the exposure is wanted;
    empty for rows of the training split."""
    rows: Size = 16
    """Rows of the training split."""
    prefix: Size = 32
    """Tokens that are given."""
    suffix: Size = 32
    """Tokens that follow, and are to be completed."""
    most: Size = 64
    """Passages of either split, at most."""


SETTINGS = MemorizationConfig()


class Completed(NamedTuple):
    """What the model makes of passages, each [N]."""

    exact: np.ndarray
    """bool: greedy decoding gives every token of the suffix."""
    log_prob: np.ndarray
    """Of the suffix, in nats."""
    tokens: np.ndarray
    """Of the suffix."""

    @property
    def per_token(self) -> float:
        """The mean log-probability of a token, in nats."""
        return float(self.log_prob.sum() / self.tokens.sum())


def completed(view: View, passages: list[tuple[list[int], list[int]]]) -> Completed:
    """Return what the model makes of (prefix, suffix), token ids, each read from its first token on."""
    tasks = [Task(tuple(prefix), tuple(suffix), len(prefix) + len(suffix), 1.0, "passage") for prefix, suffix in passages]
    answers = solve(view.params, tasks, view.model, view.layout, min(_AT_ONCE, len(tasks)))
    exact, log_prob = (np.array([getattr(answer, name) for answer in answers]) for name in ("correct", "log_prob"))
    return Completed(exact, log_prob, np.array([len(suffix) for _, suffix in passages]))


def passages_of(rows: Batch, prefix: int, suffix: int, most: int) -> list[tuple[list[int], list[int]]]:
    """Return passages of `prefix` + `suffix` tokens of rows [R, L], each within one document: a round of the rows at a time."""
    width, found = prefix + suffix, []
    for start in range(0, rows.tokens.shape[1] - width + 1, width):
        for tokens, segments in zip(rows.tokens, rows.segments, strict=True):
            part, document = tokens[start : start + width].tolist(), segments[start : start + width]
            if document[0] and np.all(document == document[0]):
                found.append((part[:prefix], part[prefix:]))
    return found[:most]


def exposure(secret: float, candidates: list[float]) -> float:
    """Return log2 N - log2 rank of a secret among N log-probabilities, its own and those of other candidates, in bits.

    Ties rank it last: what the model cannot tell apart from the secret is not exposed (arXiv:1802.08232). NaN where the model
    gives no finite log-probability.
    """
    if not np.isfinite([secret, *candidates]).all():
        return float("nan")
    rank = 1 + sum(other >= secret for other in candidates)
    return float(np.log2(len(candidates) + 1) - np.log2(rank))


def probe(view: View, settings: MemorizationConfig) -> dict[str, Measure]:
    """Return how much of given passages, or of rows trained on and held out, is completed word for word."""
    return _planted(view, settings) if settings.texts else _splits(view, settings)


def _splits(view: View, settings: MemorizationConfig) -> dict[str, Measure]:
    sizes = settings.prefix, settings.suffix, settings.most
    splits = {"train": view.training_rows(settings.rows), "validation": view.rows}
    passages = {name: passages_of(rows, *sizes) for name, rows in splits.items()}
    for name, part in passages.items():
        if not part:
            raise NotSuited(f"no document of the {name} rows has {sum(sizes[:2])} tokens in a row: set prefix and suffix lower")
    found = {name: completed(view, part) for name, part in passages.items()}
    axes, labels = ("split",), {"split": list(found)}
    of = f"{settings.suffix} tokens after {settings.prefix}"
    gap = found["train"].per_token - found["validation"].per_token
    return {
        "memorised": Measure([x.exact.mean() for x in found.values()], axes, labels, "", f"part completed exactly: {of}"),
        "log_prob": Measure([x.per_token for x in found.values()], axes, labels, "nats", f"mean of a token: {of}"),
        "passages": Measure([len(x.exact) for x in found.values()], axes, labels, "", "passages read"),
        "gap": Measure(gap, unit="nats", about="log-probability of a token of what was trained on, less that of what was not"),
    }


def _planted(view: View, settings: MemorizationConfig) -> dict[str, Measure]:
    if view.tokenizer is None:
        raise NotSuited(f"{settings.texts} has texts, and the model came without a tokenizer")
    lines = read_lines(Path(settings.texts), ("prompt", "answer"))
    candidates = [_candidates(line, settings.texts) for line in lines]
    texts = [[line["answer"], *others] for line, others in zip(lines, candidates, strict=True)]
    prompts = [[*view.tokenizer.prefix_ids, *view.tokenizer.encode(line["prompt"])] for line in lines]
    encoded = [(prompt, view.tokenizer.encode(text)) for prompt, of in zip(prompts, texts, strict=True) for text in of]
    read = completed(view, encoded)
    starts = np.cumsum([0, *(len(of) for of in texts)])
    own = starts[:-1]
    names = {"text": [line["prompt"] for line in lines]}
    per_token = read.log_prob[own] / read.tokens[own]
    found = {
        "planted_memorised": Measure(read.exact[own].mean(), about="part of the planted texts that are completed exactly"),
        "planted_log_prob": Measure(
            float(read.log_prob[own].sum() / read.tokens[own].sum()), unit="nats", about="mean of a token"
        ),
        "memorised_by_text": Measure(read.exact[own].astype(float), ("text",), names, "", "1 where completed exactly"),
        "log_prob_by_text": Measure(per_token, ("text",), names, "nats", "mean of a token"),
    }
    if any(candidates):
        pairs = itertools.pairwise(starts)
        bits = [exposure(read.log_prob[a], read.log_prob[a + 1 : b].tolist()) if b - a > 1 else np.nan for a, b in pairs]
        about = "log2 of the number of candidates, less log2 of the rank of the planted one"
        found["exposure_by_text"] = Measure(bits, ("text",), names, "bits", about)
        found["exposure"] = Measure(_mean_known(bits), unit="bits", about=f"mean: {about}")
    return found


def _mean_known(bits: list[float]) -> float:
    known = [each for each in bits if np.isfinite(each)]
    return float(np.mean(known)) if known else float("nan")


def _candidates(line: dict[str, Any], path: str) -> list[str]:
    given = line.get("candidates", [])
    if not isinstance(given, list) or not all(isinstance(text, str) and text for text in given):
        raise DataError(f'{path}: "candidates" must be a list of texts, not {given!r}')
    return [text for text in given if text != line["answer"]]
