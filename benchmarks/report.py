"""Measure the report of a sweep of 12 runs: its size, the time to build it, and the time until a browser answers.

    python benchmarks/report.py

The sweep is invented (4 arms of mixtures of experts, 3 seeds, 2,000 steps, measures as of all twelve probes at 20 checkpoints),
its files are of the real formats. A headless Chromium opens the file at its curves. Printed are the medians over loads of the
time until all controls answer, of that until the first figure is drawn, and of the processor's time of the page for both. Exit
status 1 where a bar of bars.json is missed.
"""

import sys
import tempfile
import time
from pathlib import Path

import record
import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from browser import CHROMIUM, Browser
from report_sweep import write_sweep

from jaxlm.report.build import write_report


def main(steps: int = 2000, checkpoints: int = 20, loads: int = 5, json: Path | None = None) -> int:
    """Build and open a report.

    Args:
        steps: Of each run.
        checkpoints: That probes have looked at.
        loads: How often the browser opens the file.
        json: Write everything measured here.
    """
    with tempfile.TemporaryDirectory() as home:
        sweep = write_sweep(Path(home) / "runs", steps=steps, checkpoints=checkpoints, unfinished=False, every_probe=True)
        page = Path(home) / "report.html"
        began = time.monotonic()
        done = write_report([sweep], page)
        built = time.monotonic() - began
        size = done["bytes"] / 1e6
        print(f"{done['runs']} runs of {steps} steps, {checkpoints} checkpoints: {size:.2f} MB, built in {built:.1f} s")
        results = [record.measured("size of the page", [size], "MB", "lower")]
        results.append(record.measured("building it", [built], "s", "lower"))
        if CHROMIUM is None:
            print("no chromium on this machine (apt-get install chromium): time to interactive not measured")
        else:
            names = ("until controls answer", "until the first figure is drawn", "the page's processor time")
            for name, column in zip(names, zip(*opened(page, loads), strict=True), strict=True):
                results.append(record.measured(name, column, "s", "lower"))
                print(f"{name}: {results[-1]['ours']:.2f} s ({min(column):.2f} to {max(column):.2f})")
        standard = (steps, checkpoints) == (2000, 20)
        return record.finish("report", results, json, judged=standard, lacks=() if CHROMIUM else ("browser",))


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
