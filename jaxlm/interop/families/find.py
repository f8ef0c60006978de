"""The families that are known, and which of them a configuration or a model belongs to."""

from collections.abc import Mapping
from typing import Any

from jaxlm.errors import ConfigError, suggest
from jaxlm.interop.families import gemma, gpt, llama, mixtures, mpt
from jaxlm.interop.families.family import Family, check_as_trained
from jaxlm.model.config import ModelConfig

# In the order in which export tries them: the plainest that holds a model is what most programs can read.
FAMILIES = (
    llama.LLAMA_FAMILY, llama.MISTRAL_FAMILY, llama.QWEN2_FAMILY, llama.QWEN3_FAMILY, llama.OLMO2_FAMILY, gpt.GPT2_FAMILY,
    gpt.GPT_NEOX_FAMILY, mpt.MPT_FAMILY, llama.STABLELM_FAMILY, gemma.GEMMA_FAMILY, gemma.GEMMA2_FAMILY,
    gemma.GEMMA3_FAMILY, mixtures.MIXTRAL_FAMILY, mixtures.QWEN3_MOE_FAMILY,
)  # fmt: skip


def family_of(config_json: Mapping[str, Any]) -> Family:
    """Return the family that a config.json names as its `model_type`."""
    if not isinstance(config_json, Mapping):
        raise ConfigError("config.json must hold an object of named fields")
    by_type = {name: family for family in (*FAMILIES, gemma.GEMMA3_IMAGES) for name in family.model_types}
    named = config_json.get("model_type")
    if not isinstance(named, str) or named not in by_type:
        known = [name for family in FAMILIES for name in family.model_types]
        hint = suggest(named, known) if isinstance(named, str) else ""
        raise ConfigError(f"config.json: model_type = {named!r:.80} is none that jaxlm reads: {', '.join(known)}.{hint}")
    return by_type[named]


def family_for(model: ModelConfig) -> Family:
    """Return the first family that holds the model's every value; raise ConfigError with each one's reason otherwise."""
    check_as_trained(model)
    reasons = []
    for family in FAMILIES:
        try:
            family.write(model)
        except ConfigError as fault:
            reasons.append(str(fault))
        else:
            return family
    raise ConfigError("no family of Hugging Face models holds this one:\n  " + "\n  ".join(reasons))
