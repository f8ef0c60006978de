"""Checkpoints: exact, readable anywhere, honest about damage."""

import asyncio
import gc
import logging
import sys
import types

import chex
import jax
import pytest
from models import tiny

from jaxlm import param
from jaxlm.errors import CheckpointError
from jaxlm.layout import WEIGHTS_OVER, Layout, make_mesh
from jaxlm.model import transformer
from jaxlm.train import checkpoint, checkpoint_writer
from jaxlm.train.abandoned_reads import expect_abandoned_reads
from jaxlm.train.checkpoint import newest_good, read, read_state
from jaxlm.train.checkpoint_writer import CheckpointWriter
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer
from jaxlm.train.saved import saved_steps
from jaxlm.train.step import abstract_state, init_state

SPEC = transformer.spec(tiny(num_layers=1))
OPTIMIZER = make_optimizer(OptimizerConfig(kind="muon"), 10, SPEC)
ABOUT = {"jaxlm": "test", "experiment": {"steps": 3}}


def fresh(seed=0):
    return jax.jit(lambda: init_state(SPEC, OPTIMIZER, Layout(), seed))()


def abstract():
    return abstract_state(SPEC, OPTIMIZER, Layout(), jax.sharding.get_mesh())


def write(folder, steps, keep=10, keep_every=0):
    writer = CheckpointWriter(folder, keep, keep_every)
    for step in steps:
        writer.save(fresh(step), step, ABOUT)
    writer.close()


def assert_same(a, b):
    chex.assert_trees_all_equal(jax.device_get(a), jax.device_get(b))


def test_state_comes_back_to_the_bit_on_the_same_and_on_other_meshes(tmp_path):
    with jax.set_mesh(make_mesh({"data": 4, "model": 2})):
        write(tmp_path, [3])
        assert_same(read_state(tmp_path, 3, abstract()), fresh(3))
    expected = fresh(3)
    assert_same(read_state(tmp_path, 3, abstract()), expected)
    with jax.set_mesh(make_mesh({"data": 2, "model": 4})):
        state = read_state(tmp_path, 3, abstract())
        assert state.params.embed.sharding.spec == jax.P("model", WEIGHTS_OVER)
        assert_same(state, expected)
    assert checkpoint.description(tmp_path, 3) == ABOUT


def test_parameters_can_be_read_alone(tmp_path):
    write(tmp_path, [1])
    target = param.abstract(SPEC, Layout(), jax.sharding.get_mesh())
    assert_same(read(tmp_path, 1, {"params": target})["params"], fresh(1).params)


def test_retention(tmp_path):
    write(tmp_path, [1, 2, 3, 4, 5, 6], keep=2, keep_every=3)
    assert saved_steps(tmp_path) == [3, 5, 6]


def test_what_a_killed_process_did_not_retire_the_next_does(tmp_path):
    write(tmp_path, [1, 2, 3, 4], keep=4)
    (tmp_path / "9.orbax-checkpoint-tmp-retired").mkdir()  # killed while it was removed
    CheckpointWriter(tmp_path, keep=2, keep_every=2).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


def damage_one(folder, how):
    file = max((f for f in folder.rglob("*") if f.is_file() and f.parent.name == "d"), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "cut short":
        file.write_bytes(content[: len(content) // 2])
    elif how == "one bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "missing":
        file.unlink()
    else:
        (folder / "checksums.json").write_text("{")


@pytest.mark.parametrize("how", ["cut short", "one bit", "missing", "checksums"])
def test_a_damaged_newest_is_reported_and_the_one_before_used(tmp_path, how):
    write(tmp_path / "checkpoints", [1, 2])
    damage_one(tmp_path / "checkpoints" / "2", how)
    said = []
    step, state = newest_good(
        tmp_path / "checkpoints", lambda s: read_state(tmp_path / "checkpoints", s, abstract()), said.append
    )
    assert step == 1 and len(said) == 1 and "damaged" in said[0] and "2" in said[0]
    assert_same(state, fresh(1))
    aside = checkpoint.set_aside(tmp_path / "checkpoints", 2)
    assert aside == tmp_path / "damaged" / "2-1" and aside.is_dir() and saved_steps(tmp_path / "checkpoints") == [1]


def test_damage_is_noticed_without_checksums_too(tmp_path):
    write(tmp_path, [1])
    (tmp_path / "1" / "checksums.json").unlink()
    damage_one(tmp_path / "1", "cut short")
    with pytest.raises(CheckpointError):
        read_state(tmp_path, 1, abstract())


READ = """
async def read(waiting):
    try:
        await waiting
    except GeneratorExit as fault:
        raise Exception("ended") from fault
"""


def test_reads_that_orbax_abandons_end_in_silence_and_nothing_else_does(monkeypatch, caplog):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: said.append(str(fault.exc_value)))
    expect_abandoned_reads()
    expect_abandoned_reads()
    loop = asyncio.new_event_loop()
    for file, heard in (("/x/orbax/checkpoint/serialization.py", []), ("/x/ours.py", ["ended"])):
        scope = {}
        exec(compile(READ, file, "exec"), scope)
        begun = scope["read"](asyncio.Future(loop=loop))
        begun.send(None)
        del begun
        gc.collect()
        assert said == heard
    loop.close()
    for by, message in ((None, "Event loop is closed"), (loop, "Event loop is closed"), (None, "of ours too")):
        sys.unraisablehook(types.SimpleNamespace(object=by, exc_value=RuntimeError(message)))
    assert said[1:] == ["Event loop is closed", "of ours too"]
    with caplog.at_level("ERROR"):
        logging.getLogger("asyncio").error("Future exception was never retrieved")
        logging.getLogger("asyncio").error("of ours")
    assert caplog.messages == ["of ours"]


def test_nothing_readable_is_an_error_not_a_fresh_start(tmp_path):
    write(tmp_path, [1])
    damage_one(tmp_path / "1", "cut short")
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read"):
        newest_good(tmp_path, lambda s: read_state(tmp_path, s, abstract()), lambda said: None)
    assert newest_good(tmp_path / "none", lambda s: None, print) is None


def test_another_models_checkpoint_names_the_leaf_and_both_shapes(tmp_path):
    write(tmp_path, [1])
    other = param.abstract(transformer.spec(tiny(num_layers=1, intermediate_size=64)), Layout(), jax.sharding.get_mesh())
    with pytest.raises(CheckpointError, match="params.*48.*64"):
        read(tmp_path, 1, {"params": other})
    more = param.abstract(transformer.spec(tiny(num_layers=1, tie_embeddings=False)), Layout(), jax.sharding.get_mesh())
    with pytest.raises(CheckpointError):
        read(tmp_path, 1, {"params": more})


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "model.bin").write_bytes(b"not ours")
    with pytest.raises(CheckpointError, match="not a readable checkpoint|not written by jaxlm"):
        checkpoint.description(tmp_path, 7)
    with pytest.raises(CheckpointError, match="cannot be read|has no"):
        read_state(tmp_path, 7, abstract())


def test_a_failed_save_is_told_and_the_last_good_one_kept(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, 2)
    writer.save(fresh(1), 1, ABOUT)
    writer.wait()

    def no_space(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "write_checksums", no_space)
    writer.save(fresh(2), 2, ABOUT)
    with pytest.raises(CheckpointError, match="No space left.*last good checkpoint is step 1"):
        writer.wait()

    close = writer._orbax.close

    def close_and_tell():  # as Orbax does with what a save in the background has failed with
        close()
        no_space(tmp_path)

    monkeypatch.setattr(writer._orbax, "close", close_and_tell)
    with pytest.raises(CheckpointError, match="No space left.*last good checkpoint is step 1"):
        writer.close()
