"""Every experiment file can be run, and its pod-scale variant is a step that type-checks on 512 devices."""

from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxlm.data.packing import Batch
from jaxlm.experiment import check_devices, load_experiment
from jaxlm.layout import MESH_AXES
from jaxlm.model import transformer
from jaxlm.run.setup import make_step
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.step import abstract_state

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(path for path in FOLDER.glob("*.py") if "def experiment()" in path.read_text())
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
def test_the_pod_s_step_type_checks_on_512_devices(path):
    experiment = load_experiment(path.with_name(f"{path.name}:pod"))
    shape = check_devices(experiment, 512)
    mesh = AbstractMesh(tuple(shape.values()), MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    model = experiment.model.for_platform("tpu")
    spec = transformer.spec(model)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps, spec)
    state = abstract_state(spec, optimizer, experiment.layout, mesh)
    rows = jax.NamedSharding(mesh, experiment.layout.spec("batch", None))
    arrays = (experiment.batch_size, experiment.data.sequence_length)
    batch = Batch(*(jax.ShapeDtypeStruct(arrays, dtype, sharding=rows) for dtype in "iifii"))
    with jax.sharding.use_abstract_mesh(mesh):
        after, metrics = jax.eval_shape(make_step(experiment, model, spec, optimizer), state, (batch, None))
    assert metrics["router_dropped"].shape == (6,)
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert old.sharding.spec == new.sharding.spec
