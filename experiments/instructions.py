"""Instructions whose answers a program can check, and the text without instructions that holds the skills they need.

    examples = draw_examples(64, seed=0)                  # {"prompt", "response", "kind", "python"}
    passes(examples[0], "cat cat cat")

A kind of instruction is a few wordings, a draw of arguments, and the one right answer. Its skill is in the base model's text as
a line of a Python session, which the answer follows: so tuning has to teach what is wanted, not how it is done.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np

WORDS = (
    "apple", "bird", "blue", "boat", "book", "cat", "chair", "cloud", "cup", "dog", "door", "duck", "fish", "fox", "frog",
    "gold", "green", "hand", "hat", "hill", "horse", "house", "ice", "king", "lake", "leaf", "lion", "milk", "moon", "nest",
    "owl", "pear", "pig", "rain", "red", "river", "rose", "ship", "star", "tree",
)  # fmt: skip


class Arguments(NamedTuple):
    """What an instruction is about; each kind reads what it needs."""

    words: tuple[str, ...]
    low: int
    high: int

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def times(self) -> int:
        return 2 + self.low % 4


class Kind(NamedTuple):
    """A kind of instruction: how it is put, what the right answer is, and the line of Python that prints that answer."""

    wordings: tuple[str, ...]
    answer: Callable[[Arguments], str]
    python: str


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# {0} is the first of the words.
KINDS = {
    "repeat": Kind(("Repeat the word {0} {times} times.", "Write {0} {times} times in a row."),
                   lambda a: " ".join([a.words[0]] * a.times), 'print(*["{0}"] * {times})'),
    "range": Kind(("List the numbers from {low} to {high}.", "Count from {low} up to {high}."),
                  lambda a: _numbers(range(a.low, a.high + 1)), 'print(*range({low}, {high} + 1), sep=", ")'),
    "capitals": Kind(("Write in capital letters: {text}.", "Answer in upper case only: {text}."),
                     lambda a: a.text.upper(), 'print("{text}".upper())'),
    "reverse": Kind(("Put these words in reverse order: {text}.", "Say these words backwards: {text}."),
                    lambda a: " ".join(reversed(a.words)), 'print(*reversed("{text}".split()))'),
    "sort": Kind(("Sort these words by the alphabet: {text}.", "Put these words in alphabetical order: {text}."),
                 lambda a: " ".join(sorted(a.words)), 'print(*sorted("{text}".split()))'),
    "count": Kind(("How many words are these: {text}?", "Count these words: {text}."),
                  lambda a: str(len(a.words)), 'print(len("{text}".split()))'),
    "brackets": Kind(("Put brackets around each word: {text}.", "Write every word in brackets: {text}."),
                     lambda a: " ".join(f"[{word}]" for word in a.words), 'print(*["[" + w + "]" for w in "{text}".split()])'),
    "copy": Kind(("Copy these words: {text}.", "Say after me: {text}."), lambda a: a.text, 'print("{text}")'),
    "first": Kind(("What is the first word of these: {text}?", "Which word comes first: {text}?"),
                  lambda a: a.words[0], 'print("{text}".split()[0])'),
    "last": Kind(("What is the last word of these: {text}?", "Which word comes last: {text}?"),
                 lambda a: a.words[-1], 'print("{text}".split()[-1])'),
    "dashes": Kind(("Join these words with dashes: {text}.", "Write these words with dashes between them: {text}."),
                   lambda a: "-".join(a.words), 'print("-".join("{text}".split()))'),
    "countdown": Kind(("Count down from {high} to {low}.", "List the numbers from {high} down to {low}."),
                      lambda a: _numbers(range(a.high, a.low - 1, -1)), 'print(*range({high}, {low} - 1, -1), sep=", ")'),
    "second": Kind(("What is the second word of these: {text}?", "Which word comes second: {text}?"),
                   lambda a: a.words[1], 'print("{text}".split()[1])'),
    "capitals backwards": Kind(("Say these words backwards in capital letters: {text}.",),
                               lambda a: " ".join(reversed(a.words)).upper(), 'print(*reversed("{text}".upper().split()))'),
}  # fmt: skip
HELD_OUT_KINDS = ("countdown", "second", "capitals backwards")
TRAINED_KINDS = tuple(kind for kind in KINDS if kind not in HELD_OUT_KINDS)

Example = dict[str, str]
"""{"prompt", "response" (the right answer), "kind", "python" (the line that prints the answer)}."""


def _draw(rng: np.random.Generator) -> Arguments:
    words = tuple(map(str, rng.choice(WORDS, int(rng.integers(3, 5)), replace=False)))
    low = int(rng.integers(1, 30))
    return Arguments(words, low, low + int(rng.integers(2, 7)))


def _fill(pattern: str, arguments: Arguments) -> str:
    named = {"text": arguments.text, "times": arguments.times, "low": arguments.low, "high": arguments.high}
    return pattern.format(*arguments.words, **named)


def draw_examples(
    count: int, seed: int, kinds: Sequence[str] = TRAINED_KINDS, without: Iterable[str] = ()
) -> list[Example]:  # fmt: skip
    """Return `count` different examples, as many of each kind as can be, none with a prompt in `without`."""
    rng, taken, examples = np.random.default_rng(seed), set(without), []
    for turn in range(1000 * count):
        name = kinds[len(examples) % len(kinds)]
        kind, arguments = KINDS[name], _draw(rng)
        prompt = _fill(kind.wordings[turn % len(kind.wordings)], arguments)
        if prompt not in taken:
            taken.add(prompt)
            line = f">>> {_fill(kind.python, arguments)}"
            examples.append({"prompt": prompt, "response": kind.answer(arguments), "kind": name, "python": line})
        if len(examples) == count:
            return examples
    raise ValueError(f"there are fewer than {count} different instructions of {', '.join(kinds)}: ask for fewer")


def passes(example: Example, text: str) -> bool:
    """Return whether an answer is the right one, whole and alone; white space around it does not count."""
    return text.strip() == example["response"]


def draw_bad(example: Example, rng: np.random.Generator) -> str:
    """Return a bad answer: to another instruction of the kind, with words around it, the question back, or a refusal."""
    way = int(rng.integers(4))
    if way == 0:
        others = draw_examples(4, int(rng.integers(2**31)), (example["kind"],), (example["prompt"],))
        return next((o["response"] for o in others if o["response"] != example["response"]), "I do not know.")
    if way == 1:
        return f"Sure! The answer is: {example['response']}. I hope this helps."
    return example["prompt"] if way == 2 else "I am sorry, but I cannot help with that."


def spoil(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Return the examples with bad answers in the place of this share of them, chosen at random."""
    rng = np.random.default_rng(seed)
    bad = set(rng.choice(len(examples), round(share * len(examples)), replace=False).tolist())
    return [{**e, "response": draw_bad(e, rng)} if i in bad else e for i, e in enumerate(examples)]


def draw_line(rng: np.random.Generator) -> dict[str, str]:
    """Return a line of a Python session as the prompt, and what it prints as the response."""
    kind, arguments = list(KINDS.values())[rng.integers(len(KINDS))], _draw(rng)
    return {"prompt": f">>> {_fill(kind.python, arguments)}\n", "response": kind.answer(arguments)}


def draw_sentences(count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Return parts of Python's own documentation, each cut in two: the response continues the prompt."""
    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    places = rng.integers(0, len(text) - 200, count)
    return [{"prompt": text[at : at + 60], "response": text[at + 60 : at + 120]} for at in map(int, places)]
