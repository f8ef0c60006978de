"""Commands about many runs at once."""

from __future__ import annotations  # `Target` is resolved when a command that has one is parsed

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from jaxlm.commands.arguments import Fields
from jaxlm.errors import ConfigError

if TYPE_CHECKING:
    from typing import Any as Target  # of the place that `--on` names


def sweep(
    file: Positional[
        Annotated[
            Path,
            arg(
                metavar="SWEEP.py",
                help="A file that defines sweep(); SWEEP.py:NAME calls NAME(). With --status also a sweep's folder.",
            ),
        ]
    ],
    target: Annotated[Target, Fields],
    on: Annotated[
        Literal["local", "slurm", "tpu-vm", "gke", "xpk"], arg(help="Where; `--on slurm --help` lists that target's options.")
    ] = "local",
    runs: Annotated[Path, arg(help="Where sweeps are recorded and their runs live, which all share.")] = Path("runs/sweeps"),
    list_: Annotated[bool, arg(name="list", help="Print the trials, their changed fields and runs; no more.")] = False,
    status: Annotated[bool, arg(help="Print how every trial stands and the table; train nothing.")] = False,
    max_parallel: Annotated[int, arg(help="Trials at a time on this machine; its cores and GPUs are shared out evenly.")] = 1,
    only: Annotated[str, arg(metavar="ARM", help="Train this arm alone; the table is of all.")] = "",
    metrics: Annotated[tuple[str, ...], arg(help="Fields of a run's last validation to compare.")] = ("loss",),
    name: Annotated[str, arg(help="What the sweep and its folder are called; by default as its file.")] = "",
    retry: Annotated[bool, arg(help="Train those again that diverged, from their last checkpoints.")] = False,
    any_code: Annotated[bool, arg(help="Count runs that another version of the code has finished.")] = False,
    dry_run: Annotated[bool, arg(help="Show what would be run, and touch nothing.")] = False,
) -> None:
    """Train every trial of a sweep that is not finished yet, and compare its arms with the control, seed by seed."""
    if max_parallel < 1:
        raise ConfigError(f"--max-parallel {max_parallel} must be 1 or more")
    if sum((list_, status, dry_run)) > 1:
        raise ConfigError("--list, --status and --dry-run each show something else, and train nothing: give one of them")
    if retry and (list_ or status):
        raise ConfigError("--retry trains: leave it out with --list and --status")
    if on != "local" and max_parallel != 1:
        raise ConfigError(f"--max-parallel is for this machine: --on {on} submits every trial, and its scheduler decides")
    from jaxlm.sweep import overview, start
    from jaxlm.sweep.asked import Asked

    asked = Asked(runs, max_parallel, only, any_code, metrics, name, retry)
    if list_:
        overview.list_trials(file, asked)
    elif status:
        overview.show_status(file, asked)
    elif code := start.run_sweep(file, target, asked, dry_run=dry_run):
        raise SystemExit(code)
