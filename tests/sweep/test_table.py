"""A sweep's comparison: known numbers in, known numbers out, the same whatever happened on the way."""

import csv
import dataclasses
import json
import math

import pytest
from rich.console import Console

from jaxlm.config import to_dict
from jaxlm.errors import ConfigError
from jaxlm.eval.comparison import paired
from jaxlm.launch.local import Local
from jaxlm.sweep.display import SweepDisplay
from jaxlm.sweep.queue import Queue
from jaxlm.sweep.read import load_sweep, settle, write_record
from jaxlm.sweep.share import Share
from jaxlm.sweep.start import _work
from jaxlm.sweep.table import last, over_run, steps_to, tabulate, write_table

ARMS = """trials(
    experiment(), named({"control": {}, "wide | tall": {"model.intermediate_size": 96}, "slow": {"z_loss": 1e-4}}), seeds=3
)"""


def curve(loss, **more):
    """Rows of 20 steps whose validation loss falls straight from 4 to `loss`."""
    rows = [{"step": s, "split": "train", "loss": 4.0, "real_tokens": 250, "step_seconds": s} | more for s in range(20)]
    rows += [{"step": s, "split": "validation", "loss": 4 + (loss - 4) * s / 20, "accuracy": s / 40} for s in (5, 10, 15, 20)]
    return rows


def finish(entry, experiment, rows):
    (entry.run / "checkpoints" / "20").mkdir(parents=True)
    (entry.run / "config.json").write_text(json.dumps(to_dict(experiment)))
    (entry.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LOSSES = {"control": (3.0, 3.2, 3.1), "wide | tall": (2.9, 3.0, 3.0), "slow": (3.3, 3.2, 3.4)}


@pytest.fixture
def made(sweep_file, tmp_path):
    """A sweep of three arms and three seeds with these last losses, and its record."""
    sweep = load_sweep(sweep_file(ARMS))
    record = write_record(settle(sweep, tmp_path / "runs"))
    for entry, trial in zip(record.trials, sweep.trials, strict=True):
        finish(entry, trial.experiment, curve(LOSSES[entry.arm][entry.seed]))
    return sweep, record


def test_arms_are_compared_with_the_control_seed_by_seed(made):
    table = tabulate(made[1].folder)
    wide = table.numbers["arms"][1]
    assert wide["loss"]["values"] == {"0": 2.9, "1": 3.0, "2": 3.0}
    expected = paired(dict(enumerate(LOSSES["wide | tall"])), dict(enumerate(LOSSES["control"])))
    assert {name: wide["loss"]["difference"][name] for name in expected._fields} == expected._asdict()
    assert wide["loss"]["difference"]["mean"] == pytest.approx(-0.4 / 3)
    assert wide["speed_up"]["values"]["0"] == pytest.approx(1.1)  # a fall of 1.1 passes one of 1.0 at step 20 / 1.1
    assert wide["tokens"] == 3 * 20 * 8 * 32 and "router_dead" not in wide
    assert table.numbers["arms"][0]["loss"]["difference"] is None
    assert [row[0] for row in table.rows] == list(LOSSES)
    cells = dict(zip(table.heading, table.rows[1], strict=True))
    assert cells["seeds"] == "3" and cells["validation loss minus control"].startswith("-0.1333 (-0.27")
    assert "detectable" in cells["validation loss minus control"]
    slow = dict(zip(table.heading, table.rows[2], strict=True))
    assert slow["speed-up to control's loss"] == "reached by 1 of 3"
    assert "2 arms were compared; by Holm's correction no difference holds" in table.numbers["notes"][0]
    assert wide["loss"]["difference"]["adjusted_p"] == pytest.approx(2 * expected.p)


def test_it_is_written_in_three_forms(made):
    folder, table = made[1].folder, tabulate(made[1].folder, ("loss", "accuracy"))
    write_table(folder, table)
    assert json.loads((folder / "table.json").read_text()) == table.numbers
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) >= 5 and lines[3].startswith("| wide \\| tall | 3 |") and "validation accuracy minus control" in lines[0]
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["arm"] for row in rows] == list(LOSSES)
    assert float(rows[1]["loss difference mean"]) == table.numbers["arms"][1]["loss"]["difference"]["mean"]
    assert float(rows[2]["accuracy mean"]) == 0.5


def test_what_is_not_finished_does_not_count(made):
    _, record = made
    (record.arms["slow"][1].run / "checkpoints" / "20").rename(record.arms["slow"][1].run / "checkpoints" / "15")
    for entry in record.arms["wide | tall"]:
        (entry.run / "checkpoints" / "20").rmdir()
    table = tabulate(record.folder)
    assert [row[1] for row in table.rows] == ["3", "0 of 3", "2 of 3"]
    assert table.rows[1][2:4] == ["-", "-"]
    assert table.numbers["arms"][2]["loss"]["difference"]["seeds"] == 2
    assert table.numbers["notes"][0] == "4 of 9 trials are not finished and not counted."


def test_a_run_that_diverged_is_not_hidden(made):
    _, record = made
    entry = record.arms["slow"][2]
    rows = curve(3.0)
    rows[-1]["loss"] = None  # as nan is written
    (entry.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tabulate(record.folder)
    assert table.numbers["arms"][2]["loss"]["values"]["2"] is None
    assert table.rows[2][2:4] == ["not finite", "not finite, 3 seeds"]
    json.dumps(table.numbers, allow_nan=False)


def test_an_unknown_metric_is_refused_with_the_nearest(made):
    with pytest.raises(ConfigError, match="has 'acuracy'. Did you mean 'accuracy'"):
        tabulate(made[1].folder, ("acuracy",))


def test_runs_of_another_version_are_told_of(made, monkeypatch):
    _, record = made
    entries = tuple(dataclasses.replace(e, digest="0" * 16) if e.arm == "slow" and e.seed == 0 else e for e in record.trials)
    write_record(dataclasses.replace(record, trials=entries))
    assert tabulate(record.folder).numbers["notes"][0].endswith("slow, seed 0.")


def test_mixtures_show_what_their_routers_did(made):
    _, record = made
    for entry in record.arms["slow"]:
        routers = {
            "router_dropped": [0.1, 0.3],
            "router_load_cv": [1.0, 2.0],
            "router_dead": [0.0, 1.0],
            "router_entropy": [2, 2],
        }
        (entry.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(3.0, **routers)))
    table = tabulate(record.folder)
    cells = [dict(zip(table.heading, row, strict=True)) for row in table.rows]
    assert [cells[2][name] for name in ("dropped %", "load CV", "dead", "entropy")] == ["20.00", "1.50", "0.50", "2.00"]
    assert cells[0]["dropped %"] == "-"


@pytest.mark.parametrize(("loss", "step"), [(3.5, 10), (3.75, 5), (3.9, 5), (3.0, 20), (2.9, None), (math.nan, None)])
def test_steps_to_a_loss_lie_on_straight_lines(loss, step):
    assert steps_to(curve(3.0), loss) == (pytest.approx(step) if step else None)


def test_last_and_mean_values():
    rows = curve(3.0, router_dead=[1, 3])
    assert last(rows, "loss") == 3.0 and last(rows, "router_dead", "train") == 2.0 and math.isnan(last(rows, "nothing"))
    assert over_run(rows, "router_dead") == 2.0 and math.isnan(over_run(rows, "nothing"))


def test_order_and_interruptions_do_not_show(sweep_file, trainer, tmp_path):
    sweep = load_sweep(sweep_file())
    tables = []
    for name in ("straight", "crooked"):
        record = write_record(settle(sweep, tmp_path / name))
        works = [_work(record, e, t.experiment, Local()) for e, t in zip(record.trials, sweep.trials, strict=True)]
        if name == "crooked":
            works.reverse()
            trainer.order(**{works[0].label: {"at": 10, "status": 2}})
        for _ in range(1 + (name == "crooked")):
            display = SweepDisplay(Console(quiet=True), 4, 80, 0)
            Queue(works, [Share() for _ in range(1 + (name == "straight"))], display).run(lambda: False)
            trainer.order()
        write_table(record.folder, tabulate(record.folder))
        tables.append([(record.folder / f"table.{form}").read_bytes() for form in ("json", "md", "csv")])
    assert tables[0] == tables[1] and b'"planned": 2' in tables[0][0]
