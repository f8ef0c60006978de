"""What tests compare of runs that must be the same to the bit, and a kill at the right moment."""

import time

from jaxlm.run.metrics import read_rows

# Of a row: what differs from day to day.
TIMES = {"tokens_per_second", "step_seconds", "data_wait_seconds", "mfu"}


def facts(folder):
    """Return the rows of a run's record so far without its times."""
    path = folder / "metrics.jsonl"
    rows = [row for row in read_rows(path) if row["split"] != "goodput"] if path.exists() else []
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def kill_when(process, moment):
    """Send SIGKILL as soon as `moment()` is true; return whether it came before the process ended by itself."""
    killed = False
    while process.poll() is None and not killed:
        if killed := moment():
            process.kill()
        else:
            time.sleep(0.0005)
    process.communicate()
    return killed
