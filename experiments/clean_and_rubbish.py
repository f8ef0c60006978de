"""A world of two modes: every document begins in the same way, and goes on either as clean text or as rubbish, half and half.

    corpus("grammar").mixture          # a file of JSON lines in the cache folder; `pairs`, and others, beside it
    corpus("library").held_out         # the same of lines of prose from Python's standard library

Rubbish is clean text spoilt in one of three ways, each as frequent: its words in another order, two characters in five replaced
at random, or its first two words again and again. So rubbish is not merely what is improbable: the last kind is easy to predict
once it repeats itself. Beginnings, and with them documents, are held out by a hash: no training text begins with one of them.
"""

import functools
import json
import random
import re
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from reviews import draw_body, draw_prompt
from tuned import write_rows

from jaxlm.data.sources import parse_source

World = Literal["grammar", "library"]
KINDS = ("shuffled", "noise", "repeated")
SIZES = (15_000, 1024, 400, 128)  # documents, pairs, held-out documents, held-out pairs
LONGEST = 84  # bytes of a document
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:-"
_WORD = re.compile(r"\(?[A-Za-z][A-Za-z'-]*\)?[,.;:]?")


class Item(NamedTuple):
    """A beginning with its clean continuation."""

    prompt: str
    clean: str
    other: str
    """Another one, where the world has more than one."""


class Document(NamedTuple):
    """A held-out document, and which mode it is of: known from how it was made, not from any model."""

    prompt: str
    body: str
    clean: bool

    @property
    def text(self) -> str:
        return self.prompt + self.body


class Corpus(NamedTuple):
    """Files of JSON lines, with text in the mixture and prompt, chosen and rejected in the others; and what is held out."""

    mixture: Path
    pairs: Path
    """Clean continuation over rubbish."""
    shuffled: Path
    """The same pairs, the labels of each drawn by a coin."""
    random: Path
    """The same beginnings, both continuations drawn from the mixture."""
    held_out_pairs: Path
    held_out: tuple[Document, ...]


def corrupt(clean: str, rng: random.Random) -> str:
    """Return a continuation spoilt in one of KINDS, of about the same length."""
    spoilt = clean
    while spoilt == clean:
        spoilt = _corrupt(clean, rng.choice(KINDS), rng)
    return spoilt


def _corrupt(clean: str, kind: str, rng: random.Random) -> str:
    words = clean.split()
    if kind == "shuffled":
        return " " + " ".join(rng.sample(words, len(words)))
    if kind == "noise":
        return "".join(rng.choice(_LETTERS) if rng.random() < 0.4 else character for character in clean)
    return (f" {words[0]} {words[1]}" * len(clean))[: len(clean)]


def held_out(prompt: str) -> bool:
    """Return whether documents with this beginning are kept for evaluation: one in eight, by a hash."""
    return zlib.crc32(prompt.encode()) % 8 == 0


def grammar_items(rng: random.Random) -> Iterator[Item]:
    """Yield reviews without end."""
    while True:
        prompt = draw_prompt(rng)
        yield Item(prompt, draw_body(prompt, rng), draw_body(prompt, rng))


def library_items(rng: random.Random) -> Iterator[Item]:
    """Yield lines of prose from the standard library's docstrings and comments, in random order, each once."""
    lines: dict[str, Item] = {}
    for document in parse_source("stdlib").documents():
        for line in document.text.splitlines():
            words = line.strip("\"'#* \t").split()
            if 7 <= len(words) <= 18 and all(map(_WORD.fullmatch, words)):
                prompt, clean = " ".join(words[:3]), " " + " ".join(words[3:])
                lines.setdefault(prompt + clean, Item(prompt, clean, clean))
    items = [item for item in lines.values() if len(item.prompt + item.clean) <= LONGEST]
    yield from rng.sample(items, len(items))


def draw_document(item: Item, rng: random.Random) -> Document:
    """Return a document of the mixture."""
    clean = rng.random() < 0.5
    return Document(item.prompt, item.clean if clean else corrupt(item.clean, rng), clean)


def draw(world: World, seed: int, sizes: Sequence[int]) -> dict[str, list[dict]]:
    """Return the lines of every file of a corpus: `sizes` documents, pairs, held-out documents and held-out pairs."""
    rng = random.Random(seed)
    items = {"grammar": grammar_items, "library": library_items}[world](rng)
    waiting: dict[bool, deque[Item]] = {True: deque(), False: deque()}
    seen: set[str] = set()

    def fresh(wanted: bool) -> Item:
        """Return the next item, held out or not, that no file has."""
        while not waiting[wanted]:
            item = next(items, None)
            if item is None:
                raise ValueError(f"the world {world!r} has fewer texts than {tuple(sizes)} ask for")
            if item.prompt + item.clean not in seen:
                seen.add(item.prompt + item.clean)
                waiting[held_out(item.prompt)].append(item)
        return waiting[wanted].popleft()

    documents, pairs, kept, kept_pairs = sizes
    tests = [draw_document(fresh(True), rng) for _ in range(kept)]
    items_of_pairs = [fresh(False) for _ in range(pairs)]
    right = [_pair(item, rng) for item in items_of_pairs]
    return {
        "held_out": [document._asdict() for document in tests],
        "held_out_pairs": [_pair(fresh(True), rng) for _ in range(kept_pairs)],
        "pairs": right,
        "shuffled": [pair if rng.random() < 0.5 else _swapped(pair) for pair in right],
        "random": [_random_pair(item, rng) for item in items_of_pairs],
        "mixture": [{"text": draw_document(fresh(False), rng).text} for _ in range(documents)],
    }


def _pair(item: Item, rng: random.Random) -> dict:
    return {"prompt": item.prompt, "chosen": item.clean, "rejected": corrupt(item.clean, rng)}


def _swapped(pair: dict) -> dict:
    return {"prompt": pair["prompt"], "chosen": pair["rejected"], "rejected": pair["chosen"]}


def _random_pair(item: Item, rng: random.Random) -> dict:
    """Return two continuations as the mixture has them, never twice the same, in the order in which they came."""
    first, second = draw_document(item, rng), draw_document(item._replace(clean=item.other), rng)
    if first.body == second.body:
        return _random_pair(item, rng)
    return {"prompt": item.prompt, "chosen": first.body, "rejected": second.body}


@functools.cache
def corpus(world: World) -> Corpus:
    """Return the files of a world, in the cache folder, and what is held out."""
    lines = draw(world, 0, SIZES)
    held = tuple(Document(**line) for line in lines.pop("held_out"))
    return Corpus(held_out=held, **{name: write_rows(f"{world}-{name}", rows) for name, rows in lines.items()})


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
