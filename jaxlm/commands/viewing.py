"""Commands that show a run while it goes on, and what its model makes of every token."""

from __future__ import annotations  # configurations are resolved when a command that takes them is parsed

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from jaxlm.commands.arguments import RunFolder, Step
from jaxlm.commands.start import start_jax

if TYPE_CHECKING:
    from jaxlm.model.extension import Extension


def watch(
    run: Positional[Annotated[Path, arg(metavar="RUN_OR_SWEEP", help="A run's directory, or a sweep's.")]],
    every: Annotated[float, arg(help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, arg(help="Show how it stands now and end; so it is, too, where the output is no terminal.")] = False,
    since: Annotated[int, arg(help="Draw curves from this step on.")] = 0,
    wait: Annotated[bool, arg(help="Stay although nothing is running: it may begin yet.")] = False,
) -> None:
    """Watch a run or a sweep in the terminal: state, curves, newest numbers, routers, where the time goes; Ctrl-C ends it."""
    from jaxlm.report.live import watch as follow

    follow(run, every=every, once=once, since=since, wait=wait)


def tokens(
    run: RunFolder,
    step: Step = None,
    against: Annotated[Path | None, arg(metavar="RUN", help="A run to compare with; this one, for another step of it.")] = None,
    against_step: Annotated[int | None, arg(help="Step of its checkpoint; the newest by default.")] = None,
    text: Annotated[tuple[str, ...], arg(help="Texts to read.")] = (),
    file: Annotated[Path | None, arg(metavar="FILE", help="A text file to read, UTF-8.")] = None,
    source: Annotated[
        tuple[str, ...], arg(help="What rows are of, for example text:book.txt; the run's validation split by default.")
    ] = (),
    rows: Annotated[int, arg(help="Rows of it to read; 1 where no text is named.")] = 0,
    first: Annotated[int, arg(help="The first of these rows.")] = 0,
    top: Annotated[int, arg(help="How many of the likeliest tokens to tell.")] = 5,
    limit: Annotated[int, arg(help="Tokens of texts to read at most.")] = 4096,
    experts: Annotated[bool, arg(help="Of a mixture: tell which experts each token visited.")] = False,
    json: Annotated[bool, arg(help="Print all numbers as one JSON object.")] = False,
    out: Annotated[Path | None, arg(metavar="FILE.html", help="Write a page that needs no network.")] = None,
    extend_both: Annotated[bool, arg(help="Read the run of --against, too, as --extend has it.")] = False,
    *,
    extend: Extension,
) -> None:
    """Show the log-probability, rank and alternatives of every token of a text, or how two models differ on it."""
    start_jax(1)
    from jaxlm.report.tokens import Wanted, view_tokens

    wanted = Wanted(
        texts=text, file=file, sources=source, rows=rows, first=first, top=top, limit=limit, experts=experts, json=json,
        out=out, extension=extend, extend_both=extend_both,
    )  # fmt: skip
    view_tokens(run, wanted, step, against, against_step)
