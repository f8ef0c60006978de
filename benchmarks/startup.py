"""Seconds until something happens: import, help, the first step of a run with its compile cache empty and filled, and resuming.

    python benchmarks/startup.py --rounds 5 --json out.json

Every time is of a new process. The run is experiments/quickstart.py on data that is prepared: until its first step is done is
what the run's own record counts from the process's first moment to the end of that step. The compile cache is JAX's own
(JAX_COMPILATION_CACHE_DIR), which jaxlm leaves to its user. A run of 10 steps whose last checkpoint is taken away is resumed
from step 5, its cache filled. What alternates, alternates: import, help, cold, warm, resumed, and again.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import record
import tyro
from rich.console import Console
from rich.table import Table
from timed import jaxlm, timed

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.py"
STEPS = 10
OPTIONS = (
    f"--steps {STEPS} --optimizer.warmup-steps 1 --checkpoint.every {STEPS // 2} --checkpoint.keep 2 --evaluation.every 0 "
    "--sample.tokens 1"
).split()


def main(
    rounds: int = 5,
    json: Annotated[Path | None, tyro.conf.arg(help="Write everything measured here.")] = None,
) -> int:
    """Measure, and return 1 where a bar is missed.

    Args:
        rounds: New processes of each kind.
    """
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), rounds)
    table = Table("until", "seconds", "least", "greatest", title=f"{rounds} new processes of each", box=None)
    results = [record.measured(name, values, "s", "lower") for name, values in seconds.items()]
    for result in results:
        table.add_row(result["name"], *(f"{result[key]:.2f}" for key in ("ours", "low", "high")))
    Console().print(table)
    return record.finish("startup", results, json, seconds=seconds)


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each kind of start."""
    home = {"JAXLM_CACHE": str(folder / "data")}
    filled = home | cached(folder / "compiled")
    jaxlm("data", "prepare", QUICKSTART, environment=home)
    train(folder / "begun", filled)  # fills the cache, and is what is resumed
    shutil.rmtree(folder / "begun" / "checkpoints" / str(STEPS))
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        again = folder / f"again-{number}"
        shutil.copytree(folder / "begun", again)
        taken = {
            "python -c pass": timed([sys.executable, "-c", "pass"]).seconds,
            "import jaxlm": timed([sys.executable, "-c", "import jaxlm"]).seconds,
            "jaxlm --help": jaxlm("--help").seconds,
            "jaxlm runs --help": jaxlm("runs", "--help").seconds,
            "jaxlm train FILE --help": jaxlm("train", QUICKSTART, "--help").seconds,
            "first step, compile cache empty": train(folder / f"cold-{number}", home | cached(folder / f"compiled-{number}")),
            "first step, compile cache filled": train(folder / f"warm-{number}", filled),
            "first step of a resumed run": train(again, filled),
        }
        for name, value in taken.items():
            found.setdefault(name, []).append(value)
        for name in ("again", "cold", "warm"):
            shutil.rmtree(folder / f"{name}-{number}")
    return found


def cached(folder: Path) -> dict[str, str]:
    """Return the environment in which JAX keeps what it compiles in `folder`, however little it took."""
    return {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def train(run: Path, environment: dict[str, str]) -> float:
    """Begin or continue a run; return the seconds from the process's first moment to the end of its first step."""
    jaxlm("train", QUICKSTART, "--run-dir", run, *OPTIONS, environment=environment)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = max(row["start"] for row in rows if row["split"] == "goodput")
    # The record's first line on where this start's time went is written when its first step has been read.
    return sum(next(row for row in rows if row["split"] == "goodput" and row["start"] == last)["seconds"].values())


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
