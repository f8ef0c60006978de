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
median mends. A round in which others took more than --disturbance cores is set aside and repeated, as many times over as
--rounds; if too few are left undisturbed then, all count and the report says so. Linux only for that and for --pin.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import queue
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STDERR_LINES = 25
MEASURE_GRACE_SECONDS = 120.0
LETTERS = "abcdefgh"


class ChildFailed(Exception):
    """A command that died, fell silent or answered nonsense; the message holds the end of its error output."""


class Child:
    """One command under measurement, spoken to by lines."""

    def __init__(self, name: str, command: str):
        self.name, self.command = name, command
        # A file, not a pipe, so that a chatty child never waits for someone to read its errors.
        self.errors = tempfile.TemporaryFile()
        try:
            # A session of its own lets its whole process tree be counted and, at the end, stopped.
            self.process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                start_new_session=True,
            )
        except OSError as error:
            raise ChildFailed(f"{name}: cannot start `{command}`: {error}") from error
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line.decode(errors="replace").strip())
        self.lines.put(None)

    def _failure(self, what: str) -> ChildFailed:
        self.errors.seek(0)
        tail = self.errors.read().decode(errors="replace").splitlines()[-STDERR_LINES:]
        shown = "\n".join(f"    {line}" for line in tail) or "    (nothing)"
        return ChildFailed(f"{self.name}: {what}\n  command: {self.command}\n  end of its error output:\n{shown}")

    def next_line(self, deadline: float, waiting_for: str) -> str:
        """The next line of output, or ChildFailed when the child has ended or `deadline` has passed."""
        try:
            line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise self._failure(f"no {waiting_for} in time; still running, so stopped") from None
        if line is None:
            code = self.process.wait()
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            raise self._failure(f"{how} while {waiting_for} was awaited")
        return line

    def wait_ready(self, timeout: float) -> None:
        """Return when the child has said `ready`."""
        deadline = time.monotonic() + timeout
        while self.next_line(deadline, "`ready`") != "ready":
            pass

    def measure(self, seconds: float) -> dict:
        """Ask for one measurement and return its JSON object."""
        try:
            self.process.stdin.write(f"measure {seconds:g}\n".encode())
            self.process.stdin.flush()
        except OSError:
            pass  # The child is gone: reading, below, says how.
        deadline = time.monotonic() + 3 * seconds + MEASURE_GRACE_SECONDS
        while True:
            line = self.next_line(deadline, "a measurement")
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, dict) and "tokens_per_second" in answer:
                speed = answer["tokens_per_second"]
                if not isinstance(speed, int | float) or not speed > 0:
                    raise self._failure(f"tokens_per_second is {speed!r}, not a positive number")
                return answer

    def cpu_seconds(self) -> float:
        """Processor time its session has taken so far, ended children included."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                # The program's name, in parentheses, may hold spaces; the numbered fields start after it.
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It ended between the listing and the reading.
            if int(fields[3]) == self.process.pid:
                total += sum(int(field) for field in fields[11:15])
        return total / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the child: its input first, then, if it stays, by signals to its whole session."""
        try:
            self.process.stdin.close()
        except OSError:
            pass
        for last_word in (signal.SIGTERM, signal.SIGKILL):
            try:
                self.process.wait(timeout=5)
                return
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, last_word)
        self.process.wait()


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


def usable_cpus() -> set[int]:
    """The cores this process, and so the commands, may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


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


def processor() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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


def run(arguments: argparse.Namespace) -> tuple[list[Round], str | None]:
    """All rounds that could be measured, and what went wrong, if anything."""
    children, rounds = [], []
    try:
        for name, command in arguments.commands:
            print(f"starting {name}", file=sys.stderr, flush=True)
            children.append(Child(name, command))
            # One at a time: warming up beside another would only be slower.
            children[-1].wait_ready(arguments.start_timeout)
        calm = 0
        while calm < arguments.rounds and len(rounds) < 2 * arguments.rounds:
            turn = take_turns(children, arguments.seconds)
            rounds.append(turn)
            disturbed = turn.disturbed(arguments.disturbance)
            calm += not disturbed
            speeds = "  ".join(f"{name} {answer['tokens_per_second']:,.0f}" for name, answer in turn.answers.items())
            note = f"  (disturbed: others took {turn.others} cores)" if disturbed else ""
            print(f"round {len(rounds)}: {speeds}{note}", file=sys.stderr, flush=True)
    except ChildFailed as failure:
        return rounds, str(failure)
    finally:
        for child in children:
            child.close()
    return rounds, None


def main() -> int:
    """Measure, report, and return 1 if a command failed."""
    arguments = parse_arguments()
    names = [name for name, _ in arguments.commands]
    rounds, failure = run(arguments)
    calm = [turn for turn in rounds if not turn.disturbed(arguments.disturbance)]
    enough = len(calm) >= arguments.rounds
    used = calm if enough else rounds
    entries = summarise(names, used) if used else []
    cores = sorted(usable_cpus())
    print(f"{processor()}, {os.cpu_count()} cores, {len(cores)} used; {len(used)} rounds of {arguments.seconds:g} s")
    if entries:
        show(entries, names[-1])
    if used and not enough and not failure:
        print(f"DISTURBED: only {len(calm)} of {len(rounds)} rounds were undisturbed, so all count. Repeat on a quiet machine.")
    if arguments.json:
        record = {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {"processor": processor(), "cores": os.cpu_count(), "cores_used": cores, "system": platform.platform()},
            "versions": {"python": platform.python_version()},
            "commands": dict(arguments.commands),
            "seconds": arguments.seconds,
            "disturbed": not enough,
            "failure": failure,
            "summary": entries,
            "rounds": [dataclasses.asdict(turn) | {"used": turn in used} for turn in rounds],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    if failure:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
