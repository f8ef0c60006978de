"""A run on preferences: what it begins with, its reference on disk or beside it, and that it goes on to the bit."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from records import TIMES, facts, kill_when

from jaxlm.cli import main
from jaxlm.config import to_dict
from jaxlm.data.prepare import DataConfig, prepare
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.lora import LoraConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run.directory import load_config
from jaxlm.run.display import console
from jaxlm.run.loop import train
from jaxlm.run.metrics import read_rows
from jaxlm.run.reference import with_reference
from jaxlm.run.setup import set_up
from jaxlm.train.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Forty prompts, each with the right sum and a wrong one."""
    file = tmp_path_factory.mktemp("pairs") / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 7)} for a in range(5) for b in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def dpo(finished, pairs):
    """DPO from the finished run of conftest.py."""
    return Experiment(
        name="dpo", steps=12, batch_size=8, model=load_config(finished).model, init_from=str(finished),
        data=DataConfig(
            sources=(f"jsonl:{pairs}",), form="preferences", sequence_length=32, validation_fraction=0.2,
            tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, schedule="constant"),
        evaluation=EvaluationConfig(every=6), checkpoint=CheckpointConfig(every=5), sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip


def losses(rows, split="train"):
    return np.array([row["loss"] for row in rows if row["split"] == split])


def hashes(rows):
    return [row["batch_hash"] for row in rows if row["split"] == "train"]


def test_dpo_begins_at_its_reference_and_learns(dpo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxlm.commands.reading.start_jax", lambda *_, **__: None)
    rows = train(dpo, tmp_path / "dpo")
    first, last = rows[0], [row for row in rows if row["split"] == "validation"][-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5) and first["rewards/accuracies"] == 0
    assert last["loss"] < 0.6 and last["rewards/accuracies"] > 0.7 and last["rewards/margins"] > 0
    assert last["logps/chosen"] < 0 and "bits_per_byte" not in last
    assert (tmp_path / "dpo" / "curves.png").stat().st_size > 10_000
    assert "validation accuracy" in (tmp_path / "dpo" / "summary.md").read_text()

    # What the run measured, `jaxlm eval` measures again, with the reference itself: its exact divergence is known then.
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "dpo")]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("loss", "rewards/margins", "logps/chosen", "rewards/accuracies"):
        assert found[name] == pytest.approx(last[name], rel=1e-4)
    assert found["kl"] > 0 and "kl" not in last
    # The model it came from, on other pairs: measured against itself.
    itself = ["--form", "preferences", "--reference", dpo.init_from]
    assert main(["eval", dpo.init_from, "--source", dpo.data.sources[0], *itself]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_live_reference_gives_what_a_cached_one_gives(dpo, tmp_path):
    cached = train(dataclasses.replace(dpo, steps=4), tmp_path / "cached")
    live = dataclasses.replace(dpo, steps=4, preference=PreferenceConfig(reference="live"))
    beside = train(live, tmp_path / "live")
    np.testing.assert_allclose(losses(beside), losses(cached), rtol=2e-5)
    assert [row["kl"] for row in beside if row["split"] == "validation"][-1] > 0


def referred(experiment, saves):
    """Return the set-up of a run on one device, with its reference."""
    setup = set_up(experiment, prepare(experiment.data), jax.sharding.get_mesh())
    return with_reference(setup, saves, console(quiet=True))


def test_the_cached_reference_is_used_again_and_checked(dpo, tmp_path):
    cache = dataclasses.replace(dpo.data, cache=str(tmp_path / "cache"))
    dpo = dataclasses.replace(dpo, data=cache)
    whole = referred(dpo, tmp_path).reference_log_probs["train"]
    tables = sorted((tmp_path / "cache" / "references").glob("*.npy"))
    assert len(tables) == 2  # training and validation
    written = [table.stat().st_mtime_ns for table in tables]
    again = referred(dataclasses.replace(dpo, preference=PreferenceConfig(beta=0.5)), tmp_path)
    np.testing.assert_array_equal(again.reference_log_probs["train"], whole)
    assert [table.stat().st_mtime_ns for table in tables] == written

    # What was interrupted goes on where it was: of a table whose beginning is there, what is not looked at stays as it is.
    table = max(tables, key=lambda table: table.stat().st_size)

    def begun(changed):
        rows = np.concatenate([whole[:12], np.full_like(whole[12:], np.nan)])
        rows[changed] += 1.0
        table.unlink()
        with open(table.with_suffix(".partial"), "wb") as file:
            np.save(file, rows)
        return referred(dataclasses.replace(dpo, batch_size=2), tmp_path).reference_log_probs["train"]

    np.testing.assert_allclose(
        (begun(slice(2, 4)) - whole).sum(axis=1), np.isin(np.arange(len(whole)), (2, 3)) * 2.0, atol=1e-4
    )
    np.testing.assert_allclose(begun(slice(0, 12)), whole, atol=1e-4)  # damaged

    np.save(table, whole + 1.0)
    with pytest.raises(CheckpointError, match=r"holds .* and the reference now gives .* Remove it"):
        referred(dpo, tmp_path)
    np.save(table, np.full_like(whole, np.nan))  # no numbers: as good as none
    np.testing.assert_allclose(referred(dpo, tmp_path).reference_log_probs["train"], whole, atol=1e-4)


def test_a_run_goes_on_with_the_reference_it_began_with(dpo, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "base")
    dpo = dataclasses.replace(dpo, steps=1, init_from=str(tmp_path / "base"), evaluation=EvaluationConfig(batches=1))
    train(dpo, tmp_path / "dpo")
    saves = tmp_path / "base" / "checkpoints"
    assert sorted(int(save.name) for save in saves.iterdir()) == [21, 28, 30]
    shutil.copytree(saves / "21", saves / "99")  # the other run went on: what this one began with is still there
    assert referred(dpo, tmp_path / "dpo" / "checkpoints").reference_described["step"] == 30
    shutil.rmtree(saves / "30")
    with pytest.raises(ConfigError, match=r"was measured against step 30 of .* which is gone or changed"):
        train(dataclasses.replace(dpo, steps=2), tmp_path / "dpo", allow_config_change=True)


@pytest.mark.parametrize("changes", [
    {"preference": PreferenceConfig(loss="simpo", beta=2.0), "init_from": ""},
    {"preference": PreferenceConfig(reference="live"), "lora": LoraConfig(rank=2), "accumulate": 2, "batch_size": 16},
    {"preference": PreferenceConfig(loss="orpo"), "init_from": "", "moe": MoeConfig(num_experts=4)},
], ids=["simpo", "lora", "mixture"])  # fmt: skip
def test_other_losses_adapters_and_mixtures(dpo, tmp_path, capsys, monkeypatch, changes):
    moe = changes.pop("moe", None)
    experiment = dataclasses.replace(dpo, steps=3, **changes)
    if moe:
        experiment = dataclasses.replace(experiment, model=dataclasses.replace(dpo.model, moe=moe))
    rows = train(experiment, tmp_path / "run")
    assert np.all(np.isfinite(losses(rows))) and losses(rows)[-1] < losses(rows)[0]
    if experiment.lora.rank:  # its reference is its own base, wherever that came from
        assert losses(rows)[0] == pytest.approx(math.log(2), abs=1e-6)
        monkeypatch.setattr("jaxlm.commands.reading.start_jax", lambda *_, **__: None)
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"init_from": "/nowhere"}))
        capsys.readouterr()
        assert main(["eval", str(tmp_path / "run")]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["loss"] == pytest.approx(losses(rows, "validation")[-1], rel=1e-4) and found["reference"]["base"]


def test_kto_learns_from_labels(dpo, pairs, tmp_path, capsys, monkeypatch):
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    labelled = [
        {"prompt": row["prompt"], "response": row[name], "label": name == "chosen"}
        for row in rows
        for name in ("chosen", "rejected")
    ]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    data = dataclasses.replace(dpo.data, sources=(f"jsonl:{file}",), form="labels")
    experiment = dataclasses.replace(dpo, data=data, preference=PreferenceConfig(loss="kto"))
    rows = train(experiment, tmp_path / "kto")
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-6) and rows[0]["kto_kl"] == pytest.approx(0, abs=1e-6)
    assert losses(rows, "validation")[-1] < 0.49
    monkeypatch.setattr("jaxlm.commands.reading.start_jax", lambda *_, **__: None)
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "kto")]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(losses(rows, "validation")[-1], rel=1e-4)


def test_what_contradicts_itself_is_refused(dpo):
    with pytest.raises(ConfigError, match="--init-from"):
        dataclasses.replace(dpo, init_from="")
    with pytest.raises(ConfigError, match=r"--preference.loss to kto"):
        dataclasses.replace(dpo, data=dataclasses.replace(dpo.data, form="labels"))
    with pytest.raises(ConfigError, match="z_loss"):
        dataclasses.replace(dpo, z_loss=1e-4)


def test_killed_it_goes_on_to_the_bit(dpo, tmp_path):
    file = tmp_path / "dpo.json"
    file.write_text(json.dumps(to_dict(dataclasses.replace(dpo, steps=60, checkpoint=CheckpointConfig(every=10)))))

    def start(folder):
        command = [
            sys.executable,
            "-m",
            "jaxlm",
            "train",
            str(file),
            "--run-dir",
            str(tmp_path / folder),
            "--mesh.cpu-devices",
            "2",
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(folder):
        process = start(folder)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return facts(tmp_path / folder)

    expected, path = finish("whole"), tmp_path / "killed" / "metrics.jsonl"
    assert len(expected) == 70 and "rewards/margins" in expected[0] and not TIMES & set(expected[0])
    assert kill_when(start("killed"), lambda: path.exists() and len(read_rows(path)) >= 23)
    assert finish("killed") == expected


def test_two_processes_are_one_run_and_make_one_reference(dpo, tmp_path):
    dpo = dataclasses.replace(dpo, steps=3, evaluation=EvaluationConfig(every=0, batches=1))
    expected = train(dataclasses.replace(dpo, mesh=MeshConfig(data=8)), tmp_path / "one")
    file, cache = tmp_path / "dpo.json", str(tmp_path / "cache")
    file.write_text(json.dumps(to_dict(dataclasses.replace(dpo, data=dataclasses.replace(dpo.data, cache=cache)))))
    command = [sys.executable, "-m", "jaxlm", "launch", str(file), "--on", "local", "--processes", "2", "--devices", "4"]
    done = subprocess.run([*command, "--run-dir", str(tmp_path / "two")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "two" / "metrics.jsonl")
    assert hashes(rows) == hashes(expected)
    np.testing.assert_allclose(losses(rows), losses(expected), rtol=1e-5)
    assert len(list((tmp_path / "cache" / "references").glob("*.npy"))) == 2
