"""Compare the speed of programs that take turns, because on a shared machine only ratios of neighbours in time mean much.

    python benchmarks/paired.py --rounds 5 --seconds 6 --names ours,nanogpt \\
        --a "python benchmarks/train_step.py --serve" \\
        --b "python benchmarks/nanogpt_torch.py --serve"

Every command is started once and stays alive. It prints the line `ready` when it has warmed up, sleeps on its standard
input, and answers each line `measure SECONDS` with one line of JSON that has `tokens_per_second` (any other keys are kept;
`versions` and `program` are shown). End of input means leave. Lines of its output that are none of these are ignored.

The turns go A B C A B C ...; each round gives the ratio of every command to the last one, and the table shows medians over
rounds. While a command measures, the processor time that everything else took on the same cores is counted, the waiting
commands included: one busy neighbour can make a program whose threads meet at barriers twenty times slower, which no
median mends. A round in which others took more than --disturbance cores is set aside and repeated, until there are as many
of them as --rounds: then all count, and the report says so. Linux only for that and for --pin.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import signal
import statistics
import sys
import time
from pathlib import Path

from child import Child, ChildFailed
from machine import machine, processor, usable_cpus

LETTERS = "abcdefgh"


@dataclasses.dataclass
class Round:
    """One turn of every command: what each answered, and how many cores others kept busy meanwhile (None if unknown)."""

    answers: dict[str, dict]
    others: dict[str, float | None]

    def disturbed(self, limit: float) -> bool:
        """Whether others took more than `limit` cores in any of its measurements."""
        return any(cores is not None and cores > limit for cores in self.others.values())


def busy_seconds(cpus: set[int]) -> float | None:
    """Processor time that these cores have been busy since boot, or None where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = [line.split() for line in stat.read_text().splitlines() if line.split(" ")[0] in names]
    # user, nice, system, -, -, irq, softirq, steal; guest time is already within user.
    ticks = sum(int(row[column]) for row in rows for column in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK")


def parse_cpus(text: str) -> set[int]:
    """Cores from a list such as `0,2-3`."""
    cpus = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def take_turns(children: list[Child], seconds: float) -> Round:
    """One measurement of each command, in order."""
    cpus = usable_cpus()
    answers, others = {}, {}
    for child in children:
        start, busy, own = time.monotonic(), busy_seconds(cpus), child.cpu_seconds()
        answers[child.name] = child.measure(seconds)
        if busy is None:
            others[child.name] = None
        else:
            foreign = (busy_seconds(cpus) - busy) - (child.cpu_seconds() - own)
            others[child.name] = round(max(0.0, foreign) / (time.monotonic() - start), 3)
    return Round(answers, others)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@dataclasses.dataclass
class Comparison:
    """All rounds that were taken, how many of them had to be undisturbed, and what went wrong, if anything."""

    rounds: list[Round]
    wanted: int
    disturbance: float
    failure: str | None = None

    @property
    def calm(self) -> list[Round]:
        """The rounds in which nobody else was busy."""
        return [turn for turn in self.rounds if not turn.disturbed(self.disturbance)]

    @property
    def enough(self) -> bool:
        """Whether as many rounds as wanted were undisturbed."""
        return len(self.calm) >= self.wanted

    @property
    def may_be_enough(self) -> bool:
        """Whether to go on: not after as many disturbed rounds as undisturbed ones are wanted."""
        return len(self.rounds) - len(self.calm) < self.wanted

    @property
    def used(self) -> list[Round]:
        """The rounds that count: the undisturbed ones, or all where too few are."""
        return self.calm if self.enough else self.rounds

    def values(self, name: str, key: str = "tokens_per_second") -> list[float]:
        """What a command answered, a number a round that counts."""
        return [turn.answers[name][key] for turn in self.used]


def compare(
    commands: list[tuple[str, str]], *, rounds: int, seconds: float, disturbance: float = 0.2, start_timeout: float = 600.0,
    label: str = "",
) -> Comparison:  # fmt: skip
    """Start (name, command) pairs and let them take turns until enough rounds count; `label` begins every line that is said."""
    children: list[Child] = []
    found = Comparison([], rounds, disturbance)
    say = f"{label}: " if label else ""
    # Asked to end, this process must still end those that it started: they are sessions of their own.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        for name, command in commands:
            print(f"{say}starting {name}", file=sys.stderr, flush=True)
            children.append(Child(name, command))
            # One at a time: warming up beside another would only be slower.
            children[-1].wait_ready(start_timeout)
        while not found.enough and found.may_be_enough:
            turn = take_turns(children, seconds)
            found.rounds.append(turn)
            speeds = "  ".join(f"{name} {answer['tokens_per_second']:,.0f}" for name, answer in turn.answers.items())
            note = f"  (disturbed: others took {turn.others} cores)" if turn.disturbed(disturbance) else ""
            print(f"{say}round {len(found.rounds)}: {speeds} tokens/s{note}", file=sys.stderr, flush=True)
    except ChildFailed as failure:
        found.failure = str(failure)
    finally:
        for child in children:
            child.close()
        signal.signal(signal.SIGTERM, before)
    if found.rounds and not found.enough and not found.failure:
        print(f"{say}DISTURBED: {len(found.calm)} of {len(found.rounds)} rounds were undisturbed, so all count", flush=True)
    return found


def unlike_threads(found: Comparison) -> str | None:
    """Return what is wrong where the sides do not all say that they computed with equally many threads, or None."""
    told = {(name, answer.get("threads")) for turn in found.rounds for name, answer in turn.answers.items()}
    numbers = {number for _, number in told}
    if None in numbers or len(numbers) > 1:
        return f"the sides do not all compute with as many threads: {dict(sorted(told, key=str))}"
    return None


def summarise(names: list[str], rounds: list[Round]) -> list[dict]:
    """One entry a command: its speeds, their ratios to the last command's in the same round, and the disturbance."""
    last, entries = names[-1], []
    for name in names:
        speeds = [turn.answers[name]["tokens_per_second"] for turn in rounds]
        others = [turn.others[name] for turn in rounds if turn.others[name] is not None]
        entries.append(
            {
                "name": name,
                "program": rounds[-1].answers[name].get("program"),
                "versions": rounds[-1].answers[name].get("versions"),
                "tokens_per_second": spread(speeds),
                "ratio_to_last": spread(
                    [speed / turn.answers[last]["tokens_per_second"] for speed, turn in zip(speeds, rounds, strict=True)]
                ),
                "others_cores": max(others) if others else None,
            }
        )
    return entries


def show(entries: list[dict], last: str) -> None:
    """Print the table: with rich where it is installed, in plain columns where not."""
    header = ["command", "tokens/s", "min", "max", f"ratio to {last}", "min", "max", "others' cores"]
    rows = []
    for entry in entries:
        speed, ratio, others = entry["tokens_per_second"], entry["ratio_to_last"], entry["others_cores"]
        row = [entry["name"], *(f"{speed[key]:,.0f}" for key in ("median", "min", "max"))]
        row += [f"{ratio[key]:.3f}" for key in ("median", "min", "max")]
        rows.append([*row, "?" if others is None else f"{others:.2f}"])
    if importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for title in header:
            table.add_column(title, justify="left" if title == "command" else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *padded[1:]]))


def parse_arguments() -> argparse.Namespace:
    """The command line, with `commands` as (name, command) pairs in the order of their letters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for letter in LETTERS:
        more = f"a third, and so on to --{LETTERS[-1]}" if letter == "c" else argparse.SUPPRESS
        what = "a command that speaks the protocol" if letter in "ab" else more
        parser.add_argument(f"--{letter}", metavar="COMMAND", help=what, required=letter in "ab")
    parser.add_argument("--names", help="comma-separated names of the commands, in their order; by default A,B,...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement")
    parser.add_argument("--pin", metavar="CPULIST", help="cores to run every command on, such as 0,2-3")
    parser.add_argument("--disturbance", type=float, default=0.2, help="cores that others may use before a round is repeated")
    parser.add_argument("--start-timeout", type=float, default=600.0, help="seconds that a command may take to get ready")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    arguments = parser.parse_args()
    given = [(letter.upper(), getattr(arguments, letter)) for letter in LETTERS if getattr(arguments, letter)]
    names = arguments.names.split(",") if arguments.names else [letter for letter, _ in given]
    if len(names) != len(given) or len(set(names)) != len(names):
        parser.error(f"--names needs {len(given)} different names, got {','.join(names)}")
    if arguments.rounds < 1 or not arguments.seconds > 0:
        parser.error("--rounds and --seconds must be positive")
    arguments.commands = [(name, command) for name, (_, command) in zip(names, given, strict=True)]
    if arguments.pin:
        if not hasattr(os, "sched_setaffinity"):
            parser.error("--pin needs Linux")
        try:
            os.sched_setaffinity(0, parse_cpus(arguments.pin))  # The commands inherit it.
        except (OSError, ValueError) as error:
            parser.error(f"--pin {arguments.pin}: {error}; this machine's cores are {sorted(usable_cpus())}")
    return arguments


def main() -> int:
    """Measure, report, and return 1 if a command failed."""
    arguments = parse_arguments()
    names = [name for name, _ in arguments.commands]
    found = compare(
        arguments.commands, rounds=arguments.rounds, seconds=arguments.seconds, disturbance=arguments.disturbance,
        start_timeout=arguments.start_timeout,
    )  # fmt: skip
    entries = summarise(names, found.used) if found.used else []
    cores = sorted(usable_cpus())
    print(f"{processor()}, {os.cpu_count()} cores, {len(cores)} used; {len(found.used)} rounds of {arguments.seconds:g} s")
    if entries:
        show(entries, names[-1])
    if arguments.json:
        record = {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine() | {"cores_used": cores},
            "versions": {"python": platform.python_version()},
            "commands": dict(arguments.commands),
            "seconds": arguments.seconds,
            "disturbed": not found.enough,
            "failure": found.failure,
            "summary": entries,
            "rounds": [dataclasses.asdict(turn) | {"used": turn in found.used} for turn in found.rounds],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    if found.failure:
        print(f"FAILED: {found.failure}", file=sys.stderr)
    return 1 if found.failure else 0


if __name__ == "__main__":
    sys.exit(main())
