"""The fields of a row with a prompt and a response, each checked as it is asked for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.data.chat import ROLES
from jaxlm.data.example_config import ExampleConfig
from jaxlm.errors import suggest

Messages = list[dict[str, str]]


class Fault(NamedTuple):
    """Why a row cannot be used."""

    kind: str
    message: str


class BadRow(Exception):
    """A row that cannot be used."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.fault = Fault(kind, message)


class Row:
    """The fields of a row, each checked as it is asked for: BadRow where one is missing or not what it should be."""

    def __init__(self, values: dict[str, Any], config: ExampleConfig):
        self.values, self.config = values, config

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def need(self, name: str) -> Any:
        """Return the value of a field."""
        if name not in self.values:
            names = list(self.values)
            near = " Did you mean 'completion'?" if name == "response" and "completion" in names else suggest(name, names)
            raise BadRow(
                "missing key", f"no {name!r}.{near} Keys: {', '.join(names) or 'none'}; data.examples names what is read"
            )
        return self.values[name]

    def said(self, name: str) -> str | Messages:
        """Return a text or messages."""
        value = self.need(name)
        if not isinstance(value, (str, list)):
            what = "null (or bytes that are no UTF-8)" if value is None else type(value).__name__
            raise BadRow("wrong type", f"{name!r} holds {what}, not a text or a list of messages")
        return value if isinstance(value, str) else self.messages(name)

    def messages(self, name: str) -> Messages:
        """Return messages, each with a known role."""
        messages = self.need(name)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise BadRow("wrong type", f"{name!r} must be a list of messages, each with a role and a content")
        for message in messages:
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise BadRow("wrong type", f"a message of {name!r} lacks a role or a content that is text: {message!s:.80}")
            if role not in ROLES:
                near = suggest(role, ROLES)
                raise BadRow("unknown role", f"a message of {name!r} has the role {role!r}.{near} Roles: {', '.join(ROLES)}")
            if role == "user" and not content.strip():
                raise BadRow("empty prompt", f"a user's message of {name!r} is empty")
        return [{"role": message["role"], "content": message["content"]} for message in messages]

    def exchange(self, *names: str) -> tuple[str | Messages, list[str | Messages]]:
        """Return a prompt and the responses of these names, all texts or all messages.

        The prompt may also be what conversations under these names have in common, with or without a field that repeats it.
        """
        config = self.config
        responses = [self.said(name) for name in names]
        prompt = self.said(config.prompt) if config.prompt in self else None
        if prompt is None and any(isinstance(response, str) for response in responses):
            self.need(config.prompt)
        if prompt is not None and not (prompt.strip() if isinstance(prompt, str) else prompt):
            raise BadRow("empty prompt", f"{config.prompt!r} is empty")
        if not config.as_chat and isinstance(prompt, str) and all(isinstance(response, str) for response in responses):
            empty = [name for name, response in zip(names, responses, strict=True) if not response.strip()]
            if empty:
                raise BadRow("empty response", f"{empty[0]!r} is empty")
            return prompt, responses
        said = [[{"role": "assistant", "content": r}] if isinstance(r, str) else r for r in responses]
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if asked is None or all(_begins_with(conversation, asked) for conversation in said):
            asked, said = _shared_beginning(said)
        if not asked:
            raise BadRow("empty prompt", f"nothing goes before the assistant's turn in {' and '.join(map(repr, names))}")
        for name, turns in zip(names, said, strict=True):
            if not turns or not all(turn["content"].strip() for turn in turns if turn["role"] == "assistant"):
                raise BadRow("empty response", f"{name!r} says nothing")
            if turns[0]["role"] != "assistant":
                raise BadRow("wrong role", f"{name!r} begins with a message of role {turns[0]['role']!r}, not the assistant's")
        return asked, said


def _begins_with(conversation: Messages, asked: Messages) -> bool:
    """Return whether a conversation begins with these messages, or with them after one of the system."""
    return any(len(conversation) > n + len(asked) and conversation[n : n + len(asked)] == asked for n in (0, 1))


def _shared_beginning(conversations: Sequence[Messages]) -> tuple[Messages, list[Messages]]:
    """Return what conversations have in common before an assistant's turn, and what each goes on with."""
    shared = 0
    for messages in zip(*conversations, strict=False):
        if any(message != messages[0] for message in messages):
            break
        shared += 1
    first = conversations[0]
    while shared and (shared >= len(first) or first[shared]["role"] != "assistant"):
        shared -= 1
    return first[:shared], [messages[shared:] for messages in conversations]
