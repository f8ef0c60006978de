"""One input read under bounds on time and memory, and what came of it."""

import contextlib
import io
import resource
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuzz.mutate import Files
from fuzz.target import Target, write_files
from jaxlm.errors import JaxlmError

SECONDS = 2.0
"""Of processor time that one input may take: other work on the machine does not count."""
GROWTH_MIB = 256
"""By which the memory of the process may grow over one input."""
SPARE_MIB = 1024
"""Of address space that a process may take beyond what it has when the first input is read; more is a MemoryError."""
_LONGEST = 10_000  # characters of an error that a person should read


class TooLong(BaseException):
    """An input took more time than it may; no Exception, so that no parser takes it for a fault of the file."""


@dataclass(frozen=True)
class Outcome:
    """What came of an input."""

    kind: Literal["accepted", "refused", "failure"]
    what: str = ""
    """Of a failure: the error, and where in our code it came from."""
    trace: str = ""

    @property
    def signature(self) -> str:
        """What is the same for failures of one cause: the kind of error and its place."""
        return self.what.partition("|")[0]


def limit_memory() -> None:
    """Bound the address space of this process at what it has now and `SPARE_MIB`."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(fields["VmSize"].split()[0]) * 1024 + (SPARE_MIB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def memory_mib() -> tuple[float, float]:
    """Return the memory that this process has, and the most that it has had since `forget_peak`."""
    with open("/proc/self/status", "rb") as status:
        lines = dict(line.split(b":", 1) for line in status)
    return tuple(int(lines[name].split()[0]) / 1024 for name in (b"VmRSS", b"VmHWM"))


def forget_peak() -> None:
    """Begin anew to note the most memory that this process has: else no input could be told from a greater one before it."""
    with open("/proc/self/clear_refs", "wb") as file:
        file.write(b"5")


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise TooLong where the block takes more processor time, also where something on its way took it for another error."""

    rang = False

    def ring(number: int, frame: Any) -> None:
        nonlocal rang
        rang = True
        raise TooLong

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        if rang:
            raise TooLong


class Examiner:
    """Reads inputs of one target, one after another, in a folder of its own."""

    def __init__(self, target: Target, folder: Path, seconds: float = SECONDS):
        self.target, self.folder, self.seconds = target, folder, seconds
        self._before: Files = {}
        self.peak_mib = 0.0
        folder.mkdir(exist_ok=True)

    def examine(self, files: Files) -> Outcome:
        """Read one input and say what came of it."""
        write_files(self.folder, files, self._before)
        self._before, (before, _) = files, memory_mib()
        forget_peak()
        outcome = self._read()
        _, peak = memory_mib()
        self.peak_mib = max(self.peak_mib, peak)
        if outcome.kind != "failure" and peak - before > GROWTH_MIB:
            return Outcome("failure", f"memory|grew by {peak - before:.0f} MiB")
        return outcome

    def _read(self) -> Outcome:
        try:
            with bounded(self.seconds), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                accepted = self.target.read(self.folder) is not False
            return Outcome("accepted" if accepted else "refused")
        except JaxlmError as fault:
            said = str(fault)
            if any(isinstance(cause, MemoryError) for cause in _causes(fault)):
                return Outcome("failure", f"MemoryError behind {type(fault).__name__} at {_place(fault)}|{said[:200]}")
            if said != said.encode(errors="replace").decode():
                return Outcome("failure", f"{type(fault).__name__} that cannot be printed at {_place(fault)}|{said[:200]!r}")
            if not said.strip() or len(said) > _LONGEST:
                return Outcome("failure", f"{type(fault).__name__} of odd length at {_place(fault)}|{len(said)}: {said[:200]}")
            return Outcome("refused")
        except TooLong as fault:
            return Outcome("failure", f"more than {self.seconds:g} s|{_place(fault)}", traceback.format_exc()[-4000:])
        except (KeyboardInterrupt, SystemExit) as fault:
            if isinstance(fault, KeyboardInterrupt):
                raise
            return Outcome("failure", f"SystemExit at {_place(fault)}|{fault}")
        except BaseException as fault:  # panics of libraries are no Exceptions
            what = f"{type(fault).__name__} at {_place(fault)}|{str(fault)[:300]}"
            return Outcome("failure", what, traceback.format_exc()[-4000:])


def _place(fault: BaseException) -> str:
    """Return where in our code an error came from; of a check of ours, where that is."""
    frames = traceback.extract_tb(fault.__traceback__)
    ours = [frame for frame in frames if "/jaxlm/" in frame.filename] or [f for f in frames if "/fuzz/" in f.filename]
    if isinstance(fault, AssertionError):
        ours = [frame for frame in frames if "/fuzz/" in frame.filename] or ours
    return f"{'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].name}" if ours else "nowhere of ours"


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    while fault is not None:
        yield fault
        fault = fault.__cause__ or fault.__context__
