"""A run with a rule, a scheme and an objective of one's own: resumed, read and refused like any other."""

import dataclasses
import json
import shutil

import jax
import pytest

from jaxlm import function_file
from jaxlm.analysis.decisive import identity
from jaxlm.cli import main
from jaxlm.config import digest as digest_of
from jaxlm.config import to_dict
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import changed_fields
from jaxlm.experiment_file import load_experiment
from jaxlm.function_file import full_digest, load
from jaxlm.layout import MeshConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.run.evaluate import evaluate_run
from jaxlm.run.initial import chosen_anew, same_function
from jaxlm.run.loop import train
from jaxlm.run.metrics import read_rows
from jaxlm.run.open import opened
from jaxlm.run.preflight import check_functions
from jaxlm.run.show import show_experiment
from jaxlm.sweep.trials import deciding

STEPS = 4
TIMES = {"tokens_per_second", "step_seconds", "data_wait_seconds"}
FILE = """
import jax
import jax.numpy as jnp
from jaxlm.objective import language_model


def route(logits_BLE, token):
    return jax.nn.one_hot((token.tokens + token.layer) % 4, 4)


def rotate(x_BLNH, positions_BL, part):
    at = positions_BL[:, :, None, None].astype(jnp.float32)
    return x_BLNH * 1.01 ** (-at if part.keys else at)


def loss(params, batch, config, layout, **settings):
    total, sums = language_model.loss(params, batch, config, layout, **settings)
    return 1.5 * total, sums
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with the file in it."""
    monkeypatch.chdir(tmp_path)
    function_file._PLACES.clear()  # where other tests had the same file
    load.cache_clear()
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


def of(experiment_file, **changes):
    """Return the tiny experiment with all three functions, on 4 x 2 devices."""
    base = load_experiment(experiment_file)
    moe = MoeConfig(num_experts=4, every=2, router="mine.py:route")
    model = dataclasses.replace(base.model, moe=moe, positions="mine.py:rotate")
    return dataclasses.replace(
        base, model=model, steps=STEPS, objective="mine.py:loss", mesh=MeshConfig(data=4, expert=2),
        evaluation=dataclasses.replace(base.evaluation, every=2, batches=1),
        checkpoint=dataclasses.replace(base.checkpoint, every=2), sample=dataclasses.replace(base.sample, tokens=0),
        **changes,
    )  # fmt: skip


def rows(folder, split):
    found = [row for row in read_rows(folder / "metrics.jsonl") if row["split"] == split]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def test_trained_resumed_read_and_refused(home, experiment_file, capsys):
    experiment, run = of(experiment_file), home / "run"
    train(experiment, run)
    whole = rows(run, "train")
    assert len(whole) == STEPS and all(1.4 < row["objective"] / row["loss"] < 1.8 for row in whole)
    assert all(row["objective"] > row["loss"] for row in rows(run, "validation"))
    digest = experiment.objective.rpartition("@")[2]
    assert (run / "functions" / digest / "mine.py").read_text() == FILE

    shutil.rmtree(run / "checkpoints" / str(STEPS))
    train(of(experiment_file), run)
    assert rows(run, "train") == whole

    capsys.readouterr()
    evaluate_run(run, None, (), "validation", 1, 0)
    told = json.loads(capsys.readouterr().out)
    validated = rows(run, "validation")[-1]
    assert told["loss"] == pytest.approx(validated["loss"], rel=1e-5)
    assert told["objective"] == pytest.approx(validated["objective"], rel=1e-5)

    (home / "mine.py").write_text(FILE + "# a word\n")
    with pytest.raises(ConfigError, match=rf"router: 'mine.py:route@{digest}' in the run, 'mine.py:route@[0-9a-f]+' now"):
        train(of(experiment_file), run)
    load.cache_clear()  # as another process would find it
    with pytest.raises(CheckpointError, match=rf"has changed: .*functions.{digest}.mine.py is how it was"):
        evaluate_run(run, None, (), "validation", 1, 0)
    (home / "mine.py").unlink()
    with pytest.raises(CheckpointError, match=r"no file mine.py.* copy it to mine.py if you trust it"):
        evaluate_run(run, None, (), "validation", 1, 0)


def test_faults_are_found_before_a_device_is_touched(home, experiment_file, monkeypatch):
    experiment = of(experiment_file)
    (home / "wrong.py").write_text(FILE.replace("1.5 *", "batch.position *"))
    wrong = dataclasses.replace(experiment, objective="wrong.py:loss")
    with pytest.raises(ConfigError, match="reads rows of tokens, and data.form = 'preferences' compares pairs"):
        dataclasses.replace(wrong, data=dataclasses.replace(wrong.data, form="preferences"), init_from="runs/x")
    monkeypatch.setattr(jax, "devices", None)
    check_functions(experiment)
    for call in (lambda: check_functions(wrong), lambda: show_experiment(wrong, 8), lambda: train(wrong, home / "run")):
        with pytest.raises(ConfigError, match=r"'wrong.py:loss@\w+' fails: AttributeError: .*position.*wrong.py, line"):
            call()
    assert not (home / "run").exists()


def test_the_same_function_elsewhere_is_the_same(home, experiment_file):
    experiment = of(experiment_file)
    (home / "moved").mkdir()
    (home / "mine.py").rename(home / "moved" / "mine.py")
    moved = dataclasses.replace(experiment, objective="moved/mine.py:loss")
    assert moved.objective != experiment.objective and not changed_fields(experiment, moved)
    (home / "moved" / "mine.py").write_text(FILE + "#")
    assert len(changed_fields(experiment, dataclasses.replace(experiment, objective="moved/mine.py:loss"))) == 1


def test_code_that_came_with_a_run_is_not_run(home, experiment_file, capsys, monkeypatch):
    monkeypatch.setenv("JAXLM_CACHE", str(home / "cache"))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # what commands set before the first device is taken
    experiment = of(experiment_file)
    stuff = home / "stuff"
    (stuff / "checkpoints").mkdir(parents=True)
    (stuff / "mine.py").write_text(f"open('was run', 'w').close()\n{FILE}")
    digest = full_digest("stuff/mine.py:rotate")[:8]
    values = to_dict(dataclasses.replace(experiment, mesh=MeshConfig()))
    values["model"]["moe"]["router"], values["objective"] = "softmax", ""
    values["model"]["positions"] = f"stuff/mine.py:rotate@{digest}"
    (stuff / "config.json").write_text(json.dumps(values))
    for command in ("eval", "sample", "show", "export", "train"):
        where = ("stuff",) if command in ("eval", "sample", "export") else ("stuff/config.json",)
        more = {"sample": ("--prompt", "a"), "export": ("--to", "out"), "train": ("--run-dir", "run")}.get(command, ())
        assert main([command, *where, *more]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "which you have not named yourself: read it, then `jaxlm trust stuff/mine.py:rotate`" in said, (command, said)
    for bare in ("stuff/mine.py:rotate", "elsewhere.py:rotate"):
        (stuff / "config.json").write_text(json.dumps(values | {"model": values["model"] | {"positions": bare}}))
        assert main(["eval", "stuff"]) == 2 and "has no digest" in capsys.readouterr().err
    assert not (home / "was run").exists()
    (stuff / "config.json").write_text(json.dumps(values))
    assert main(["trust", "stuff/mine.py:rotate"]) == 0
    assert "mine.py (" in capsys.readouterr().out and not (home / "was run").exists()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"), opened(stuff):
        pass
    assert (home / "was run").exists()


def test_a_moved_file_is_the_same_wherever_two_are_compared(home, experiment_file):
    experiment = of(experiment_file)
    (home / "moved").mkdir()
    (home / "mine.py").rename(home / "moved" / "mine.py")
    moe = dataclasses.replace(experiment.model.moe, router="moved/mine.py:route")
    model = dataclasses.replace(experiment.model, positions="moved/mine.py:rotate", moe=moe)
    moved = dataclasses.replace(experiment, model=model, objective="moved/mine.py:loss")
    assert experiment.model != model and same_function(experiment.model, model)
    assert chosen_anew(experiment.model, model) == model  # what a run may begin from
    assert deciding(experiment) == deciding(moved) and digest_of(experiment) == digest_of(moved)
    identities = []
    for one in (experiment, moved):
        (home / "config.json").write_text(json.dumps(to_dict(one)))
        identities.append(identity(home))
    assert identities[0] == identities[1]
