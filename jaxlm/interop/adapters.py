"""Low-rank adapters as PEFT stores them: under the names of Hugging Face's modules, two matrices each."""

from typing import Any

from jaxlm.errors import ConfigError
from jaxlm.interop.axes import axes
from jaxlm.interop.table import Entry, Piece, Table, settle
from jaxlm.model import lora, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.lora import LoraConfig
from jaxlm.param import Param, named_leaves

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def adapter_pieces(table: Table, model: ModelConfig, config: LoraConfig) -> dict[str, Piece]:
    """Return {their name: our leaf and how it lies in theirs} for both matrices of every adapter.

    Raises ConfigError for a weight that is no matrix of its own [outputs, inputs] there: their adapter would be another.
    """
    leaves = named_leaves(lora.adapt(transformer.spec(model), config))
    entries = {entry.leaf: entry for entry in settle(table, model, {})}
    found = {}
    for leaf, p in leaves.items():
        weight, _, part = leaf.rpartition(".")
        if f"{weight}.weight" not in leaves or part == "weight":
            continue
        _, place, *names = weight.split(".")
        entry = entries[".".join(["blocks", *names])]
        formula = _formula(entry, leaves[f"{weight}.weight"], part)
        for repeat in range(p.shape[0]):
            module = entry.name.format(layer=int(place) + repeat * model.period).removesuffix(".weight")
            name = f"{_PREFIX}{module}.{'lora_A' if part == 'down' else 'lora_B'}.weight"
            found[name] = Piece(leaf, repeat, None, name, formula, p.shape[1:])
    return found


def _formula(entry: Entry, weight: Param, part: str) -> str:
    """Return how `down` [inputs, r] lies in their A [r, inputs], or `up` [r, outputs] in their B [outputs, r]."""
    ours, theirs = axes(entry.axes).ours, axes(entry.axes).theirs
    letters = "".join(name for group in ours for name in group)
    inputs, outputs = letters[: weight.inputs], letters[weight.inputs :]
    plain = len(letters) == len(ours) and letters.isalpha() and "r" not in letters
    if not (plain and entry.name.endswith(".weight") and theirs == (tuple(outputs), tuple(inputs))):
        raise ConfigError(
            f"the adapter of {entry.leaf} cannot be written by itself: {entry.name} holds that weight together with others, or "
            "turned round. Export the merged model, without --adapters"
        )
    return f"{inputs}r -> r({inputs})" if part == "down" else f"r{outputs} -> ({outputs})r"


def adapter_config(pieces: dict[str, Piece], model: ModelConfig, config: LoraConfig) -> dict[str, Any]:
    """Return PEFT's adapter_config.json. It names no base model: that is another export's folder."""
    modules = [name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in pieces]
    if not model.moe.num_experts:  # experts may have modules of the same name, and have no adapters
        modules = [module.rpartition(".")[2] for module in modules]
    alpha = int(config.alpha) if config.alpha.is_integer() else config.alpha  # programs other than PEFT take whole ones alone
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "r": config.rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(set(modules)),
        "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "modules_to_save": None, "inference_mode": True,
    }  # fmt: skip
