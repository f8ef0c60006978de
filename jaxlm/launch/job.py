"""What every target shares: what is to run, what was submitted, and the checks before it."""

import dataclasses
import json
import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from jaxlm import trust
from jaxlm.config import read_json, to_dict
from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, LaunchError
from jaxlm.experiment import Experiment
from jaxlm.function_file import full_digest, parse
from jaxlm.run.directory import CONFIG
from jaxlm.run.functions import named

FOLDER, RECORD = "launch", "job.json"
SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(?:^|_)(?:PWD|PAT|AUTH|PASS)(?:$|_)|(?:^|_)KEYS?(?:$|_)|APIKEY", re.IGNORECASE
)
# What of jaxlm's own environment a user may set.
TUNABLE = ("JAXLM_CACHE", "JAXLM_JOIN_TIMEOUT", "JAXLM_HEARTBEAT_TIMEOUT")

Stage = Literal["live", "done", "ended"]
"""What a job's state means for another job of the same run: it is queued or runs, its training is complete, or neither."""

Several = UseAppendAction[tuple[str, ...]]  # --option A --option B
Env = Annotated[
    Several, arg(metavar="NAME=VALUE", help="An environment variable of the processes, never a secret; repeatable.")
]


@dataclasses.dataclass(frozen=True)
class Task:
    """A run to be started somewhere: the experiment with all its overrides, and where it lives there."""

    experiment: Experiment
    run_dir: Path
    """Absolute; of this machine."""
    allow_config_change: bool = False

    @property
    def folder(self) -> Path:
        """Where what is launched is written down."""
        return self.run_dir / FOLDER

    @property
    def config(self) -> str:
        """The resolved experiment as its file holds it."""
        return json.dumps(to_dict(self.experiment), indent=2) + "\n"

    @property
    def name(self) -> str:
        """The job's name: that of the run directory in lower-case letters, digits and hyphens, 40 at most."""
        name = re.sub(r"[^a-z0-9]+", "-", self.run_dir.name.lower()).strip("-")[:40].rstrip("-")
        return name if name[:1].isalpha() else f"run-{name}".rstrip("-")

    def train(self, python: str, config: str | Path, run_dir: str | Path) -> list[str]:
        """Return the command of each process."""
        change = ["--allow-config-change"] if self.allow_config_change else []
        return [python, "-m", "jaxlm", "train", str(config), "--run-dir", str(run_dir), *change]


def trusted(task: Task) -> dict[str, str]:
    """Return the environment in which a job may run the functions that its user has named; nothing where there are none."""
    values = [value for value in named(task.experiment).values() if parse(value).file.is_file()]
    digests = sorted(digest for digest in {*map(full_digest, values)} if trust.allowed(digest))
    return {trust.VARIABLE: ":".join(digests)} if digests else {}


@dataclasses.dataclass(frozen=True)
class Rendered:
    """Exactly what will be written here and run, in order."""

    files: Mapping[Path, str]
    commands: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """What the user should know before."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What RUN/launch/job.json says of a submitted job."""

    target: str
    options: Mapping[str, Any]
    name: str
    id: str
    run_dir: Path
    commands: Sequence[str]
    time: str
    ended: str = ""
    """How it ended, where the launcher was there to see it (local)."""

    def write(self) -> None:
        """Write it down, whole or not at all."""
        values = dataclasses.asdict(self) | {"run_dir": str(self.run_dir)}
        write_atomically(self.run_dir / FOLDER / RECORD, json.dumps(values, indent=2) + "\n")


def new_job(task: Task, target: str, options: Any, job_id: str, commands: Iterable[Sequence[str]]) -> Job:
    """Return the record of a job submitted now."""
    spelled = [shlex.join(command) for command in commands]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Job(target, to_dict(options), task.name, job_id, task.run_dir, spelled, now)


def read_job(run_dir: Path) -> Job:
    """Return the job recorded in a run directory, or raise LaunchError."""
    path = run_dir / FOLDER / RECORD
    try:
        values = read_json(path.read_bytes())
        return Job(**values | {"run_dir": run_dir.absolute()})
    except FileNotFoundError as fault:
        raise LaunchError(
            f"{run_dir} was not started by `jaxlm launch`: it has no {FOLDER}/{RECORD}. `jaxlm jobs` lists those that were"
        ) from fault
    except (OSError, ValueError, TypeError) as fault:
        raise LaunchError(f"{path} cannot be read as the record of a job: {fault}. Launch the run again") from fault


def config_file(task: Task) -> dict[Path, str]:
    """Return the resolved configuration as a file to write."""
    return {task.folder / CONFIG: task.config}


class Template(string.Template):
    """Fills `@name`; dollar signs and other at signs are left to the shell and Kubernetes."""

    pattern = r"@(?:(?P<named>[a-z_]+)|(?P<escaped>(?!))|(?P<braced>(?!))|(?P<invalid>(?!)))"


def template(name: str) -> str:
    """Return the text of a file of launch/."""
    return (Path(__file__).parent / "templates" / name).read_text()


def check_environment(given: Sequence[str], secrets: str) -> dict[str, str]:
    """Return NAME=VALUE settings as a dict, or raise ConfigError; `secrets` says how the target takes a secret."""
    values = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"--env {name}... is not NAME=VALUE, for example --env XLA_FLAGS=--xla_dump_to=/tmp/xla")
        if SECRET.search(name):  # its value is not repeated, not even here
            raise ConfigError(
                f"--env {name}=... looks like a secret, and what --env sets is written down and shown by schedulers: {secrets}"
            )
        if name.startswith("JAXLM_") and name not in TUNABLE:
            raise ConfigError(f"--env {name}=... is set by the launcher: leave it out")
        if "\n" in value:
            raise ConfigError(f"--env {name}=... has a line break: give a value of one line")
        values[name] = value
    return values


def need(program: str, install: str) -> None:
    """Raise LaunchError where a program that the target needs is not on PATH."""
    if shutil.which(program) is None:
        raise LaunchError(f"{program} is not on this machine's PATH: {install}. To see what would be run, add --dry-run")


def call(command: Sequence[str], *, timeout: float | None = None) -> str:
    """Run a command and return what it printed; LaunchError with its own words where it fails."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except FileNotFoundError as fault:
        raise LaunchError(f"{command[0]} is not on this machine's PATH") from fault
    except subprocess.TimeoutExpired as fault:
        raise LaunchError(f"{command[0]} did not answer within {timeout:g} s") from fault
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LaunchError(f"`{shlex.join(command[:3])} ...` failed with exit status {done.returncode}: {said}")
    return done.stdout


def show_command(command: Sequence[str]) -> str:
    """Return a command as a shell takes it, an option a line where it is long."""
    whole = shlex.join(command)
    if len(whole) <= 110:
        return whole
    lines, setting = [[]], command[0] == "env"
    for word in command:
        option, last = word.startswith("--"), lines[-1]
        ends_settings = setting and word != "env" and "=" not in word
        after_option = bool(last) and last[0].startswith("--") and "=" in last[0]
        if last and (option or after_option or ends_settings or (setting and "=" in word)):
            lines.append([])
        setting &= not ends_settings
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)
