"""`jaxlm eval --probe` end to end, on a model that copies; and `--extend` of every command that reads a run."""

import functools
import json
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from copier import COPIER, copier

from jaxlm.cli import main
from jaxlm.config import to_dict
from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment
from jaxlm.layout import make_mesh
from jaxlm.run.directory import TOKENIZER, settle_config
from jaxlm.run.open import opened
from jaxlm.run.probe import _name
from jaxlm.train.checkpoint_writer import CheckpointWriter

# A block of 32 tokens and its first 8 again, in rows of 96: the next token stands this far back where the depth is 0.
DISTANCE = 96 - 32 - 1 - 1
GROUPED = ("--extend.self-extend.group-size", "4", "--extend.self-extend.window-size", "48")


@pytest.fixture(autouse=True)
def devices_as_they_are(monkeypatch):
    """Leave JAX as the tests have set it up."""
    monkeypatch.setattr("jaxlm.commands.reading.start_jax", lambda cpu_devices, join=False: None)


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    """The directory of a run whose model says again what stood so far back."""
    folder = tmp_path_factory.mktemp("runs") / "copier"
    folder.mkdir()
    data = DataConfig(
        sources=(f"text:{texts}/*.txt",), validation_fraction=0.3, sequence_length=96,
        tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
    )  # fmt: skip
    experiment = Experiment(name="copier", steps=1, batch_size=1, model=COPIER, data=data)
    settle_config(folder, experiment, allow_change=False)
    ByteTokenizer().save(folder / TOKENIZER)
    writer = CheckpointWriter(folder / "checkpoints", keep=1)
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        described = {"jaxlm": "test", "experiment": to_dict(experiment), "tokenizer": ByteTokenizer.digest}
        writer.save_params(copier(DISTANCE), 0, described)
        writer.close()
    return folder


def ran(capsys, *arguments) -> tuple[str, str]:
    """Run a command that must succeed; return its standard output and what it told people."""
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out, " ".join(printed.err.split())


def refused(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def counted(monkeypatch):
    """What progress was told to expect, and what it was told of."""
    seen = SimpleNamespace(total=0, done=0)

    @contextmanager
    def measuring(out, total):
        def advance(amount, what):
            seen.done += amount

        seen.total = total
        yield advance

    monkeypatch.setattr("jaxlm.run.display.measuring", measuring)
    return seen


def test_every_probe_from_one_command(run, tmp_path, capsys, counted):
    (tmp_path / "found").mkdir()
    for name in ("probes.json", "needle.png", "positions.png", "mine.png"):
        (tmp_path / "found" / name).touch()
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "The code is 7. The code is ", "answer": "7"}\n')
    options = ("--lengths", "96", "68", "--depths", "0", "1", "--trials", "2", "--rows", "2", "--stride", "24")
    out, said = ran(
        capsys, "eval", run, "--probe", "positions", "short", "copy", "tasks", *options, *GROUPED, "--seed", "3",
        "--tasks", tmp_path / "tasks.jsonl", "--out", tmp_path / "found", "--whole-documents", "--batch-size", "2",
    )  # fmt: skip
    found = json.loads(out)
    assert counted.done == counted.total > 0
    assert found == json.loads((tmp_path / "found" / "probes.json").read_text())
    assert (found["extension"], found["trained_length"], found["longest"]) == ("self-extend 4/48", 96, 240)
    pictures = {path.name for path in (tmp_path / "found").iterdir()} - {"probes.json"}
    assert pictures == {"positions.png", "copy.png", "tasks.png", "mine.png"}  # needle.png was of an earlier measurement
    pictures.remove("mine.png")
    assert all((tmp_path / "found" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    for part in (
        "2 rows of 96 tokens, the beginning of a document each",
        "bits/byte s/row peak MB strided",
        "copy: tokens right",
    ):
        assert part in said

    short, long = found["positions"]
    assert (short["length"], long["length"], long["rows"], long["tokens"]) == (68, 96, 2, 192)
    assert [row["to"] - row["from"] for row in long["bins"]] == [6] * 16
    assert np.mean([row["loss"] for row in long["bins"]]) == pytest.approx(long["loss"])
    assert long["bits_per_byte"] == pytest.approx(long["loss"] / np.log(2))  # a byte a token
    assert short["strided"]["tokens"] == 192 and short["seconds"] > 0
    assert 0 < short["memory"]["temporary"] < long["memory"]["temporary"] < long["memory"]["peak"]
    at_48, _, at_96 = found["short"]["lengths"]
    assert (at_48["length"], at_48["fits"], at_48["greatest"], at_48["mean"]) == (48, True, 0.0, 0.0)
    assert not at_96["fits"] and abs(at_96["greatest"]) > 1 and found["short"]["exact_to"] == 48
    assert [(cell["length"], cell["depth"], cell["tasks"]) for cell in found["tasks"]] == [(32, 0.0, 1)]
    (wrong,) = found["wrong"].pop("tasks")
    assert not found["wrong"] and wrong["expected"] == "7" != wrong["given"]
    assert (wrong["length"], wrong["depth"], len(wrong["tokens"])) == (29, 0.0, 1)
    assert found["source"] == "validation" and len(found["sources_read"]) == 1 and found["sources_read"][0].startswith("text:")


def test_a_model_that_copies_is_seen_to(run, capsys, counted):
    out, said = ran(capsys, "eval", run, "--probe", "copy", "--depths", "0", "1", "--trials", "2")
    assert "copy: rows of 48 tokens are left out, for copies of 32 tokens need rows of 65 or more" in said
    assert counted.done == counted.total > 0
    near, far = json.loads(out)["copy"][::-1]
    assert far["accuracy"] == far["token_accuracy"] == 1 and near["accuracy"] == 0
    (folder,) = (run / "probes").glob("plain-????????")
    assert json.loads((folder / "probes.json").read_text())["copy"] == [far, near]
    assert "depth 96 0 100 1" in said
    named = functools.partial(dict, probes={"out": "a", "trials": 2}, settings={}, step=0, source="train", batch_size=0)
    one, *others = (
        _name(named(extension="yarn x4", **changed))
        for changed in ({}, {"step": 1}, {"source": ["text:a"]}, {"settings": {"a": 1}}, {"probes": {"out": "a", "trials": 3}})
    )
    assert one.startswith("yarn-x4-") and len({one, *others}) == 5
    assert _name(named(extension="yarn x4", probes={"out": "", "trials": 2})) == one


def test_a_change_that_must_not_be_is_told_of_after_all_was_written(run, tmp_path, capsys, monkeypatch):
    changed = np.array([[0.0, np.nan, 0.25]], np.float32)
    monkeypatch.setattr("jaxlm.run.probe.short_context", lambda *args: changed)
    said = refused(
        capsys, "eval", run, "--probe", "short", "--lengths", "40", "96", "--rows", "1", *GROUPED, "--out", tmp_path / "found"
    )
    assert "yes, and is not" in said and "changes losses in rows of 40, 48 tokens, and must leave all up to 48" in said
    text = (tmp_path / "found" / "probes.json").read_text()
    assert "NaN" not in text and [row["greatest"] for row in json.loads(text)["short"]["lengths"]] == [None] * 3


def test_what_cannot_be_probed_says_the_fix_before_a_device_is_touched(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *args: pytest.fail("a device was touched"))
    probe = ("eval", run, "--probe")
    assert "give --probe too" in refused(capsys, "eval", run, "--lengths", "96")
    assert "--probe tasks and --tasks FILE go together" in refused(capsys, *probe, "tasks")
    assert "--batches has no part in --probe" in refused(capsys, *probe, "copy", "--batches", "2")
    assert "give --extend options too" in refused(capsys, *probe, "short")
    scaled = ("--extend.rope-scaling.kind", "yarn", "--extend.rope-scaling.factor", "4")
    assert "give one of --lengths up to 96" in refused(capsys, *probe, "short", "--lengths", "97", *scaled)
    assert "--batch-size -1 must be 0 or more" in refused(capsys, *probe, "copy", "--batch-size", "-1")
    assert "--stride 49 is more than a window of 48" in refused(capsys, *probe, "positions", "--stride", "49")
    assert "need rows of 65 or more, not 48" in refused(capsys, *probe, "copy", "--lengths", "48", "96")
    assert "take --extend.self-extend.group-size" in refused(capsys, *probe, "copy", "--lengths", "241", *GROUPED)
    assert "Lower --lengths" in refused(capsys, *probe, "positions", "--lengths", "9999999")
    assert "no such file" in refused(capsys, *probe, "positions", "--source", f"text:{tmp_path}/none")
    assert "without any filler" in refused(capsys, *probe, "passkey")
    (tmp_path / "file").touch()
    assert "Name another with --out" in refused(capsys, *probe, "copy", "--lengths", "96", "--out", tmp_path / "file" / "in")
    window = ("--extend.self-extend.group-size", "4", "--extend.self-extend.window-size", "50")
    for command in (("eval",), ("sample",), ("chat",), ("score", "--tokens", tmp_path / "rows.npy")):
        assert "must be a multiple of group_size = 4" in refused(capsys, command[0], run, *command[1:], *window)


def test_a_run_is_opened_as_an_extension_has_it(run, tmp_path, capsys):
    from jaxlm.model.extension import Extension
    from jaxlm.model.rope_config import SelfExtend

    grouped = Extension(self_extend=SelfExtend(group_size=4, window_size=48))
    with opened(run, extension=grouped) as open_run:
        assert open_run.trained == COPIER.for_platform("cpu") != open_run.model == grouped.applied(open_run.trained)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).integers(3, 259, (1, 90)))
    plain, extended, windowed = (
        json.loads(ran(capsys, "score", run, "--tokens", tmp_path / "rows.npy", *options)[0])["log_probs"]
        for options in ((), GROUPED, ("--extend.attention-window", "8"))
    )
    assert plain[:48] == pytest.approx(extended[:48], abs=1e-3) and plain != pytest.approx(extended, abs=1e-3)
    assert plain != pytest.approx(windowed, abs=1e-3)
    prompt = "".join(chr(97 + number % 26) for number in range(96))
    said = refused(capsys, "sample", run, "--prompt", prompt)
    assert "more than model.max_length = 96: shorten it, or see --extend.self-extend" in said
    written, _ = ran(capsys, "sample", run, "--prompt", prompt, "--tokens", "3", "--temperature", "0", *GROUPED)
    assert len(written.strip()) > 96
    values = json.loads(ran(capsys, "eval", run, "--batches", "1", *GROUPED)[0])
    assert values["extension"] == "self-extend 4/48" and np.isfinite(values["loss"])
