"""The command line as a newcomer meets it: every mistake is caught before a device is touched, and says the fix."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from jaxlm.cli import COMMANDS, main
from jaxlm.config import to_dict
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment_file import load_experiment
from jaxlm.experiment_mesh import check_devices
from jaxlm.model.moe import Decisions
from jaxlm.model.moe_config import MoeConfig
from jaxlm.run.decisions import write_decisions
from jaxlm.run.preflight import check_runs
from jaxlm.run.report import _held_out_facts


def run(capsys, *arguments):
    """Return (exit status, what was printed, with the line breaks of boxes undone)."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    return status, " ".join((printed.out + printed.err).replace("│", " ").split())


@pytest.fixture
def no_devices(monkeypatch):
    """Fail the test if a device is asked for."""
    import jax

    def touched(*args):
        raise AssertionError("a device was touched")

    monkeypatch.setattr(jax, "devices", touched)
    monkeypatch.setattr(jax, "device_count", touched)
    for commands in ("training", "reading", "models", "viewing"):
        monkeypatch.setattr(f"jaxlm.commands.{commands}.start_jax", lambda cpu_devices, join=False: None)


MISTAKES = {
    "a misspelt field": (("--model.num-layer", "3"), "--model.num-layers"),
    "a wrong type": (("--steps", "many"), "INT"),
    "a value out of range": (("--steps", "0"), "at least 1"),
    "heads that do not divide": (("--model.num-heads", "5"), "take 4 heads"),
    "key-value heads that do not divide": (("--model.num-kv-heads", "3"), "key-value heads"),
    "a vocabulary too small": (("--model.vocab-size", "100"), "set --model.vocab-size 259"),
    "rows too long": (("--data.sequence-length", "128"), "--model.max-length 128"),
    "microbatches that do not divide": (("--accumulate", "3"), "take accumulate = 2"),
    "a warm-up without end": (("--optimizer.warmup-steps", "40"), "set it below 30"),
    "an unknown source": (("--data.sources", "txt:book"), "text"),
    "a missing file": (("--data.sources", "text:/no/such/book.txt"), "/no/such/book.txt"),
    "an unknown choice": (("--optimizer.kind", "adam"), "adamw"),
    "weights that do not fit": (("--data.weights", "1", "2"), "one each"),
    "more visits than experts": (
        ("--model.moe.num-experts", "4", "--model.moe.experts-per-token", "5"),
        "--model.moe.experts-per-token 4",
    ),
    "gates that are always 1": (("--model.moe.num-experts", "4", "--model.moe.renormalize"), "--model.moe.no-renormalize"),
    "less than a place": (
        ("--model.moe.num-experts", "128", "--model.moe.capacity-factor", "1.0"),
        "less than one: set it to 4 or more",
    ),
    "no place at all": (("--model.moe.num-experts", "4", "--model.moe.capacity-factor", "0"), "None to drop nothing"),
    "experts that choose": (
        ("--model.moe.num-experts", "4", "--model.moe.router", "expert_choice", "--model.moe.evaluation-capacity-factor", "1"),
        "--model.moe.allow-leaks",
    ),
    "an intervention without routers": (("--router.random",), "--model.moe.num-experts"),
    "no name": (("--name", ""), "for example 'run'"),
    "a name elsewhere": (("--name", "../a/b"), "for example 'a/b'"),
    "a name that goes on a line": (("--name", "a\nb"), "for example 'ab'"),
    "half a sine": (("--model.positions", "sinusoidal", "--model.hidden-size", "33", "--model.head-dim", "8"), "size 34"),
    "a run that is not there": (("--init-from", "runs/nope"), "runs/nope is not a run directory"),
    "decisions that are not there": (
        ("--model.moe.num-experts", "4", "--router.replay", "/no/decisions"),
        "--router.record writes one",
    ),
    "no folder for decisions": (("--model.moe.num-experts", "4", "--router.record", "/dev/null/out"), "it is not a folder"),
    "an expert that is not there": (("--model.moe.num-experts", "4", "--router.knock-out", "4"), "the experts are 0 to 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_say_the_fix(mistake, experiment_file, tmp_path, capsys, no_devices):
    arguments, fix = MISTAKES[mistake]
    if mistake in ("an unknown source", "a missing file"):
        status, said = run(capsys, "data", "prepare", experiment_file, *arguments)
    else:
        status, said = run(capsys, "train", experiment_file, "--run-dir", tmp_path / "run", *arguments)
    assert status == 2 and fix in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_sources_are_looked_for_before_devices(experiment_file, tmp_path, capsys, no_devices):
    status, said = run(
        capsys, "train", experiment_file, "--run-dir", tmp_path / "run", "--data.sources", "text:/no/such/book.txt"
    )
    assert status == 2 and "/no/such/book.txt" in said


def test_an_unwritable_run_directory(experiment_file, tmp_path, capsys, no_devices):
    (tmp_path / "file").write_text("in the way")
    status, said = run(capsys, "train", experiment_file, "--run-dir", tmp_path / "file" / "run")
    assert status == 2 and "cannot be written" in said and "--run-dir" in said


def test_a_batch_that_does_not_divide_over_the_mesh(experiment_file):
    with pytest.raises(ConfigError, match=r"8 rows do not divide over mesh.data = 16: set --batch-size 16"):
        check_devices(load_experiment(experiment_file), 16)
    with pytest.raises(ConfigError, match=r"model.moe.num_experts = 6 cannot be split evenly over mesh.expert = 4.*divisor"):
        sparse = dataclasses.replace(load_experiment(experiment_file).model, moe=MoeConfig(num_experts=6))
        check_devices(
            load_experiment(experiment_file).__class__(**_with_mesh(experiment_file, expert=4) | {"model": sparse}), 8
        )
    with pytest.raises(ConfigError, match="does not make up 8 devices"):
        check_devices(load_experiment(experiment_file).__class__(**_with_mesh(experiment_file, data=3)), 8)


def _with_mesh(file, **mesh):
    from jaxlm.config import to_dict

    return to_dict(load_experiment(file)) | {"mesh": mesh}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no function experiment"),
        ("def experiment():\n    return 3", "returned a int"),
        ("def experiment():\n    return undefined", "line 2"),
        ("def experiment(:", "SyntaxError"),
        (
            "from jaxlm.model.config import ModelConfig\n\ndef experiment():\n    return ModelConfig(num_layer=3)",
            "Did you mean 'num_layers'.*line 4",
        ),
    ],
)
def test_faults_in_an_experiment_file_have_a_place(text, message, tmp_path, capsys):
    import re

    (tmp_path / "mine.py").write_text(text)
    status, said = run(capsys, "train", tmp_path / "mine.py")
    assert status == 2 and re.search(message, said), said


def test_a_missing_experiment_and_an_unknown_command(tmp_path, capsys):
    (tmp_path / "quick.py").write_text("")
    assert "Did you mean 'quick.py'" in run(capsys, "train", tmp_path / "quik.py")[1]
    assert "Did you mean 'train'" in run(capsys, "trian", "x.py")[1]
    assert run(capsys, "trian", "x.py")[0] == 2


def test_help_lists_every_field_with_its_meaning(experiment_file, capsys):
    status, said = run(capsys, "train", experiment_file, "--help")
    assert status == 0
    for field in (
        "--model.num-layers",
        "--optimizer.learning-rate",
        "--data.tokenizer.vocab-size",
        "--mesh.cpu-devices",
        "--run-dir",
    ):
        assert field in said
    assert "Blocks, each an attention and a feed-forward sub-layer." in said
    for command in COMMANDS:
        assert run(capsys, *command.split(), "--help")[0] == 0


def test_diff_and_show(experiment_file, tmp_path, capsys):
    other = tmp_path / "other.py"
    other.write_text(experiment_file.read_text().replace("steps=30", "steps=40"))
    status, said = run(capsys, "diff", experiment_file, other)
    assert status == 0 and "steps 30 40" in said
    assert run(capsys, "diff", other, other) == (0, "no difference")
    shown = subprocess.run(
        [sys.executable, "-m", "jaxlm", "show", experiment_file, "--devices", "4", "--mesh.model", "2",
         "--layout.vocab", "None"],
        capture_output=True, text=True, check=True,
        env={"COLUMNS": "220", "PATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)},
    ).stdout  # fmt: skip
    for part in ("model.num_layers", "training FLOPs a token", "blocks.0.attention.q", "embed -> data", "28,928"):
        assert part in shown, shown


def test_data_commands(experiment_file, tmp_path, capsys):
    status, said = run(capsys, "data", "prepare", experiment_file)
    assert status == 0 and "documents" in said and "validation" in said
    status, said = run(capsys, "data", "show", experiment_file, "--rows", "3")
    assert status == 0 and said.count("=== train row") == 3 and "--- document 1" in said
    status, said = run(capsys, "data", "tokenizer", experiment_file, tmp_path / "own.model")
    assert status == 0 and (tmp_path / "own.model").is_file()


OPTIONS = {
    "batches below none": (("eval", "RUN", "--batches", "-1"), "--batches -1 must be 0 or more"),
    "rows below none": (("eval", "RUN", "--batch-size", "-1"), "--batch-size -1 must be 0 or more"),
    "a split of a source": (("eval", "RUN", "--split", "train", "--source", "stdlib"), "give one of them"),
    "devices below none": (("show", "FILE", "--devices", "-1"), "--devices -1 must be 0 or more"),
    "workers below none": (("data", "prepare", "FILE", "--workers", "-1"), "--workers -1 must be 0 or more"),
    "candidates of no search": (("plan", "FILE", "--topology", "v5e:1x1", "--candidates", "3"), "--candidates is of a search"),
    "factors of no search": (("plan", "FILE", "--topology", "v5e:1x1", "--capacity-factors", "1"), "--capacity-factors is of"),
    "a stage of a search": (("plan", "FILE", "--topology", "v5e:1x1", "--search", "--stage", "code"), "leave out --stage"),
    "text for an array": (("score", "RUN", "--tokens", "FILE"), "is not a NumPy array file: np.save"),
    "a run for an experiment": (("train", "RUN"), "config.json --run-dir"),
    "a run for a model": (("import", "RUN", "--to", "OUT"), "is a run already"),
    "a model for a run": (("chat", "MODEL"), "jaxlm import"),
    "rows of a text": (("tokens", "RUN", "--text", "x", "--rows", "-1"), "--rows -1 must be 0 or more"),
    "a folder of runs": (("watch", "RUNS"), "holds 2 runs or sweeps and is none itself"),
}


@pytest.mark.parametrize("mistake", OPTIONS)
def test_options_that_cannot_be_say_the_fix(mistake, experiment_file, tmp_path, capsys, no_devices):
    words, fix = OPTIONS[mistake]
    for name in ("run", "other"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        for file in ("config.json", "run.json"):
            (tmp_path / "runs" / name / file).write_text('{"starts": []}')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    places = {"FILE": experiment_file, "RUN": tmp_path / "runs" / "run", "RUNS": tmp_path / "runs",
              "MODEL": tmp_path / "model", "OUT": tmp_path / "out"}  # fmt: skip
    status, said = run(capsys, *(places.get(word, word) for word in words))
    assert status == 2 and fix in " ".join(said.split()) and "Traceback" not in said


def test_a_run_that_is_needed_has_a_checkpoint_unless_this_one_has(experiment_file, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    experiment = dataclasses.replace(load_experiment(experiment_file), init_from=str(begun))
    (begun / "config.json").write_text(json.dumps(to_dict(experiment)))
    with pytest.raises(CheckpointError, match="init_from = .*it has no checkpoint yet"):
        check_runs(experiment, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    check_runs(experiment, tmp_path / "run")


def test_a_last_validation_that_was_not_finite_is_told():
    names = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen",
             "logps/rejected")  # fmt: skip
    for keys in (("loss", "perplexity", "bits_per_byte"), names):
        first, last = {"step": 5, **dict.fromkeys(keys, 1.0)}, {"step": 9, **dict.fromkeys(keys)}
        said = _held_out_facts(first, last)["validation loss"]
        assert said.startswith("- ") and _held_out_facts(last, first)["validation loss"].startswith("1.0000")


def test_decisions_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="what was recorded before is kept"):
        write_decisions(tmp_path / "file" / "out", 0, Decisions(*np.zeros((3, 1, 1, 1, 1))), "hash")


def test_data_of_which_nothing_is_held_out(experiment_file, tmp_path, capsys):
    status, said = run(capsys, "data", "show", experiment_file, "--data.cache", tmp_path, "--data.validation-fraction", "0",
                       "--split", "validation")  # fmt: skip
    assert status == 2 and "nothing is held out: set --data.validation-fraction" in said
