"""Tokenizers as Hugging Face folders hold them: which of the files says what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.config import read_json
from jaxlm.data.damage import damage_named
from jaxlm.data.hugging_face_tokenizer import HuggingFaceTokenizer, checked_values, open_library_tokenizer, special_spellings
from jaxlm.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxlm.data.special_tokens import NAMES, make_special_tokens
from jaxlm.errors import DataError

_LARGEST = 1 << 28  # bytes of a file; the largest vocabularies take a tenth
# For a bare tokenizer.json whose folder says nothing: spellings that mean nothing else.
_USUAL = {
    **dict.fromkeys(("<s>", "<bos>", "<|begin_of_text|>"), "bos_token"),
    **dict.fromkeys(("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"), "eos_token"),
}


def tokenizer_from_hugging_face(folder: Path | str) -> HuggingFaceTokenizer | SentencePieceTokenizer | None:
    """Open the tokenizer of a Hugging Face folder: its tokenizer.json, else its SentencePiece tokenizer.model; None without.

    Which tokens begin and end a text is read from tokenizer_config.json, special_tokens_map.json, generation_config.json and
    config.json; the chat template from chat_template.jinja or tokenizer_config.json. Raises DataError where a file is damaged
    or they contradict each other.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        return tokenizer_from_json(folder / "tokenizer.json")
    if (folder / "tokenizer.model").exists():
        with damage_named(str(folder)):
            return _from_sentencepiece(folder / "tokenizer.model", _Facts(folder))
    for name in ("vocab.json", "tekken.json", "vocab.txt"):
        if (folder / name).exists():
            raise DataError(
                f"{folder} has {name} but no tokenizer.json: open it with transformers' AutoTokenizer and save_pretrained it"
            )
    return None


class _Facts:
    """What the small files of a folder say of special tokens."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = _object(folder / "tokenizer_config.json")
        self.model = {**_object(folder / "config.json"), **_object(folder / "generation_config.json")}
        named = {**_object(folder / "special_tokens_map.json"), **self.config}
        self.spellings = {name: text for name in NAMES if (text := _content(named.get(name))) is not None}
        self.chat_template = _template(folder, self.config)
        self.added: dict[int, dict[str, Any]] = {}
        for text, i in _object(folder / "added_tokens.json").items():
            self.added[_number(i, folder)] = {"content": text}
        for i, token in (self.config.get("added_tokens_decoder") or {}).items():
            if _content(token) is not None:
                self.added[_number(i, folder)] = token if isinstance(token, Mapping) else {"content": token}
        more = named.get("additional_special_tokens") or named.get("extra_special_tokens") or ()
        more = more.values() if isinstance(more, Mapping) else more
        self.specials = {*self.spellings.values(), *filter(None, map(_content, more))}

    def eos_ids(self) -> list[int]:
        ids = self.model.get("eos_token_id")
        return [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int]


def tokenizer_from_json(path: Path) -> HuggingFaceTokenizer:
    """Open a tokenizer.json with what the files beside it say of special tokens."""
    with damage_named(str(path)):
        return _from_json(path, _Facts(path.parent))


def _from_json(path: Path, facts: _Facts) -> HuggingFaceTokenizer:
    values = dict(checked_values(_object(path), str(path)))
    values["added_tokens"] = _added(values, facts, str(path))
    tokenizer = open_library_tokenizer(values, str(path))
    spelled = special_spellings(values)
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    named = dict(facts.spellings)
    if not named and not facts.eos_ids():
        named = {name: text for text, name in _USUAL.items() if text in spelled}
    ids = {name: tokenizer.token_to_id(text) for name, text in named.items()}
    stops = [i for i in facts.eos_ids() if i < size]
    if ids.get("eos_token") is None and stops:
        ids["eos_token"] = stops[0]
    explicit = facts.config.get("add_bos_token")
    if explicit is None:
        whole = tokenizer.encode("a", add_special_tokens=True)
        prefix = whole.ids[: [*whole.special_tokens_mask, 0].index(0)]
    else:
        prefix = [ids["bos_token"]] if explicit and ids.get("bos_token") is not None else []
    spellings = {i: text for text, i in spelled.items()}
    special = make_special_tokens(spellings, ids, tuple(prefix), stops, facts.chat_template, str(path.parent))
    return HuggingFaceTokenizer(values, special, str(path))


def _added(values: Mapping[str, Any], facts: _Facts, origin: str) -> list[dict[str, Any]]:
    """Return the added tokens of a tokenizer.json with those that only the small files name or call special."""
    tokens = [dict(token) for token in values.get("added_tokens") or ()]
    known = {token["content"]: token for token in tokens}
    vocabulary = open_library_tokenizer({**values, "added_tokens": []}, origin).get_vocab() if facts.specials else {}
    wanted = {token["content"]: i for i, token in facts.added.items()}
    wanted |= {text: vocabulary[text] for text in facts.specials if text in vocabulary and text not in wanted}
    for text, i in sorted(wanted.items(), key=lambda item: item[1]):
        described = facts.added.get(i, {})
        special = bool(described.get("special")) or text in facts.specials
        if text in known:
            known[text]["special"] = known[text].get("special") or special
        else:
            flags = {name: bool(described.get(name)) for name in ("single_word", "lstrip", "rstrip")}
            tokens.append(
                {
                    "id": i,
                    "content": text,
                    **flags,
                    "normalized": bool(described.get("normalized")),
                    "special": special,
                }
            )
    return sorted(tokens, key=lambda token: token["id"])


def _from_sentencepiece(path: Path, facts: _Facts) -> SentencePieceTokenizer:
    content, origin = _read(path), str(path)
    import sentencepiece

    plain = SentencePieceTokenizer(content, origin)  # says what is wrong with a model that is none
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    pieces = len(processor)
    added = {token["content"]: i for i, token in facts.added.items() if i >= pieces}
    spellings = {i: processor.id_to_piece(i) for i in range(pieces) if processor.is_control(i)}
    spellings |= {i: text for text, i in added.items()}
    own = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "pad_token": processor.pad_id()}
    ids: dict[str, int | None] = {name: i for name, i in own.items() if i >= 0}
    for name, text in facts.spellings.items():
        i = added.get(text, processor.piece_to_id(text))
        if i != processor.unk_id() or text == processor.id_to_piece(processor.unk_id()):
            ids[name] = i
            spellings[i] = text
    begins = facts.config.get("add_bos_token", True) and ids.get("bos_token") is not None
    prefix = (ids["bos_token"],) if begins else ()
    stops = [i for i in facts.eos_ids() if i < plain.vocab_size + len(added)]
    special = make_special_tokens(spellings, ids, prefix, stops, facts.chat_template, origin)
    return SentencePieceTokenizer(content, origin, special, added, bool(facts.config.get("legacy", False)))


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").exists():
        return _read(folder / "chat_template.jinja").decode("utf-8", errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, Mapping)}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None


def _content(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) and token else None


def _number(value: Any, folder: Path) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if type(value) is int and 0 <= value < 10**9:
        return value
    raise DataError(f"{folder} gives an added token the id {value!r:.80}: ids are whole numbers")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, more than any tokenizer")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is no such file."""
    if not path.exists():
        return {}
    try:
        values = read_json(_read(path))
    except ValueError as error:
        raise DataError(f"{path} {error}: save the tokenizer at its home again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values
