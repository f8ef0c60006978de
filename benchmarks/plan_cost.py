"""Seconds and memory of the host that `jaxlm plan` takes, by topology, with nothing compiled before.

    python benchmarks/plan_cost.py --json out.json

Plans experiments/llama_1b.py to the schedule, on meshes that are chosen for the slices, each in a new process with a cache of
its own. Needs the TPU's compiler: pip install 'jaxlm[plan]'.
"""

import dataclasses
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import record
import tyro
from rich.console import Console
from rich.table import Table
from timed import jaxlm

FILE = Path(__file__).parents[1] / "experiments" / "llama_1b.py"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to plan."""

    topologies: tuple[str, ...] = ("v5e:4x4", "v5p:4x4x4", "v6e:16x16")
    rounds: int = 1
    """Times that each is planned, in turns."""
    json: Path | None = None
    """Write everything measured here."""


def main(arguments: Arguments) -> int:
    """Plan, and return 1 where a bar is missed."""
    if find_spec("libtpu") is None:
        raise SystemExit("there is no compiler for TPUs here: pip install 'jaxlm[plan]'")
    taken: dict[str, list] = {name: [] for name in arguments.topologies}
    for _ in range(arguments.rounds):
        for name, found in taken.items():
            with tempfile.TemporaryDirectory() as cache:
                options = ("--topology", name, "--stage", "schedule", "--mesh.auto", "--mesh.data", "0")
                found.append(jaxlm("plan", FILE, *options, environment={"JAXLM_CACHE": cache}))
    results = []
    table = Table("topology", "seconds", "peak of host memory, GiB", title="jaxlm plan llama_1b --stage schedule", box=None)
    for name, found in taken.items():
        seconds = record.measured(f"llama_1b on {name}", [each.seconds for each in found], "s", "lower")
        memory = record.measured(
            f"llama_1b on {name}, host memory", [each.peak_bytes / 2**30 for each in found], "GiB", "lower"
        )
        table.add_row(name, f"{seconds['ours']:.1f}", f"{memory['ours']:.2f}")
        results += [seconds, memory]
    Console().print(table)
    return record.finish("plan", results, arguments.json, judged=arguments.topologies == Arguments.topologies)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
