"""The parts that special tokens play in a tokenizer from elsewhere."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxlm.errors import DataError

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What instruction-tuned models end a turn with. Where a home names several ids that end a generation they are all kept; these
# are for homes that name one and end turns with another.
_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Which ids begin, end and pad a text, what ends a generation, and the template of a chat."""

    bos_id: int
    eos_id: int
    pad_id: int
    prefix_ids: tuple[int, ...]
    """What its home puts before every text."""
    stop_ids: tuple[int, ...]
    names: Mapping[str, str]
    """Spellings by the names that chat templates use: {"bos_token": "<s>", ...}."""
    chat_template: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Any, origin: str) -> "SpecialTokens":
        """Return what `to_json` wrote; DataError where a field is missing or of another type."""
        if not isinstance(values, Mapping) or set(values) != {field.name for field in dataclasses.fields(cls)}:
            raise DataError(f"{origin} is damaged: its special tokens are not as jaxlm writes them. Import the model again")
        lists = [values[name] for name in ("prefix_ids", "stop_ids")]
        template = values["chat_template"]
        if not all(isinstance(item, list) for item in lists) or not isinstance(values["names"], Mapping):
            raise DataError(f"{origin} is damaged: its special tokens are of the wrong types. Import the model again")
        if not isinstance(template, str | None) or not all(isinstance(text, str) for text in values["names"].values()):
            raise DataError(f"{origin} is damaged: its chat template or a spelling is no text. Import the model again")
        return cls(**{**values, "prefix_ids": tuple(lists[0]), "stop_ids": tuple(lists[1]), "names": dict(values["names"])})


def make_special_tokens(
    spellings: Mapping[int, str],
    ids: Mapping[str, int | None],
    prefix_ids: tuple[int, ...],
    other_stops: Iterable[int],
    chat_template: str | None,
    origin: str,
) -> SpecialTokens:
    """Return the special tokens of a home: `spellings` of all its special ids, and `ids` by name ("eos_token": 2).

    What ends a generation is eos, `other_stops`, and every special token that is a known end of turn and stands in the chat
    template. Without bos, eos stands in its place; without pad, too. Raises DataError without eos, which separates documents.
    """
    eos = ids.get("eos_token")
    if eos is None:
        raise DataError(
            f"{origin} names no end-of-sequence token, which separates documents: name it in tokenizer_config.json "
            'beside it, for example {"eos_token": "</s>"}'
        )
    turns = [i for i, text in spellings.items() if text in _ENDS_OF_TURN and chat_template and text in chat_template]
    bos, pad = ids.get("bos_token"), ids.get("pad_token")
    return SpecialTokens(
        bos_id=eos if bos is None else bos,
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        prefix_ids=prefix_ids,
        stop_ids=tuple(dict.fromkeys([eos, *other_stops, *turns])),
        names={name: spellings[i] for name, i in ids.items() if i is not None and i in spellings},
        chat_template=chat_template,
    )


def check_ids(special: SpecialTokens, vocab_size: int, origin: str) -> None:
    """Raise DataError unless all ids in `special` are of tokens that exist."""
    for i in (special.bos_id, special.eos_id, special.pad_id, *special.prefix_ids, *special.stop_ids):
        if type(i) is not int or not 0 <= i < vocab_size:
            raise DataError(f"{origin} names {i!r:.80} as a special token, but its ids go from 0 to {vocab_size - 1}")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
