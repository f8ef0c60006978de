"""Every experiment file can be run, and its pod-scale variant is a step that type-checks on the devices that the file names.

So does every arm of a sweep, on one.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxlm import param
from jaxlm.data.packing import Batch
from jaxlm.experiment_file import load_experiment
from jaxlm.experiment_mesh import check_devices
from jaxlm.layout import MESH_AXES, Layout
from jaxlm.model import transformer
from jaxlm.objective import language_model
from jaxlm.plan.build import trace_step
from jaxlm.plan.topology import parse_topology
from jaxlm.sweep.read import load_sweep

FOLDER = Path(__file__).parents[1] / "experiments"
ALL = sorted(path for path in FOLDER.glob("*.py") if "def experiment()" in path.read_text())
# Files of experiments for a pod alone say which: `jaxlm plan experiments/NAME.py --topology v5p:4x4x4`.
POD_ALONE = {
    path: found[1]
    for path in ALL
    if (found := re.search(rf"jaxlm plan experiments/{path.name} --topology (\S+)", path.read_text()))
}
FILES = [path for path in ALL if path not in POD_ALONE]
PODS = [path for path in FILES if "def pod()" in path.read_text()]
SWEEPS = [path for path in FILES if "def sweep()" in path.read_text()]


@pytest.fixture(autouse=True)
def one_device():
    """Leave the mesh to each test: an abstract one cannot be entered inside another of a different size."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_experiment_fits_its_own_devices(path):
    experiment = load_experiment(path)
    check_devices(experiment, experiment.mesh.cpu_devices)
    assert "Claim" in path.read_text().split('"""')[1] and f"jaxlm train experiments/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_the_pod_s_step_type_checks_on_its_devices(path):
    experiment = load_experiment(path.with_name(f"{path.name}:pod"))
    named = re.search(rf"jaxlm plan experiments/{path.name}:pod --topology (\S+)", path.read_text())
    metrics = type_check(experiment, parse_topology(named[1])[0].num_devices if named else 512)
    if experiment.model.moe.num_experts:
        assert metrics["router_dropped"].shape == (len(experiment.model.moe_layers),)
    assert ("rewards/margins" in metrics) == experiment.paired


@pytest.mark.parametrize("path", POD_ALONE, ids=lambda path: path.stem)
def test_the_step_type_checks_on_the_pod_that_the_file_names(path):
    topology, _ = parse_topology(POD_ALONE[path])
    assert topology.num_devices >= 64
    type_check(load_experiment(path), topology.num_devices)
    assert f"jaxlm train experiments/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_arm_of_a_sweep_type_checks(path):
    sweep = load_sweep(path)
    arms = {trial.arm: trial.experiment for trial in sweep.trials}
    seeds = {arm: [trial.experiment.seed for trial in sweep.trials if trial.arm == arm] for arm in arms}
    assert all(of == [*range(len(of))] and len(of) > 1 for of in seeds.values()) and len(arms) > 1
    assert f"jaxlm sweep experiments/{path.name}" in sweep.about and f"jaxlm report runs/sweeps/{path.stem}" in sweep.about
    for experiment in arms.values():
        check_devices(experiment, experiment.mesh.cpu_devices or 1)
        loss_type_checks(experiment.model)


@functools.cache
def loss_type_checks(model):
    """Trace the loss of a model once, whatever sweeps it is in."""
    spec, tokens = transformer.spec(model), jnp.zeros((8, 16), jnp.int32)
    mesh = AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))
    batch = Batch(tokens, tokens, jnp.ones((8, 16)), tokens, tokens)
    with jax.sharding.use_abstract_mesh(mesh):
        total, _ = jax.eval_shape(
            lambda params, batch: language_model.loss(params, batch, model.for_platform("cpu"), Layout()),
            param.abstract(spec, Layout(), mesh), batch,
        )  # fmt: skip
    assert total.shape == ()


def type_check(experiment, num_devices):
    shape = check_devices(experiment, num_devices)
    mesh = AbstractMesh(tuple(shape.values()), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))
    step, state, inputs = trace_step(experiment, mesh, "tpu")
    with jax.sharding.use_abstract_mesh(mesh):
        after, metrics = jax.eval_shape(step, state, inputs)
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert old.sharding.spec == new.sharding.spec
    return metrics
