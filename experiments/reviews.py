"""Short reviews drawn from a grammar, with a known score: what they are is decided here, so that it can be measured exactly.

    prompt = draw_prompt(rng)          # "Mara the baker bought a lamp."
    body = draw_body(prompt, rng)      # " It was bright and heavy, and she loved it."
    score(body)                        # 2: words of praise less words of blame

A body takes up who its prompt is about (he or she), and "but" joins adjectives that point opposite ways, "and" others: a text
can be wrong in ways that no single word shows (`keeps_to_grammar`).
"""

import random
import re

WOMEN = ("Ada", "Berta", "Clara", "Dora", "Edith", "Frida", "Greta", "Hanna", "Irma", "Jana", "Karin", "Mara")
MEN = ("Adam", "Boris", "Carl", "David", "Emil", "Felix", "Georg", "Hugo", "Ivan", "Jonas", "Karl", "Martin")
JOBS = ("baker", "sailor", "farmer", "nurse", "clerk", "miner", "tailor", "judge", "smith", "cook", "singer", "driver",
        "teacher", "porter", "weaver", "hunter")  # fmt: skip
THINGS = ("lamp", "chair", "table", "kettle", "clock", "coat", "boat", "bicycle", "radio", "carpet", "mirror", "violin",
          "knife", "basket", "ladder", "camera", "blanket", "teapot", "saddle", "piano", "drum", "tent", "hammer",
          "wagon")  # fmt: skip
GOOD = ("bright", "sturdy", "lovely", "fine", "elegant", "useful", "clever", "superb", "pretty", "reliable", "choice", "handy")
BAD = ("broken", "ugly", "dull", "flimsy", "dirty", "useless", "crooked", "awful", "rusty", "noisy", "shabby", "leaky")
PLAIN = ("heavy", "small", "green", "wooden", "old", "round", "long", "brown", "large", "narrow", "common", "foreign")
PRAISE = ("loved", "praised", "admired", "enjoyed")
BLAME = ("hated", "cursed", "returned", "regretted")
NEUTRAL = ("used", "moved", "painted", "measured")

VALUES = {word: 1 for word in GOOD + PRAISE} | {word: -1 for word in BAD + BLAME} | {word: 0 for word in PLAIN + NEUTRAL}
_BODY = re.compile(r" It was (\w+) (and|but) (\w+), and (she|he) (\w+) it\.")


def draw_prompt(rng: random.Random) -> str:
    """Return one of 9,216 beginnings."""
    return f"{rng.choice(WOMEN + MEN)} the {rng.choice(JOBS)} bought a {rng.choice(THINGS)}."


def draw_body(prompt: str, rng: random.Random) -> str:
    """Return one of 15,120 continuations of a beginning, every adjective and verb as likely as any other."""
    first, second = rng.sample(GOOD + BAD + PLAIN, 2)
    verb = rng.choice(PRAISE + BLAME + NEUTRAL)
    return f" It was {first} {_join(first, second)} {second}, and {_pronoun(prompt)} {verb} it."


def _pronoun(prompt: str) -> str:
    return "she" if prompt.split()[0] in WOMEN else "he"


def _join(first: str, second: str) -> str:
    return "but" if VALUES[first] * VALUES[second] < 0 else "and"


def score(body: str) -> int:
    """Return how many words of praise a text has, less those of blame: from -3 to 3 within the grammar, anything without."""
    return sum(VALUES.get(word, 0) for word in re.findall(r"[a-z]+", body.lower()))


def keeps_to_grammar(prompt: str, body: str) -> bool:
    """Return whether the grammar could have drawn this body after this prompt."""
    found = _BODY.fullmatch(body)
    if not found:
        return False
    first, joined, second, who, verb = found.groups()
    if first == second or not {first, second} <= {*GOOD, *BAD, *PLAIN} or verb not in PRAISE + BLAME + NEUTRAL:
        return False
    return (who, joined) == (_pronoun(prompt), _join(first, second))
