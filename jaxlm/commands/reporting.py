"""The command that makes a report."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def report(
    paths: Positional[
        Annotated[tuple[Path, ...], arg(metavar="RUNS_OR_SWEEP", help="Folders of runs, of sweeps, or with runs in them.")]
    ],
    out: Annotated[Path, arg(metavar="FILE.html", help="Where to write it.")] = Path("report.html"),
    title: Annotated[str, arg(help="Of the page; the sweep's name, or the run's, by default.")] = "",
    metrics: Annotated[tuple[str, ...], arg(help="Of the last validation, to compare arms by; each adds comparisons.")] = (
        "loss",
    ),
    control: Annotated[
        str, arg(help="The arm to compare with; the sweep's own, or the first that was validated, by default.")
    ] = "",
    arms_by: Annotated[
        tuple[str, ...],
        arg(metavar="FIELD", help="Of runs by themselves: those that agree in these fields form an arm (default: in all)."),
    ] = (),
    max_points: Annotated[int, arg(help="Points of a curve; the lowest and highest of each stretch are kept.")] = 500,
) -> None:
    """Write one HTML file on runs or a sweep: verdict, curves, routers, probes, cost; it opens from disk without a network."""
    from jaxlm.errors import JaxlmError
    from jaxlm.report.build import write_report
    from jaxlm.run.display import console

    if not paths:
        raise JaxlmError("report needs a folder: jaxlm report runs/sweeps/NAME, or jaxlm report runs/ONE runs/OTHER")
    done = write_report(paths, out, title=title, metrics=metrics, control=control, arms_by=arms_by, max_points=max_points)
    say = console()
    for folder, kind, why in done["unread"]:
        say.print(f"left out, {kind}: {folder}: {why}", markup=False, soft_wrap=True)
    say.print(f"{out}: {done['runs']} run{'s' * (done['runs'] != 1)}, {done['bytes'] / 1e6:.1f} MB", soft_wrap=True)
