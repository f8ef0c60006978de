"""The command that looks into checkpoints."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxlm.analysis.probe_files import listed
from jaxlm.commands.start import start_jax


def analyze(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...", help="Run directories, or folders of sweeps.")],
    named: Annotated[
        tuple[str, ...],
        arg(
            name="probes",
            metavar="NAME_OR_FILE...",
            help="Our probes by name, your own by file; none: all of ours that suit the model. Ours: " + "; ".join(listed()),
        ),
    ] = (),
    steps: Annotated[tuple[int, ...], arg(help="Checkpoints to look at; none: all there are.")] = (),
    rows: Annotated[int, arg(help="Rows of validation text that every checkpoint reads.")] = 16,
    source: Annotated[
        tuple[str, ...], arg(help="What to read instead of the run's own validation text, for example text:book.txt.")
    ] = (),
    settings: Annotated[
        tuple[str, ...], arg(metavar="PROBE.FIELD=VALUE...", help="Settings of probes, for example connectivity.points=11.")
    ] = (),
) -> None:
    """Look into every checkpoint of runs with probes: loss by kind of token, attention, spectra, experts and more."""
    from jaxlm.errors import ConfigError, JaxlmError

    if not runs:
        raise ConfigError("there is no run to analyze: name one, jaxlm analyze runs/quickstart say")
    if rows < 1:
        raise ConfigError(f"--rows {rows} must be 1 or more")
    start_jax(1)
    from jaxlm.analysis.probe_files import load_probes
    from jaxlm.analysis.walk import analyze_runs

    found, folders, unread, not_yet = load_probes(named, settings), {}, {}, {}
    for run in runs:
        if not (run / "sweep.json").is_file():
            folders[run] = None
            continue
        try:
            for trial in _trials_of(run):
                (folders if _begun(trial) else not_yet)[trial] = None
        except JaxlmError as fault:
            unread[run] = fault
    if not analyze_runs([*folders], found, steps, rows, source, unread, [*not_yet]):
        raise SystemExit(1)


def _trials_of(sweep: Path) -> list[Path]:
    from jaxlm.sweep.read import read_record

    return list(dict.fromkeys(entry.run for entry in read_record(sweep).trials))


def _begun(run: Path) -> bool:
    """Return whether a run of a sweep has a checkpoint, or will not have one: what failed without is listed."""
    from jaxlm.run.standing import standing

    found = standing(run)
    return bool(found.checkpoints) or found.kind in ("finished", "failed", "broken", "foreign")
