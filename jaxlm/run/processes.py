"""How this process joins the others of its run, from the environment alone.

JAXLM_COORDINATOR=HOST:PORT, JAXLM_NUM_PROCESSES and JAXLM_PROCESS_ID say it outright (within a Slurm step the last two are
taken from there). JAXLM_CLUSTER=auto leaves it to JAX, which knows TPU pods, Kubernetes, Slurm and MPI. With neither, a run
is one process.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxlm.errors import ConfigError, ProcessError

COORDINATOR, CLUSTER, COUNT, INDEX = "JAXLM_COORDINATOR", "JAXLM_CLUSTER", "JAXLM_NUM_PROCESSES", "JAXLM_PROCESS_ID"
JOIN, HEARTBEAT = "JAXLM_JOIN_TIMEOUT", "JAXLM_HEARTBEAT_TIMEOUT"


class Settings(NamedTuple):
    """What the environment says; `coordinator` is empty where JAX is to find out, and `count` and `index` are then 0."""

    coordinator: str
    count: int
    index: int
    join_seconds: int
    """How long to wait for the others before the run begins."""
    heartbeat_seconds: int
    """How long a process may be silent before it counts as dead."""


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings | None:
    """Return how to join, None for a run of one process; ConfigError where the settings are partial or no numbers."""
    coordinator, cluster = environ.get(COORDINATOR, ""), environ.get(CLUSTER, "")
    seconds = _number(environ, JOIN, "300", 1), _number(environ, HEARTBEAT, "30", 1)
    if cluster not in ("", "auto"):
        raise ConfigError(f'{CLUSTER}={cluster} is not known: set it to "auto", or set {COORDINATOR}=HOST:PORT')
    if not coordinator:
        stray = [name for name in (COUNT, INDEX) if environ.get(name)]
        if stray and not cluster:
            raise ConfigError(f"{' and '.join(stray)} without {COORDINATOR}: set it to HOST:PORT of process 0, or unset both")
        return Settings("", 0, 0, *seconds) if cluster else None
    host, colon, port = coordinator.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{COORDINATOR}={coordinator} is no address: set it to HOST:PORT of process 0, for example n1:9876")
    names = COUNT, INDEX
    if not any(map(environ.get, names)) and environ.get("SLURM_PROCID"):
        names = "SLURM_NTASKS", "SLURM_PROCID"
    if missing := [name for name in names if not environ.get(name)]:
        raise ConfigError(f"{COORDINATOR} without {' and '.join(missing)}: set how many processes there are, and which is this")
    count, index = _number(environ, names[0], "", 1), _number(environ, names[1], "", 0)
    if index >= count:
        raise ConfigError(f"{names[1]}={index} is not below {names[0]}={count}: processes are numbered 0 to {count - 1}")
    return Settings(coordinator, count, index, *seconds) if count > 1 else None


def _number(environ: Mapping[str, str], name: str, default: str, least: int) -> int:
    text = environ.get(name, default)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}={text} is not a whole number of {least} or more")
    return int(text)


def join(settings: Settings) -> None:
    """Join the other processes, before any device is used; ProcessError where the coordinator cannot be reached in time.

    Afterwards a process that falls silent for `heartbeat_seconds`, or a process 0 that goes away, ends all the others.
    """
    import jax

    # JAX's own notice of SIGTERM would take the place of the loop's, which saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    deadline = time.monotonic() + settings.join_seconds
    known: dict[str, Any] = {}
    if settings.coordinator:
        _check_address(settings, deadline)
        known = {"coordinator_address": settings.coordinator, "num_processes": settings.count, "process_id": settings.index}
    with _exit_at(deadline, settings):
        try:
            jax.distributed.initialize(
                **known,
                initialization_timeout=settings.join_seconds + 60,  # JAX aborts at its own: ours says more
                heartbeat_timeout_seconds=settings.heartbeat_seconds,
                shutdown_timeout_seconds=settings.heartbeat_seconds,
            )
        except (RuntimeError, ValueError, OSError) as fault:
            if settings.coordinator:
                raise ProcessError(f"cannot join the other processes at {settings.coordinator}: {fault}") from fault
            raise ConfigError(
                f"{CLUSTER}=auto, but JAX cannot tell how this process is to join others ({fault}): "
                f"set {COORDINATOR}=HOST:PORT, {COUNT} and {INDEX}, or unset {CLUSTER} for one process"
            ) from fault


def _check_address(settings: Settings, deadline: float) -> None:
    """Wait for the coordinator to listen; in process 0, check that it can: JAX aborts without a word in either case."""
    host, _, port = settings.coordinator.rpartition(":")
    if settings.index == 0:
        try:
            with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", int(port)))
                probe.listen()
        except OSError as fault:
            raise ConfigError(
                f"process 0 cannot listen on port {port} of {COORDINATOR}={settings.coordinator}: {fault.strerror}. "
                "Another run may be using it: choose another port for all processes"
            ) from fault
        return
    fault: OSError | None = None
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, min(left, 10))).close()
            return
        except OSError as error:
            fault = error
            time.sleep(0.2)
    raise ProcessError(
        f"process {settings.index} of {settings.count} could not reach the coordinator at {settings.coordinator} within "
        f"{settings.join_seconds} s ({fault}): start process 0 there, check that its port is open to this machine, or give it "
        f"more time with {JOIN}"
    )


@contextlib.contextmanager
def _exit_at(deadline: float, settings: Settings) -> Iterator[None]:
    """End this process with words where joining takes longer: the wait for others is in JAX and cannot be interrupted."""
    joined = threading.Event()

    def wait() -> None:
        if not joined.wait(deadline - time.monotonic()):
            where = f" at {settings.coordinator}" if settings.coordinator else ""
            print(
                f"error: process {settings.index} waited {settings.join_seconds} s{where}, and not all "
                f"{settings.count or ''} processes came: see what the others say, or give them more time with {JOIN}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def client() -> Any:
    """Return the connection to the coordinator, None before joining and in a run of one process."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed  # its key-value store has no public name

    return distributed.global_state.client


def index() -> int:
    """Return this process's number; no device is touched, as `jax.process_index` would."""
    return _state().process_id if client() is not None else 0


def count() -> int:
    """Return how many processes take part."""
    return _state().num_processes if client() is not None else 1


def _state() -> Any:
    from jax._src import distributed

    return distributed.global_state
