"""Tasks whose answer stands somewhere in a long prompt: passkeys, numbered needles, copies, tasks of one's own."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.data.chat import encode_chat
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode.generate import encode_prompt
from jaxlm.decode.text import check_text
from jaxlm.errors import ConfigError, DataError


class TooShort(ConfigError):
    """A length with no room for a task, even without any filler."""


class Task(NamedTuple):
    """A prompt, and the only right answer to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    length: int
    """Tokens asked for: prompt and answer together have as many or, where sentences do not come out even, a few less."""
    depth: float
    """Where the answer stands: the part of what is around it that comes before it, 0 to 1."""
    kind: str


class Style(NamedTuple):
    """The text of a task: opening, fillers, needle, fillers, question, reply; what follows is the answer."""

    opening: str
    needle: str
    """With {key}, and of several needles {number}."""
    filler: tuple[str, ...]
    question: str
    """Of several needles with {number}."""
    digits: int = 5
    drawn: bool = True
    """Fillers are drawn at random; False: they come one after the other, again and again."""
    reply: str = ""
    """The beginning of the answer that is given: in a chat it is the assistant's."""


# The sentences are those of Mohtashami and Jaggi (arXiv:2305.16300), with whom LongLoRA and Self-Extend measure, too.
_FILLER = ("The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. ")
PAPER = Style(
    opening="There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "the important information there. ",
    needle="The pass key is {key}. Remember it. {key} is the pass key. ",
    filler=_FILLER,
    question="What is the pass key?",
    drawn=False,
    reply=" The pass key is ",
)
NUMBERED = Style(
    opening="Several numbered keys are hidden in this text. Remember each key and its number. ",
    needle="Key number {number} is {key}. ",
    filler=_FILLER,
    question="What is key number {number}?",
    drawn=False,
    reply=" Key number {number} is ",
)


def passkey_tasks(
    tokenizer: Tokenizer, lengths: Sequence[int], depths: Sequence[float], trials: int, seed: int, style: Style = PAPER,
    chat: bool = False,
) -> list[Task]:  # fmt: skip
    """Return `trials` tasks for each length and depth: digits drawn at random, told once, to be repeated at the end.

    With `chat` the text is a user's, put through the tokenizer's chat template. Raises TooShort where a length has
    no room for the text without any filler.
    """

    def one(rng: np.random.Generator) -> _Told:
        key = "".join(map(str, rng.integers(0, 10, style.digits)))
        return _Told(style.needle.format(key=key), style.question, style.reply, key)

    return _tasks("passkey", one, tokenizer, lengths, depths, trials, seed, style, chat)


def needle_tasks(
    tokenizer: Tokenizer, lengths: Sequence[int], depths: Sequence[float], trials: int, seed: int, style: Style = NUMBERED,
    chat: bool = False, needles: int = 4,
) -> list[Task]:  # fmt: skip
    """Return tasks with several numbered keys side by side, of which one is asked for.

    All keys are permutations of the same digits: a model that knows them, but not their order or whose they are, fails.
    """

    def several(rng: np.random.Generator) -> _Told:
        digits, keys = rng.permutation(10)[: style.digits], []
        while len(keys) < needles:
            key = "".join(map(str, rng.permutation(digits)))
            keys += [key] if key not in keys else []
        text = "".join(style.needle.format(number=number, key=key) for number, key in enumerate(keys, start=1))
        asked = int(rng.integers(needles))
        question, reply = (part.format(number=asked + 1) for part in (style.question, style.reply))
        return _Told(text, question, reply, keys[asked])

    return _tasks("needle", several, tokenizer, lengths, depths, trials, seed, style, chat)


def copy_tasks(
    tokens: Tokenizer | int, lengths: Sequence[int], trials: int, seed: int, depths: Sequence[float] = (0.0,), block: int = 32,
    cue: int = 8,
) -> list[Task]:  # fmt: skip
    """Return tasks of random tokens, exactly as long as asked for: a block, and at the end its first `cue` tokens again.

    Its rest is the answer: induction, which needs no language. Tokens are those of printable ASCII, or all ids below a number.
    """
    if not 1 <= cue < block:
        raise ConfigError(f"cue = {cue} must be from 1 to block - 1 = {block - 1}: the rest of the block is the answer")
    known, prefix = (np.arange(tokens), ()) if isinstance(tokens, int) else (_printable(tokens), tokens.prefix_ids)
    tasks = []
    for length, depth, rng in _each(lengths, depths, trials, seed):
        room = length - 2 * block - len(prefix)
        if room < 0:
            raise TooShort(f"copies of {block} tokens need rows of {2 * block + len(prefix)} or more, not {length}")
        text, before = rng.choice(known, room + block), round(depth * room)
        copied = text[before : before + block].tolist()
        tasks.append(Task((*prefix, *text.tolist(), *copied[:cue]), tuple(copied[cue:]), length, depth, "copy"))
    return tasks


def read_tasks(path: Path, tokenizer: Tokenizer) -> list[Task]:
    """Return tasks of a file of JSON lines {"prompt": TEXT, "answer": TEXT, "depth": 0 to 1 (may be left out: 0)}.

    The answer follows the prompt at once: a space between them must be in one of them. Raises DataError, with the line.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path} cannot be read as UTF-8 text: {fault}") from fault
    tasks = [_read_task(line, f"{path}, line {number}", tokenizer) for number, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise DataError(f'{path} holds no task: write one a line, {{"prompt": "The code is 7. The code is ", "answer": "7"}}')
    return tasks


def _read_task(line: str, where: str, tokenizer: Tokenizer) -> Task:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{where} is no JSON: {fault}") from fault
    texts = [values.get(name) for name in ("prompt", "answer")] if isinstance(values, dict) else [None]
    depth = values.get("depth", 0) if isinstance(values, dict) else None
    known = isinstance(values, dict) and values.keys() <= {"prompt", "answer", "depth"}
    if not known or not all(isinstance(text, str) and text for text in texts):
        raise DataError(f'{where} must be an object with "prompt" and "answer" (texts) and, if it is known, "depth"')
    if type(depth) not in (int, float) or not 0 <= depth <= 1:
        raise DataError(f"{where}: depth = {depth!r} must be a number from 0 to 1")
    check_text("".join(texts), where)
    prompt, answer = _parted(encode_prompt(tokenizer, texts[0]), encode_prompt(tokenizer, "".join(texts)))
    if not prompt:
        raise DataError(f"{where}: the tokenizer makes one token of prompt and answer together: begin the prompt earlier")
    return Task(prompt, answer, len(prompt) + len(answer), float(depth), "task")


class _Told(NamedTuple):
    """What a task says, by whatever fillers it is surrounded."""

    needle: str
    question: str
    reply: str
    key: str


def _tasks(
    kind: str, told_by: Callable[[np.random.Generator], _Told], tokenizer: Tokenizer, lengths: Sequence[int],
    depths: Sequence[float], trials: int, seed: int, style: Style, chat: bool,
) -> list[Task]:  # fmt: skip
    """Return tasks that have as many whole fillers as fit."""
    sizes, tasks = np.array([len(tokenizer.encode(text)) for text in style.filler]), []
    near: dict[int, int] = {}  # where fillers do not differ, tasks of one length have about as many
    for length, depth, rng in _each(lengths, depths, trials, seed):
        told = told_by(rng)
        order = rng.integers(len(sizes), size=length) if style.drawn else np.arange(length) % len(sizes)
        ids = functools.cache(functools.partial(_ids, tokenizer, style, told, order, depth, chat))
        least = sum(map(len, ids(0)))
        if least > length:
            raise TooShort(f"a {kind} task has {least} tokens without any filler: a length must be that or more, not {length}")
        count = _most(ids, np.cumsum(sizes[order]), length, near.get(length, 0))
        near |= {} if style.drawn else {length: count}
        tasks.append(Task(*ids(count), length, depth, kind))
    return tasks


def _ids(
    tokenizer: Tokenizer, style: Style, told: _Told, order: np.ndarray, depth: float, chat: bool, count: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return prompt and answer of a task with `count` fillers."""
    fillers, before = [style.filler[i] for i in order[:count]], round(depth * count)
    text = "".join((style.opening, *fillers[:before], told.needle, *fillers[before:], told.question))
    if not chat:
        return _parted(*(encode_prompt(tokenizer, text + end) for end in (told.reply, told.reply + told.key)))
    asked, reply = encode_chat(tokenizer, [{"role": "user", "content": text}]), told.reply.lstrip()
    return _parted(*([*asked, *tokenizer.encode(end)] for end in (reply, reply + told.key)))


def _most(ids: Callable[[int], tuple], estimated: np.ndarray, length: int, count: int) -> int:
    """Return how many fillers fit, about `count` if that is above 0; so many by themselves have `estimated` tokens."""

    def size(count: int) -> int:
        return sum(map(len, ids(count)))

    for correct in (False, True) if not count else ():
        growth = (size(count) - size(0)) / estimated[count - 1] if correct and count else 1.0
        count = int(np.searchsorted(estimated, (length - size(0)) / growth, side="right"))
    while size(count) > length:
        count -= 1
    while size(count + 1) <= length:
        count += 1
    return count


def _each(
    lengths: Sequence[int], depths: Sequence[float], trials: int, seed: int
) -> Iterator[tuple[int, float, np.random.Generator]]:
    """Yield length, depth and a generator for each task, which depends on nothing but these, the trial and the seed."""
    for depth in depths:
        if not 0 <= depth <= 1:
            raise ConfigError(f"depth {depth:g} must be from 0 (the beginning of the text) to 1 (its end)")
    for length in lengths:
        for depth in depths:
            for trial in range(trials):
                yield length, depth, np.random.default_rng([seed, length, round(depth * 1e6), trial])


def _parted(before: Sequence[int], after: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of a text in two parts: what it has in common with its beginning alone, and what follows."""
    same = next((place for place, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
    same = min(same, len(after) - 1)
    return tuple(after[:same]), tuple(after[same:])


def _printable(tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids that stand for printable ASCII."""
    ids = np.flatnonzero(tokenizer.token_bytes())
    texts = (tokenizer.decode_bytes([i]).decode("ascii", errors="replace") for i in ids)
    found = np.array([i for i, text in zip(ids, texts, strict=True) if text.isascii() and text.isprintable()], np.int64)
    if not found.size:
        raise DataError("this tokenizer has no token of printable ASCII to make copy tasks of: give a number of ids instead")
    return found
