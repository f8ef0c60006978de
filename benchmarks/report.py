"""Measure the report of a sweep of 12 runs: its size, the time to build it, and the time until a browser answers.

    python benchmarks/report.py

The sweep is invented (4 arms of mixtures of experts, 3 seeds, 2,000 steps, measures as of all twelve probes at 20 checkpoints),
its files are of the real formats. A headless Chromium opens the file at its curves. Printed are the best over loads of the time
until all controls answer, of that until the first figure is drawn, and of the processor's time of the page for both: what else
the machine does makes them longer, and is not the page's. Exit status 1 where the file has 8 MB or more, or any is 2 s or more.
"""

import sys
import tempfile
import time
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from browser import CHROMIUM, Browser
from report_sweep import write_sweep

from jaxlm.report.build import write_report

MOST_MB, MOST_SECONDS = 8.0, 2.0


def main(steps: int = 2000, checkpoints: int = 20, loads: int = 5) -> int:
    """Build and open a report.

    Args:
        steps: Of each run.
        checkpoints: That probes have looked at.
        loads: How often the browser opens the file.
    """
    with tempfile.TemporaryDirectory() as home:
        sweep = write_sweep(Path(home) / "runs", steps=steps, checkpoints=checkpoints, unfinished=False, every_probe=True)
        page = Path(home) / "report.html"
        began = time.monotonic()
        done = write_report([sweep], page)
        built = time.monotonic() - began
        size = done["bytes"] / 1e6
        print(f"{done['runs']} runs of {steps} steps, {checkpoints} checkpoints: {size:.2f} MB, built in {built:.1f} s")
        good = size < MOST_MB
        if CHROMIUM is None:
            print("no chromium on this machine (apt-get install chromium): time to interactive not measured")
            return 0 if good else 1
        answers, drawn, processor = (min(column) for column in zip(*opened(page, loads), strict=True))
        print(
            f"controls answer after {answers:.2f} s, the first figure is there after {drawn:.2f} s, processor {processor:.2f} s"
        )
        return 0 if good and max(answers, drawn, processor) < MOST_SECONDS else 1


def opened(page: Path, loads: int) -> list[tuple[float, float, float]]:
    """Return, for each load, the seconds until all controls answer, until a figure is drawn, and of the processor."""
    marks = [f"performance.getEntriesByName('jaxlm-{name}')" for name in ("interactive", "figure")]
    found = []
    with Browser() as browser:
        for number in range(loads):
            browser.open(page, " && ".join(f"{mark}.length" for mark in marks), f"?{number}#curves")
            processor = browser.processor_seconds()
            answers, drawn = (browser.evaluate(f"{mark}[0].startTime") / 1000 for mark in marks)
            found.append((answers, drawn, processor))
            if browser.complaints():
                raise SystemExit(f"the page says {browser.complaints()}")
    return found


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
