"""What is said of a long run's looks: what may not grow, and what grew."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BYTES_A_STEP = 256.0
GROWTH = 0.01
SLOWER = 1.1
MORE = 1.5  # of what is a small part of all, and of a few dozen events
A_ROW = 1024  # bytes of the record, or of TensorBoard's file
OTHERS = 1 << 20  # bytes of all that lies in a run's folder beside these and checkpoints
SETTLED = 2000  # steps; before, memory and times are still settling: they are told, not judged


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a look has seen."""

    step: int
    seconds: float
    """Since the first look."""
    cpu_seconds: float
    """Of all threads of this process."""
    yard_seconds: float
    """Of the processor for a fixed piece of work, done beside: on a machine that others use, all takes longer at times."""
    resident: int
    """Bytes in memory."""
    allocated: int
    """Bytes that malloc has given out and not got back, in arenas and mapped; -1 where the C library does not tell."""
    arenas: int
    """Bytes that malloc's arenas take; -1 where the C library does not tell."""
    threads: int
    files: int
    """Open file descriptors."""
    arrays: int
    """JAX arrays that live."""
    compilations: int


def slope(steps: Sequence[float], values: Sequence[float], parts: int = 10) -> tuple[float, float]:
    """Return the slope of a least-squares line through means of consecutive parts, and its standard error.

    Looks that follow one another are alike; means of tenths are nearly independent, so that the error is an honest one.
    """
    import numpy as np

    x, y = (np.array([part.mean() for part in np.array_split(np.asarray(v, float), parts)]) for v in (steps, values))
    spread = ((x - x.mean()) ** 2).sum()
    found = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    left = y - y.mean() - found * (x - x.mean())
    return found, float(np.sqrt((left**2).sum() / (parts - 2) / spread))


def judge(samples: Sequence[Sample]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what was found of each measure, and what is wrong."""
    found = _measured(samples)
    return found, [f"{entry['name']} grows: {entry}" for entry in found if not entry["ok"]]


def _measured(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    last = samples[-1].step
    half = [s for s in samples if s.step > last / 2]
    steps, found, settled = [s.step for s in half], [], last >= SETTLED
    for name in ("resident", "allocated", "arenas"):
        values = [getattr(s, name) for s in half]
        if values[0] < 0:
            continue
        rate, error = slope(steps, values)
        tenth = max(1, len(values) // 5)
        growth = statistics.fmean(values[-tenth:]) / statistics.fmean(values[:tenth]) - 1
        entry = {"name": name, "unit": "bytes a step", "slope": rate, "error": error, "growth": growth, "last": values[-1]}
        entry["ok"] = not settled or (rate - 3 * error <= BYTES_A_STEP and (name != "resident" or growth < GROWTH))
        found.append(entry)
    for name in ("threads", "files", "arrays", "compilations"):
        found.append({"name": name, "unit": ""} | _counts(samples, name, settled))
    return found + _times(samples, settled)


def _counts(samples: Sequence[Sample], name: str, settled: bool) -> dict[str, Any]:
    """Compare how many of something there were before the half and after it.

    A save or a validation has a few more of all but compilations for a moment: what most looks see is compared, and of a run
    that has not settled the least of the last tenth with the most before.
    """
    last = samples[-1].step
    early = [getattr(s, name) for s in samples if last / 5 < s.step <= last / 2]
    half, tenth = ([getattr(s, name) for s in samples if s.step > share * last] for share in (0.5, 0.9))
    if name == "compilations":
        before, after = max(early), max(half)
    elif settled:
        before, after = statistics.median_low(early), max(map(statistics.median_low, (half, tenth)))
    else:
        before, after = max(early), min(tenth)
    return {"before": before, "after": after, "ok": after <= before}


def _times(samples: Sequence[Sample], settled: bool) -> list[dict[str, Any]]:
    """Compare what steps of the last tenth took with those of the second, and what saves and validations added.

    Plain steps are what most looks see; what a tenth took beyond them went into saves and validations.
    """
    last, found = samples[-1].step, []
    tenths = [[s for s in samples if a < s.step / last <= a + 0.1] for a in (0.1, 0.9)]
    yards = [statistics.median(s.yard_seconds for s in tenth) for tenth in tenths]
    plain = [_rate(tenth, "cpu_seconds") / yard for tenth, yard in zip(tenths, yards, strict=True)]
    whole = [_total(tenth, "cpu_seconds") / yard for tenth, yard in zip(tenths, yards, strict=True)]
    measured = {
        "work of a plain step": (plain, "yards", SLOWER), "work of a step, all in all": (whole, "yards", SLOWER),
        "work of saves and validations, a step": ([a - b for a, b in zip(whole, plain, strict=True)], "yards", MORE),
        "cpu_seconds a step": ([_rate(tenth, "cpu_seconds") for tenth in tenths], "s", math.inf),
        "seconds a step": ([_rate(tenth, "seconds") for tenth in tenths], "s", math.inf),
    }  # fmt: skip
    for name, ((before, after), unit, bound) in measured.items():
        ratio = after / before if before > 0 else 1.0
        # Of what is less than a hundredth of a step's work, the ratio is of no account.
        ok = not settled or ratio <= bound or after < 0.01 * plain[1]
        found.append({"name": name, "unit": unit, "before": before, "after": after, "ratio": ratio, "ok": ok})
    return found


def _total(samples: Sequence[Sample], name: str) -> float:
    """Return what a step takes, saves and validations included."""
    first, last = samples[0], samples[-1]
    return (getattr(last, name) - getattr(first, name)) / (last.step - first.step)


def _rate(samples: Sequence[Sample], name: str) -> float:
    """Return the median, over neighbouring looks, of what a step takes."""
    pairs = itertools.pairwise(samples)
    return statistics.median((getattr(b, name) - getattr(a, name)) / (b.step - a.step) for a, b in pairs)


def _bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def check_disk(folder: Path, steps: int, every: int, keep: int, validations: int) -> list[str]:
    """Return what a run has left on the disk that it should not have, or not enough of."""
    from jaxlm.run.metrics import read_rows
    from jaxlm.train.saved import saved_steps

    wrong = []
    expected = sorted({*range(every, steps + 1, every), steps})[-keep:]
    if saved_steps(folder / "checkpoints") != expected:
        wrong.append(f"checkpoints {saved_steps(folder / 'checkpoints')}, not {expected}")
    if stray := [path.name for path in folder.rglob("*tmp*")]:
        wrong.append(f"temporary files are left: {stray[:5]}")
    splits = [row["split"] for row in read_rows(folder / "metrics.jsonl")]
    counts = {split: splits.count(split) for split in ("train", "validation")}
    if counts != {"train": steps, "validation": validations}:
        wrong.append(f"the record has {counts}, not {steps} and {validations}")
    sizes = [_bytes(folder / "checkpoints" / str(step)) for step in saved_steps(folder / "checkpoints")]
    if max(sizes) > 1.1 * min(sizes):
        wrong.append(f"checkpoints of {sizes} bytes: they grow")
    written = {name: _bytes(folder / name) for name in ("metrics.jsonl", "tensorboard")}
    others = _bytes(folder) - _bytes(folder / "checkpoints") - sum(written.values())
    for name, size in written.items():
        if size > A_ROW * len(splits):
            wrong.append(f"{name} has {size} bytes for {len(splits)} rows, more than {A_ROW} a row")
    if others > OTHERS:
        wrong.append(f"{others} bytes of other files, more than {OTHERS}")
    return wrong
