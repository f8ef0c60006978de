"""A run that trains adapters: begun from another, killed and continued, opened, exported and begun from again."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxlm import param
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.errors import ConfigError
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, SampleConfig
from jaxlm.experiment_file import load_experiment
from jaxlm.interop.safetensors import SafeTensors, read_header
from jaxlm.interop.source import open_pretrained
from jaxlm.model import lora, transformer
from jaxlm.model.lora import LoraConfig
from jaxlm.run import initial
from jaxlm.run.directory import CHECKPOINTS, TOKENIZER, load_config
from jaxlm.run.exports import export_adapters, export_run
from jaxlm.run.loop import train
from jaxlm.run.open import opened
from jaxlm.run.show import show_experiment
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer


@pytest.fixture(scope="module")
def base(experiment_file, tmp_path_factory):
    """A run of two steps of the whole model."""
    experiment = dataclasses.replace(
        load_experiment(experiment_file), steps=2, optimizer=OptimizerConfig(learning_rate=1e-2), sample=SampleConfig(tokens=0),
        evaluation=EvaluationConfig(every=0), checkpoint=CheckpointConfig(every=0),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "run"
    train(experiment, folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """A run of four steps from it, all but its adapters frozen; and its rows."""
    experiment = dataclasses.replace(
        load_config(base), steps=4, init_from=str(base), lora=LoraConfig(rank=2, alpha=8.0),
        checkpoint=CheckpointConfig(every=2, keep=3), evaluation=EvaluationConfig(every=2, batches=2),
        sample=SampleConfig(prompts=("def ",), tokens=1),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return folder, train(experiment, folder)


def leaves(folder, **options):
    with opened(folder, **options) as run:
        return jax.device_get(param.named_leaves(run.params))


def test_base_and_adapters_lie_in_the_checkpoint(adapted, base):
    folder, rows = adapted
    whole, before, merged = leaves(folder, merge=False), leaves(base), leaves(folder)
    for name, weight in before.items():
        np.testing.assert_array_equal(whole.get(f"{name}.weight", whole.get(name)), weight, err_msg=name)
    q, down, up = (whole[f"blocks.0.attention.q.{part}"] for part in ("weight", "down", "up"))
    assert merged.keys() == before.keys() and np.abs(up).max() > 1e-3
    np.testing.assert_allclose(merged["blocks.0.attention.q"], q + 4.0 * np.einsum("ldr,lrnh->ldnh", down, up), atol=1e-6)
    held_out = [row["loss"] for row in rows if row["split"] == "validation"]
    assert held_out[-1] < held_out[0]


def test_killed_it_goes_on_to_the_bit(adapted, tmp_path):
    folder, rows = adapted
    again = shutil.copytree(folder, tmp_path / "again")
    shutil.rmtree(again / CHECKPOINTS / "4")
    redone = train(dataclasses.replace(load_config(folder), sample=SampleConfig(tokens=0)), again, allow_config_change=True)
    exact = [[row[name] for name in ("step", "split", "loss")] for row in rows if "loss" in row]
    assert [[row[name] for name in ("step", "split", "loss")] for row in redone if "loss" in row] == exact
    first, second = leaves(folder, merge=False), leaves(again, merge=False)
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)


def test_export_is_that_of_the_merged_model(adapted, tmp_path):
    folder, _ = adapted
    export_run(folder, tmp_path / "out")
    merged, found = leaves(folder), open_pretrained(str(tmp_path / "out"))
    up = found.tensors.read("model.layers.1.mlp.up_proj.weight")
    np.testing.assert_array_equal(up, merged["blocks.0.mlp.up"][1].T)
    assert found.model.num_layers == 2 and len(SafeTensors(tmp_path / "out").shapes()) == len(found.tensors.shapes())


def test_adapters_by_themselves(adapted, base, tmp_path):
    folder, _ = adapted
    export_adapters(folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"][0]) == (2, 8, "down_proj")
    written, whole = read_header(tmp_path / "out" / "adapter_model.safetensors"), leaves(folder, merge=False)
    tensor = written["base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"]
    data = np.fromfile(tensor.file, np.float32, tensor.nbytes // 4, offset=tensor.start).reshape(tensor.shape)
    np.testing.assert_array_equal(data, whole["blocks.0.attention.o.down"][1].reshape(-1, 2).T)
    with pytest.raises(ConfigError, match="was trained without adapters"):
        export_adapters(base, tmp_path / "none")


def test_a_run_begins_from_merged_adapters(adapted):
    folder, _ = adapted
    experiment = dataclasses.replace(load_config(folder), init_from=str(folder))
    model = experiment.model.for_platform("cpu")
    spec = lora.adapt(transformer.spec(model), experiment.lora)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps, spec)
    tokenizer = load_tokenizer(folder / TOKENIZER).digest
    params = initial.begin(experiment, model, spec, optimizer, jax.sharding.get_mesh(), tokenizer).params
    with pytest.raises(ConfigError, match="another tokenizer than the data has: set --data.tokenizer.path"):
        initial.begin(experiment, model, spec, optimizer, jax.sharding.get_mesh(), "0")
    under, merged = param.named_leaves(jax.device_get(lora.detach(params))), leaves(folder)
    for name, weight in under.items():
        np.testing.assert_array_equal(weight, merged[name], err_msg=name)
    assert not np.any(params.blocks[0].attention.q.up) and np.any(params.blocks[0].attention.q.down)


def test_show_says_what_is_trained(adapted, capsys):
    show_experiment(load_config(adapted[0]), 8)
    trained = 2 * 2 * sum((4 * (32 + 32), 3 * (32 + 64)))
    printed = capsys.readouterr().out
    assert f"{trained:,} of " in printed and "blocks.0.mlp.down.up" in printed
