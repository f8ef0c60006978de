"""Compile an experiment's train step for devices that are not there: run in a process of its own by `jaxlm.plan.compiled`.

Reads a request as JSON from standard input and writes what the compiler says into the request's folder; no array is ever made.

A TPU's compiler knows memory and collectives when it has scheduled the program, which takes seconds; machine code, and with it
its estimate of cycles, takes a minute or more. The stage "schedule" stops between the two, at the files that the compiler
writes there; the stage "code" goes to the end.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm import param
from jaxlm.config import from_dict
from jaxlm.data.packing import Batch
from jaxlm.data.pairs import PairBatch
from jaxlm.data.storage import write_atomically
from jaxlm.errors import JaxlmError
from jaxlm.experiment import Experiment
from jaxlm.experiment_mesh import check_devices
from jaxlm.layout import make_mesh
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.plan.memory import out_of_memory, peak_buffers
from jaxlm.plan.topology import Topology, parse_topology
from jaxlm.plan.wires import place
from jaxlm.run.programs import make_step
from jaxlm.run.setup import spec_of
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.step import abstract_state

AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
Scheduled = Callable[[dict[str, Any], str], None]
# Seconds between looks at what the compiler has written so far.
POLL = 0.2


def devices_of(topology: Topology) -> list[Any]:
    """Return descriptions of a topology's devices, for which programs can be compiled but not run."""
    from jax.experimental import topologies

    if topology.chip.is_tpu:
        options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
        options |= {"num_slices": topology.slices} if topology.slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
    from jaxlm.plan.gpu import topology_of

    return topology_of(topology).devices


def abstract_inputs(experiment: Experiment, model: ModelConfig, mesh: AnyMesh) -> tuple[Batch | PairBatch, None, Any]:
    """Return a step's inputs as shapes with shardings: rows [B, L] or [accumulate, B / accumulate, L], a live reference."""
    layout, accumulate = experiment.layout, experiment.accumulate

    def array(dtype: str, *after: tuple[str, int]) -> jax.ShapeDtypeStruct:
        spec = layout.spec("batch", *(axis for axis, _ in after))
        shape = (experiment.rows, *(size for _, size in after))
        if accumulate > 1:
            spec, shape = jax.P(None, *spec), (accumulate, shape[0] // accumulate, *shape[1:])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    tokens = [array(dtype, ("length", experiment.data.sequence_length)) for dtype in ("i4", "i4", "f4", "i4", "i4")]
    if not experiment.paired:
        return Batch(*tokens), None, None
    reference = param.abstract(transformer.spec(model), layout, mesh) if experiment.reference_beside else None
    return PairBatch(*tokens, labels=array("f4"), reference=array("f4")), None, reference


def trace_step(
    experiment: Experiment, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, platform: str
) -> tuple[Any, Any, Any]:
    """Return (step, abstract state, abstract inputs) of the run that this experiment makes on such devices."""
    model = experiment.model
    if platform == "cuda" and model.attention_kernel in ("auto", "cudnn"):
        model = dataclasses.replace(model, attention_kernel="blocked")  # cuDNN's is built by the driver of a device
    model = model.for_platform(platform)
    spec = spec_of(experiment, model)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps, spec)
    state = abstract_state(spec, optimizer, experiment.layout, mesh)
    return make_step(experiment, model, spec, optimizer), state, abstract_inputs(experiment, model, mesh)


def bytes_of(tree: Any) -> int:
    """Return the bytes that one device holds of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in leaves)


def build(request: dict[str, Any]) -> str:
    """Compile what the request asks for, unless that is done already, and return the program's key in its folder."""
    began = time.monotonic()
    topology, _ = parse_topology(request["topology"], request["slices"])
    experiment = from_dict(Experiment, request["experiment"])
    shape = check_devices(experiment, topology.num_devices, topology.chip, topology.slices)
    devices = devices_of(topology)
    mesh = make_mesh(shape, devices)
    with jax.set_mesh(mesh):
        step, state, inputs = trace_step(experiment, mesh, "tpu" if topology.chip.is_tpu else "cuda")
        lowered = jax.jit(step, donate_argnums=0).lower(state, inputs)
    facts = {
        "topology": topology.name,
        "slices": topology.slices,
        "device_kind": devices[0].device_kind,
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "places": [place(device, topology) for device in mesh.devices.flat],
        "bytes": {
            "parameters": bytes_of(state.params),
            "optimizer": bytes_of(state.optimizer),
            "batch": bytes_of(inputs[:2]),
            "reference": bytes_of(inputs[2]),
        },
        "versions": request["versions"],
        "options": request["options"],
    }
    stated = json.dumps(facts, sort_keys=True)
    key = hashlib.sha256(f"{stated}\n{lowered.as_text()}".encode()).hexdigest()[:32]
    folder, stage = Path(request["folder"]), request["stage"]
    stages = ("code",) if stage == "code" else ("schedule", "code")
    done = next((f"{key}.{each}" for each in stages if (folder / f"{key}.{each}.json").exists()), None)
    if done:
        return done
    facts["lower_seconds"] = time.monotonic() - began
    name = f"{key}.{stage}"

    def finish(found: dict[str, Any], text: str) -> None:
        # A GPU's compiler does not refuse, and a TPU's only after the schedule is written.
        needed = found.get("laid_out") or found.get("memory", {}).get("peak", 0)
        if found["fits"] and needed > topology.chip.memory_bytes:
            found |= {"fits": False, "required": needed, "available": topology.chip.memory_bytes}
        if text:
            write_atomically(folder / f"{name}.hlo.gz", gzip.compress(text.encode(), compresslevel=3))
        memory = {"host_bytes": _peak_bytes()}
        write_atomically(folder / f"{name}.json", json.dumps(facts | found | memory))

    def finish_early(found: dict[str, Any], text: str) -> None:
        finish(found, text)
        write_atomically(Path(request["answer"]), json.dumps({"key": name}))
        os._exit(0)  # a compiler cannot be told to stop

    finish(*_compile(lowered, request["options"], finish_early if stage == "schedule" else None))
    return name


def _peak_bytes() -> int:
    """Return the most memory that this process has held; getrusage counts that of the process which started it as well."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["VmHWM"].split()[0])


def _compile(lowered: jax.stages.Lowered, options: dict[str, Any], scheduled: Scheduled | None) -> tuple[dict[str, Any], str]:
    """Return what the compiler found, and the program's text; with `scheduled`, call that as soon as it has a schedule."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jaxlm-plan-") as folder:
        dump = Path(folder)
        if scheduled:
            threading.Thread(target=_watch, args=(dump, began, scheduled), daemon=True).start()
        try:
            compiled = lowered.compile(compiler_options=options | {"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as fault:
            found = out_of_memory(str(fault))
            if not found:
                raise
            return {"fits": False, "compile_seconds": time.monotonic() - began, **found, **peak_buffers(dump)}, ""
        seconds = time.monotonic() - began
        memory = compiled.memory_analysis()
        names = ("argument", "output", "temp", "alias", "generated_code")
        sizes = {name: getattr(memory, f"{name}_size_in_bytes") for name in names} | {"peak": memory.peak_memory_in_bytes}
        found = {"fits": True, "compile_seconds": seconds, "memory": sizes, **peak_buffers(dump)}
        return found, compiled.as_text()


def _watch(dump: Path, began: float, scheduled: Scheduled) -> None:
    while True:
        time.sleep(POLL)
        texts = list(dump.glob("*.after_optimizations.txt"))
        reports = list(dump.glob("*after_optimizations-buffer-assignment.txt"))  # the last that the compiler writes before code
        if texts and reports:
            time.sleep(2 * POLL)
            found = {"fits": True, "compile_seconds": time.monotonic() - began, **peak_buffers(dump)}
            scheduled(found, texts[0].read_text())


def _end_with(parent: int) -> None:
    """Leave no compiler behind where whoever asked is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> int:
    """Answer one request; what the user can mend goes to the answer file as text."""
    request = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    jax.config.update("jax_num_cpu_devices", 1)
    try:
        answer = {"key": build(request)}
    except JaxlmError as fault:
        answer = {"error": str(fault), "kind": type(fault).__name__}
    except jax.errors.JaxRuntimeError as fault:
        answer = {"error": f"the compiler refuses the step: {str(fault)[:2000]}", "kind": "PlanError"}
    write_atomically(Path(request["answer"]), json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
