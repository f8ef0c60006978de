"""Configurations: of Hugging Face models, of runs, and the fields that a file changes."""

import dataclasses
import json
from pathlib import Path
from random import Random

from fuzz.mutate import Files, by_name, one_of
from fuzz.target import Target
from jaxlm.config import digest, flatten, from_dict, to_dict
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.experiment_file import apply_overrides, load_experiment
from jaxlm.interop.families.family import function_of
from jaxlm.interop.families.find import FAMILIES, family_of
from jaxlm.interop.safetensors import parse_json
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.model.presets import PRESETS
from jaxlm.run.directory import load_config

_REFERENCE = Path(__file__).parents[1] / "tests" / "reference"


def _family_seeds(folder: Path) -> list[Files]:
    """Return published configurations, those of the stored models, and what every family writes of a model that it holds."""
    import numpy as np

    published = json.loads((_REFERENCE / "published.json").read_text())
    found = [each.get("config", each) for each in published.values() if isinstance(each, dict)]
    for path in sorted(_REFERENCE.glob("*.npz")):
        with np.load(path) as arrays:
            found += [json.loads(str(arrays[name])) for name in arrays.files if name.endswith("/config")]
    found = [config for config in found if isinstance(config.get("model_type"), str)]
    types = {config["model_type"] for config in found}
    lacking = [family.model_types[0] for family in FAMILIES if not types & set(family.model_types)]
    assert not lacking, f"no configuration of {lacking}"
    return [{"config.json": json.dumps(config).encode()} for config in found]


def _read_family(folder: Path) -> None:
    """Read a config.json as its family does; the model, written and read again, computes the same."""
    path = folder / "config.json"
    fields = parse_json(path.read_bytes() if path.exists() else b"", path)
    family = family_of(fields)
    model = family.read(fields)
    assert isinstance(model, ModelConfig)
    try:
        written = family.write(model)
    except ConfigError:
        return  # not every model that is read has a spelling there
    assert function_of(family.read(json.loads(json.dumps(written)))) == function_of(model), "another model once written"


def _experiments() -> list[Experiment]:
    """Return a small dense model's experiment, a mixture's, and a large preset's."""
    from run_folders import experiment

    plain = experiment()
    mixture = experiment(moe=MoeConfig(num_experts=4, experts_per_token=2))
    model = PRESETS["1b"]()
    tokenizer = dataclasses.replace(plain.data.tokenizer, kind="bpe", vocab_size=model.vocab_size)
    preset = dataclasses.replace(plain, model=model, data=dataclasses.replace(plain.data, tokenizer=tokenizer))
    return [plain, mixture, preset]


def _config_seeds(folder: Path) -> list[Files]:
    return [{"config.json": json.dumps(to_dict(each)).encode()} for each in _experiments()]


def _read_config(folder: Path) -> None:
    """Read the file as a run's and as an experiment's: both the same, and the same once written."""
    try:
        found = load_config(folder)
    except Exception as fault:
        try:
            load_experiment(folder / "config.json")
        except type(fault):
            raise fault from None
        except ConfigError:
            raise fault from None
        raise AssertionError("refused in a run, and accepted as an experiment") from fault
    assert load_experiment(folder / "config.json") == found
    written = json.loads(json.dumps(to_dict(found)))
    again = from_dict(Experiment, written)
    assert again == found, "another once written"
    assert len(digest(found)) == 16 and "model.vocab_size" in flatten(found)


def _override_seeds(folder: Path) -> list[Files]:
    whole = to_dict(_experiments()[1])
    some = {"mesh": {"data": 4, "model": 2}, "batch_size": 16, "model": {"remat": "none"}, "optimizer": {"learning_rate": 1e-3}}
    return [{"plan.json": json.dumps(each).encode()} for each in (some, some, whole)]


_BASE: list[Experiment] = []


def _read_overrides(folder: Path) -> None:
    if not _BASE:
        _BASE.extend(_experiments())
    found = apply_overrides(_BASE[0], folder / "plan.json")
    assert apply_overrides(found, folder / "plan.json") == found, "twice is not the same as once"


def _change(rng: Random, seeds: list[Files]) -> Files:
    return one_of(rng, seeds, by_name)


TARGETS = (
    Target("family-config", "config.json of a Hugging Face model, every family", _family_seeds, _change, _read_family),
    Target("run-config", "config.json of a run, and as an experiment", _config_seeds, _change, _read_config),
    Target("overrides", "the fields of --overrides plan.json", _override_seeds, _change, _read_overrides),
)
