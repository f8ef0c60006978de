"""The table of all runs: what changed is read anew, what cannot be read is told, and what was asked for is shown."""

import csv
import fcntl
import json
import os
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_folders import make_run, record, write_rows

from jaxlm.cli import main
from jaxlm.errors import CheckpointError
from jaxlm.run.standing import standing
from jaxlm.sweep import index
from jaxlm.sweep.index import INDEX, find_runs
from jaxlm.sweep.listing import duration


@pytest.fixture
def reads(monkeypatch):
    """The names of the folders that were read, not taken from the index."""
    names = []
    monkeypatch.setattr(index, "standing", lambda path, known=None: names.append(path.name) or standing(path, known))
    return names


@pytest.fixture
def runs(tmp_path):
    """Four runs at several depths, long enough ago that times of change tell."""
    folder = tmp_path / "runs"
    make_run(folder / "a", loss=3.0, name="dense", seed=0)
    make_run(folder / "group" / "b", loss=2.0, name="wide", seed=1, hidden_size=64)
    make_run(folder / "group" / "deep" / "c", loss=4.0, name="wide", done=25, saves=(20,), hidden_size=64)
    make_run(folder / "d", done=0, saves=(), name="dense")
    age(folder)
    return folder


def age(folder):
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            os.utime(path, (1_700_000_000, 1_700_000_000))


def run(*arguments, capsys=None, status=0):
    assert main(["runs", *map(str, arguments)]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def table(*arguments, capsys):
    """The lines of the table, cells apart."""
    lines = [re.split(r" {2,}", line.strip()) for line in run(*arguments, capsys=capsys).splitlines() if "  " in line]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_runs_are_found_at_any_depth_but_not_within_runs(runs, monkeypatch, capsys):
    make_run(runs / "a" / "inside")
    make_run(runs / ".hidden" / "run")
    found = find_runs(runs)
    assert [str(stand.folder.relative_to(runs)) for stand in found] == ["a", "d", "group/b", "group/deep/c"]
    assert [stand.kind for stand in found] == ["finished", "empty", "finished", "stopped"]
    assert [stand.folder for stand in find_runs(runs / "a")] == [runs / "a"]  # a run itself
    monkeypatch.chdir(runs)
    for _ in range(2):
        assert [row["run"] for row in table(".", "--sort", "run", capsys=capsys)] == ["a", "d", "group/b", "group/deep/c"]
    with pytest.raises(CheckpointError, match="there is no folder .* Did you mean 'runs'?"):
        find_runs(runs.parent / "ruins")


def test_only_what_changed_is_read_again(runs, reads):
    first = find_runs(runs)
    assert sorted(reads) == ["a", "b", "c", "d"]
    reads.clear()
    again = find_runs(runs)
    assert reads == [] and [(s, dict(s.config)) for s in again] == [(s, dict(s.config)) for s in first]
    write_rows(runs / "a", record(30, loss=1.0))
    shutil.rmtree(runs / "d")
    shutil.copytree(runs / "a", runs / "e")
    (runs / "group" / "b" / "checkpoints" / "40").mkdir()
    assert [(s.folder.name, s.last.get("loss", 0) < 1.5) for s in find_runs(runs)] == [
        ("a", True), ("e", True), ("b", False), ("c", False)
    ]  # fmt: skip
    assert sorted(reads) == ["a", "b", "e"]
    reads.clear()
    find_runs(runs, rebuild=True)
    assert sorted(reads) == ["a", "b", "c", "e"]


def test_a_change_within_a_tick_of_the_reading_is_not_missed(runs, reads, monkeypatch):
    """The same size, the same file, the same time of change: only how near it was to the reading tells."""
    monkeypatch.setattr(index, "TICK", 600_000_000_000)  # however slow this machine is now
    record = runs / "a" / "metrics.jsonl"
    content = record.read_text()
    record.write_text(content)
    found = find_runs(runs)
    times = (record.stat().st_atime_ns, record.stat().st_mtime_ns)
    with record.open("r+") as file:
        file.write(content.replace('"loss": 3.', '"loss": 7.'))
    os.utime(record, ns=times)
    assert found[0].last["loss"] < 4 < find_runs(runs)[0].last["loss"] and reads.count("a") == 2


def test_a_run_keeps_its_own_configuration(tmp_path):
    """The first ones read have none that can be read, or another program's: nothing of the others' is put in its place."""
    folder = tmp_path / "runs"
    for name, content in {"z0": "{", "z1": '{"seed": 5, "name": "other"}'}.items():
        (make_run(folder / name) / "config.json").write_text(content)
    (make_run(folder / "z2") / "config.json").unlink()
    for seed in range(3):
        make_run(folder / f"a{seed}", seed=seed, name=f"run {seed}")
    age(folder)
    listings = [[(stand, dict(stand.config)) for stand in find_runs(folder)] for _ in range(3)]
    assert listings[0] == listings[1] == listings[2]
    assert [config.get("seed") for _, config in listings[2]] == [0, 1, 2, None, 5, None]


def test_what_is_mended_without_a_time_of_change_is_read_again(runs):
    config = runs / "a" / "config.json"
    content = config.read_text()
    config.write_text("{".rjust(len(content)))
    age(runs)
    assert find_runs(runs)[0].kind == "broken"
    config.write_text(content)
    age(runs)
    assert find_runs(runs)[0].kind == "finished"


def test_running_is_always_asked_anew(runs, reads):
    assert find_runs(runs)[-1].kind == "stopped"
    with (runs / "group" / "deep" / "c" / "lock").open() as lock:  # not even a time of change tells of it
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [find_runs(runs)[-1].kind for _ in range(2)] == ["running", "running"]
    assert find_runs(runs)[-1].kind == "stopped" and reads.count("c") == 3 and reads.count("a") == 1


def damage(path, kind):
    content = path.read_bytes()
    head, _, body = content.partition(b"\n")
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes({
            "empty": b"", "cut short": content[: len(content) // 2], "bytes": bytes(range(256)) * 9,
            "other numbers": head + b"\n" + body.replace(b"3.0", b"9.9"), "another version": b"0" * 16 + content[16:],
            "no runs": head + b"\n{}",
        }[kind])  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "cut short", "bytes", "other numbers", "another version", "no runs", "a folder"])
def test_a_damaged_index_is_made_anew_or_done_without(runs, reads, kind):
    first = find_runs(runs)
    damage(runs / INDEX, kind)
    reads.clear()
    assert [(s, dict(s.config)) for s in find_runs(runs)] == [(s, dict(s.config)) for s in first]
    assert sorted(reads) == ["a", "b", "c", "d"]
    reads.clear()
    find_runs(runs)
    assert reads == ([] if kind != "a folder" else reads) and not list(runs.glob(f"{INDEX}.*"))


def test_what_cannot_be_read_stops_nothing(runs, capsys):
    (runs / "loop").symlink_to("loop")
    (runs / "back").symlink_to("..")
    (runs / "again").symlink_to("group")
    outside = make_run(runs.parent / "outside" / "run", loss=1.0)
    (runs / "elsewhere").symlink_to(runs.parent / "outside")
    (runs / "half").mkdir()
    (runs / "half" / "lock").touch()
    (runs / "model").mkdir()
    (runs / "model" / "config.json").write_text('{"model_type": "llama"}')
    make_run(runs / "model" / "tuned")
    (make_run(runs / "cut", loss=2.5) / "config.json").write_text('{"name": "cu')
    (make_run(runs / "gone", done=0, saves=()) / "config.json").unlink()
    (runs / "notes").mkdir()
    (runs / "notes" / "config.json").mkdir()
    said = run(runs, "--sort", "run", capsys=capsys)
    assert [line.split("  ")[0] for line in said.splitlines() if "not read" not in line][1:] == [
        "a", "cut", "d", "elsewhere/run", "group/b", "group/deep/c", "half", "model/tuned"
    ]  # fmt: skip
    assert "not read: model: not a run" in said and "not read: cut: config.json is not JSON" in said
    assert "not read: gone: config.json is missing" in said and "not read: notes: not a run" in said
    assert said == run(runs, "--sort", "run", capsys=capsys)  # from the index, too
    assert outside.exists() and (runs / "model" / "config.json").read_text() == '{"model_type": "llama"}'


def test_a_folder_that_may_not_be_opened_is_told_of(runs, capsys, monkeypatch):
    def scandir(path, real=os.scandir):
        if str(path).endswith("group"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(index.os, "scandir", scandir)
    assert "not read: group: cannot be read: Permission denied" in run(runs, capsys=capsys)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.binary(max_size=50), metrics=st.lists(st.binary(max_size=30)).map(b"\n".join))
def test_junk_beside_runs(runs, config, metrics):
    (runs / "junk").mkdir(exist_ok=True)
    (runs / "junk" / "config.json").write_bytes(config)
    (runs / "junk" / "metrics.jsonl").write_bytes(metrics)
    for _ in range(2):
        found = {stand.folder.name: stand.kind for stand in find_runs(runs)}
        assert found.pop("junk") in ("broken", "foreign")
        assert found == {"a": "finished", "b": "finished", "c": "stopped", "d": "empty"}


def test_the_table_shows_what_differs(runs, capsys):
    rows = table(runs, "--sort", "run", capsys=capsys)
    assert [row["run"] for row in rows] == ["a", "d", "group/b", "group/deep/c"]
    assert rows[2] == {
        "run": "group/b", "name": "wide", "kind": "finished", "step": "30", "steps": "30", "loss": "2.0333",
        "bits_per_byte": "2.8986", "tokens/s": "1,029", "goodput": "92.3 %", "age": rows[2]["age"], "hidden_size": "64",
        "seed": "1",
    }  # fmt: skip
    assert rows[1]["loss"] == rows[1]["goodput"] == "-"
    # Of the two wide ones only the seed differs, and every step is taken or none asked for.
    assert "hidden_size" not in table(runs, "--where", "name = wide", capsys=capsys)[0]
    shown = table(runs, "--columns", "run", "train.loss", "num_layers", "--limit", "1", "--sort=-loss", capsys=capsys)
    assert shown == [{"run": "group/deep/c", "train.loss": "4.0400", "model.num_layers": "2"}]


@pytest.mark.parametrize(
    "conditions, left",
    [
        (["loss < 3.1"], "ab"), (["loss<=2.034"], "b"), (["loss > 2.5", "loss < 3.5"], "a"), (["kind=stopped"], "c"),
        (["kind != finished"], "cd"), (["name ~ EN"], "ad"), (["model.hidden_size = 64"], "bc"), (["hidden_size == 64"], "bc"),
        (["model.causal = true", "seed = 1"], "b"), (["loss = none"], "d"), (["loss != none", "step >= 26"], "ab"),
        (["age > 2h"], "abcd"), (["started >= 2026-01-02", "kind = empty"], "d"), (["model.norm = 'rms'"], "abcd"),
        (["data.sources ~ stdlib"], "abcd"), (["seed > 0"], "b"), (["why ~ step 20"], "c"), (["run ~ group"], "bc"),
        (["seed = '1'"], "b"), (["loss < '2.1'"], "b"),
    ],
)  # fmt: skip
def test_conditions(runs, capsys, conditions, left):
    options = [word for condition in conditions for word in ("--where", condition)]
    found = json.loads(run(runs, "--json", *options, "--sort", "run", capsys=capsys))
    assert "".join(entry["run"][-1] for entry in found) == "".join(sorted(left, key="adbc".index))


def test_faults_of_conditions_and_columns(runs, capsys):
    for option, value, fault in (
        ("--where", "lossy < 3", "no column 'lossy'. Did you mean 'loss'"),
        ("--where", "model.num_layer = 4", "Did you mean 'model.num_layers'?"),
        ("--where", "loss 3", "is no condition"),
        ("--where", "loss < three", "compares a number with the text 'three'"),
        ("--where", "vocab_size = 3", "could be model.vocab_size, data.tokenizer.vocab_size"),
        ("--sort", "-steppes", "Did you mean 'steps'?"),
        ("--columns", "nam", "Did you mean 'name'?"),
        ("--limit", "-1", "--limit -1"),
    ):
        assert fault in run(runs, option, value, capsys=capsys, status=2), option
    assert "none of 4 runs fulfils loss < 0" in run(runs, "--where", "loss < 0", capsys=capsys)
    assert "there is no folder" in run(runs / "b", capsys=capsys, status=2)
    (runs.parent / "nothing").mkdir()
    assert "no runs in" in run(runs.parent / "nothing", capsys=capsys)


def test_sorting_puts_what_is_not_known_last(runs, capsys):
    def order(column):
        return "".join(e["run"][-1] for e in json.loads(run(runs, "--json", "--sort", column, capsys=capsys)))

    assert order("loss") == "bacd" and order("-loss") == "cabd" and order("-step")[:2] in ("ab", "ba")
    os.utime(runs / "d" / "config.json")
    assert order("age")[0] == "d"  # the newest first


def test_json_and_csv_have_numbers_in_full(runs, capsys, tmp_path):
    found = json.loads(run(runs, "--json", "--where", "run = a", capsys=capsys))[0]
    assert found["loss"] == 3 + 1 / 30 and found["checkpoints"] == [20, 30] and found["config"]["model.num_layers"] == 2
    assert found["train"]["step"] == 29 and found["kind"] == "finished"
    out = tmp_path / "runs.csv"
    run(runs, "--csv", out, "--sort", "run", capsys=capsys)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert float(rows[0]["loss"]) == 3 + 1 / 30 and rows[1]["loss"] == "" and rows[2]["model.hidden_size"] == "64"
    (runs / "a" / "metrics.jsonl").write_text('{"step": 30, "split": "validation", "loss": Infinity}\n')
    assert json.loads(run(runs, "--json", "--where", "run = a", capsys=capsys))[0]["loss"] is None
    assert "--csv" in run(runs, "--csv", tmp_path / "none" / "x.csv", capsys=capsys, status=2)
    assert "leave out --csv" in run(runs, "--csv", out, "--json", capsys=capsys, status=2)


def test_what_diverged_or_failed_is_told(runs, capsys):
    (runs / "a" / "metrics.jsonl").write_text('{"step": 30, "split": "validation", "loss": null}\n')
    failure = {"time": "2027-01-02T03:09:00+00:00", "kind": "DataError", "message": "the disk\nis full", "step": 12}
    (runs / "d" / "failure.json").write_text(json.dumps(failure))
    rows = {row["run"]: row["loss"] for row in table(runs, "--columns", "run", "loss", "kind", capsys=capsys)}
    assert rows["a"] == "nan" and rows["d"] == "-"
    said = run(runs, "--sort", "loss", capsys=capsys)
    assert "failed: d: DataError: the disk is full" in said and said.splitlines()[1].startswith("group/b")


def test_durations():
    assert [duration(s) for s in (3, 119, 120, 7199, 7200, 172800)] == ["3s", "119s", "2m", "120m", "2h", "2d"]
