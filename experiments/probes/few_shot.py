"""What a model learns from its context: few-shot accuracy, copying of random text, induction heads, the in-context score.

    jaxlm analyze RUN --probes experiments/probes/few_shot.py --settings few_shot.tasks=256

A probe as anybody may add one. It asks the view how well the model predicts rows of its own:

- Few-shot: letters with their labels, and one more letter, not among them. Which letters share a label is always the same,
  which label that is is drawn for each row, so that only examples of its kind tell. A guess is right in 1 of 10, any label of
  the row in 1 of 4. Without an example of its kind nobody can do better.
- Copying: random text comes again, and nothing but its first copy tells how it goes on. The induction score is how much of its
  attention the best head then pays to the character after the first copy of the last one: ours of `attention` is the same of
  any tokens, and of bytes that no text has no model has learnt anything.
- The in-context score (arXiv:2209.11895): loss late in a row of text minus loss early in it. There it is that of the 500th and
  the 50th token; here that of the last tenth of a row and of the second.
"""

import functools
import random
import string
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.data.data_config import DataConfig
from jaxlm.data.long_rows import documents_of, long_rows
from jaxlm.data.packing import Batch
from jaxlm.data.tokenizer import Tokenizer

EXAMPLES = (0, 1, 2, 4, 8)
KINDS = ("aeioux", "bcdfgh", "jklmnp", "qrstvw")
PERIOD = 30  # tokens of random text, which then come again


@config
class FewShotConfig:
    """How much is asked."""

    tasks: Annotated[int, Range(1)] = 128
    """Questions for each number of examples, rows to copy, and rows of text."""
    seed: int = 0
    """Of all that is drawn."""


SETTINGS = FewShotConfig()


def draw_labels(rng: random.Random) -> list[str]:
    """Return a different digit for each kind of letter."""
    return rng.sample(string.digits, len(KINDS))


def draw_question(examples: int, rng: random.Random) -> tuple[str, str]:
    """Return a question and its answer: `examples` letters of every kind with their labels, and a letter not among them."""
    labels, asked = draw_labels(rng), rng.randrange(len(KINDS))
    letter = rng.choice(KINDS[asked])
    shown = [
        rng.choice(kind.replace(letter, "")) + label for kind, label in zip(KINDS, labels, strict=True) for _ in range(examples)
    ]
    return " ".join([*rng.sample(shown, len(shown)), letter]), labels[asked]


def rows_of(texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, length: int) -> Batch:
    """Return a row of `length` tokens for each text; only what its second part holds is a target that counts."""
    rows = Batch(*(np.zeros((len(texts), length), kind) for kind in (np.int32, np.int32, np.float32, np.int32, np.int32)))
    for row, (before, after) in enumerate(texts):
        start, end = [*tokenizer.prefix_ids, *tokenizer.encode(before)], tokenizer.encode(after)
        ids = start + end
        rows.tokens[row, : len(ids) - 1], rows.targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        rows.weights[row, len(start) - 1 : len(ids) - 1] = 1
        rows.segments[row, : len(ids) - 1], rows.positions[row, : len(ids) - 1] = 1, np.arange(len(ids) - 1)
    return rows


@functools.lru_cache(maxsize=1)
def text_rows(tokenizer: Tokenizer, count: int, length: int) -> Batch:
    """Return rows cut from held-out modules of the standard library, without bos: it would say that a document begins here."""
    start = len(tokenizer.prefix_ids)
    found = long_rows(documents_of(DataConfig(sources=("stdlib",)), "validation"), tokenizer, count, length + start)[:, start:]
    ones, place = np.ones((len(found), length), np.int32), np.arange(length, dtype=np.int32)
    return Batch(found[:, :-1], found[:, 1:], ones.astype(np.float32), ones, ones * place)


def induction_score(view: View, copied: Batch, start: int) -> float:
    """Return the best head's mean attention from each place of the second copy to the one after its place in the first."""
    places = np.arange(start + PERIOD, start + 2 * PERIOD)
    of_layers = view.activations("attention", batch=copied)["attention"].values()
    return float(max(weights[:, :, places, places - PERIOD + 1].mean(axis=(0, 2)).max() for weights in of_layers))


def probe(view: View, settings: FewShotConfig) -> dict[str, Measure | float]:
    """Return accuracies, and the in-context score in nats."""
    tokenizer, length, rng = view.tokenizer, view.experiment.data.sequence_length, random.Random(settings.seed)
    if tokenizer is None or len(tokenizer.encode("a 1 b")) != 5 or length < 4 * PERIOD:
        raise NotSuited("its rows are letters, one a token, and take 120 of them: it needs a byte tokenizer and rows as long")
    questions = [draw_question(examples, rng) for examples in EXAMPLES for _ in range(settings.tasks)]
    blocks = ["".join(rng.choices(string.ascii_lowercase + string.digits, k=PERIOD)) for _ in range(settings.tasks)]
    asked = rows_of(questions, tokenizer, length)
    # The first letters of a copy may stand anywhere in the first one: what can be told from them is asked.
    copied = rows_of([(block + block[:4], block[4:] + block) for block in blocks], tokenizer, length)
    right = (view.scores(batch=asked).correct * asked.weights).sum(axis=1).reshape(len(EXAMPLES), -1)
    text = text_rows(tokenizer, settings.tasks, length)
    losses, tenth = view.losses(batch=text).mean(axis=0, dtype=np.float64), length // 10
    return {
        "induction_score": induction_score(view, Batch(*(x[:16] for x in copied)), len(tokenizer.prefix_ids)),
        "few_shot_accuracy": Measure(
            right.mean(axis=1), ("examples",), {"examples": EXAMPLES}, about="By examples of each kind; 0.25 is chance."
        ),
        "copy_accuracy": float((view.scores(batch=copied).correct * copied.weights).sum() / copied.weights.sum()),
        "in_context_score": Measure(
            losses[-tenth:].mean() - losses[tenth : 2 * tenth].mean(),
            unit="nats", about="Loss of the last tenth of a row minus that of the second.",
        ),
    }  # fmt: skip
