"""Runs of a mixture of experts: what they record of routers, resuming, replaying, intervening, upcycling."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from records import facts

from jaxlm.errors import ConfigError, DataError
from jaxlm.experiment_file import load_experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.intervention import RouterIntervention
from jaxlm.model.moe_config import MoeConfig
from jaxlm.run.evaluate import evaluate_run
from jaxlm.run.loop import train
from jaxlm.run.open import opened

STEPS = 12


@pytest.fixture(scope="module")
def experiment(experiment_file):
    """Four experts with a balancing bias, jitter and tight capacity in the second of two layers, on 4 x 2 devices."""
    base = load_experiment(experiment_file)
    moe = MoeConfig(
        num_experts=4, experts_per_token=2, every=2, router="sigmoid", renormalize=True, capacity_factor=1.0, jitter=0.01
    )
    return dataclasses.replace(
        base, steps=STEPS, model=dataclasses.replace(base.model, moe=moe), mesh=MeshConfig(expert=2), accumulate=1,
        checkpoint=dataclasses.replace(base.checkpoint, every=5), sample=dataclasses.replace(base.sample, tokens=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def recorded(experiment, tmp_path_factory):
    """The run's folder and that of its decisions."""
    folder = tmp_path_factory.mktemp("routers")
    record = RouterIntervention(record=str(folder / "decisions"))
    train(dataclasses.replace(experiment, router=record), folder / "run")
    return folder / "run", folder / "decisions"


def rows_of(folder, split="train"):
    return [row for row in facts(folder) if row["split"] == split]


def evaluated(capsys, folder, **router):
    evaluate_run(folder, None, (), "validation", 2, 8, RouterIntervention(**router))
    return json.loads(capsys.readouterr().out)


def test_every_row_tells_what_the_routers_did(recorded):
    rows = rows_of(recorded[0])
    assert len(rows) == STEPS
    for name in ("dropped", "load_max", "load_cv", "entropy", "gate", "dead", "balance_loss", "z_loss"):
        assert all(len(row[f"router_{name}"]) == 1 for row in rows), name
    assert all(0 < row["router_dropped"][0] < 1 for row in rows)
    held_out = rows_of(recorded[0], "validation")
    assert np.shape(held_out[-1]["router_load"]) == (1, 4) and sum(held_out[-1]["router_load"][0]) == pytest.approx(1, abs=1e-3)
    assert held_out[-1]["router_dropped"] == [0.0]  # evaluation drops nothing by default
    assert (recorded[0] / "routers.png").read_bytes().startswith(b"\x89PNG")


def test_continued_after_a_kill_every_row_is_the_same_to_the_bit(recorded, experiment, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(recorded[0], folder)
    for step in (10, 12):
        shutil.rmtree(folder / "checkpoints" / str(step))
    # What is recorded is of the program, which without it may add up in another order.
    train(dataclasses.replace(experiment, router=RouterIntervention(record=str(tmp_path / "decisions"))), folder)
    assert rows_of(folder) == rows_of(recorded[0])
    with opened(folder) as again, opened(recorded[0]) as whole:
        bias = whole.params.blocks[1].moe.bias
        assert np.abs(bias).max() > 0  # state came back too, and went on
        np.testing.assert_array_equal(again.params.blocks[1].moe.bias, bias)


def test_replayed_decisions_give_the_same_run_and_only_on_the_same_data(recorded, experiment, tmp_path):
    replay = RouterIntervention(replay=str(recorded[1]))
    # Another bias rate would choose other experts from the second step on, were they not replayed.
    moe = dataclasses.replace(experiment.model.moe, bias_update_rate=0.5)
    other = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, moe=moe), router=replay, steps=STEPS)
    train(other, tmp_path / "replayed")
    # The program that is told the experts is not the one that finds them, and may add up in another order.
    replayed, first = ([r["loss"] for r in rows_of(folder)] for folder in (tmp_path / "replayed", recorded[0]))
    np.testing.assert_allclose(replayed, first, rtol=1e-6)
    with pytest.raises(DataError, match="another batch: replay needs the same data, seed"):
        train(dataclasses.replace(other, seed=5), tmp_path / "other-seed")
    with pytest.raises(DataError, match="holds no decisions for step 12"):
        train(dataclasses.replace(other, steps=STEPS + 1, optimizer=dataclasses.replace(other.optimizer, schedule="constant")),
              tmp_path / "longer")  # fmt: skip


def test_decisions_of_accumulated_microbatches_are_the_batch_s(recorded, experiment, tmp_path):
    record = RouterIntervention(record=str(tmp_path / "decisions"))
    moe = dataclasses.replace(experiment.model.moe, jitter=0.0)
    whole = dataclasses.replace(
        experiment, steps=1, model=dataclasses.replace(experiment.model, moe=moe), router=record, batch_size=16,
        optimizer=dataclasses.replace(experiment.optimizer, warmup_steps=0, schedule="constant"),
    )  # fmt: skip
    train(whole, tmp_path / "whole")
    with np.load(tmp_path / "decisions" / "00000000.npz") as stored:
        first = dict(stored)
    train(dataclasses.replace(whole, accumulate=2), tmp_path / "two")
    with np.load(tmp_path / "decisions" / "00000000.npz") as stored:
        np.testing.assert_array_equal(stored["experts"], first["experts"])
        np.testing.assert_array_equal(stored["kept"], first["kept"])
    replay = RouterIntervention(replay=str(tmp_path / "decisions"))
    train(dataclasses.replace(whole, accumulate=2, router=replay), tmp_path / "replayed")
    assert rows_of(tmp_path / "replayed")[0]["loss"] == rows_of(tmp_path / "two")[0]["loss"]


def test_interventions_at_evaluation(recorded, capsys, tmp_path):
    folder = recorded[0]
    plain = evaluated(capsys, folder, record=str(tmp_path / "plain"))
    out = evaluated(capsys, folder, knock_out=(1,), record=str(tmp_path / "out"))
    assert out["router_load"][0][1] == 0 < plain["router_load"][0][1] and out["loss"] != plain["loss"]
    without = evaluated(capsys, folder, knock_out=(1,), knock_out_by="dropping")
    assert without["router_load"][0][1] == 0 and without["loss"] != out["loss"]
    assert evaluated(capsys, folder, replay=str(tmp_path / "out"))["router_load"] == out["router_load"]
    drawn = evaluated(capsys, folder, random=True, record=str(tmp_path / "random"))
    assert np.allclose(drawn["router_load"], 0.25, atol=0.05) and drawn["loss"] != plain["loss"]
    with np.load(tmp_path / "random" / "00000000.npz") as stored:
        first, second = stored["experts"][0, ..., 0], stored["experts"][0, ..., 1]
        assert (first != second)[first < 4].all()
    nowhere = evaluated(capsys, folder, knock_out=(1,), layers=(1,))
    assert nowhere["router_load"] == out["router_load"]
    with pytest.raises(ConfigError, match=r"layer 0, which is no mixture: those are \(1,\)"):
        evaluated(capsys, folder, knock_out=(1,), layers=(0,))
    with pytest.raises(ConfigError, match="leaves 1 of 4 experts, a token visits 2"):
        evaluated(capsys, folder, knock_out=(0, 1, 2))


def test_forced_tokens_visit_the_expert_and_others_stay(recorded, capsys, tmp_path):
    folder = recorded[0]
    space = ord(" ") + 3  # byte tokens follow three special ones
    evaluated(capsys, folder, record=str(tmp_path / "plain"))
    evaluated(capsys, folder, force_tokens=(space,), force_expert=3, record=str(tmp_path / "forced"))
    with np.load(tmp_path / "plain" / "00000000.npz") as a, np.load(tmp_path / "forced" / "00000000.npz") as b:
        plain, forced = a["experts"][0], b["experts"][0]
    moved = (forced != plain).any(axis=-1)
    assert moved.any() and (forced[moved][:, 0] == 3).all() and not moved.all()
    assert (forced[..., 0] != forced[..., 1])[plain[..., 0] < 4].all()


def test_a_frozen_router_keeps_its_weights(experiment, tmp_path):
    frozen = dataclasses.replace(experiment, router=RouterIntervention(freeze=True))
    free = {}
    for name, chosen in (("begin", dataclasses.replace(frozen, steps=4)), ("end", frozen)):
        chosen = dataclasses.replace(chosen, optimizer=dataclasses.replace(chosen.optimizer, schedule="constant"))
        train(chosen, tmp_path / name)
        with opened(tmp_path / name) as run:
            free[name] = np.asarray(run.params.blocks[1].moe.router), np.asarray(run.params.blocks[1].moe.experts.up)
    np.testing.assert_array_equal(free["begin"][0], free["end"][0])
    assert np.abs(free["begin"][1] - free["end"][1]).max() > 1e-3


def test_upcycled_from_a_dense_run_the_first_step_has_the_dense_loss(finished, experiment_file, tmp_path):
    base = load_experiment(experiment_file)
    base = dataclasses.replace(base, steps=2, init_from=str(finished), sample=dataclasses.replace(base.sample, tokens=0),
                               optimizer=dataclasses.replace(base.optimizer, warmup_steps=0))  # fmt: skip
    moe = MoeConfig(num_experts=4, experts_per_token=2, renormalize=True, capacity_factor=None)
    sparse = dataclasses.replace(base, model=dataclasses.replace(base.model, moe=moe))
    train(base, tmp_path / "dense")
    train(sparse, tmp_path / "sparse")
    dense_rows, sparse_rows = rows_of(tmp_path / "dense"), rows_of(tmp_path / "sparse")
    assert sparse_rows[0]["loss"] == pytest.approx(dense_rows[0]["loss"], rel=1e-5)
    assert dense_rows[0]["loss"] < rows_of(finished)[0]["loss"] - 1  # begun from what was learnt
    raw = dataclasses.replace(moe, renormalize=False)
    with pytest.raises(ConfigError, match="only where a token's gates add up to 1"):
        train(dataclasses.replace(base, model=dataclasses.replace(base.model, moe=raw)), tmp_path / "raw")
    with pytest.raises(ConfigError, match=r"differs in model\.hidden_size"):
        train(dataclasses.replace(base, model=dataclasses.replace(base.model, hidden_size=64)), tmp_path / "wide")
