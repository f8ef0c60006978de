"""A run from start to finish, and what can be done with it afterwards."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from records import facts

from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.decode.beam import Beams
from jaxlm.decode.sampling import Sampling
from jaxlm.errors import CheckpointError, ConfigError, DataError, DivergedError, JaxlmError
from jaxlm.experiment_file import load_experiment
from jaxlm.layout import MESH_AXES, Layout, MeshConfig
from jaxlm.run.directory import load_config
from jaxlm.run.evaluate import evaluate_run
from jaxlm.run.loop import train
from jaxlm.run.metrics import read_rows
from jaxlm.run.open import opened
from jaxlm.run.sample import Prompt, Wanted, beams_of, room_for, sample_run
from jaxlm.run.score import row_logits, score_rows
from jaxlm.run.standing import standing
from jaxlm.train.saved import saved_steps


def test_a_run_leaves_a_record_curves_checkpoints_and_a_sample(finished):
    rows = read_rows(finished / "metrics.jsonl")
    train_rows = [r for r in rows if r["split"] == "train"]
    held_out = [r for r in rows if r["split"] == "validation"]
    assert [r["step"] for r in train_rows] == list(range(30)) and [r["step"] for r in held_out] == [10, 20, 30]
    assert {"loss", "bits_per_byte", "batch_hash", "tokens_per_second", "gradient_norm", "learning_rate"} <= set(train_rows[0])
    assert held_out[-1]["bits_per_byte"] < train_rows[0]["bits_per_byte"] - 1
    # A byte-level token is a byte, but for the end of a document, which stands for none.
    assert train_rows[5]["bits_per_byte"] == pytest.approx(train_rows[5]["loss"] / np.log(2), rel=0.02)
    assert len({r["batch_hash"] for r in train_rows}) == 30
    assert saved_steps(finished / "checkpoints") == [21, 28, 30]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    summary = (finished / "summary.md").read_text()
    assert "validation bits per byte" in summary and "def " in summary
    assert any((finished / "tensorboard").iterdir())
    start = json.loads((finished / "run.json").read_text())["starts"][0]
    assert start["mesh"] == dict.fromkeys(MESH_AXES, 1) | {"data": 8} and start["processes"] == 1
    assert start["versions"]["jax"] == jax.__version__
    assert start["config_digest"]


def test_a_finished_run_is_left_as_it_is(finished):
    before = facts(finished)
    train(load_config(finished), finished)
    assert facts(finished) == before


def test_continuing_on_another_mesh_gives_the_same_batches_and_near_losses(finished, experiment_file, tmp_path):
    experiment = load_experiment(experiment_file)
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(data=4, model=2), layout=Layout(vocab=None))  # 259 is odd
    folder = tmp_path / "moved"
    shutil.copytree(finished, folder)
    for step in (28, 30):
        shutil.rmtree(folder / "checkpoints" / str(step))
    train(experiment, folder)
    for ours, theirs in zip(facts(folder), facts(finished), strict=True):
        assert ours.get("batch_hash") == theirs.get("batch_hash")
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_a_changed_config_is_refused_with_the_difference(finished, experiment_file):
    changed = dataclasses.replace(load_experiment(experiment_file), seed=5, steps=31)
    with pytest.raises(
        ConfigError, match=r"steps: 30 in the run, 31 now[\s\S]*seed: 0 in the run, 5 now[\s\S]*--allow-config-change"
    ):
        train(changed, finished)
    assert load_config(finished).seed == 0


def test_a_refused_start_does_not_bind_the_mended_one(experiment_file, tmp_path):
    wrong = dataclasses.replace(load_experiment(experiment_file), batch_size=6, steps=4)
    with pytest.raises(ConfigError, match="set --batch-size 8"):
        train(wrong, tmp_path / "run")
    rows = train(dataclasses.replace(wrong, batch_size=8), tmp_path / "run")
    assert len([r for r in rows if r["split"] == "train"]) == 4


def test_an_allowed_change_continues(finished, experiment_file, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(finished, folder)
    rows = train(dataclasses.replace(load_experiment(experiment_file), steps=32), folder, allow_config_change=True)
    assert [r["step"] for r in rows if r["split"] == "train"] == list(range(32))


def test_damage_to_the_newest_checkpoint_and_the_record_costs_only_its_steps(finished, experiment_file, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints" / "30")
    (folder / "checkpoints" / "28" / "params" / "manifest.ocdbt").write_bytes(b"gone")
    with (folder / "metrics.jsonl").open("a") as record:
        record.write('{"step": 30, "spl')  # cut short by a crash
    train(load_experiment(experiment_file), folder)
    assert facts(folder) == facts(finished)
    said = capsys.readouterr().err
    assert "damaged" in said and "28" in said and "continuing at step 21" in said
    assert (folder / "damaged" / "28-1").is_dir()


def test_sigterm_saves_and_the_run_continues_to_the_bit(finished, experiment_file, tmp_path, capsys):
    folder = tmp_path / "stopped"

    ended = threading.Event()

    def stop_soon():
        while len(read_rows(folder / "metrics.jsonl")) < 5:
            time.sleep(0.002)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_soon, daemon=True).start()
    train(load_experiment(experiment_file), folder)
    ended.set()
    stopped = max(saved_steps(folder / "checkpoints"))
    assert "stopped and saved" in capsys.readouterr().err and stopped < 30
    assert [r["step"] for r in facts(folder) if r["split"] == "train"] == list(range(stopped))
    train(load_experiment(experiment_file), folder)
    assert facts(folder) == facts(finished)


def test_too_many_bad_steps_abort_and_keep_the_last_checkpoint(experiment_file, tmp_path):
    experiment = load_experiment(experiment_file)
    wild = dataclasses.replace(experiment.optimizer, learning_rate=1e30, clip=0.0, warmup_steps=0, schedule="constant")
    with pytest.raises(DivergedError, match=r"10 steps in a row.*Lower --optimizer.learning-rate"):
        train(dataclasses.replace(experiment, optimizer=wild, steps=60), tmp_path / "wild")
    assert read_rows(tmp_path / "wild" / "metrics.jsonl")[-1]["skipped_in_a_row"] == 10
    assert standing(tmp_path / "wild").diverged


def test_two_processes_cannot_train_in_one_directory(finished, experiment_file):
    import fcntl

    with (finished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is training"):
            train(load_experiment(experiment_file), finished)


def test_eval_on_the_runs_own_text_and_on_another(finished, tmp_path, capsys):
    evaluate_run(finished, None, (), "validation", 2, 0)
    own = json.loads(capsys.readouterr().out)
    last = [r for r in read_rows(finished / "metrics.jsonl") if r["split"] == "validation"][-1]
    assert own["step"] == 30 and own["loss"] == pytest.approx(last["loss"], rel=1e-5)
    text = "import os\n\n\ndef main():\n    return os.getcwd()\n" * 30
    (tmp_path / "other.txt").write_text(text)
    evaluate_run(finished, 28, (f"text:{tmp_path}/other.txt",), "validation", 0, 3)
    other = json.loads(capsys.readouterr().out)
    assert other["tokens"] == len(text) + 1 and other["step"] == 28
    assert other["bits_per_byte"] == pytest.approx(other["loss"] / np.log(2) * (len(text) + 1) / len(text))
    with pytest.raises(CheckpointError, match="no checkpoint of step 3: it has 21, 28, 30"):
        evaluate_run(finished, 3, (), "validation", 0, 0)


def test_score(finished, tmp_path, capsys):
    rows = np.random.default_rng(0).integers(0, 259, (3, 11))
    np.save(tmp_path / "rows.npy", rows)
    score_rows(finished, tmp_path / "rows.npy", tmp_path / "logits.npy", None, 2)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    logits = np.load(tmp_path / "logits.npy")
    assert logits.shape == (3, 11, 259) and logits.dtype == np.float32
    with opened(finished) as run:
        np.testing.assert_allclose(logits, row_logits(run.params, rows, run.model, run.experiment.layout), atol=1e-5)
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[:, :-1])), rows[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose([r["log_probs"] for r in printed], expected, atol=1e-5)
    np.testing.assert_allclose([r["log_prob"] for r in printed], expected.sum(-1), rtol=1e-5)
    for bad, message in (
        (rows + 100, "this model knows 0 to 258"),
        (rows * 1.0, "integer"),
    ):
        np.save(tmp_path / "bad.npy", bad)
        with pytest.raises(DataError, match=message):
            score_rows(finished, tmp_path / "bad.npy", None, None, 2)
    np.save(tmp_path / "long.npy", np.ones((1, 70), int))
    score_rows(finished, tmp_path / "long.npy", None, None, 2)
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["log_probs"]) == 69 and "at most 64, as it was trained" in " ".join(printed.err.split())
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DataError, match="not a NumPy array"):
        score_rows(finished, tmp_path / "text.npy", None, None, 2)


def test_sample_streams_what_it_returns_and_repeats_by_seed(finished, capsys):
    texts = []
    for seed in (1, 1, 2):
        sample_run(finished, Wanted(prompts=("import ",), tokens=12, seed=seed))
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("import ")
    sample_run(finished, Wanted(prompts=("import ",), tokens=12, seed=1, json=True))
    row = json.loads(capsys.readouterr().out)
    assert f"{row['prompt']}{row['text']}\n" == texts[0] and row["log_prob"] == pytest.approx(sum(row["log_probs"]))
    sample_run(finished, Wanted(prompts=("a", "b"), tokens=5, samples=2))
    assert capsys.readouterr().out.count("--- ") == 4


def test_sample_chooses_the_best_and_reads_prompts_from_files(finished, tmp_path, capsys):
    def rows(**given):
        sample_run(finished, Wanted(tokens=6, json=True, **given))
        return [json.loads(line) for line in capsys.readouterr().out.strip("\n").split("\n")]

    (tmp_path / "prompts.jsonl").write_text('"def"\n{"prompt": "def"}\n{"tokens": [1, 103, 104, 105]}\n')
    drawn = rows(file=tmp_path / "prompts.jsonl", samples=3)
    assert [row["prompt"] for row in drawn] == ["def"] * 6 + [[1, 103, 104, 105]] * 3
    assert [row["text"] for row in drawn[:3]] == [row["text"] for row in drawn[3:6]] == [row["text"] for row in drawn[6:]]
    (tmp_path / "prompts.txt").write_bytes("\ufeffdef\r\n\n".encode())
    chosen = rows(file=tmp_path / "prompts.txt", best_of=3, best_by="total", batch_size=2)
    assert chosen[0]["log_prob"] == pytest.approx(max(row["log_prob"] for row in drawn[:3]), abs=1e-4)
    searched = rows(prompts=("def",), beams=Beams(count=3, length_penalty=0.0), samples=2)
    assert searched[0]["score"] == pytest.approx(searched[0]["log_prob"], abs=1e-4)
    assert searched[0]["score"] >= searched[1]["score"]
    (tmp_path / "prompts.txt").write_bytes("a\u2028b\x0cc\n".encode())
    assert [row["prompt"] for row in rows(file=tmp_path / "prompts.txt")] == ["a\u2028b\x0cc"]
    (tmp_path / "prompts.jsonl").write_text('"def"\n{"text": 3}\n')
    (tmp_path / "half.jsonl").write_text('\n"a\\ud800"\n')
    for wrong, message in (
        ({"file": tmp_path / "prompts.jsonl"}, "prompts.jsonl, line 2 must be a JSON string or an object"),
        ({"file": tmp_path / "none.txt"}, "none.txt cannot be read"),
        ({"best_of": 2, "samples": 3}, "--best-of 2 is fewer than --samples 3"),
        ({"beams": Beams(), "stop": ("x",)}, "takes neither --best-of nor --stop"),
        ({"beams": Beams(), "sampling": Sampling(top_k=3, min_p=0.1)}, "samples nothing: leave out --top-k, --min-p"),
        ({"best_by": "total"}, "give --best-of too"),
        ({"file": tmp_path / "half.jsonl"}, "half.jsonl, line 2: .* no valid Unicode"),
        ({"prompts": ("a", "\udcff")}, "--prompt, text 2: .* no valid Unicode"),
        ({"stop": ("\udcff",)}, "--stop: .* no valid Unicode"),
        ({"prompts": ("a", "b" * 1000)}, "the prompt that begins with 'bbbb.* has 100. tokens"),
        ({"chat": True}, "no chat template"),
    ):
        with pytest.raises(JaxlmError, match=message):
            rows(**wrong)
    model = load_config(finished).model
    full = [Prompt("b", [1] * (model.max_length - 4))]
    assert room_for(full, Wanted(), model) == 4 and room_for([Prompt("b", [1])], Wanted(tokens=7), model) == 7
    assert beams_of(0, None, None) is None and beams_of(2, None, "full") == Beams(count=2, early_stopping="full")
    with pytest.raises(ConfigError, match="--early-stopping says how --beams searches"):
        beams_of(0, None, "full")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="is not a run directory"), opened(tmp_path):
        pass
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"), opened(tmp_path):
        pass
    (tmp_path / "config.json").write_text('{"nme": 3}')
    with pytest.raises(CheckpointError, match="Did you mean 'name'"), opened(tmp_path):
        pass


def test_the_runs_tokenizer_is_its_own(finished):
    tokenizer = load_tokenizer(finished / "tokenizer.model")
    assert tokenizer.decode(tokenizer.encode("naïve\n")) == "naïve\n"
