"""What the soak does to a command, with nothing mocked: signals to its processes, and a disk that is really full.

The disk is a small tmpfs that the soak mounts in a mount namespace of its own (as root, or in a user namespace where those are
allowed), so that nothing of it outlives the soak. It is full once a file takes all but a few bytes of what is left.
"""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MARK = "JAXLM_SOAK"
"""Environment variable by which processes of a command are known, whoever started them."""
NAMESPACE = "JAXLM_SOAK_NAMESPACE"
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
LEFT_ALONE = 15.0  # seconds in which what a command has started must end after it

Kind = Literal["kill", "terminate", "disk"]
Whom = Literal["all", "main", "child"]


class Broken(Exception):
    """A promise that was not kept."""


def namespace_for_mounts() -> list[str] | None:
    """Return the words before a command that give it a mount namespace in which it may mount; None where there is none here."""
    for words in (["unshare", "--mount"], ["unshare", "--mount", "--user", "--map-root-user"]):
        with tempfile.TemporaryDirectory() as folder:
            try:
                trial = [*words, "mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
                if subprocess.run(trial, capture_output=True).returncode == 0:
                    return words
            except FileNotFoundError:
                return None
    return None


def enter_namespace() -> bool:
    """Start this program again where it may mount, once; return whether it may."""
    if NAMESPACE in os.environ:
        return bool(os.environ[NAMESPACE])
    words = namespace_for_mounts()
    os.environ[NAMESPACE] = "yes" if words else ""
    if words:
        os.execvp(words[0], [*words, *sys.orig_argv])
    return False


class Disk:
    """A folder that can be full: a tmpfs of its own where `mounted`, else a plain folder, which cannot."""

    def __init__(self, folder: Path, megabytes: int, *, mounted: bool):
        """Make it, empty."""
        self.folder, self._mounted = folder, mounted
        folder.mkdir(parents=True)
        if mounted:
            run_own(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]).check_returncode()
        self.home = folder / "home"
        """Where a command works; what fills the disk lies beside it."""
        self.home.mkdir()

    def fill(self, leave: int) -> None:
        """Leave no more than about `leave` bytes."""
        while True:
            found = os.statvfs(self.folder)
            size = found.f_bavail * found.f_frsize - leave
            if size <= 0:
                return
            with (self.folder / "ballast").open("ab") as ballast:
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.tell(), size)
                    return
                except OSError:  # the command has written meanwhile
                    continue

    def empty(self) -> None:
        """Make room again."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount and remove it."""
        if self._mounted:
            run_own(["umount", str(self.folder)]).check_returncode()
        shutil.rmtree(self.folder)


def marked(mark: str, *, begins: bool = False) -> list[int]:
    """Return the processes whose environment has this mark (or one that begins so), without those that have ended."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            marks = [word for word in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") if word.startswith(wanted)]
            if marks and (begins or wanted in marks):
                found.append(int(entry))
        except OSError:  # it has ended, or is another user's
            continue
    return found


_ours: set[int] = set()  # processes that this program itself has started


def adopt() -> None:
    """Have the kernel make every orphan of what this process starts its child, whatever session or environment it has."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def adopted() -> list[int]:
    """Return the children of this process that live and that it has not started itself; those that have ended are let go."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) != os.getpid() or int(entry) in _ours:
            continue
        if state == "Z":
            with suppress(ChildProcessError):
                os.waitpid(int(entry), os.WNOHANG)
        else:
            found.append(int(entry))
    return found


def run_own(words: list[str], **options: Any) -> subprocess.CompletedProcess:
    """Run a command of the soak's own, as subprocess.run does."""
    with subprocess.Popen(words, **options) as process:
        _ours.add(process.pid)
        said, faults = process.communicate()
    _ours.discard(process.pid)
    return subprocess.CompletedProcess(words, process.returncode, said, faults)


@dataclass
class Command:
    """A command under way, in a session of its own."""

    process: subprocess.Popen
    mark: str
    output: Path
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, words: list[str], home: Path, environment: dict[str, str], mark: str, output: Path) -> "Command":
        """Start it in `home`, its output in a file that is not on the disk to be filled."""
        with output.open("wb") as out:
            process = subprocess.Popen(
                words, cwd=home, env=environment | {MARK: mark}, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        _ours.add(process.pid)
        return cls(process, mark, output)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def said(self) -> str:
        """All it wrote so far."""
        return self.output.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        """Return its exit status; Broken where it does not end within `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Broken(f"the command did not end within {seconds:.0f} s") from None

    def kill(self) -> None:
        """End all of it."""
        for pid in {self.process.pid, *marked(self.mark)}:
            _send(pid, signal.SIGKILL)
        self.process.wait()

    def nobody_left(self) -> None:
        """Raise Broken where a process that it started outlives it."""
        until = time.monotonic() + LEFT_ALONE
        while left := {*marked(self.mark), *adopted()}:
            if time.monotonic() > until:
                words = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in left]
                for pid in left:
                    _send(pid, signal.SIGKILL)
                self.kill()
                raise Broken(f"orphan processes {LEFT_ALONE:.0f} s after the command has ended: {'; '.join(words)}")
            time.sleep(0.05)


def end_all(mark: str) -> None:
    """End every process whose mark begins so."""
    for pid in marked(mark, begins=True):
        _send(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass(frozen=True)
class Fault:
    """What happens to a command, and when."""

    kind: Kind
    whom: Whom
    """Of a signal: every process of the command at once, the one that was started, or one that this one has started."""
    after: float
    """Seconds after its start."""
    names: int
    """Or, where not 0, as soon as so many new files or folders have appeared where it writes."""
    leave: int
    """Of a full disk: bytes that are left."""

    @classmethod
    def draw(cls, rng: random.Random, seconds: float, names: int, kinds: tuple[Kind, ...]) -> "Fault":
        """Draw one for a command that takes `seconds` in peace, and makes so many new `names`."""
        kind: Kind = rng.choices(kinds, [{"kill": 9, "terminate": 6, "disk": 5}[kind] for kind in kinds])[0]
        whom: Whom = rng.choice(("all", "main", "child"))
        at_file = rng.random() < 0.5
        leave = rng.choice((0, rng.randrange(1 << 14), rng.randrange(1 << 19)))
        # A little less than its life, so that few moments come when it has ended.
        return cls(
            kind, whom, rng.uniform(0, 0.8 * seconds), rng.randint(1, max(1, round(0.9 * names))) if at_file else 0, leave
        )

    def await_moment(self, command: Command, look: Callable[[], set[str]]) -> bool:
        """Return whether the moment came before the command had ended; `look` gives the names where it writes."""
        seen: set[str] = look() if self.names else set()
        known = len(seen)
        while command.process.poll() is None:
            if self.names:
                seen |= look()
                if len(seen) - known >= self.names:
                    return True
            elif command.seconds >= self.after:
                return True
            time.sleep(0.01)
        return False

    def has_hit(self, status: int, said: str) -> bool:
        """Return whether the command has noticed: where it ended just before, or needed no more room, it has not."""
        if self.kind == "kill":
            return status == -signal.SIGKILL or self.whom == "child"
        return status != 0 or (self.kind == "terminate" and "stopped" in said)

    def strike(self, command: Command, disk: Disk, rng: random.Random) -> str:
        """Do it, and return what was done, in words."""
        if self.kind == "disk":
            disk.fill(self.leave)
            return f"disk full but for {self.leave} bytes"
        number = signal.SIGKILL if self.kind == "kill" else signal.SIGTERM
        pids = [command.process.pid]
        others = sorted(set(marked(command.mark)) - set(pids)) if self.whom != "main" else []
        if self.whom == "all":
            pids += others
        elif self.whom == "child" and others:
            pids = [rng.choice(others)]
        for pid in pids:
            _send(pid, number)
        only = f"one of its {len(others)} processes" if pids != [command.process.pid] and self.whom == "child" else "it alone"
        return f"{number.name} to {f'all {len(pids)} processes' if len(pids) > 1 else only}"

    @property
    def when(self) -> str:
        """The moment, in words."""
        return f"at new name {self.names}" if self.names else f"after {self.after:.2f} s"
