"""The command line: what each command takes is its function's signature, in `commands`; what each does lives elsewhere.

Nothing heavy is imported until a command needs it, so that --help answers at once.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from jaxlm import __version__
from jaxlm.commands import analysing, listing, models, pods, reading, reporting, sweeping, training, trusting, viewing
from jaxlm.errors import STORAGE, JaxlmError, ProcessError, no_storage, suggest

COMMANDS: dict[str, Callable[..., None]] = {
    "train": training.train,
    "eval": reading.evaluate,
    "score": reading.score,
    "tokens": viewing.tokens,
    "sample": reading.sample,
    "chat": reading.chat,
    "import": models.import_,
    "export": models.export,
    "show": training.show,
    "watch": viewing.watch,
    "diff": training.diff,
    "trust": trusting.trust,
    "data prepare": training.data_prepare,
    "data show": training.data_show,
    "data tokenizer": training.data_tokenizer,
    "sweep": sweeping.sweep,
    "runs": listing.runs,
    "analyze": analysing.analyze,
    "report": reporting.report,
    "plan": pods.plan,
    "launch": pods.launch,
    "jobs": pods.jobs,
    "jobs tail": pods.jobs_tail,
    "jobs cancel": pods.jobs_cancel,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; faults that the user can mend are printed without a traceback, with exit status 2.

    Status 1 is for what another start may mend by itself: processes that did not find one another, or one that died.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = Console(stderr=True, highlight=False)
    if not given or given[0] in ("-h", "--help", "help"):
        _overview(Console(highlight=False))
        return 0
    if given[0] == "--version":
        print(__version__)
        return 0
    words = 2 if given[0] == "data" or " ".join(given[:2]) in COMMANDS else 1
    name = " ".join(given[:words])
    try:
        if name not in COMMANDS:
            raise JaxlmError(f"there is no command {name!r}.{suggest(name, COMMANDS)} `jaxlm --help` lists them")
        with _together(name):
            _parse(name, given[words:])()
    except JaxlmError as fault:
        out.print("[bold red]error:[/] ", end="")
        out.print(str(fault), markup=False, soft_wrap=True)
        return 1 if isinstance(fault, ProcessError) else 2
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as fault:
        if fault.errno not in STORAGE:
            raise
        out.print(f"error: {no_storage(fault)}", markup=False)
        return 2
    except KeyboardInterrupt:
        out.print("interrupted")
        return 130
    return 0


def _parse(name: str, arguments: list[str]) -> Callable[[], None]:
    """Return the command with its arguments; for one about an experiment, the file is read first and gives the defaults."""
    command = training.show_run if name == "show" and arguments and os.path.isdir(arguments[0]) else COMMANDS[name]
    wanted, module = command.__annotations__, sys.modules[command.__module__]
    if "experiment" in wanted:
        from jaxlm.experiment import Experiment
        from jaxlm.experiment_file import apply_overrides, load_experiment

        module.Experiment = Experiment
        arguments, overrides = _take_option(arguments, "--overrides", "a file: --overrides plan.json")
        if arguments and not arguments[0].startswith("-"):
            found = load_experiment(Path(arguments[0]))
            command = functools.partial(command, experiment=apply_overrides(found, Path(overrides)) if overrides else found)
    if "sort" in wanted:
        arguments, column = _take_option(arguments, "--sort", "a column: --sort -loss")
        arguments += [f"--sort={column}"] * bool(column)  # one that begins with a hyphen is no option
    if "target" in wanted:
        from jaxlm.launch.start import target_of

        module.Target = target_of(arguments)
    if "router" in wanted:
        from jaxlm.model.intervention import RouterIntervention

        module.RouterIntervention = RouterIntervention
        command = functools.partial(command, router=RouterIntervention())
    if "probes" in wanted:
        from jaxlm.eval.probe_config import Probes

        module.Probes = Probes
        command = functools.partial(command, probes=Probes())
    if "extend" in wanted:
        from jaxlm.model.extension import Extension

        module.Extension = Extension
        command = functools.partial(command, extend=Extension())
    return lambda: tyro.cli(command, args=arguments, prog=f"jaxlm {name}")


def _take_option(arguments: list[str], name: str, needs: str) -> tuple[list[str], str]:
    """Return the arguments without an option that must be known before the others are parsed, and its value."""
    rest, value, left = [], "", iter(arguments)
    for argument in left:
        if argument == name:
            value = next(left, "")
            if not value:
                raise JaxlmError(f"{name} needs {needs}")
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return rest, value


def _overview(out: Console) -> None:
    out.print("[bold]jaxlm[/]: language-model research in JAX. One experiment, one file, one command.\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, command in COMMANDS.items():
        table.add_row(f"  jaxlm {name}", command.__doc__.splitlines()[0])
    out.print(table)
    out.print(
        "\n`jaxlm COMMAND --help` tells what it takes; `jaxlm train EXPERIMENT.py --help` lists every field of the experiment."
    )


def _together(name: str) -> AbstractContextManager[None]:
    """Return what a command runs in: `train` may be one of many processes."""
    if name != "train":
        return nullcontext()
    from jaxlm.run.agreement import taking_part

    return taking_part()
