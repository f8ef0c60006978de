"""What a model answers about names of conflicting_facts.py: probabilities of the true word and its rival, by pairs of names.

with opened(folder) as run:
    found = answers(run, prompts(world))                    # [prompts, 3]
Asked(prompts(world), found[None]).log_odds("9 : 9")        # [seeds, pairs]
"""

from typing import NamedTuple

import numpy as np
from conflicting_facts import ATTRIBUTES, MARK, NEW, A, B, Prompt

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.eval.comparison import Effect
from jaxlm.run.open import OpenRun
from jaxlm.run.score import row_logits

WIDTH, TOGETHER = 32, 256  # tokens of a row, rows of a batch: one shape is compiled


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of the beginning of a document, as it was learnt."""
    return [*tokenizer.prefix_ids, *tokenizer.encode(MARK), *tokenizer.encode(text)]


def word_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the one id of every value; ValueError for one that takes more, which could not be compared by one probability."""
    before, found = tokenizer.encode(" is"), {}
    for word in (word for words in ATTRIBUTES.values() for word in words):
        ids = tokenizer.encode(f" is {word}.")
        if ids[: len(before)] != before or len(ids) != len(before) + 2:
            raise ValueError(f"{word!r} is no single token: raise the tokenizer's vocabulary")
        found[word] = ids[-2]
    return found


def answers(run: OpenRun, asked: list[Prompt]) -> np.ndarray:
    """Return log-probabilities of A, of B and of all words of the attribute after each prompt, float64 [prompts, 3]."""
    tokenizer = run.needs_tokenizer()
    words, found = word_ids(tokenizer), []
    for place in range(0, len(asked), TOGETHER):
        part = asked[place : place + TOGETHER]
        rows, ids = np.zeros((TOGETHER, WIDTH), np.int64), [encode(tokenizer, prompt.text) for prompt in part]
        for row, each in zip(rows, ids, strict=False):
            row[: len(each)] = each
        logits = np.asarray(row_logits(run.params, rows, run.model, run.experiment.layout)).astype(np.float64)
        for prompt, row, each in zip(part, logits, ids, strict=False):
            log_probs = row[len(each) - 1] - np.logaddexp.reduce(row[len(each) - 1])
            of = {word: log_probs[words[word]] for word in ATTRIBUTES[prompt.entity.attribute]}
            found.append([of[prompt.entity.values[A]], of[prompt.entity.values[B]], np.logaddexp.reduce([*of.values()])])
    return np.array(found)


class Asked(NamedTuple):
    """Log-probabilities of all prompts, [seeds, prompts, 3]: of A, of B, of any word of the attribute."""

    prompts: list[Prompt]
    found: np.ndarray

    def log_odds(self, cell: str, kind: str = NEW, tag: str = "") -> np.ndarray:
        """Return ln p(A) / p(B) of the pairs of names of a cell, [seeds, pairs]."""
        return self._pairs(self.found[..., 0] - self.found[..., 1], cell, kind, tag)

    def share(self, cell: str, kind: str = NEW, tag: str = "") -> np.ndarray:
        """Return p(A) / (p(A) + p(B)) [seeds, pairs]."""
        return self._pairs(1 / (1 + np.exp(self.found[..., 1] - self.found[..., 0])), cell, kind, tag)

    def known(self, cell: str, kind: str = NEW, tag: str = "") -> np.ndarray:
        """Return p(A) among all eight words of its attribute [seeds, pairs]."""
        return self._pairs(np.exp(self.found[..., 0] - self.found[..., 2]), cell, kind, tag)

    def _pairs(self, values: np.ndarray, cell: str, kind: str, tag: str) -> np.ndarray:
        groups: dict[tuple[str, str], list[int]] = {}
        for number, (entity, _, which, by) in enumerate(self.prompts):
            if (entity.cell, which, by) == (cell, kind, tag):
                # The two of a pair have the same two words, and follow one another.
                groups.setdefault(entity.name, []).append(number)
        of_entities = np.stack([values[:, numbers].mean(axis=1) for numbers in groups.values()], axis=1)
        return of_entities.reshape(len(values), -1, 2).mean(axis=2)


def spell(effect: Effect, digits: int = 2) -> str:
    """Return a mean and, where it has one, its interval."""
    interval = f" ({effect.low:.{digits}f} to {effect.high:.{digits}f})" if np.isfinite(effect.low) else ""
    return f"{effect.mean:.{digits}f}{interval}"
