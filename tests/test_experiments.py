"""Every experiment file can be run, and its pod-scale variant is a step that type-checks on the devices that the file names."""

import re
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxlm.experiment import check_devices
from jaxlm.experiment_file import load_experiment
from jaxlm.layout import MESH_AXES
from jaxlm.plan.build import trace_step
from jaxlm.plan.topology import parse_topology

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


def type_check(experiment, num_devices):
    shape = check_devices(experiment, num_devices)
    mesh = AbstractMesh(tuple(shape.values()), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))
    step, state, inputs = trace_step(experiment, mesh, "tpu")
    with jax.sharding.use_abstract_mesh(mesh):
        after, metrics = jax.eval_shape(step, state, inputs)
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert old.sharding.spec == new.sharding.spec
    return metrics
