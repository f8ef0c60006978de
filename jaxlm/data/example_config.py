"""How rows that hold a prompt and a response become tokens."""

from typing import Annotated, Literal

from jaxlm.config import Range, config
from jaxlm.data.chat import ROLES
from jaxlm.errors import ConfigError


@config
class ExampleConfig:
    """How rows with a prompt and a response become tokens, and which of these count; for a `data.form` other than text."""

    messages: str = "messages"
    """Name of the field with a conversation."""
    prompt: str = "prompt"
    """Name of the field with what is answered."""
    response: str = "response"
    """Name of the field with the answer."""
    chosen: str = "chosen"
    """Name of the field with the better answer."""
    rejected: str = "rejected"
    """Name of the field with the worse one."""
    label: str = "label"
    """Name of the field that says whether the answer is desirable."""
    template: str = ""
    """A Jinja file in place of the tokenizer's own chat template."""
    as_chat: bool = False
    """Prompts and responses that are texts become a user's and an assistant's message."""
    train_on: tuple[Literal[ROLES], ...] = ("assistant",)
    """Roles whose messages count in the loss; of preferences and labels it is the assistant's alone that do."""
    max_prompt_length: Annotated[int, Range(0)] = 0
    """Tokens of a prompt that is too long to keep where an example does not fit its row; 0: half a row."""
    long_prompt: Literal["refuse", "keep_end", "keep_start"] = "refuse"
    """What becomes of such a prompt: its example is bad, or this part of it is kept (and counted)."""
    long_response: Literal["cut", "refuse"] = "cut"
    """What becomes of a response that does not fit then: it is cut at its end (and counted), or its example is bad."""
    packing: bool = True
    """Lay several conversations into a row."""

    def check(self) -> None:
        if not self.train_on:
            raise ConfigError("ExampleConfig.train_on is empty: name the roles that count in the loss, as ('assistant',)")
