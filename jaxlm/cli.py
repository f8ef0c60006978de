"""The command line: what each command takes is its function's signature; what each does lives elsewhere.

Nothing heavy is imported until a command needs it, so that --help answers at once.
"""

from __future__ import annotations  # `Experiment` below is resolved when a command that has one is parsed

import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from jaxlm import __version__
from jaxlm.errors import JaxlmError, ProcessError, suggest

RunFolder = Positional[Annotated[Path, arg(metavar="RUN", help="A run's directory.")]]
File = Positional[
    Annotated[
        Path,
        arg(
            metavar="EXPERIMENT.py",
            help="A file that defines experiment(). `--overrides FILE.json` changes its fields before any other option does.",
        ),
    ]
]
Step = Annotated[int | None, arg(help="Step of the checkpoint; the newest by default.")]
Fields = arg(name="")  # the experiment's fields, without a prefix: --steps 100 --model.num-layers 4


def train(
    file: File,
    experiment: Annotated[Experiment, Fields],
    run_dir: Annotated[
        Path | None, arg(help="Where the run lives, runs/NAME by default; a run that is there is continued.")
    ] = None,
    allow_config_change: Annotated[bool, arg(help="Continue a run although its configuration has changed.")] = False,
) -> None:
    """Train, or continue, an experiment; every field of it can be changed here."""
    _start_jax(experiment.mesh.cpu_devices, join=True)
    from jaxlm.run.goodput import Clock, process_age
    from jaxlm.run.loop import train as run

    folder = run_dir or Path("runs") / experiment.name
    run(experiment, folder, allow_config_change=allow_config_change, clock=Clock(process_age()))


def show(
    file: File,
    experiment: Annotated[Experiment, Fields],
    devices: Annotated[int, arg(help="Devices to lay the model over; 0: those present.")] = 0,
) -> None:
    """Show an experiment: fields, parameters by part, costs, and where each weight lives and why; or how a run stands."""
    _start_jax(experiment.mesh.cpu_devices)
    from jaxlm.run.show import show_experiment

    show_experiment(experiment, devices)


def show_run(run: RunFolder) -> None:
    """Show how a run stands: its newest results and checkpoints, its starts, and where their time went."""
    from jaxlm.run.status import show_run as show

    show(run)


def diff(
    left: Positional[Annotated[Path, arg(metavar="A", help="An experiment file or a run.")]],
    right: Positional[Annotated[Path, arg(metavar="B", help="Another.")]],
) -> None:
    """Show the fields in which two experiments or runs differ."""
    from jaxlm.run.show import show_difference

    show_difference(left, right)


def data_prepare(
    file: File,
    experiment: Annotated[Experiment, Fields],
    workers: Annotated[int, arg(help="Processes that encode; 0: one a core.")] = 0,
) -> None:
    """Tokenise and pack an experiment's data, once; `jaxlm train` does the same where it is missing."""
    from jaxlm.run.data import prepare_data

    prepare_data(experiment, workers or None)


def data_show(
    file: File,
    experiment: Annotated[Experiment, Fields],
    rows: Annotated[int, arg(help="How many rows.")] = 2,
    first: Annotated[int, arg(help="The first row.")] = 0,
    split: Literal["train", "validation"] = "train",
) -> None:
    """Print rows as the model reads them, decoded, with their document boundaries."""
    from jaxlm.run.data import show_data

    show_data(experiment, split, first, rows)


def data_tokenizer(
    file: File,
    output: Positional[Annotated[Path, arg(metavar="OUT.model", help="The file to write.")]],
    experiment: Annotated[Experiment, Fields],
) -> None:
    """Train an experiment's tokenizer on its sources, and write it to a file of its own."""
    from jaxlm.run.data import save_tokenizer

    save_tokenizer(experiment, output)


def evaluate(
    run: RunFolder,
    step: Step = None,
    source: Annotated[
        tuple[str, ...], arg(help="Text to evaluate on, for example text:book.txt; the run's own by default.")
    ] = (),
    split: Annotated[Literal["train", "validation"], arg(help="Of the run's own data.")] = "validation",
    batches: Annotated[int, arg(help="How many batches; 0: all.")] = 0,
    batch_size: Annotated[int, arg(help="Rows a batch; 0: the run's.")] = 0,
    *,
    router: RouterIntervention,
) -> None:
    """Print a checkpoint's loss, perplexity and bits per byte on any text, as one JSON object."""
    _start_jax(1)
    from jaxlm.run.evaluate import evaluate_run

    evaluate_run(run, step, source, split, batches, batch_size, router)


def score(
    run: RunFolder,
    tokens: Annotated[Path, arg(metavar="ROWS.npy", help="Token rows, integers [rows, length].")],
    logits: Annotated[
        Path | None, arg(metavar="OUT.npy", help="Write all logits there, float32 [rows, length, vocabulary].")
    ] = None,
    step: Step = None,
    batch_size: Annotated[int, arg(help="Rows at a time.")] = 8,
) -> None:
    """Print the log-probability of each token of given rows after those before it: one JSON object a row."""
    _start_jax(1)
    from jaxlm.run.score import score_rows

    score_rows(run, tokens, logits, step, batch_size)


def sample(
    run: RunFolder,
    prompt: Annotated[tuple[str, ...], arg(help="Texts to continue; none begins a document.")] = (),
    tokens: Annotated[int, arg(help="Tokens to write.")] = 200,
    temperature: Annotated[float, arg(help="Divides the logits; 0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, arg(help="Sample from this many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, arg(help="Sample from the smallest set of tokens with this probability.")] = 0.95,
    samples: Annotated[int, arg(help="Continuations of each prompt.")] = 1,
    seed: Annotated[int, arg(help="The same seed writes the same text.")] = 0,
    step: Step = None,
) -> None:
    """Continue prompts with a run's model; a single continuation is written as it comes."""
    _start_jax(1)
    from jaxlm.run.sample import sample_run

    sample_run(run, prompt or ("",), tokens, (temperature, top_k, top_p), samples, seed, step)


def plan(
    file: File,
    experiment: Annotated[Experiment, Fields],
    topology: Annotated[
        str, arg(help="Devices: v5e:4x4, v5p:4x4x4 (chips along each side of a slice), a product (v5p-128), h100:8.")
    ],
    slices: Annotated[int, arg(help="How many such slices; `mesh.replica` takes a multiple of it.")] = 1,
    stage: Annotated[
        Literal["code", "schedule"],
        arg(help="How far to compile: to machine code, which estimates cycles, or in seconds to the schedule, which does not."),
    ] = "code",
    json: Annotated[Path | None, arg(metavar="FILE", help="Write the plan there as JSON.")] = None,
    search: Annotated[bool, arg(help="Try meshes, remat and accumulation, and rank what fits by modelled step time.")] = False,
    budget: Annotated[float, arg(help="Of a search: seconds after which nothing new is compiled.")] = 1200.0,
    candidates: Annotated[int, arg(help="Of a search: how many candidates to compile.")] = 12,
    capacity_factors: Annotated[tuple[float, ...], arg(help="Of a search: capacity factors to try.")] = (),
    output: Annotated[
        Path | None, arg(metavar="FILE", help="Of a search: write the winner's fields there, for `--overrides FILE`.")
    ] = None,
) -> None:
    """Compile an experiment's step for TPUs or GPUs that are not there: memory, traffic, modelled step time, what to change."""
    from jaxlm.plan import command

    if output and not search:
        raise JaxlmError("--output is where a search writes its winner: add --search, or write the plan with --json FILE")
    if search:
        limits = command.Limits(budget=budget, candidates=candidates, capacity_factors=capacity_factors)
        command.search(experiment, topology, slices, limits, json, output)
    else:
        command.plan(experiment, topology, slices, stage, json)


def launch(
    file: File,
    experiment: Annotated[Experiment, Fields],
    target: Annotated[Target, Fields],
    on: Annotated[
        Literal["local", "slurm", "tpu-vm", "gke", "xpk"], arg(help="Where; `--on slurm --help` lists that target's options.")
    ] = "local",
    run_dir: Annotated[
        Path | None, arg(help="Where the run lives, runs/NAME by default; a run that is there is continued.")
    ] = None,
    dry_run: Annotated[bool, arg(help="Show the files and commands, and touch nothing.")] = False,
    allow_config_change: Annotated[bool, arg(help="Continue a run although its configuration has changed.")] = False,
) -> None:
    """Train, or continue, an experiment with many processes: here, on Slurm, Cloud TPU VMs or Kubernetes."""
    from jaxlm.launch.start import launch as start

    place = run_dir or Path("runs") / experiment.name
    start(experiment, target, place, dry_run=dry_run, allow_config_change=allow_config_change)


def jobs(
    folder: Positional[Annotated[Path, arg(metavar="FOLDER", help="The folder that holds the runs.")]] = Path("runs"),
) -> None:
    """List launched runs, with the state that the scheduler gives of each now."""
    from jaxlm.launch.jobs import list_jobs

    list_jobs(folder)


def jobs_tail(run: RunFolder) -> None:
    """Follow the output of a launched run."""
    from jaxlm.launch.jobs import tail_job

    tail_job(run)


def jobs_cancel(run: RunFolder) -> None:
    """Stop a launched run; what it has saved stays."""
    from jaxlm.launch.jobs import cancel_job

    cancel_job(run)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "eval": evaluate,
    "score": score,
    "sample": sample,
    "show": show,
    "diff": diff,
    "data prepare": data_prepare,
    "data show": data_show,
    "data tokenizer": data_tokenizer,
    "plan": plan,
    "launch": launch,
    "jobs": jobs,
    "jobs tail": jobs_tail,
    "jobs cancel": jobs_cancel,
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
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        out.print(
            f"error: {fault}. Make room or choose a folder that can be written; nothing written before is lost", markup=False
        )
        return 2
    except KeyboardInterrupt:
        out.print("interrupted")
        return 130
    return 0


def _parse(name: str, arguments: list[str]) -> Callable[[], None]:
    """Return the command with its arguments; for one about an experiment, the file is read first and gives the defaults."""
    command = show_run if name == "show" and arguments and Path(arguments[0]).is_dir() else COMMANDS[name]
    wanted = command.__annotations__
    if "experiment" in wanted:
        global Experiment
        from jaxlm.experiment import Experiment, apply_overrides, load_experiment

        arguments, overrides = _take_option(arguments, "--overrides")
        if arguments and not arguments[0].startswith("-"):
            found = load_experiment(Path(arguments[0]))
            command = functools.partial(command, experiment=apply_overrides(found, Path(overrides)) if overrides else found)
    if "target" in wanted:
        global Target
        from jaxlm.launch.start import target_of

        Target = target_of(arguments)
    if "router" in wanted:
        global RouterIntervention
        from jaxlm.model.intervention import RouterIntervention

        command = functools.partial(command, router=RouterIntervention())
    return lambda: tyro.cli(command, args=arguments, prog=f"jaxlm {name}")


def _take_option(arguments: list[str], name: str) -> tuple[list[str], str]:
    """Return the arguments without an option that must be known before the others are parsed, and its value."""
    rest, value, left = [], "", iter(arguments)
    for argument in left:
        if argument == name:
            value = next(left, "")
            if not value:
                raise JaxlmError(f"{name} needs a file: {name} plan.json")
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


def _start_jax(cpu_devices: int, *, join: bool = False) -> None:
    """Settle what must be settled before JAX looks for devices; with `join`, join the processes that the environment names."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_num_cpu_devices", cpu_devices)
    # JAX has set its platforms by now if this host has a TPU. Where it has none, and no other plugin, a TPU's compiler that is
    # there for plans would only be tried as a device, slowly and with complaints.
    if jax.config.jax_platforms is None and find_spec("libtpu") and not find_spec("jax_plugins"):
        jax.config.update("jax_platforms", "cpu")
    process = None
    if join:
        from jaxlm.run import agreement

        process = agreement.join_if_asked()
    from jaxlm.run.display import quiet_libraries
    from jaxlm.run.memory import keep_freed_memory

    quiet_libraries(process)
    keep_freed_memory()
