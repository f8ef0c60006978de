"""Reading a foreign configuration so that no field goes unnoticed."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxlm.errors import ConfigError, suggest

Choice = TypeVar("Choice")

# No published model comes near; a greater number is a fault, and some arithmetic could not hold it.
LARGEST = 2**31 - 1
MOST_LAYERS = 10_000

# Fields that do not change the function a model computes: what it is called and made with, its tokenizer's ids, how it is
# trained or sampled, and what transformers returns besides logits.
INERT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path _num_labels
    architectures attn_implementation auto_map cache_implementation chunk_size_feed_forward dtype experts_implementation
    initializer_range is_decoder is_llama_config max_sequence_length model_type name_or_path pretraining_tp return_dict
    return_dict_in_generate tokenizer_class torch_dtype torchscript transformers.js_config transformers_version
    unsloth_fixed unsloth_version
    use_bfloat16 use_cache
    bos_token_id decoder_start_token_id eos_token_id pad_token_id sep_token_id
    attention_dropout attn_pdrop classifier_dropout finetuning_task gradient_checkpointing label2id id2label num_labels
    output_attentions output_hidden_states output_router_logits output_scores problem_type router_aux_loss_coef
    router_jitter_noise summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params prefix
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values repetition_penalty
    suppress_tokens temperature tf_legacy_loss top_k top_p typical_p
    """.split()
)
# Fields that any configuration may have, written by one release or another; families that know no more of them have the
# function they have with these values.
OFF: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "attention_bias": (False, None),
    "clip_qkv": (None,),
    "cross_attention_hidden_size": (None,),
    "is_causal": (True, None),
    "is_encoder_decoder": (False, None),
    "mlp_bias": (False, None),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "tie_encoder_decoder": (False, None),
    "tie_last_hidden_states": (None, False),
    "use_bidirectional_attention": (False, None),
    "use_mrope": (False, None),
}


class Fields:
    """The fields of a config.json, of which each is read, known to be without influence, or refused by `finish`.

    A field that is absent has the default of its family; `synonyms` are other names of fields ({"hidden_size": "n_embd"}).
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json", synonyms: Mapping[str, str] | None = None):
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where} must hold an object of named fields, not {_shown(values)}")
        self.values, self.where, self.read = dict(values), where, set()
        for other, name in (synonyms or {}).items():
            if other in self.values:
                given = self.values.pop(other)
                if self.values.setdefault(name, given) != given:
                    raise ConfigError(
                        f"{where}: {other} = {_shown(given)} and {name} = {_shown(self.values[name])} are two names of one "
                        "value: take one out"
                    )

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field as it is."""
        self.read.add(name)
        return self.values.get(name, default)

    def integer(self, name: str, default: int, low: int = 1, high: int = LARGEST) -> int:
        """Return a whole number in a range."""
        value = self.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.fault(name, value, f"must be a whole number from {low} to {high}")
        return value

    def optional_integer(self, name: str, default: int | None = None, low: int = 1) -> int | None:
        """Return a whole number, or None where the field is null or absent."""
        return None if self.get(name, default) is None else self.integer(name, default or 0, low)

    def number(self, name: str, default: float | None, low: float = 0.0, high: float = 1e12, above: bool = False) -> float:
        """Return a finite number in a range; with `above`, one that is not its lower end."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not low <= value <= high or (above and value == low):
            raise self.fault(name, value, f"must be a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """Return a number above 0, or None where the field is null or absent."""
        return None if self.get(name, default) is None else self.number(name, default, above=True)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.fault(name, value, "must be true or false")
        return value

    def choice(self, name: str, default: str, options: Mapping[str, Choice]) -> Choice:
        """Return what a word stands for."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in options:
            hint = suggest(value, options) if isinstance(value, str) else ""
            raise self.fault(name, value, f"is not supported; supported are {', '.join(options)}.{hint}")
        return options[value]

    def items(self, name: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any] | None:
        """Return a list of such values, of that length if one is given; None where the field is null or absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(isinstance(item, bool) or not isinstance(item, kind) for item in value):
            raise self.fault(name, value, "must be a list of " + ("names" if kind is str else "numbers"))
        if length is not None and len(value) != length:
            raise self.fault(name, value, f"must have {length} entries, not {len(value)}")
        return value

    def nested(self, name: str) -> Mapping[str, Any]:
        """Return an object inside this one; an empty one where the field is null or absent."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.fault(name, value, "must be an object of named fields")
        return value

    def only(self, name: str, *accepted: Any) -> None:
        """Refuse a field that has another value than these; absent is fine."""
        value = self.get(name, accepted[0])
        if not any(type(value) is type(one) and value == one for one in accepted):
            raise self.fault(name, value, f"is not supported: jaxlm has it as {' or '.join(map(_shown, accepted))}")

    def finish(self, known: frozenset[str] = INERT) -> None:
        """Refuse what changes the function and was not read, and every name that nobody knows."""
        for name, accepted in OFF.items():
            if name in self.values and name not in self.read:
                self.only(name, *accepted)
        unknown = [name for name in self.values if name not in self.read | known]
        if unknown:
            raise ConfigError(
                f"{self.where} has a field {unknown[0]!r} = {_shown(self.values[unknown[0]])} that models of this family are "
                f"not known to have, so that it cannot be honoured.{suggest(unknown[0], self.read | known)} Take it out if it "
                "does not change what the model computes"
            )

    def fault(self, name: str, value: Any, what: str) -> ConfigError:
        """Return the error that says what is wrong with a field."""
        return ConfigError(f"{self.where}: {name} = {_shown(value)} {what}")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:77] + "..."
