"""A train step compiled for absent devices: in a process of its own, and only where no earlier answer will do."""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import jaxlm
from jaxlm import errors
from jaxlm.config import to_dict
from jaxlm.data.storage import cache_folder, write_atomically
from jaxlm.errors import PlanError
from jaxlm.experiment import Experiment
from jaxlm.plan import gpu
from jaxlm.plan.costs import ProgramCosts, program_costs
from jaxlm.plan.topology import Topology

Stage = Literal["schedule", "code"]
# The compiler takes these for its own machine, of which there is none; any valid values let it start.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
# Fields that no compiled step depends on.
NO_MATTER = ("name", "data", "seed", "evaluation", "checkpoint", "sample", "log", "init_from")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-pjrt")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler says of a step."""

    facts: dict[str, Any]
    """`fits`, `bytes`, `memory`, `laid_out`, `parts`, `largest`, `places`, seconds and versions: see `jaxlm.plan.build`."""
    costs: ProgramCosts | None
    """What the program computes and moves; None where it does not fit, for then there is none."""
    stage: Stage
    """"schedule" knows memory and collectives, "code" the compiler's estimate of cycles as well."""
    cached: bool
    """Whether the answer was there already."""


def compile_for(
    experiment: Experiment,
    topology: Topology,
    *,
    stage: Stage = "code",
    label: str = "",
    out: Console | None = None,
) -> Compiled:
    """Compile the step that a run of this experiment would take on a topology, or find the answer in the cache.

    Answers are kept under the cache's `plans`, by the lowered program, topology, options and versions; that a request leads to
    a program is kept as well, by the experiment and the code of jaxlm. ConfigError where the experiment does not suit the
    devices, PlanError where there is no compiler for them or it fails.
    """
    stage = stage if topology.chip.is_tpu else "code"
    folder = cache_folder(experiment.data.cache) / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "experiment": to_dict(experiment),
        "topology": topology.name,
        "slices": topology.slices,
        "options": {} if topology.chip.is_tpu else gpu.OPTIONS,
        "stage": stage,
        "versions": _versions(),
        "folder": str(folder),
    }
    asked = folder / f"request-{_request_key(request)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _read(folder, json.loads(asked.read_text())["key"], cached=True)
    need_compiler(topology)
    began = time.time()
    key = _ask(request, label or f"compiling for {topology}", out or Console(stderr=True, highlight=False))
    write_atomically(asked, json.dumps({"key": key}))
    return _read(folder, key, cached=(folder / f"{key}.json").stat().st_mtime < began)


def _versions() -> dict[str, str]:
    found = {"jaxlm": jaxlm.__version__, "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _request_key(request: dict[str, Any]) -> str:
    matters = {name: value for name, value in request["experiment"].items() if name not in NO_MATTER}
    matters["length"] = request["experiment"]["data"]["sequence_length"]
    stated = json.dumps([matters, {name: request[name] for name in request if name not in ("experiment", "folder")}])
    return hashlib.sha256(f"{stated}{own_files_digest('**/*.py')}".encode()).hexdigest()[:32]


def own_files_digest(pattern: str) -> str:
    """Return a hash of jaxlm's own files that match: another code may give another program, or read one otherwise."""
    root = Path(jaxlm.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.glob(pattern)):
        if path.relative_to(root).parts[0] not in ("launch", "commands", "cli.py"):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _read(folder: Path, key: str, *, cached: bool) -> Compiled:
    facts = json.loads((folder / f"{key}.json").read_text())
    stage = key.rsplit(".", 1)[1]
    if not facts["fits"]:
        return Compiled(facts, None, stage, cached)
    read = folder / f"{key}-{own_files_digest('plan/*.py')}.costs.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Compiled(facts, ProgramCosts.from_json(json.loads(read.read_text())), stage, cached)
    text = gzip.decompress((folder / f"{key}.hlo.gz").read_bytes()).decode()
    costs = program_costs(text, facts["mesh"])
    write_atomically(read, json.dumps(costs.to_json()))
    return Compiled(facts, costs, stage, cached)


def has_compiler(topology: Topology) -> bool:
    """Return whether a compiler for these devices is installed."""
    if topology.chip.is_tpu:
        return bool(importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH"))
    plugins = importlib.util.find_spec("jax_plugins")
    return bool(plugins and importlib.util.find_spec("jax_plugins.xla_cuda12"))


def need_compiler(topology: Topology) -> None:
    """Raise PlanError where there is no compiler for these devices, with what to install."""
    if not has_compiler(topology):
        kind, extra = ("TPUs", "plan") if topology.chip.is_tpu else ("NVIDIA GPUs", "plan-cuda")
        raise PlanError(f"planning for {kind} needs their compiler, which needs no device: pip install 'jaxlm[{extra}]'")


def _ask(request: dict[str, Any], label: str, out: Console) -> str:
    """Run `jaxlm.plan.build` on a request; return the key under which the answer lies."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS" and not name.startswith("JAX_")}
    root = str(Path(jaxlm.__file__).parents[1])
    paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
    environment |= ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(prefix="jaxlm-plan-") as place:
        # The compiler's notes are megabytes a program, and the process may end before it can remove them.
        environment["TMPDIR"] = place
        answer, chatter = Path(place) / "answer.json", Path(place) / "chatter"
        asked = Path(place) / "request.json"
        asked.write_text(json.dumps(request | {"answer": str(answer)}))
        with asked.open() as read, chatter.open("w") as written, _spinner(label, out):
            # -P: a folder of the working directory must not stand in for a package.
            command = [sys.executable, "-P", "-m", "jaxlm.plan.build"]
            child = subprocess.Popen(command, stdin=read, stdout=written, stderr=written, env=environment)
            try:
                status = child.wait()
            finally:
                child.kill()
                child.wait()
        if not answer.exists():
            last = "\n".join(chatter.read_text(errors="replace").strip().splitlines()[-12:])
            raise PlanError(
                f"the process that compiles for {request['topology']} ended with status {status}; it last said:\n{last}"
            )
        found = json.loads(answer.read_text())
    if "error" in found:
        raise getattr(errors, found["kind"], PlanError)(found["error"])
    return found["key"]


@contextlib.contextmanager
def _spinner(label: str, out: Console) -> Iterator[None]:
    if not out.is_terminal:
        out.print(f"{label} ...", soft_wrap=True)
        yield
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=out, transient=True) as shown:
        shown.add_task(label, total=None)
        yield
