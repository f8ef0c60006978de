"""Measure what analysing a run takes: every probe at 20 checkpoints of the quickstart model.

    python benchmarks/analysis.py [--short] [--run RUN]

Trains experiments/quickstart.py with a checkpoint every 15 steps (or takes the run that is given), analyses it in one process
as `jaxlm analyze RUN` does, once more when all is there, and then each probe alone at three checkpoints, for its memory. Says
how much time of a processor it took, too: on a machine with other work that is what counts. Exit status 1 where all probes
together take 5 minutes or 4 GiB, or one fails; what was measured is shown all the same.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxlm.analysis.probe_files import known_probes
from jaxlm.analysis.store import ANALYSIS, read_all, read_faults
from jaxlm.config import to_dict
from jaxlm.experiment import CheckpointConfig
from jaxlm.experiment_file import load_experiment
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.train.saved import saved_steps

MOST_SECONDS, MOST_BYTES = 300, 4 << 30
ALONE = 3  # checkpoints that a probe is measured at by itself
FIELDS = ("config.json", "run.json", "tokenizer.model", CHECKPOINTS)


def main(run: Path | None = None, short: bool = False) -> None:
    """Analyse a run of the quickstart model.

    Args:
        run: One that is there; none trains one.
        short: 40 steps and three checkpoints instead of 300 and 20: a trial, without bars.
    """
    out = Console()
    with tempfile.TemporaryDirectory() as folder:
        run = run or trained(Path(folder), short)
        steps = saved_steps(run / CHECKPOINTS)
        own = copied(run, Path(folder) / "all")
        seconds, busy, peak = taken("analyze", own)
        again, *_ = taken("analyze", own)
        faults = read_faults(own)
        table = Table(title=f"{run}: {len(steps)} checkpoints, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", box=None)
        for column in ("probe", "first checkpoint, s", "each further one, s", "alone: peak, MiB"):
            table.add_column(column, justify="left" if column == "probe" else "right")
        found = read_all(own)
        for probe in known_probes():
            if probe not in found:
                table.add_row(probe, "does not suit", "", "")
                continue
            first, *rest = [result["seconds"] for result in found[probe].values()]
            apart = copied(run, Path(folder) / probe)
            *_, memory = taken("analyze", apart, "--probes", probe, "--steps", *map(str, steps[:ALONE]))
            each = f"{sum(rest) / len(rest):.2f}" if rest else "-"
            table.add_row(probe, f"{first:.2f}", each, f"{memory >> 20:,}")
        out.print(table)
        for probe, at in faults.items():
            out.print(f"[red]fault of {probe}[/] at step {', '.join(map(str, at))}: {escape(next(iter(at.values())))}")
    out.print(f"all: {seconds:.0f} s ({busy:.0f} s of a core), {peak / 2**30:.2f} GiB at the peak; again: {again:.1f} s")
    above = not short and (seconds > MOST_SECONDS or peak > MOST_BYTES)
    if above:
        out.print(f"[red]above the bars of {MOST_SECONDS} s and {MOST_BYTES >> 30} GiB[/]")
    if above or faults:
        sys.exit(1)


def trained(folder: Path, short: bool) -> Path:
    """Return a run of the quickstart experiment with its checkpoints kept."""
    experiment = load_experiment(Path(__file__).parents[1] / "experiments" / "quickstart.py")
    steps = 40 if short else 300
    keep = CheckpointConfig(every=15, keep=20)
    file, run = folder / "quickstart.json", folder / "run"
    file.write_text(json.dumps(to_dict(dataclasses.replace(experiment, steps=steps, checkpoint=keep))))
    taken("train", file, "--run-dir", str(run))
    return run


def copied(run: Path, to: Path) -> Path:
    """Return a folder of its own with what a run holds, without its analysis; checkpoints are linked."""
    to.mkdir()
    for name in FIELDS:
        if (run / name).exists():
            (to / name).symlink_to((run / name).absolute(), target_is_directory=(run / name).is_dir())
    assert not (to / ANALYSIS).exists()
    return to


def taken(command: str, *arguments: Path | str) -> tuple[float, float, int]:
    """Run a command of jaxlm in a process of its own; return its seconds, those of its cores, and its most memory in bytes."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "jaxlm", command, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not (command == "analyze" and process.returncode == 1):  # faults are listed, and times hold
        raise SystemExit(f"jaxlm {command} ended with status {process.returncode}")
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, memory


if __name__ == "__main__":
    tyro.cli(main)
