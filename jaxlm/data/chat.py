"""Conversations as one text, and as ids, by the chat template that a tokenizer carries."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import ConfigError, DataError, suggest

ROLES = ("system", "user", "assistant", "tool", "developer")
_CUT = "\U0010fffe"  # no character at all, so no text has it: a place where the text is encoded in two parts


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
    template: str | None = None,
    marks: tuple[str, str] = ("", ""),
) -> str:
    """Return `messages` ({"role": ..., "content": ...}) as the text of the tokenizer's chat template, or of `template`.

    It is what Hugging Face's `apply_chat_template` gives. With `add_generation_prompt` the text ends where an assistant begins
    to speak; `marks` go before and after what the template says is an assistant's ({% generation %}). Templates come from
    strangers: they run in Jinja's sandbox, under bounds on steps and sizes. Raises DataError where there is no template, a
    message is not well formed, or the template fails or refuses the conversation.
    """
    source = tokenizer.chat_template if template is None else template
    if source is None:
        raise DataError(
            "this tokenizer has no chat template: its model was not tuned for chat. Continue a text with `jaxlm sample` instead"
        )
    values = {"messages": _checked(messages), "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    return _render(source, {**tokenizer.special_tokens, **values}, marks)


def read_template(path: str) -> str | None:
    """Return the chat template in a file; None for no file. ConfigError where it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"the chat template {path} cannot be read: {fault}") from fault


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
) -> list[int]:
    """Return the ids of a conversation: special tokens that the template writes, but none that a message spells.

    A prefix such as bos is the template's affair, so `prefix_ids` are not added. A spelling found in a message is cut after its
    first character and its two sides are encoded apart.
    """
    text = render_chat(tokenizer, cut_messages(tokenizer, messages), add_generation_prompt=add_generation_prompt)
    return encode_rendered(tokenizer, text)


def cut_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the messages with every spelling of a special token in them marked, for `encode_rendered` to take apart."""
    spellings = re.compile("|".join(map(re.escape, sorted(tokenizer.special_spellings, key=len, reverse=True))) or "(?!)")
    return [{**message, "content": spellings.sub(_cut, message["content"])} for message in _checked(messages)]


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a piece of what a template made of `cut_messages`, its special tokens as ids."""
    return [i for part in text.split(_CUT) if part for i in tokenizer.encode(part, specials=True)]


def _cut(spelling: re.Match) -> str:
    return f"{spelling[0][0]}{_CUT}{spelling[0][1:]}"


def _checked(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    if not messages:
        raise DataError("a chat needs at least one message")
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"message {number} has the role {role!r}, none of {', '.join(ROLES)}.{suggest(str(role), ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"message {number} has a content that is no text: {content!r}")
    return [dict(message) for message in messages]


def _render(source: str, values: Mapping[str, Any], marks: tuple[str, str]) -> str:
    try:
        from jaxlm.data import chat_sandbox
    except ImportError as error:
        raise DataError("chat templates need the package jinja2: pip install 'jaxlm[pretrained]'") from error
    if len(source) > chat_sandbox.LARGEST_TEMPLATE:
        raise DataError(f"the chat template has {len(source):,} characters, more than {chat_sandbox.LARGEST_TEMPLATE:,}")
    try:
        return chat_sandbox.render(source, values, marks)
    # Whatever a stranger's template raises is a fault of the template; a bug of ours would be one for every template.
    except Exception as error:
        raise DataError(f"the chat template fails or refuses this conversation: {type(error).__name__}: {error}") from error
