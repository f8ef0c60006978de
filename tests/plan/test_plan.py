"""`jaxlm plan` on TPUs that are not there: memory by the compiler against arithmetic, verdicts, remedies, cache and search."""

import dataclasses
import json
import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
from rich.console import Console

from jaxlm import cli
from jaxlm.errors import ConfigError
from jaxlm.experiment_file import apply_overrides, load_experiment
from jaxlm.experiment_mesh import settle_mesh
from jaxlm.layout import MeshConfig
from jaxlm.plan.command import for_topology
from jaxlm.plan.memory import out_of_memory
from jaxlm.plan.remedies import flags
from jaxlm.plan.search import Limits, hungrier, prune, variants
from jaxlm.plan.topology import parse_topology

needs_libtpu = pytest.mark.skipif(
    not find_spec("libtpu"), reason="the TPU's compiler is not installed: pip install 'jaxlm[plan]'"
)

FILE = """
from jaxlm.data.prepare import DataConfig
from jaxlm.experiment import Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig

def experiment():
    return Experiment(
        name="small", steps=100, batch_size=16, remat="full", data=DataConfig(sequence_length=1024),
        model=ModelConfig(vocab_size=8192, num_layers=8, hidden_size=1024, num_heads=8, intermediate_size=4096),
        mesh=MeshConfig(data=2, model=2),
    )
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.py"
    path.write_text(FILE)
    return path


def plan(file, *arguments):
    output = file.with_name("plan.json")
    assert cli.main(["plan", str(file), "--stage", "schedule", "--json", str(output), *arguments]) == 0
    return json.loads(output.read_text())


@needs_libtpu
def test_a_plan_holds_the_state_and_names_what_moves_and_the_second_time_is_at_once(file, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = plan(file, "--topology", "v5e-4")
    assert not list(tmp_path.iterdir())  # of all that the compiler noted down
    assert "taken as v5e:2x2" in capsys.readouterr().err
    assert found["fits"] and found["mesh"]["data"] == found["mesh"]["model"] == 2
    # Attention (4 x 1024 x 1024) and feed-forward (3 x 1024 x 4096) over four devices, and the embedding; norms are whole.
    parameters = 8 * (4 * 1024**2 + 3 * 1024 * 4096) + 8192 * 1024
    state, norms = found["memory"]["state"], 4 * 17 * 1024
    assert state["parameters"] == 4 * parameters / 4 + norms
    assert state["optimizer"] == pytest.approx(2 * state["parameters"], abs=64)  # two moments and their counts
    assert state["batch"] == 5 * 4 * 16 * 1024 / 2  # five arrays, rows over data
    laid_out, parts = found["memory"]["required"], found["memory"]["parts_at_peak"]
    assert sum(parts.values()) <= laid_out
    assert sum(state.values()) < laid_out < found["memory"]["available"] == pytest.approx(15.75 * 2**30)
    # "full" keeps the inputs of 8 layers in bfloat16: 8 rows of 1024 x 1024 each.
    assert parts["activations kept for the backward pass"] >= 8 * 8 * 1024**2 * 2
    moved = {(row["kind"], tuple(row["axes"])) for row in found["collectives"] if row["wire_bytes"] > 2**20}
    assert {axes for _, axes in moved} >= {("data",), ("model",)}
    times = found["modelled"]["step_seconds"]
    assert 0 < times["overlapped"] <= times["scheduled"] <= times["exposed"]
    assert found["flops"]["hardware"] > found["flops"]["model"]  # recomputation
    again = plan(file, "--topology", "v5e:2x2")
    assert again["compile"]["cached"] and not found["compile"]["cached"]
    assert again["memory"] == found["memory"] and again["modelled"] == found["modelled"]
    told = capsys.readouterr().out
    assert "fits" in told and "Nothing here is measured" in told


@needs_libtpu
def test_what_does_not_fit_is_told_with_a_change_that_does(file, capsys):
    found = plan(file, "--topology", "v5e:2x2", "--batch-size", "512", "--remat", "none")
    assert not found["fits"] and found["memory"]["required"] > found["memory"]["available"]
    largest = found["memory"]["largest"]
    assert largest[0]["bytes"] >= 2**30 and any("jaxlm/" in row["source"] for row in largest[:5])
    best = found["remedies"][0]
    assert best["laid_out"] < found["memory"]["available"]
    told = capsys.readouterr().out
    assert "does not fit" in told and f"fits with {best['flags']}" in told.replace("\n", " ")


@needs_libtpu
def test_a_search_writes_overrides_that_make_the_best_candidate(file, capsys):
    winner = file.with_name("best.json")
    arguments = [
        "plan",
        str(file),
        "--topology",
        "v5e:2x2",
        "--search",
        "--candidates",
        "2",
        "--budget",
        "1",
        "--output",
        str(winner),
    ]
    assert cli.main(arguments) == 0  # within a second nothing but the first candidate begins
    changed = apply_overrides(load_experiment(file), winner)
    told = capsys.readouterr()
    assert f"remat {changed.remat}, accumulate {changed.accumulate}" in told.out
    assert "not compiled" in told.err and "do not divide" in told.err


@needs_libtpu
def test_the_compiler_being_there_changes_nothing_for_other_commands(file):
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm", "show", str(file), "--mesh.data", "1", "--mesh.model", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""


def test_candidates_that_cannot_be_are_counted_with_the_reason(file):
    topology, _ = parse_topology("v5e:4x4")
    kept, dropped = prune(variants(load_experiment(file), topology, Limits()), topology)
    assert dropped["rows of a microbatch do not divide over the mesh"] > 0
    assert all(math.prod(each.shape.values()) == 16 for each in kept)
    assert {each.shape["replica"] for each in kept} >= {1, 2, 4}
    assert [each.guess.seconds for each in kept] == sorted(each.guess.seconds for each in kept)
    by = {(each.experiment.mesh, each.experiment.remat, each.experiment.accumulate): each.experiment for each in kept}
    mesh = kept[0].experiment.mesh
    assert hungrier(by[mesh, "none", 1], by[mesh, "full", 1]) and not hungrier(by[mesh, "full", 1], by[mesh, "none", 1])


def test_one_microbatch_may_fit_where_two_do_not(file):
    one = load_experiment(file)
    two = dataclasses.replace(one, accumulate=2)
    four = dataclasses.replace(one, accumulate=4)
    assert not hungrier(one, two)  # it keeps no sum of gradients
    assert hungrier(two, four) and not hungrier(four, two)


def test_flags_are_as_the_command_line_takes_them(file):
    one = load_experiment(file)
    mesh = dataclasses.replace(one.mesh, auto=True)
    assert flags(dataclasses.replace(one, mesh=mesh), one) == "--mesh.no-auto"
    prompts = dataclasses.replace(one, sample=dataclasses.replace(one.sample, prompts=("a", "b")))
    assert flags(one, prompts) == "--sample.prompts a b"


def test_a_mesh_for_other_devices_is_replaced_and_a_word_said(file, capsys):
    other = dataclasses.replace(load_experiment(file), mesh=MeshConfig(data=3, model=2))
    topology, _ = parse_topology("v5e:4x4")
    settled = for_topology(other, topology, Console(stderr=True))
    assert math.prod(settle_mesh(settled, 16).shape.values()) == 16 and not settled.mesh.auto
    assert "the mesh data 3 x model 2 does not make up v5e:4x4" in " ".join(capsys.readouterr().err.split())


def test_overrides_change_fields_and_refuse_what_is_none(file, tmp_path):
    experiment, path = load_experiment(file), tmp_path / "o.json"
    path.write_text('{"remat": "none", "mesh": {"data": 4, "model": 1}}')
    changed = apply_overrides(experiment, path)
    assert (changed.remat, changed.mesh.data, changed.mesh.model, changed.steps) == ("none", 4, 1, 100)
    for text, message in (
        ('{"remt": "none"}', "no field 'remt'"),
        ('{"mesh": {"dta": 1}}', "no field 'dta'"),
        ("{", "is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            apply_overrides(experiment, path)
    path.write_text('{"steps": 0}')
    assert cli.main(["show", str(file), "--overrides", str(path)]) == 2


def test_complaints_about_memory_are_told_from_others():
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (56.79G)"
    found = out_of_memory(f"{message} exceeds available HBM (15.75G).")
    assert found == {"required": 56.79 * 2**30, "available": 15.75 * 2**30}
    assert out_of_memory("INTERNAL: Mosaic failed to compile") == {}


@pytest.mark.skipif(bool(find_spec("libtpu")), reason="the TPU's compiler is installed")
def test_without_the_compiler_the_extra_is_named(file, capsys):
    assert cli.main(["plan", str(file), "--topology", "v5e:2x2"]) == 2
    assert "jaxlm[plan]" in capsys.readouterr().err
