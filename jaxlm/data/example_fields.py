"""The fields of a row with a prompt and a response, each checked as it is asked for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.data.chat import ROLES
from jaxlm.data.example_config import ExampleConfig
from jaxlm.errors import suggest

Messages = list[dict[str, Any]]
"""Each with a role and a content that are texts, and whatever other fields a template may read."""

_UNSUPPORTED = ("tool_calls", "function_call", "tools", "functions")


def printable(text: str, keep: str = "") -> str:
    """Return a text with every character that a terminal could take for more than text, but those of `keep`, as its escape."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


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
    """The fields of a row, each checked as it is asked for: BadRow where one is missing or not what it should be.

    Null is as good as missing: files with columns have it wherever a row has no such field.
    """

    def __init__(self, values: dict[str, Any], config: ExampleConfig):
        self.values, self.config = _without_null(values), config
        self.null = values.keys() - self.values.keys()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def need(self, name: str) -> Any:
        """Return the value of a field."""
        if name not in self.values:
            names = list(self.values)
            near = " Did you mean 'completion'?" if name == "response" and "completion" in names else suggest(name, names)
            if name in self.null:
                raise BadRow("missing key", f"{name!r} is null (or bytes that are no UTF-8)")
            raise BadRow(
                "missing key", f"no {name!r}.{near} Keys: {', '.join(names) or 'none'}; data.examples names what is read"
            )
        return self.values[name]

    def said(self, name: str) -> str | Messages:
        """Return a text or messages."""
        value = self.need(name)
        if not isinstance(value, (str, list)):
            raise BadRow("wrong type", f"{name!r} holds {type(value).__name__}, not a text or a list of messages")
        return value if isinstance(value, str) else self.messages(name)

    def messages(self, name: str) -> Messages:
        """Return messages, each with a known role, without the fields that are null."""
        _refuse_tools("the row", self.values)
        messages = self.need(name)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise BadRow("wrong type", f"{name!r} must be a list of messages, each with a role and a content")
        messages = [_without_null(message) for message in messages]
        for message in messages:
            _refuse_tools(f"a message of {name!r}", message)
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise BadRow("wrong type", f"a message of {name!r} lacks a role or a content that is text: {message!s:.80}")
            if role not in ROLES:
                near = suggest(role, ROLES)
                raise BadRow("unknown role", f"a message of {name!r} has the role {role!r}.{near} Roles: {', '.join(ROLES)}")
            if role == "user" and not content.strip():
                raise BadRow("empty prompt", f"a user's message of {name!r} is empty")
        return messages

    def exchange(self, *names: str) -> tuple[str | Messages, list[str | Messages]]:
        """Return a prompt and the responses of these names, all texts or all messages.

        Conversations under these names may repeat the prompt, or, where there is no field of it, share one.
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
        _refuse_tools("the row", self.values)
        said = [[{"role": "assistant", "content": r}] if isinstance(r, str) else r for r in responses]
        if prompt is None:
            asked, said = _shared_beginning(said)
        else:
            asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            begins, said = zip(*(_parted(conversation, asked) for conversation in said), strict=True)
            asked = begins[0]
            if not all(_same(begin, asked) for begin in begins):
                raise BadRow("prompts differ", f"{' and '.join(map(repr, names))} begin with different messages of the system")
        if not asked:
            raise BadRow("empty prompt", f"nothing goes before the assistant's turn in {' and '.join(map(repr, names))}")
        for name, turns in zip(names, said, strict=True):
            if not turns or not all(turn["content"].strip() for turn in turns if turn["role"] == "assistant"):
                raise BadRow("empty response", f"{name!r} says nothing")
            for turn, verb in ((turns[0], "begins"), (turns[-1], "ends")):
                if turn["role"] != "assistant":
                    raise BadRow("wrong role", f"{name!r} {verb} with a message of role {turn['role']!r}, not the assistant's")
        return asked, list(said)


def _without_null(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse_tools(what: str, values: dict[str, Any]) -> None:
    # A template is not given the tools, and writes calls of them in ways that say nothing of whose words they are.
    for name in _UNSUPPORTED:
        if values.get(name):
            raise BadRow("unsupported field", f"{what} has {name!r}, which is not read: write tools into the contents")


def _same(left: Messages, right: Messages) -> bool:
    """Return whether messages say the same, whatever other fields they have."""
    return [(m["role"], m["content"]) for m in left] == [(m["role"], m["content"]) for m in right]


def _parted(conversation: Messages, asked: Messages) -> tuple[Messages, Messages]:
    """Return a prompt and what follows it in a conversation, which may begin with it, also after a message of the system."""
    for end in (len(asked), len(asked) + 1):
        before = conversation[: end - len(asked)]
        if len(conversation) > end and _same(conversation[len(before) : end], asked):
            if all(message["role"] in ("system", "developer") for message in before):
                return conversation[:end], conversation[end:]
    return asked, conversation


def _shared_beginning(conversations: Sequence[Messages]) -> tuple[Messages, list[Messages]]:
    """Return what conversations have in common before an assistant's turn, and what each goes on with."""
    shared = 0
    for messages in zip(*conversations, strict=False):
        if not all(_same([message], messages[:1]) for message in messages):
            break
        shared += 1
    first = conversations[0]
    while shared and (shared >= len(first) or first[shared]["role"] != "assistant"):
        shared -= 1
    return first[:shared], [messages[shared:] for messages in conversations]
