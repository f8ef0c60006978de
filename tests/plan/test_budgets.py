"""Performance on pods that are not there: memory, bytes on the wire and work, held to what they were, by line of code.

`JAXLM_UPDATE_BUDGETS=1 pytest -n 0 tests/plan/test_budgets.py` writes budgets.json anew, to be read before it is committed.
"""

import dataclasses
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from jaxlm.data.prepare import DataConfig
from jaxlm.experiment import Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.model.presets import llama_1b, llama_125m
from jaxlm.plan.collectives import summary
from jaxlm.plan.compiled import compile_for
from jaxlm.plan.costs import ProgramCosts, difference
from jaxlm.plan.estimate import estimate
from jaxlm.plan.topology import parse_topology

pytestmark = pytest.mark.skipif(
    not find_spec("libtpu"), reason="the TPU's compiler is not installed: pip install 'jaxlm[plan]'"
)

BUDGETS = Path(__file__).with_name("budgets.json")
# What may pass before it is a regression: compilers place buffers a little differently from release to release.
TOLERANCE = {"memory": 0.05, "wire": 0.02, "work": 0.05}


def experiment(model, batch_size, mesh):
    return Experiment(
        name="budget", steps=100, batch_size=batch_size, remat="full", model=model, mesh=mesh,
        data=DataConfig(sequence_length=2048),
    )  # fmt: skip


def mixture():
    moe = MoeConfig(num_experts=16, every=2)
    return ModelConfig(
        vocab_size=32_000, num_layers=4, hidden_size=1024, num_heads=8, intermediate_size=4096, moe=moe
    )  # fmt: skip


POINTS = {
    "125m on v5e:4x4, data 16": (llama_125m, 64, MeshConfig(data=16), "v5e:4x4"),
    "1b on v5p:4x4x4, data 16 x model 4": (llama_1b, 128, MeshConfig(data=16, model=4), "v5p:4x4x4"),
    "1b on v5p:4x4x4, data 16 x context 4": (llama_1b, 128, MeshConfig(data=16, context=4), "v5p:4x4x4"),
    "mixture on v5e:4x4, expert 16": (mixture, 64, MeshConfig(expert=16), "v5e:4x4"),
}


@pytest.fixture(scope="module", params=POINTS)
def point(request):
    """Return a point's name, what was compiled for it, and what it costs."""
    model, rows, mesh, name = POINTS[request.param]
    topology, _ = parse_topology(name)
    run = experiment(model(), rows, mesh)
    compiled = compile_for(run, topology, stage="schedule")
    wire = {f"{row.kind} over {' x '.join(row.axes)}": row.wire_bytes for row in summary(compiled.costs.collectives)}
    found = {
        "memory": compiled.facts["laid_out"],
        "wire": {name: size for name, size in wire.items() if size >= 2**20},
        "work": round(estimate(run, compiled, topology).compute_seconds, 5),
        "costs": smaller(compiled.costs).to_json(),
    }
    record(request.param, found)
    return request.param, compiled, found


def record(name, found):
    """Rewrite a budget where that is asked for."""
    if os.environ.get("JAXLM_UPDATE_BUDGETS"):
        stored = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (stored | {name: found}).items())
        BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def smaller(costs):
    """Return the costs without shapes and without what is next to nothing: enough to tell what grew, and where."""

    def large(works):
        kept = (work for work in works if work.bytes * work.times >= 2**28)
        return tuple(dataclasses.replace(work, operands=(), results=()) for work in kept)

    moves = tuple(one for one in costs.collectives if one.wire_bytes * one.times >= 2**22)
    return dataclasses.replace(costs, collectives=moves, kernels=large(costs.kernels), uncosted=large(costs.uncosted))


def test_memory_wire_and_work_stay_within_their_budgets(point):
    name, _, found = point
    budget = json.loads(BUDGETS.read_text())[name]
    faults = [
        f"{what}: {found[what]:,} where {budget[what]:,} is the budget"
        for what in ("memory", "work")
        if found[what] > budget[what] * (1 + TOLERANCE[what])
    ]
    faults += [
        f"{kind}: {size:,} bytes where {budget['wire'].get(kind, 0):,} is the budget"
        for kind, size in found["wire"].items()
        if size > budget["wire"].get(kind, 0) * (1 + TOLERANCE["wire"])
    ]
    if faults:
        before, after = ProgramCosts.from_json(budget["costs"]), ProgramCosts.from_json(found["costs"])
        lines = [f"{name} costs more than it did:", *faults, "by operation and line:"]
        pytest.fail("\n".join([*lines, *map(str, difference(before, after)[:12])]))


def test_attention_is_a_kernel_and_dense_models_move_no_tokens_between_devices(point):
    name, compiled, found = point
    kernels = {work.name for work in compiled.costs.kernels}
    assert any("splash" in kernel for kernel in kernels), kernels
    tokens = [kind for kind in found["wire"] if "all-to-all over expert" in kind]
    assert bool(tokens) == ("mixture" in name)
    if "mixture" not in name:
        # An all-to-all of the embedding's lookup alone may be there: a sixteenth of what moves at most.
        moved = sum(size for kind, size in found["wire"].items() if "all-to-all" in kind)
        assert moved <= sum(found["wire"].values()) / 16


def test_a_tensor_parallel_step_scatters_its_gradients(point):
    name, _, found = point
    if "model 4" in name:
        scattered = sum(size for kind, size in found["wire"].items() if kind == "reduce-scatter over data")
        summed = sum(size for kind, size in found["wire"].items() if kind == "all-reduce over data")
        assert scattered > summed


def test_the_compiler_s_cycles_stay_within_their_budget():
    # Machine code takes a minute or more, whatever the model: one point.
    point = "125m on v5e:4x4, data 16"
    model, rows, mesh, topology_name = POINTS[point]
    run = experiment(model(), rows, mesh)
    costs = compile_for(run, parse_topology(topology_name)[0], stage="code").costs
    name, found = f"cycles of {point}", {"cycles": costs.cycles, "costs": smaller(costs).to_json()}
    record(name, found)
    budget = json.loads(BUDGETS.read_text())[name]
    if costs.cycles > budget["cycles"] * (1 + TOLERANCE["work"]):
        lines = map(str, difference(ProgramCosts.from_json(budget["costs"]), costs)[:12])
        pytest.fail("\n".join([f"{costs.cycles:,} cycles where {budget['cycles']:,} are the budget", *lines]))
