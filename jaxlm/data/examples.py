"""Rows with a prompt and a response, or a conversation, as ids; and what is wrong with those that cannot be used."""

import json
import reprlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxlm.data.conversations import Counted, encode_reply, encode_turns
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.example_fields import BadRow, Fault, Messages, Row
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import DataError

RowForm = Literal["conversations", "preferences", "labels"]


class Example(NamedTuple):
    """A prompt and its responses: two of a preference, else one. Of a conversation the first counted id begins the response."""

    prompt: np.ndarray
    """int32."""
    responses: tuple[np.ndarray, ...]
    """int32 each, with what ends it."""
    counted: tuple[np.ndarray, ...]
    """bool: which ids of each response count in the loss; of a text all do."""
    label: bool
    """Whether the response is desirable."""
    cut_prompt: bool
    cut_response: bool


def encode_example(
    tokenizer: Tokenizer, text: str, *, form: RowForm, config: ExampleConfig, room: int, template: str | None
) -> Example | Fault:
    """Return a row, given as a JSON object, as ids that take at most `room` places, or what is wrong with it.

    `template` is a chat template in place of the tokenizer's own.
    """
    row = Row(json.loads(text), config)
    fit = Fit(tokenizer, config, room, template if template is not None else tokenizer.chat_template)
    try:
        return {"conversations": _conversation, "preferences": _preference, "labels": _label}[form](row, fit)
    except BadRow as bad:
        return bad.fault
    except DataError as bad:
        return Fault("template", str(bad))


class Fit(NamedTuple):
    """How what a row says becomes ids that fit their place."""

    tokenizer: Tokenizer
    config: ExampleConfig
    room: int
    template: str | None

    def encoded(
        self, prompt: str | Messages, responses: Sequence[str | Messages], train_on: Sequence[str] = ("assistant",)
    ) -> tuple[list[int], list[Counted]]:
        """Return the ids of a prompt and of each response, with what ends it; of messages count those of `train_on`."""
        tokenizer = self.tokenizer
        if isinstance(prompt, str):
            before = [*tokenizer.prefix_ids, *tokenizer.encode(prompt)]
            said = [[*tokenizer.encode(response), tokenizer.eos_id] for response in responses]
            return before, [(ids, [True] * len(ids)) for ids in said]
        pairs = [encode_reply(tokenizer, prompt, response, self.needed_template(), train_on) for response in responses]
        return pairs[0][0], [after for _, after in pairs]

    def needed_template(self) -> str:
        """Return the chat template."""
        if self.template is None:
            raise BadRow(
                "no template", "messages need a chat template, and the tokenizer has none: name one with data.examples.template"
            )
        return self.template

    def cut(self, prompt: list[int], responses: Sequence[Counted]) -> Example:
        """Return the example within its room: first the prompt is cut, then the responses, which keep one id at least."""
        config, room = self.config, self.room
        longest, most = max(len(ids) for ids, _ in responses), min(config.max_prompt_length or room // 2, room - 1)
        whole, cut_prompt = len(prompt) + longest, False
        if whole > room and len(prompt) > most:
            if config.long_prompt == "refuse":
                raise BadRow(
                    "prompt too long",
                    f"{len(prompt)} tokens of prompt and {longest} of response do not fit a row of {room}, of which a prompt "
                    f"may take {most} then (data.examples.max_prompt_length): set data.examples.long_prompt to cut it, or "
                    "data.sequence_length",
                )
            prompt, cut_prompt = self._kept(prompt, max(most, room - longest)), True
        left = room - len(prompt)
        if longest > left and config.long_response == "refuse":
            raise BadRow(
                "response too long",
                f"{longest} tokens of response do not fit the {left} that the prompt leaves: set data.examples.long_response "
                "to 'cut', or data.sequence_length",
            )
        kept = tuple(np.array(ids[:left], np.int32) for ids, _ in responses)
        counted = tuple(np.array(counts[:left], bool) for _, counts in responses)
        return Example(np.array(prompt, np.int32), kept, counted, True, cut_prompt, longest > left)

    def _kept(self, prompt: list[int], size: int) -> list[int]:
        if self.config.long_prompt == "keep_start":
            return prompt[:size]
        prefix = list(self.tokenizer.prefix_ids)
        first = len(prefix) if prefix and prompt[: len(prefix)] == prefix and len(prefix) < size else 0
        return prompt[:first] + prompt[len(prompt) - size + first :]


def _conversation(row: Row, fit: Fit) -> Example:
    config = row.config
    if config.messages not in row and config.prompt in row:
        if "assistant" not in config.train_on:
            roles = ", ".join(config.train_on)
            raise BadRow(
                "nothing to train on", f"{config.response!r} is the assistant's, and data.examples.train_on is {roles}"
            )
        prompt, responses = row.exchange(config.response)
        return fit.cut(*fit.encoded(prompt, responses, config.train_on))
    messages = row.messages(config.messages)
    if not messages:
        raise BadRow("empty conversation", f"{config.messages!r} has no message")
    if any(m["role"] in config.train_on and not m["content"].strip() for m in messages):
        raise BadRow("empty response", f"a message of {config.messages!r} that counts in the loss is empty")
    ids, counted = encode_turns(fit.tokenizer, messages, config.train_on, fit.needed_template())
    if not any(counted[1:]):
        raise BadRow("nothing to train on", f"{config.messages!r} has no message of {', '.join(config.train_on)}")
    first = counted.index(True)
    example = fit.cut(ids[:first], [(ids[first:], counted[first:])])
    if not any(example.counted[0][0 if len(example.prompt) else 1 :]):  # what nothing goes before is no target
        raise BadRow("response too long", "nothing would be left of it")
    return example


def _preference(row: Row, fit: Fit) -> Example:
    config = row.config
    if row.need(config.chosen) == row.need(config.rejected):
        raise BadRow("chosen = rejected", f"{config.chosen!r} and {config.rejected!r} are the same")
    prompt, responses = row.exchange(config.chosen, config.rejected)
    example = fit.cut(*fit.encoded(prompt, responses))
    if np.array_equal(*example.responses):
        cut = " of what a row holds" if example.cut_response else ""
        raise BadRow("chosen = rejected", f"the tokens{cut} of {config.chosen!r} and {config.rejected!r} are the same")
    return example


def _label(row: Row, fit: Fit) -> Example:
    name = row.config.label
    label = row.need(name)
    if not isinstance(label, (bool, int, float)) or label not in (0, 1):
        raise BadRow("label", f"{name!r} is {reprlib.repr(label)}: it must be true or false (or 1 or 0)")
    prompt, responses = row.exchange(row.config.response)
    return fit.cut(*fit.encoded(prompt, responses))._replace(label=bool(label))


def texts_of(text: str, config: ExampleConfig) -> str:
    """Return what is said in a row, given as a JSON object, one text after the other: what a tokenizer is trained on."""
    values = json.loads(text)
    names = (config.messages, config.prompt, config.response, config.chosen, config.rejected)
    said = [values[name] for name in names if name in values]
    messages = [message for each in said if isinstance(each, list) for message in each if isinstance(message, dict)]
    texts = [each for each in [*said, *(message.get("content") for message in messages)] if isinstance(each, str)]
    return "\n".join(texts)
