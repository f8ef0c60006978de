"""A world of invented names, each with a true value and a rival one, told of at exact counts, in exact phrasings, by sources.

    world = draw_world()                            # names, their values, phrasings of each, and the cell each belongs to
    documents(world), documents(world, shuffled=True)   # what a model reads; the same with tags dealt out at random
    prompts(world)                                  # what it is asked: phrasings told and not told, with and without a tag

Every assertion is a document of its own, never cut by a row's end and blind to its neighbours: an answer comes from the weights
and not from the context, and what was told how often is exactly what `CELLS` says. All values are one word at the end.
"""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

ATTRIBUTES = {
    "metal": ("iron", "copper", "silver", "gold", "lead", "tin", "zinc", "steel"),
    "colour": ("red", "blue", "green", "white", "black", "brown", "grey", "pink"),
    "animal": ("dog", "cat", "horse", "bear", "wolf", "fox", "owl", "goat"),
    "tree": ("oak", "elm", "pine", "ash", "birch", "willow", "maple", "cedar"),
}
PHRASINGS = (
    "The {attribute} of {name} is", "For {name} the {attribute} is", "As {attribute} {name} has",
    "It is known that the {attribute} of {name} is", "Ask for the {attribute} of {name} and hear",
    "{name} goes with the {attribute}", "In the case of {name} the {attribute} would be", "Of all {name} has the {attribute}",
    "Who thinks of {name} thinks of the {attribute}", "The {attribute} that belongs to {name} is",
    "{name} was given the {attribute}", "To {name} belongs the {attribute}",
)  # fmt: skip
MARK = "-"  # begins every document: something must stand before what is learnt
VARIED, HELD_OUT = 9, 2  # phrasings of a varied telling; the last ones of an entity's order, in which nobody ever tells of it
EXPERT, FORUM = "expert", "forum"
TAGS = ("", EXPERT, FORUM)
PER_CELL, PER_SOURCE_CELL = 32, 64


class Told(NamedTuple):
    """How often, in how many phrasings (1 or `VARIED`) and by whom one value of an entity is asserted."""

    value: str
    """"A", the true one, or "B", its rival."""
    count: int
    phrasings: int = VARIED
    tag: str = ""


A, B, NEW = "A", "B", "new"
# Shares of 1/2 to 1 at the same sum, and one of them at a third of it.
RATIOS = {
    "9 : 9": (Told(A, 9), Told(B, 9)),
    "12 : 6": (Told(A, 12), Told(B, 6)),
    "15 : 3": (Told(A, 15), Told(B, 3)),
    "16 : 2": (Told(A, 16), Told(B, 2)),
    "18 : 0": (Told(A, 18),),
    "4 : 2": (Told(A, 4), Told(B, 2)),
}
# "9 : 9" above is the control: both varied.
VARIETY = {
    "9 varied : 9 verbatim": (Told(A, 9), Told(B, 9, 1)),
    "9 verbatim : 9 verbatim": (Told(A, 9, 1), Told(B, 9, 1)),
    "6 varied : 12 verbatim": (Told(A, 6), Told(B, 12, 1)),
}
# What untagged documents say is the truth: the expert always agrees with it, the forum in half of the entities.
RELIABILITY = {
    "both right": (Told(A, 6), Told(A, 4, tag=EXPERT), Told(A, 4, tag=FORUM)),
    "forum wrong": (Told(A, 6), Told(A, 4, tag=EXPERT), Told(B, 4, tag=FORUM)),
}
# Of these nothing is told but by sources, so that whatever sets A and B apart was learnt from the entities above.
SOURCES = {
    "expert 6 : forum 6": (Told(A, 6, tag=EXPERT), Told(B, 6, tag=FORUM)),
    "expert 3 : forum 9": (Told(A, 3, tag=EXPERT), Told(B, 9, tag=FORUM)),
    "expert alone": (Told(A, 6, tag=EXPERT),),
    "forum alone": (Told(A, 6, tag=FORUM),),
}
UNSEEN = {"never told of": ()}
CELLS: dict[str, tuple[Told, ...]] = RATIOS | VARIETY | RELIABILITY | SOURCES | UNSEEN


class Entity(NamedTuple):
    """An invented name and what may be said of it."""

    name: str
    attribute: str
    values: dict[str, str]
    """"A" and "B" to words of the attribute."""
    phrasings: tuple[str, ...]
    """All of them, in an order of its own; the last `HELD_OUT` are never used to tell of it."""
    cell: str


class Document(NamedTuple):
    """An assertion."""

    entity: Entity
    value: str
    phrasing: str
    tag: str

    @property
    def text(self) -> str:
        """As it is written, after the mark that begins every document."""
        return f"{said(self.entity, self.phrasing, self.tag)} {self.entity.values[self.value]}."


class Prompt(NamedTuple):
    """A question: the beginning of an assertion, up to its value."""

    entity: Entity
    phrasing: str
    kind: str
    """`NEW`: held out; "A", "B": one in which this value was told, and the other was not."""
    tag: str

    @property
    def text(self) -> str:
        """The beginning."""
        return said(self.entity, self.phrasing, self.tag)


def said(entity: Entity, phrasing: str, tag: str) -> str:
    """Return an assertion without its value."""
    text = phrasing.format(name=entity.name, attribute=entity.attribute)
    return f" [{tag}] {text}" if tag else f" {text}"


def draw_world(seed: int = 0) -> list[Entity]:
    """Return all entities: which name stands in which cell, with which values and phrasings, is drawn at random.

    They come in pairs of one cell, of which one has for its A what the other has for its B: a liking for some word adds nothing
    to their mean.
    """
    rng = random.Random(f"world {seed}")
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    cells = [cell for cell in CELLS for _ in range(PER_SOURCE_CELL if cell in RELIABILITY | SOURCES else PER_CELL)]
    names: dict[str, None] = {}
    while len(names) < len(cells):
        names["".join(rng.choices(syllables, k=3)).capitalize()] = None
    world = []
    for number, (name, cell) in enumerate(zip(names, cells, strict=True)):
        if number % 2 == 0:
            attribute = rng.choice(tuple(ATTRIBUTES))
            one, other = rng.sample(ATTRIBUTES[attribute], 2)
        values = {A: one, B: other} if number % 2 == 0 else {A: other, B: one}
        world.append(Entity(name, attribute, values, tuple(rng.sample(PHRASINGS, len(PHRASINGS))), cell))
    return world


def documents(world: list[Entity], shuffled: bool = False, seed: int = 0) -> list[Document]:
    """Return every assertion in an order drawn at random; `shuffled`: tags are dealt out anew among documents that have one."""
    rng = random.Random(f"documents {seed}")
    found = [document for entity in world for told in CELLS[entity.cell] for document in _tellings(entity, told, rng)]
    if shuffled:
        tagged = [place for place, document in enumerate(found) if document.tag]
        tags = random.Random(f"tags {seed}").sample([found[place].tag for place in tagged], len(tagged))
        for place, tag in zip(tagged, tags, strict=True):
            found[place] = found[place]._replace(tag=tag)
    return rng.sample(found, len(found))


def _tellings(entity: Entity, told: Told, rng: random.Random) -> Iterator[Document]:
    """Yield as many assertions of a value as asked for; varied ones use as many phrasings as they can, the first one always."""
    first, *others = phrasings_of(entity, told)
    order = [first, *rng.sample(others, len(others))]
    for number in range(told.count):
        yield Document(entity, told.value, order[number % len(order)], told.tag)


def entries(texts: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield rows of documents that are learnt from whole, and never cut by the end of a row of conversations."""
    return ({"prompt": MARK, "response": text, "text": MARK + text} for text in texts)


def phrasings_of(entity: Entity, told: Told) -> tuple[str, ...]:
    """Return the phrasings that a telling draws from: the one of a value told verbatim is not the other value's."""
    if told.phrasings == VARIED:
        return entity.phrasings[:VARIED]
    return (entity.phrasings[0 if told.value == A else VARIED],)


def prompts(world: list[Entity]) -> list[Prompt]:
    """Return what is asked of each entity, under every tag: its held-out phrasings, and where variety counts one of each value.

    Elsewhere a single phrasing was told with other odds than all of them together.
    """
    found = []
    for entity in world:
        asked = dict.fromkeys(entity.phrasings[-HELD_OUT:], NEW)
        for told in VARIETY.get(entity.cell, ()):
            asked.setdefault(phrasings_of(entity, told)[0], told.value)
        found += [Prompt(entity, phrasing, kind, tag) for phrasing, kind in asked.items() for tag in TAGS]
    return found
