"""A pretrained model in and out: `jaxlm import`, what reads such a run, `jaxlm export`, and everything refused."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from families import stored
from gguf_files import write_model
from pretrained import fixture, write_folder

from jaxlm.cli import main
from jaxlm.interop.place import load_params
from jaxlm.interop.source import open_pretrained
from jaxlm.layout import Layout, make_mesh
from jaxlm.param import named_leaves
from jaxlm.run.directory import load_config, read_starts
from jaxlm.run.open import opened

STORED = stored("llama")
CONFIG, WEIGHTS = fixture("llama")


@pytest.fixture(autouse=True)
def devices_as_they_are(monkeypatch):
    """Leave JAX as the tests have set it up."""
    for commands in ("training", "reading", "models"):
        monkeypatch.setattr(f"jaxlm.commands.{commands}.start_jax", lambda cpu_devices, join=False: None)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A run made of a folder of several shards, without tokenizer."""
    place = tmp_path_factory.mktemp("imported")
    source = write_folder(place / "source", CONFIG, WEIGHTS, shard_bytes=10_000)
    assert len(list(source.glob("*.safetensors"))) > 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlm.commands.models.start_jax", lambda devices: None)
        assert main(["import", str(source), "--to", str(place / "run")]) == 0
    return place / "run"


def ran(capsys, *arguments) -> str:
    """Run a command that must succeed; return its standard output."""
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def refused(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_scores_are_those_of_its_home(imported, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", STORED["base/tokens"])
    out = ran(capsys, "score", imported, "--tokens", tmp_path / "rows.npy", "--logits", tmp_path / "logits.npy")
    expected = STORED["base/logits"]
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=5e-5 * np.abs(expected).max())
    log_probs = np.array([json.loads(line)["log_probs"] for line in out.splitlines()])
    assert -log_probs.mean() == pytest.approx(float(STORED["base/loss"]), rel=1e-5)


def test_an_imported_run_says_where_it_comes_from(imported, capsys):
    origin = read_starts(imported)[0]["imported"]
    assert (origin["format"], origin["family"], list(origin["dtypes"])) == ("safetensors", "llama", ["BF16"])
    assert "imported, llama (BF16) from" in ran(capsys, "show", imported)
    assert ran(capsys, "diff", imported, imported) == "no difference\n"
    assert load_config(imported).model.num_heads == CONFIG["num_attention_heads"]
    assert "has no tokenizer" in refused(capsys, "eval", imported, "--source", "text:LICENSE")


def test_export_and_import_again_is_the_same_model(imported, tmp_path, capsys):
    ran(capsys, "export", imported, "--to", tmp_path / "out", "--shard-size", "0.00002")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    found = open_pretrained(str(tmp_path / "out"))
    assert found.tensors.shapes() == {name: array.shape for name, array in WEIGHTS.items()}
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found.tensors.read(name), array)
    assert found.model == load_config(imported).model
    assert "is there already" in refused(capsys, "export", imported, "--to", tmp_path / "out")
    assert "is there already" in refused(capsys, "import", tmp_path / "out", "--to", imported)


def test_on_a_mesh_each_device_gets_its_part(imported):
    source = read_starts(imported)[0]["imported"]["source"]
    found, told = open_pretrained(source), []
    mesh = make_mesh({"data": 4, "model": 2})
    with jax.set_mesh(mesh):
        params = load_params(found.table, found.model, found.tensors, Layout(), mesh, lambda *x: told.append(x))
    with opened(imported) as run:
        whole = named_leaves(run.params)
    for name, leaf in named_leaves(params).items():
        np.testing.assert_array_equal(leaf, whole[name], err_msg=name)
    q = named_leaves(params)["blocks.0.attention.q"]
    assert q.addressable_shards[0].data.size * 8 == q.size
    assert told[-1][0] == told[-1][1] == 4 * sum(leaf.size for leaf in whole.values())


def test_training_begins_from_it_but_does_not_continue_it(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 400)
    write_model(tmp_path / "model.gguf", "llama", CONFIG, WEIGHTS, vocabulary="llama")
    run = tmp_path / "run"
    ran(capsys, "import", tmp_path / "model.gguf", "--to", run)
    evaluated = json.loads(ran(capsys, "eval", run, "--source", f"text:{text}", "--batches", "2"))
    assert np.isfinite(evaluated["loss"])
    again = refused(capsys, "train", run / "config.json", "--run-dir", run)
    assert f"--init-from {run}" in again
    options = ("--data.sources", f"text:{text}", "--data.validation-fraction", "0", "--batch-size", "8")
    options = (*options, "--optimizer.learning-rate", "1e-9", "--model.max-length", "48", "--data.sequence-length", "48")
    ran(capsys, "train", run / "config.json", "--run-dir", tmp_path / "tuned", "--init-from", run, *options)
    run = run.rename(tmp_path / "moved")
    assert load_config(run).data.tokenizer.path == str(run / "tokenizer.model")
    with opened(run) as before, opened(tmp_path / "tuned") as after:
        assert (before.step, after.step) == (0, 1)
        for name, leaf in named_leaves(before.params).items():
            np.testing.assert_allclose(named_leaves(after.params)[name], leaf, atol=1e-6, err_msg=name)


ENDS = ("model.embed_tokens.weight", "lm_head.weight")


def without(name: str) -> dict:
    return {other: array for other, array in WEIGHTS.items() if other != name}


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ({"hidden_size": 64}, WEIGHTS, "model.embed_tokens.weight has shape"),
        ({"num_hidden_layers": 3}, WEIGHTS, "layers.2.input_layernorm.weight [32] is missing"),
        ({}, without("model.norm.weight"), "model.norm.weight [32] is missing"),
        ({}, WEIGHTS | {"model.extra": np.ones(3, np.float32)}, "model.extra [3] has no place"),
        ({"clip_qkv": 8.0}, WEIGHTS, "clip_qkv"),
        ({"hidden_size": 2**31 - 1, "head_dim": None}, WEIGHTS, "does not divide by model.num_heads"),
        ({"tie_word_embeddings": True}, WEIGHTS | dict.fromkeys(ENDS, np.float32(1)), "has shape []"),
        ({"model_type": "lama"}, WEIGHTS, "Did you mean 'llama'?"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(tmp_path, capsys, config, weights, said):
    source = write_folder(tmp_path / "source", CONFIG | config, weights)
    assert said in refused(capsys, "import", source, "--to", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_no_model_is_refused(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    asked = {
        "model.gguf": "cut short",
        "pytorch_model.bin": "can run any code",
        ".": "can run any code",
        "modl.gguf": "model.gguf",
    }
    for name, said in asked.items():
        assert said in refused(capsys, "import", tmp_path / name, "--to", tmp_path / "run"), name
    assert not (tmp_path / "run").exists()


def test_mistaken_options_say_the_fix_before_anything_is_written(imported, tmp_path, capsys):
    rows = tmp_path / "rows.npy"
    np.save(rows, STORED["base/tokens"])
    assert "--batch-size -1 must be 1" in refused(capsys, "score", imported, "--tokens", rows, "--batch-size", "-1")
    assert "name another" in refused(capsys, "score", imported, "--tokens", rows, "--logits", rows)
    np.save(tmp_path / "far.npy", np.array([[2**64 - 1]], np.uint64))
    assert f"holds token {2**64 - 1}" in refused(capsys, "score", imported, "--tokens", tmp_path / "far.npy")
    assert "--shard-size nan" in refused(capsys, "export", imported, "--to", tmp_path / "out", "--shard-size", "nan")
    assert "is there already" in refused(capsys, "export", imported, "--to", "/")
    assert "--source text:book.txt" in refused(capsys, "eval", imported)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far.npy", "rows.npy"]


def test_a_broken_tokenizer_can_be_left_behind(tmp_path, capsys):
    source = write_folder(tmp_path / "source", CONFIG, WEIGHTS)
    (source / "tokenizer.json").write_text('{"model": ')
    assert "--no-tokenizer" in refused(capsys, "import", source, "--to", tmp_path / "run")
    ran(capsys, "import", source, "--to", tmp_path / "run", "--no-tokenizer")


def test_weights_that_are_not_finite_are_named(tmp_path, capsys):
    broken = WEIGHTS["model.norm.weight"].copy()
    broken[3] = np.nan
    source = write_folder(tmp_path / "source", CONFIG, WEIGHTS | {"model.norm.weight": broken})
    assert main(["import", str(source), "--to", str(tmp_path / "run")]) == 0
    assert "final_norm.scale has values that are not finite" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the kernel of Linux")
def test_no_second_copy_of_a_model_is_held(tmp_path):
    """Peak memory beyond what is there before loading, for 190 MB of parameters: they, and about a leaf."""
    program = """
        import json, re, sys
        from pathlib import Path
        import jax, numpy as np
        from jaxlm import param
        from jaxlm.interop.families.find import family_for
        from jaxlm.interop.place import load_params
        from jaxlm.interop.safetensors_writer import write_safetensors
        from jaxlm.interop.source import open_pretrained
        from jaxlm.interop.table import their_tensors
        from jaxlm.layout import Layout, make_mesh
        from jaxlm.model import transformer
        from jaxlm.model.config import ModelConfig

        def peak():
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

        folder = Path(sys.argv[1])
        model = ModelConfig(vocab_size=4096, num_layers=14, hidden_size=512, num_heads=8, intermediate_size=1536)
        family = family_for(model)
        (folder / "config.json").write_text(json.dumps(family.write(model)))
        shapes = their_tensors(family.table(model), model)
        write_safetensors(folder, shapes, lambda name: np.ones(shapes[name], np.float32), "float32", 10**9)
        found, mesh = open_pretrained(str(folder)), make_mesh({}, jax.devices()[:1])
        with jax.set_mesh(mesh):
            jax.block_until_ready(jax.numpy.zeros(3))
            before = peak()
            params = load_params(found.table, found.model, found.tensors, Layout(), mesh)
        print((peak() - before) / (4 * param.count(transformer.spec(model))))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, check=True,
        env={"PATH": "", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert 0.5 < float(done.stdout) < 1.5
