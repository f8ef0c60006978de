"""What of this machine each of several processes may use: cores of their own, and accelerators."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jaxlm.errors import ConfigError
from jaxlm.launch.local import visible_gpus


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """A part of this machine."""

    cores: tuple[int, ...] = ()
    """Its processor's cores; empty: all."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What a process's environment has beyond this one's."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block, what this thread starts runs on the share's cores alone.

        XLA's thread pools and the processes that prepare data count the cores that they may run on.
        """
        if not self.cores:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def shares(parallel: int, *, on_processor: bool = False) -> list[Share]:
    """Return this machine in `parallel` parts: GPUs and cores shared out evenly.

    A remainder of cores is left idle, and of fewer cores than parts, some are shared.
    With `on_processor` accelerators are left out. Raises ConfigError where they do not go round.
    """
    gpus = [] if on_processor else visible_gpus()
    has_tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    if parallel > 1 and has_tpu and not on_processor and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise ConfigError(
            f"--max-parallel {parallel}: a TPU is used by one process at a time. Take 1, or JAX_PLATFORMS=cpu for the processor"
        )
    if gpus and len(gpus) % parallel:
        fits = [n for n in range(1, len(gpus) + 1) if len(gpus) % n == 0]
        raise ConfigError(
            f"--max-parallel {parallel} cannot share out the {len(gpus)} GPUs of this machine evenly: take "
            f"{min(fits, key=lambda n: abs(n - parallel))}"
        )
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    made = []
    for k in range(parallel):
        each = len(cores) // parallel  # the same for all: sums come out a last bit different with another number of threads
        own: tuple[int, ...] = ()
        if parallel > 1 and cores:
            own = tuple(cores[k * each : (k + 1) * each]) or (cores[k % len(cores)],)
        environment = {"OMP_NUM_THREADS": str(len(own))} if own and "OMP_NUM_THREADS" not in os.environ else {}
        if gpus and parallel > 1:
            first, last = k * len(gpus) // parallel, (k + 1) * len(gpus) // parallel
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first:last])
        made.append(Share(own, environment))
    return made
