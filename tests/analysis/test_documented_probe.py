"""The probe that the guide shows finds what it asks for, and docs/analysis.md names every probe."""

import re
from pathlib import Path

import numpy as np
from planted import config, induction_head, rows

from jaxlm.analysis.probe_files import known_probes, load_probes
from jaxlm.analysis.view import View

DOCS = Path(__file__).parents[2] / "docs"


def test_the_example_finds_the_head_that_matters():
    (probe,) = load_probes([str(DOCS / "examples" / "heads.py")])
    assert probe.title == "What each head is worth: the rise of the loss without it"
    model, twice = config(), rows(length=12)
    said = np.tile(np.arange(1, 7, dtype=np.int32), (4, 2))
    batch = twice._replace(tokens=said, targets=np.roll(said, -1, axis=1), weights=(twice.positions >= 6).astype(np.float32))
    found = probe(View.of({0: induction_head(model)}, model, batch))
    assert found["worth_by_head"].values.shape == (2, 1) and found["worth_by_head"].values.min() > 1
    assert found["greatest"] == found["worth_by_head"].values.max()


def test_every_probe_is_documented():
    assert sorted(re.findall(r"^\| `(\w+)` \|", (DOCS / "analysis.md").read_text(), re.MULTILINE)) == known_probes()
    assert all(probe.title for probe in load_probes([]))
