"""Conversations as ids, turn by turn: what each role says, and which ids a chosen role is trained on."""

import re
from collections.abc import Iterator, Mapping, Sequence

from jaxlm.data.chat import cut_messages, encode_rendered, render_chat
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import DataError

Message = Mapping[str, str]
Counted = tuple[list[int], list[bool]]
"""Ids, and which of them count in the loss."""

_MARKS = ("\U000ffffe", "\U000fffff")  # no characters at all, so no text has them


class RewritingTemplate(DataError):
    """A template that writes a beginning otherwise when more follows, so that nobody can tell who said what."""


def encode_turns(tokenizer: Tokenizer, messages: Sequence[Message], train_on: Sequence[str], template: str | None) -> Counted:
    """Return the ids of a conversation and which of them count: what the roles `train_on` say, and what ends their turns.

    A turn is what the template adds when its message is added (an assistant's: after what bids it to speak; another's: from its
    content on), and is encoded by itself, so that a reply's ids are those that generation would read and write. Where a
    template does not only add, its {% generation %} marks say what is an assistant's; RewritingTemplate is raised where it
    has none. A last reply that no special token ends is ended by eos.
    """
    cut = cut_messages(tokenizer, messages)
    whole = render_chat(tokenizer, cut, add_generation_prompt=False, template=template)
    try:
        spans = list(_turns(tokenizer, cut, whole, train_on, template))
    except RewritingTemplate:
        marked = render_chat(tokenizer, cut, add_generation_prompt=False, template=template, marks=_MARKS)
        if set(train_on) != {"assistant"} or _MARKS[0] not in marked:
            raise
        spans = list(_marked(marked))
    ids: list[int] = []
    counted: list[bool] = []
    place = 0
    for begin, end in [*spans, (len(whole), len(whole))]:
        for text, counts in ((whole[place:begin], False), (whole[begin:end], True)):
            part = encode_rendered(tokenizer, text)
            ids += part
            counted += [counts] * len(part)
        place = end
    if spans and spans[-1][1] == len(whole) and not _is_ended(tokenizer, whole):
        ids.append(tokenizer.eos_id)
        counted.append(True)
    return ids, counted


def encode_reply(
    tokenizer: Tokenizer, prompt: Sequence[Message], reply: Sequence[Message], template: str | None
) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation up to where an assistant is bidden to speak, and those of what then follows.

    The latter end with what ends the last turn: eos, where the template ends it with no special token. Raises
    RewritingTemplate where the template does not write the one as the beginning of both.
    """
    cut = cut_messages(tokenizer, [*prompt, *reply])
    before = render_chat(tokenizer, cut[: len(prompt)], add_generation_prompt=True, template=template)
    whole = render_chat(tokenizer, cut, add_generation_prompt=False, template=template)
    said = encode_rendered(tokenizer, whole[_reach(whole, before, len(prompt)) : _end_of_turn(tokenizer, whole)])
    return encode_rendered(tokenizer, before), said if _is_ended(tokenizer, whole) else [*said, tokenizer.eos_id]


def _turns(
    tokenizer: Tokenizer, messages: Sequence[Message], whole: str, train_on: Sequence[str], template: str | None
) -> Iterator[tuple[int, int]]:
    """Yield where in the whole conversation each turn of the roles `train_on` lies, with what ends it."""

    def reach(count: int, bidding: bool = False) -> int:
        if not count:
            return 0
        text = render_chat(tokenizer, messages[:count], add_generation_prompt=bidding, template=template)
        return _reach(whole, text, count)

    for number, message in enumerate(messages):
        if message["role"] not in train_on:
            continue
        end = reach(number + 1) if number + 1 < len(messages) else len(whole)
        bidden = message["role"] == "assistant" and number > 0
        begin = reach(number, bidden)
        if not bidden:
            begin = max(begin, whole.find(message["content"].strip(), begin, end))
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
