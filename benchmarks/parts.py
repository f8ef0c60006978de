"""What `python -m benchmarks.run` consists of: for each part, the command that measures it, in full and in fewer rounds."""

import dataclasses
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.bars import FILE, read_bars
from jaxlm.errors import ConfigError, suggest

ROOT = Path(__file__).parents[1]
STORED_LAWS = "docs/benchmarks/scaling.json"


@dataclasses.dataclass(frozen=True)
class Part:
    """One command. `minutes` is what it takes in full on two quiet cores."""

    title: str
    script: str
    minutes: float
    options: str = ""
    quick: str = ""
    """Options that come in their place with --quick."""
    torch: str = ""
    """The option that names the interpreter, or a command of it, of PyTorch; {} stands for it."""
    needs_torch: bool = False
    needs: str = ""
    """A module without which nothing can be measured."""
    carries_bars: bool = False
    """Whether its results bring their bars along, and bars.json has none."""

    def command(self, out: Path, *, quick: bool, torch: str | None) -> list[str]:
        """Return the command that writes its record to `out`."""
        how = (
            ["-m", self.script.removesuffix(".py")]
            if self.script.startswith("benchmarks.")
            else [str(Path("benchmarks", self.script))]
        )
        options = shlex.split(self.quick if quick else self.options)
        beside = [part.format(torch) for part in shlex.split(self.torch)] if torch else []
        return [sys.executable, *how, *options, *beside, "--json", str(out)]

    def lacks(self, torch: str | None) -> str | None:
        """Return why it cannot be measured here, or None."""
        if self.needs_torch and not torch:
            return "no interpreter with torch and transformers was given (--torch PYTHON)"
        if self.needs and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None


# The most valuable first: 28 minutes in all.
PARTS = {
    "train": Part(
        "A train step beside PyTorch's", "train_paired.py", 5.8, "--rounds 4 --seconds 2.25",
        "--rounds 2 --seconds 1", "--torch {}", needs_torch=True,
    ),
    "moe": Part(
        "A mixture's layer beside the dense layer and Hugging Face's", "moe_layer.py", 3.1,
        "--sizes 8 64 --rounds 3 --seconds 1", "--sizes 8 64 --rounds 2 --seconds 0.5", "--torch {}",
    ),
    "decode": Part(
        "Generation beside transformers' generate", "decode.py", 1.9, "--rounds 3 --seconds 2.5",
        "--rounds 1 --seconds 1", '--yardstick "{} benchmarks/generate_torch.py"', needs_torch=True,
    ),
    "long-context": Part(
        "Self-Extend in two passes beside plain attention", "long_attention.py", 2,
        "--lengths 4096 8192 16384 32768 --rounds 2 --seconds 1", "--lengths 4096 16384 --rounds 1 --seconds 0.2",
    ),
    "dpo": Part("A step on preferences beside supervised tuning", "dpo_step.py", 1.3, "--rounds 11", "--rounds 4"),
    "checkpoint": Part("What a save costs the steps", "checkpoint.py", 1.8, "", "--saves 1"),
    "startup": Part("Import, help, first step, resume", "startup.py", 1.8, "--rounds 2", "--rounds 1"),
    "data": Part(
        "Data delivered over data consumed", "data.py", 0.7, "experiments/quickstart.py --rounds 4 --seconds 2",
        "experiments/quickstart.py --rounds 2 --seconds 1",
    ),
    "plan": Part("Planning for devices that are not there", "plan_cost.py", 0.5, "", needs="libtpu"),
    "runs": Part("The table of all runs", "runs_index.py", 0.6, "--counts 100 2000", "--counts 100 2000"),
    "report": Part("A report of a sweep of 12 runs", "report.py", 0.5, "", "--loads 2", needs="plotly"),
    "analysis": Part(
        "All probes at 10 checkpoints", "analysis.py", 1.9, "--checkpoints 10 --no-alone", "--checkpoints 2 --no-alone",
    ),
    # The others, of layers that are unlike, decoding, the TPU's compiler and the index, take twice as long: they are shown from
    # a record that `python -m benchmarks.scaling --json docs/benchmarks/scaling.json` made.
    "scaling": Part(
        "How our own cost grows; laws with a date come from a stored record, scaling.json", "benchmarks.scaling", 6,
        f"length experts vocabulary layers devices --stored {STORED_LAWS}", "--quick length experts vocabulary layers devices",
        carries_bars=True,
    ),
}  # fmt: skip


def chosen(names: list[str]) -> dict[str, Part]:
    """Return the parts that are named, in their own order, or all; ConfigError for a name that is none."""
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"there is no part {name!r}.{suggest(name, PARTS)} The parts: {', '.join(PARTS)}")
    return {name: part for name, part in PARTS.items() if not names or name in names}


def find_torch(given: str | None) -> str | None:
    """Return the interpreter as it was given; ConfigError where there is none."""
    if given and not shutil.which(given):
        raise ConfigError(
            f"--torch {given}: there is no such program; give the Python of an environment with torch and transformers"
        )
    return given


def check_bars(file: Path = FILE) -> None:
    """Raise ConfigError where a part that should have bars has none, or bars are of a part that is not there."""
    bars = read_bars(file)
    for name, part in PARTS.items():
        if bool(bars.get(name)) is part.carries_bars:
            raise ConfigError(f"{file.name}: {name} {'brings its own bars' if part.carries_bars else 'has no bar'}")
    for name in bars:
        if name not in PARTS:
            raise ConfigError(f"{file.name}: {name!r} is no part.{suggest(name, PARTS)}")
