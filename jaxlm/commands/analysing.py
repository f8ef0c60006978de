"""The command that looks into checkpoints."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxlm.commands.start import start_jax


def analyze(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...", help="Run directories, or folders of sweeps.")],
    named: Annotated[
        tuple[str, ...],
        arg(
            name="probes",
            metavar="NAME_OR_FILE...",
            help="Our probes by name, your own by file; none: all of ours that suit the model.",
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
    from jaxlm.errors import ConfigError

    if not runs:
        raise ConfigError("there is no run to analyze: name one, jaxlm analyze runs/quickstart say")
    if rows < 1:
        raise ConfigError(f"--rows {rows} must be 1 or more")
    start_jax(1)
    from jaxlm.analysis.probe_files import load_probes
    from jaxlm.analysis.walk import analyze_runs

    found = load_probes(named, settings)
    if not analyze_runs([folder for run in runs for folder in _runs_of(run)], found, steps, rows, source):
        raise SystemExit(1)


def _runs_of(folder: Path) -> list[Path]:
    """Return the runs of a sweep, or the folder itself where it is no sweep."""
    if not (folder / "sweep.json").is_file():
        return [folder]
    from jaxlm.sweep.read import read_record

    return list(dict.fromkeys(entry.run for entry in read_record(folder).trials))
