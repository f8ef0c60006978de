"""Conversations as ids, turn by turn: what each role says, and which ids a chosen role is trained on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlm.data.chat import cut_messages, encode_rendered, render_chat
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import DataError

Message = Mapping[str, Any]
Counted = tuple[list[int], list[bool]]
"""Ids, and which of them count in the loss."""

_MARKS = ("\U000ffffe", "\U000fffff")  # no characters at all, so no text has them
_SAID = "\U0010ffff"  # nor this: stands for what a message says


class RewritingTemplate(DataError):
    """A template that writes a beginning otherwise when more follows, so that nobody can tell who said what."""


def encode_turns(tokenizer: Tokenizer, messages: Sequence[Message], train_on: Sequence[str], template: str | None) -> Counted:
    """Return the ids of a conversation and which of them count: what the roles `train_on` say, and what ends their turns.

    A turn is what the template adds when its message is added (an assistant's: after what bids it to speak; another's: from its
    content on), and is encoded by itself, so that a reply's ids are those that generation would read and write. Where a
    template does not only add, its {% generation %} marks say what is an assistant's; RewritingTemplate is raised where it
    has none. A last reply that no special token ends is ended by eos.
    """
    cut = _cut_texts(tokenizer, messages)
    whole = render_chat(tokenizer, cut, add_generation_prompt=False, template=template)
    spans = _spans(tokenizer, cut, whole, train_on, template)
    ids, counted = _encoded(tokenizer, whole, spans)
    if spans and spans[-1][1] == len(whole) and not _is_ended(tokenizer, whole):
        ids.append(tokenizer.eos_id)
        counted.append(True)
    return ids, counted


def encode_reply(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    reply: Sequence[Message],
    template: str | None,
    train_on: Sequence[str] = ("assistant",),
) -> tuple[list[int], Counted]:
    """Return the ids of a conversation up to where an assistant is bidden to speak, and of what then follows, of which count
    the turns of the roles `train_on`.

    An assistant's turn ends the reply, with what ends it: eos, where that is no special token of the template. Raises
    RewritingTemplate where the template does not write the one as the beginning of both.
    """
    cut = _cut_texts(tokenizer, [*prompt, *reply])
    before = render_chat(tokenizer, cut[: len(prompt)], add_generation_prompt=True, template=template)
    whole = render_chat(tokenizer, cut, add_generation_prompt=False, template=template)
    begin, end = _reach(whole, before, len(prompt)), _end_of_turn(tokenizer, whole)
    spans = [(begin, end)]
    if len(reply) > 1:
        spans = _spans(tokenizer, cut, whole, train_on, template, first=len(prompt))
    inside = [(max(start, begin) - begin, stop - begin) for start, stop in spans if stop > begin]
    ids, counted = _encoded(tokenizer, whole[begin:end], inside)
    if not _is_ended(tokenizer, whole):
        ids, counted = [*ids, tokenizer.eos_id], [*counted, True]
    return encode_rendered(tokenizer, before), (ids, counted)


def _cut_texts(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages with the spellings of special tokens marked in whatever text they hold, not in `content` alone."""

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return cut_messages(tokenizer, [{"role": "user", "content": value}])[0]["content"]
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        return {cut(name): cut(inner) for name, inner in value.items()} if isinstance(value, dict) else value

    done = ("role", "content")
    return [
        {name: value if name in done else cut(value) for name, value in message.items()}
        for message in cut_messages(tokenizer, messages)
    ]


def _encoded(tokenizer: Tokenizer, text: str, spans: Sequence[tuple[int, int]]) -> Counted:
    """Return the ids of a text of which `spans` count, each encoded by itself, as is what lies between them."""
    ids: list[int] = []
    counted: list[bool] = []
    place = 0
    for begin, end in [*spans, (len(text), len(text))]:
        for piece, counts in ((text[place:begin], False), (text[begin:end], True)):
            part = encode_rendered(tokenizer, piece)
            ids += part
            counted += [counts] * len(part)
        place = end
    return ids, counted


def _spans(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    whole: str,
    train_on: Sequence[str],
    template: str | None,
    first: int = 0,
) -> list[tuple[int, int]]:
    """Return where in the whole conversation the turns of `train_on` lie from message `first` on, or all marked stretches."""
    try:
        return list(_turns(tokenizer, messages, whole, train_on, template, first))
    except RewritingTemplate:
        marked = render_chat(tokenizer, messages, add_generation_prompt=False, template=template, marks=_MARKS)
        if set(train_on) != {"assistant"} or _MARKS[0] not in marked:
            raise
        return list(_marked(marked))


def _turns(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    whole: str,
    train_on: Sequence[str],
    template: str | None,
    first: int,
) -> Iterator[tuple[int, int]]:
    """Yield where in the whole conversation each turn of the roles `train_on` lies, with what ends it, from `first` on."""

    def reach(count: int, bidding: bool = False) -> int:
        if not count:
            return 0
        text = render_chat(tokenizer, messages[:count], add_generation_prompt=bidding, template=template)
        return _reach(whole, text, count)

    def speech(number: int, begin: int) -> int:
        # Its text may also stand in its header or a special token, so that another text is looked for in its place.
        said = [*messages[:number], {**messages[number], "content": _SAID}]
        text = render_chat(tokenizer, said, add_generation_prompt=False, template=template)
        place = text.find(_SAID, begin)
        if place < 0:
            raise RewritingTemplate(
                f"the chat template does not write what message {number + 1} ({messages[number]['role']}) says as it stands, "
                "in a turn of its own: leave its role out of data.examples.train_on, or give another in data.examples.template"
            )
        return _reach(whole, text[:place], number + 1)

    for number, message in enumerate(messages):
        if number < first or message["role"] not in train_on:
            continue
        end = reach(number + 1) if number + 1 < len(messages) else len(whole)
        bidden = message["role"] == "assistant" and number > 0
        begin = reach(number, bidden)
        if not bidden:
            begin = speech(number, begin)
        yield begin, _end_of_turn(tokenizer, whole[:end], begin)


def _marked(text: str) -> Iterator[tuple[int, int]]:
    """Yield where marked stretches lie once the marks are taken out."""
    begin, end = _MARKS
    for taken, found in enumerate(re.finditer(f"{begin}([^{begin}{end}]*){end}", text)):
        yield found.start() - 2 * taken, found.start() - 2 * taken + len(found[1])


def _reach(whole: str, beginning: str, count: int) -> int:
    """Return how far into the whole conversation the rendering of its beginning reaches."""
    if not whole.startswith(beginning):
        raise RewritingTemplate(
            f"the chat template writes the first {count} message(s) otherwise when more follow, so that nobody can tell who "
            "said what: give one that only adds, or marks replies by {% generation %}, with data.examples.template"
        )
    return len(beginning)


def _end_of_turn(tokenizer: Tokenizer, text: str, begin: int = 0) -> int:
    """Return where a turn at the end of `text` ends: before white space after the special token that ends it."""
    return max(begin, len(text.rstrip()) if _is_ended(tokenizer, text) else len(text))


def _is_ended(tokenizer: Tokenizer, text: str) -> bool:
    return text.rstrip().endswith(tuple(tokenizer.special_spellings))
