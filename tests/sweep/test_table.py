"""A sweep's comparison: known numbers in, known numbers out, the same whatever happened on the way."""

import csv
import dataclasses
import json
import math

import pytest
from rich.console import Console

from jaxlm.config import to_dict
from jaxlm.eval.comparison import paired
from jaxlm.launch.local import Local
from jaxlm.sweep.arms import Conditions, Finished, compare, last, speed_up, steps_to
from jaxlm.sweep.display import SweepDisplay
from jaxlm.sweep.queue import Queue
from jaxlm.sweep.read import load_sweep, settle, write_record
from jaxlm.sweep.share import Share
from jaxlm.sweep.start import _work
from jaxlm.sweep.table import _read_run, tabulate, write_table

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
    assert wide["metrics"]["loss"]["values"] == {"0": 2.9, "1": 3.0, "2": 3.0}
    expected = paired(dict(enumerate(LOSSES["wide | tall"])), dict(enumerate(LOSSES["control"])))
    assert {name: wide["metrics"]["loss"]["difference"][name] for name in expected._fields} == expected._asdict()
    assert wide["metrics"]["loss"]["difference"]["mean"] == pytest.approx(-0.4 / 3)
    assert wide["speed_up"]["values"]["0"] == pytest.approx(1.1)  # a fall of 1.1 passes one of 1.0 at step 20 / 1.1
    assert wide["tokens"] == 3 * 20 * 8 * 32 and "router_dead" not in wide
    assert table.numbers["arms"][0]["metrics"]["loss"]["difference"] is None
    assert [row[0] for row in table.rows] == list(LOSSES)
    cells = dict(zip(table.heading, table.rows[1], strict=True))
    assert cells["seeds"] == "3" and cells["validation loss minus control"].startswith("-0.1333 (-0.27")
    assert "detectable" in cells["validation loss minus control"]
    slow = dict(zip(table.heading, table.rows[2], strict=True))
    assert slow["speed-up in steps to control's loss"] == "reached by 1 of 3"
    assert "2 arms were compared; by Holm's correction no difference holds" in table.numbers["notes"][0]
    assert wide["metrics"]["loss"]["difference"]["adjusted_p"] == pytest.approx(2 * expected.p)


def test_it_is_written_in_three_forms(made):
    folder, table = made[1].folder, tabulate(made[1].folder, ("loss", "accuracy"))
    write_table(folder, table)
    assert json.loads((folder / "table.json").read_text()) == table.numbers
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) >= 5 and lines[3].startswith("| wide \\| tall | 3 |") and "validation accuracy minus control" in lines[0]
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == list(LOSSES)
    assert float(rows[1]["loss difference mean"]) == table.numbers["arms"][1]["metrics"]["loss"]["difference"]["mean"]
    assert float(rows[2]["accuracy mean"]) == 0.5


def test_what_is_not_finished_does_not_count(made):
    _, record = made
    (record.arms["slow"][1].run / "checkpoints" / "20").rename(record.arms["slow"][1].run / "checkpoints" / "15")
    for entry in record.arms["wide | tall"]:
        (entry.run / "checkpoints" / "20").rmdir()
    table = tabulate(record.folder)
    assert [row[1] for row in table.rows] == ["3", "0 of 3", "2 of 3"]
    assert table.rows[1][2:4] == ["-", "-"]
    assert table.numbers["arms"][2]["metrics"]["loss"]["difference"]["seeds"] == 2
    said = "4 of 9 trials are not finished and not counted: wide | tall, seeds 0, 1, 2; slow, seed 1."
    assert table.numbers["notes"][0] == said


def test_a_run_that_diverged_is_not_hidden(made):
    _, record = made
    entry = record.arms["slow"][2]
    rows = curve(3.0)
    rows[-1]["loss"] = None  # as nan is written
    (entry.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tabulate(record.folder)
    assert table.numbers["arms"][2]["metrics"]["loss"]["values"]["2"] is None
    assert table.rows[2][2:4] == ["not finite", "not finite, 3 seeds"]
    json.dumps(table.numbers, allow_nan=False)


def fail(entry, kind, message):
    """Leave a run as it is where training failed after 12 steps."""
    (entry.run / "checkpoints" / "20").rmdir()
    failure = {"time": "2100-01-01T00:00:00+00:00", "kind": kind, "message": message, "step": 12}
    (entry.run / "failure.json").write_text(json.dumps(failure))


def test_a_trial_that_ended_diverged_counts_and_one_that_failed_is_named(made):
    """To leave out the seeds that diverged would be to choose: the others are those that an arm does well on."""
    _, record = made
    fail(record.arms["slow"][2], "DivergedError", "10 steps in a row")
    fail(record.arms["wide | tall"][1], "DataError", "the disk\nis full")
    with (record.arms["wide | tall"][0].run / "metrics.jsonl").open("a") as out:
        out.write("\0\0\n" + json.dumps(curve(2.0)[-1]) + "\n")
    table = tabulate(record.folder, ("loss", "accuracy"))
    _, wide, slow = table.numbers["arms"]
    assert slow["metrics"]["loss"]["values"] == {"0": 3.3, "1": 3.2, "2": None} and slow["seeds"] == [0, 1, 2]
    assert table.rows[2][1:4] == ["3", "not finite", "not finite, 3 seeds"] and slow["speed_up"]["why"] == "a run diverged"
    assert slow["metrics"]["accuracy"]["values"]["2"] is None
    assert wide["seeds"] == [2] and table.rows[1][1] == "1 of 3, 2 failed" and set(wide["failed"]) == {"0", "1"}
    notes = "\n".join(table.numbers["notes"])
    assert "wide | tall: 2 of 3 seeds failed and are not counted: 0: " in notes and "1: DataError: the disk is full." in notes
    assert "is no metrics row" in notes and "Diverged, and counted as not finite: slow, seed 2." in notes


def test_what_holds_does_not_where_seeds_failed(made):
    """Losses so far apart that all differences would hold."""
    _, record = made
    for entry in record.trials:
        loss = {"control": 3.0, "wide | tall": 2.5, "slow": 3.5}[entry.arm] + 0.01 * entry.seed * (entry.arm != "control")
        (entry.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(loss)))
    assert "the differences of wide | tall; slow hold" in tabulate(record.folder).numbers["notes"][-1]
    fail(record.arms["slow"][2], "DataError", "the disk is full")
    assert "slow hold" not in tabulate(record.folder).numbers["notes"][-1]
    fail(record.arms["control"][2], "DataError", "the disk is full")
    assert "no difference holds" in tabulate(record.folder).numbers["notes"][-1]


def test_an_unknown_metric_is_told_of_with_the_nearest(made):
    """Not raised: the trials are trained by then."""
    notes = tabulate(made[1].folder, ("acuracy",)).numbers["notes"]
    assert any("has 'acuracy'. Did you mean 'accuracy'" in note for note in notes)


@pytest.mark.parametrize("metric", ["tokens", "router_entropy", "seeds", "changes"])
def test_a_metric_may_be_called_as_a_column_is(made, metric):
    _, record = made
    for entry in record.trials:
        rows = [row | {metric: 7.0 + entry.seed} for row in curve(3.0)]
        (entry.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tabulate(record.folder, (metric,))
    assert table.numbers["arms"][1]["metrics"][metric]["values"] == {"0": 7.0, "1": 8.0, "2": 9.0}
    assert table.numbers["arms"][1]["seeds"] == [0, 1, 2]
    write_table(record.folder, table)


def test_what_is_unlike_or_never_validated_is_said(made):
    _, record = made
    for entry in record.trials:
        kind = "1 x H100" if entry.arm == "slow" else "8 x cpu"
        start = {"devices": kind, "versions": {"jax": "0.9" if entry.arm == "wide | tall" else "0.10"}, "code": "0" * 16}
        (entry.run / "run.json").write_text(json.dumps({"starts": [start]}))
        (entry.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(3.0)[:20]))
    table = tabulate(record.folder)
    notes = "\n".join(table.numbers["notes"])
    assert "slow and control differ in devices:" in notes and "wide | tall and control differ in jax version:" in notes
    assert f"by another version of the code than {record.code[:6]}: control, seeds 0, 1, 2; " in notes
    assert "No run was validated" in notes and table.rows[0][2] == "-"


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
    assert last([{"step": 1, "split": "validation", "loss": 10**400}], "loss") != 0, "a number too large for a float"


def test_a_record_is_read_once_and_its_validations_kept(tmp_path):
    rows = curve(3.0, router_dead=[1, 3], router_dropped=[0.0, 0.5])
    rows[0]["router_dropped"] = [1.0, 1.0]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, routers = _read_run(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in kept] == [5, 10, 15, 20]
    assert routers["router_dead"] == 2.0 and routers["router_dropped"] == pytest.approx((1 + 19 * 0.25) / 20)
    assert math.isnan(routers["router_entropy"])


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


def validated(*losses, conditions=Conditions(), **more):
    """A finished run with these validation losses at steps 10, 20 and so on."""
    return Finished([{"step": 10 * (i + 1), "split": "validation", "loss": v} | more for i, v in enumerate(losses)], conditions)


def test_speed_up_is_of_first_crossings():
    bent = {0: validated(4.0, 3.0, 2.0, 3.0)}  # as low as at its end already at step 20
    assert speed_up(bent, bent).values == {0: 1.0}
    fast = {0: validated(4.0, 2.0, 2.0, 2.0)}
    assert speed_up(fast, bent).values == {0: pytest.approx(20 / 15)}
    assert speed_up({1: bent[0]}, bent) is None
    low = speed_up({0: validated(2.9, 2.0)}, bent)
    assert low.mean is None and "first validation" in low.why
    rising = {0: validated(2.0, 3.0)}
    assert "first validation" in speed_up(rising, rising).why
    assert "not finite" in speed_up(bent, {0: validated(4.0, None)}).why
    never = speed_up({0: validated(4.0, 3.5)}, bent)
    assert (never.values, never.pairs, never.mean, never.why) == ({}, 1, None, "")


def test_what_differs_in_kind_is_not_compared():
    bytes_, words = (Conditions(tokenizer=name, objective="text", steps="20") for name in ("bytes", "words"))
    runs = {"control": {0: validated(4.0, 3.0, bits_per_byte=1.0, conditions=bytes_)}}
    runs["words"] = {0: validated(6.0, 5.0, bits_per_byte=0.9, conditions=words)}
    runs["long"] = {0: validated(4.0, 2.0, conditions=bytes_._replace(steps="40"))}
    runs["pairs"] = {0: validated(0.7, 0.5, conditions=bytes_._replace(objective="preferences"))}
    loss = compare(runs, "control", "loss")
    assert loss["words"].difference is None and "bits_per_byte" in loss["words"].refused and loss["words"].mean.mean == 5.0
    assert loss["pairs"].difference is None and loss["long"].difference.mean == -1.0
    assert compare(runs, "control", "bits_per_byte")["words"].difference.mean == pytest.approx(-0.1)
    wide = {0: validated(4.0, 2.0, conditions=bytes_._replace(tokens="99"))}
    assert speed_up(wide, {0: validated(4.0, 3.0, conditions=bytes_._replace(tokens="98"))}).why == "differs in tokens"
    for arm, word in (("words", "tokenizer"), ("long", "steps"), ("pairs", "objective")):
        assert speed_up(runs[arm], runs["control"]).why == f"differs in {word}"


def test_arms_of_other_kinds_are_told_of(sweep_file, tmp_path):
    arms = """trials(experiment(), named({"control": {}, "long": {"steps": 40}, "short rows": {"data.sequence_length": 16}}))"""
    sweep = load_sweep(sweep_file(arms))
    record = write_record(settle(sweep, tmp_path / "runs"))
    for entry, trial in zip(record.trials, sweep.trials, strict=True):
        finish(entry, trial.experiment, curve(3.0))
        (entry.run / "checkpoints" / "40").mkdir()
    (record.arms["short rows"][0].run / "tokenizer.model").write_bytes(b"another")
    table = tabulate(record.folder)
    cells = [dict(zip(table.heading, row, strict=True)) for row in table.rows]
    assert cells[1]["speed-up in steps to control's loss"] == cells[2]["speed-up in steps to control's loss"] == "-"
    assert cells[2]["validation loss minus control"] == "another tokenizer: compare bits_per_byte"
    notes = "\n".join(table.numbers["notes"])
    assert "long and control differ in steps, tokens:" in notes
    assert "short rows and control differ in tokenizer, sequence length, tokens:" in notes
    assert "long has no speed-up: differs in steps and tokens." in notes
