"""An invented sweep of eleven runs and its report, made once."""

from types import SimpleNamespace

import pytest
from report_sweep import write_sweep

from jaxlm.report.build import write_report


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The sweep's folder, the page of its report, its text, and what went into it."""
    root = tmp_path_factory.mktemp("reported")
    sweep = write_sweep(root / "runs", steps=200, checkpoints=4)
    page = root / "report.html"
    done = write_report([sweep], page, max_points=60, written="2026-03-02T00:00:00+00:00")
    return SimpleNamespace(sweep=sweep, page=page, text=page.read_text(), done=done)
