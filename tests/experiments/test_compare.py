"""Where the runs of experiments that are scripts live."""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from compare import run_folder
from quickstart import experiment


def test_a_run_lives_where_what_decides_its_result_says():
    base = experiment()
    found = run_folder(Path("runs"), base)
    assert run_folder(Path("runs"), dataclasses.replace(base, name="called otherwise")) == found
    others = [dataclasses.replace(base, seed=base.seed + 1), dataclasses.replace(base, steps=base.steps + 1)]
    assert len({found, *(run_folder(Path("runs"), other) for other in others)}) == 3
    assert found.parent == Path("runs")
