"""Where the time went: every second of one kind, over all starts, and shown."""

import json

import pytest

from jaxlm.cli import main
from jaxlm.run import goodput
from jaxlm.run.goodput import KINDS, Clock, by_start, process_age, row_of, settle_earlier, share
from jaxlm.run.metrics import MetricsLog, read_rows


def test_every_moment_has_one_kind(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    clock = Clock(age=3.0)
    for kind, seconds in (("waiting", 1.0), ("stepping", 5.0)):
        clock.turn(kind)
        now[0] += seconds
        with clock.during("evaluating"):
            now[0] += 0.5
    now[0] += 0.25
    read = clock.read()
    assert {kind: spent for kind, spent in read.items() if spent} == {
        "starting": 3.0, "waiting": 1.0, "stepping": 5.25, "evaluating": 1.0
    }  # fmt: skip
    assert share(read) == 5.25 / 10.25 and clock.read() == read


def test_the_age_of_this_process():
    assert 0 < process_age() < 86400


def train(*steps, seconds=1.0):
    return [{"step": step, "split": "train", "step_seconds": seconds} for step in steps]


def spent(step, start, **seconds):
    return {"step": step, "split": "goodput"} | row_of(dict.fromkeys(KINDS, 0.0) | seconds, start, [])


def test_lost_steps_are_redone_and_uncounted_ones_added():
    rows = [*train(0), spent(1, 0, stepping=1.0), *train(1, 2, 3), spent(4, 0, stepping=4.0, compiling=6.0), *train(4, 5)]
    assert settle_earlier([], 0) == {}
    continued = settle_earlier(rows, 4)[0]  # killed after step 5, its checkpoint is that of step 4
    assert (continued["stepping"], continued["redone"], continued["compiling"]) == (4.0, 2.0, 6.0)
    older = settle_earlier(rows, 2)[0]  # that one is damaged
    assert (older["stepping"], older["redone"]) == (2.0, 4.0)
    assert settle_earlier(rows, 6)[0]["stepping"] == 6.0
    assert settle_earlier(rows, 4, every=3)[0]["redone"] == 6.0  # one in three steps has a row
    later = [*rows[:-2], spent(4, 0, stepping=4.0, redone=2.0), *train(4), spent(5, 1, stepping=1.0), *train(5)]
    both = settle_earlier(later, 3)
    assert (both[0]["stepping"], both[0]["redone"]) == (3.0, 3.0) and (both[1]["stepping"], both[1]["redone"]) == (0.0, 2.0)


def test_goodput_rows_outlive_lost_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*train(0, 1), spent(2, 0, stepping=2.0), *train(2)]))
    log = MetricsLog(path, 1)
    log.write(1, "goodput", spent(1, 0, stepping=1.0, redone=2.0))
    log.close()
    assert [(row["step"], row["split"]) for row in read_rows(path)] == [(0, "train"), (2, "goodput"), (1, "goodput")]
    assert by_start(read_rows(path))[0]["redone"] == 2.0


def test_a_run_accounts_for_its_time_and_shows_it(finished, capsys):
    rows = [row for row in read_rows(finished / "metrics.jsonl") if row["split"] == "goodput"]
    assert [row["step"] for row in rows] == [1, 7, 14, 21, 28, 30, 30]
    last = rows[-1]
    assert all(last["seconds"][kind] > 0 for kind in ("restoring", "compiling", "stepping", "evaluating", "saving", "other"))
    assert last["goodput"] == pytest.approx(last["seconds"]["stepping"] / sum(last["seconds"].values()), abs=1e-3)
    steps = sum(row["step_seconds"] for row in read_rows(finished / "metrics.jsonl") if row["split"] == "train")
    assert last["seconds"]["stepping"] == pytest.approx(steps, rel=0.5)
    assert main(["show", str(finished)]) == 0
    said = capsys.readouterr().out
    for part in ("finished, 30 steps", "checkpoints: 21, 28, 30", "8 x cpu", "data 8", "goodput", "compiling"):
        assert part in said, said
    assert main(["show", str(finished / "checkpoints")]) == 2 and "no config.json" in capsys.readouterr().err
